"""`Refused`: why a SCSI request was not carried out, in the words of SRB and sense data."""

from __future__ import annotations

from ...protocol.storage.sense import INVALID_FIELD_IN_CDB, Sense
from ...protocol.storage.srb import SrbStatus


class Refused(Exception):
    """Raised within a controller; its guest gets CHECK CONDITION with this SRB status and, where there are any, sense data."""

    def __init__(
        self, sense: Sense | None = INVALID_FIELD_IN_CDB, status: SrbStatus = SrbStatus.INVALID_REQUEST
    ) -> None:
        super().__init__(f"{status.name}, {sense or 'no sense data'}")
        self.sense = sense
        self.status = status
