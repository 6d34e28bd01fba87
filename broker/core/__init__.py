"""The SynIC as pure machines: inputs in, effects out. Nothing here waits, reads a clock, logs or draws a random number."""

from .hypercall_page import HypercallPage
from .local_apic import LocalApic, Requested
from .message_queues import MessageQueues, QueuedMessage
from .monitor_page import MonitorPage
from .overlay import OverlayPage
from .processor_synic import OverlayState, ProcessorSynic, Signaled, SynicState
from .timers import SyntheticTimers, TimerState

__all__ = [
    "HypercallPage",
    "LocalApic",
    "MessageQueues",
    "MonitorPage",
    "OverlayPage",
    "OverlayState",
    "ProcessorSynic",
    "QueuedMessage",
    "Requested",
    "Signaled",
    "SynicState",
    "SyntheticTimers",
    "TimerState",
]
