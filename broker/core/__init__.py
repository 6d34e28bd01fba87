"""The SynIC as pure machines: inputs in, effects out. Nothing here waits, reads a clock, logs or draws a random number."""

from .hypercall_page import HypercallPage
from .local_apic import LocalApic, Requested
from .message_queues import MessageQueues, QueuedMessage
from .monitor_page import MonitorPage
from .overlay import OverlayPage
from .processor_synic import ProcessorSynic, Signaled, SynicState
from .synic_registers import OverlayState, RegisterState
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
    "RegisterState",
    "Requested",
    "Signaled",
    "SynicState",
    "SyntheticTimers",
    "TimerState",
]
