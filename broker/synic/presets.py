"""The backends by name: one table over the emulated and the offloaded SynIC.

The presets reproduce what each hypervisor backend of OpenVMM does and refuses, without its bugs.
"""

from __future__ import annotations

import msgspec

from ..errors import ConfigurationError
from ..hvdef import OPENVMM, DeliveryRules, Vtl
from .backend import Backend

_ALL_VTLS = (Vtl.VTL0, Vtl.VTL1, Vtl.VTL2)

_HYPERVISOR_RULES = msgspec.structs.replace(
    OPENVMM.delivery,
    message_synic_off="drop",
    message_page_off="drop",
    event_page_off="refuse",
    direct_signal_reports_state=True,
)
"""Microsoft's hypervisor answers INVALID_SYNIC_STATE while a page or the SynIC is off; the backend drops such a message."""

_KVM_RULES = DeliveryRules(
    message_masked="fill",
    message_synic_off="wait",
    message_page_off="wait",
    event_masked="set",
    event_page_off="refuse",
    honours_polling=False,
    direct_signal_reports_state=False,
    rescan_every_exit=True,
)

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="emulated",
            about="user-mode SynIC in this program, all features",
            synic="emulated",
            vtls=_ALL_VTLS,
            monitor="allocate",
            trusted_posts=True,
            proxied_sints=True,
            intercepts_unknown_connections=True,
        ),
        Backend(
            name="offloaded",
            about="SynIC elsewhere, eventfds lead there and back",
            synic="offloaded",
            vtls=_ALL_VTLS,
            host_event_ports="always",
            prefer_os_events=True,
            guest_events="eventfd",
            monitor="yes",
        ),
        Backend(
            name="whp",
            about="Windows Hypervisor Platform, SynIC in the hypervisor",
            synic="offloaded",
            vtls=(Vtl.VTL0, Vtl.VTL2),
            host_event_ports="given",
            prefer_os_events=True,
            guest_events="eventfd",
            monitor="yes",
            intercepts_unknown_connections=True,
            delivery=_HYPERVISOR_RULES,
        ),
        Backend(
            name="mshv",
            about="Linux root partition, SynIC in the hypervisor",
            synic="emulated",
            delivery=_HYPERVISOR_RULES,
        ),
        Backend(
            name="kvm",
            about="KVM on x64, registers in the kernel, slots and flags written by the VMM",
            synic="emulated",
            delivery=_KVM_RULES,
        ),
        Backend(
            name="kvm-arm64",
            about="KVM on ARM64, no SynIC",
            synic="none",
            refusal="backend kvm-arm64 has no SynIC (KVM emulates none on ARM64); choose another backend",
        ),
        Backend(name="hvf", about="Apple Hypervisor.framework, user-mode SynIC, interrupts as PPIs", synic="emulated"),
        Backend(
            name="openhcl",
            about="OpenHCL paravisor, a SynIC of its own beside the host's",
            synic="emulated",
            vtls=(Vtl.VTL0, Vtl.VTL1),
            monitor="allocate",
            trusted_posts=True,
            proxied_sints=True,
        ),
    )
}


def find_backend(name: str) -> Backend:
    """The backend of this name. `ConfigurationError` that lists the names when there is none."""
    try:
        return BACKENDS[name]
    except KeyError:
        raise ConfigurationError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}") from None
