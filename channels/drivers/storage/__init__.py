"""Storage, the guest's side: `ScsiInitiator` drives a controller, `ScsiDisk` is a disk of it."""

from .disk import ScsiDisk
from .errors import ScsiError, ScsiReply
from .initiator import LINUX_VERSIONS, Pending, ScsiInitiator

__all__ = ["LINUX_VERSIONS", "Pending", "ScsiDisk", "ScsiError", "ScsiInitiator", "ScsiReply"]
