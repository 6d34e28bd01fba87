"""What a SCSI command ended with, and the error that is made of it."""

from __future__ import annotations

import msgspec

from broker.errors import HostError

from ...protocol.storage import Opcode, ScsiStatus, Sense, SrbStatus


class ScsiReply(msgspec.Struct, frozen=True):
    """How a command ended. Numbers that are not in the enumerations are kept."""

    lun: int
    opcode: int
    srb_status: int
    """`SrbStatus`, without its flags."""
    scsi_status: int
    sense: Sense | None
    """Where the host gave any."""
    transferred: int
    """Bytes of data that were moved."""
    data: bytes
    """What the disk told; empty unless it was asked for data."""

    @property
    def is_good(self) -> bool:
        """The command was carried out."""
        return self.srb_status == SrbStatus.SUCCESS and self.scsi_status == ScsiStatus.GOOD

    def check(self) -> ScsiReply:
        """This reply. `ScsiError` unless it is good."""
        if not self.is_good:
            raise ScsiError(self)
        return self


class ScsiError(HostError):
    """A disk, or the host in its place, did not carry out a command."""

    def __init__(self, reply: ScsiReply) -> None:
        command = _name(Opcode, reply.opcode)
        super().__init__(
            f"LUN {reply.lun} refused {command}: {reply.sense or 'no sense data'}, SRB status"
            f" {_name(SrbStatus, reply.srb_status)}, SCSI status {_name(ScsiStatus, reply.scsi_status)}"
        )
        self.reply = reply
        self.sense = reply.sense


def _name(kind: type[Opcode] | type[SrbStatus] | type[ScsiStatus], number: int) -> str:
    try:
        return kind(number).name
    except ValueError:
        return f"{number:#04x}"
