"""Storage: a SCSI controller (`ScsiController`) over disks in memory, in files, or of your own (`Disk`)."""

from .controller import ScsiController
from .disk import Disk, MemoryDisk
from .file_disk import FileDisk

__all__ = ["Disk", "FileDisk", "MemoryDisk", "ScsiController"]
