"""Protocol versions and feature flags: what may be said from when on (OpenVMM, `protocol.rs`; Linux, `hyperv.h`)."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Version(IntEnum):
    """A version as INITIATE_CONTACT asks for it: major << 16 | minor. Only these exist."""

    V1 = 0x0000_000D
    """0.13, Windows Server 2008: messages 1 to 14, channel bitmaps in both directions."""
    WIN7 = 0x0001_0001
    """1.1: each channel has its own connection for the guest's events; UNLOAD_COMPLETE."""
    WIN8 = 0x0002_0004
    """2.4: interrupts without a bitmap, with a target processor; sub-channels; failure statuses in VERSION_RESPONSE."""
    WIN8_1 = 0x0003_0000
    """3.0: control messages go to the processor that the guest names."""
    WIN10 = 0x0004_0000
    """4.0: hvsock and reserved channels."""
    WIN10_RS3_0 = 0x0004_0001
    """4.1: MODIFY_CHANNEL, TL_CONNECT_RESULT."""
    WIN10_RS3_1 = 0x0005_0000
    """5.0: the guest names a SINT instead of an interrupt page; VERSION_RESPONSE names a connection."""
    WIN10_RS4 = 0x0005_0001
    """5.1: the guest names a VTL."""
    WIN10_RS5 = 0x0005_0002
    """5.2: silo IDs of hvsock."""
    IRON = 0x0005_0003
    """5.3: MODIFY_CHANNEL_RESPONSE."""
    COPPER = 0x0006_0000
    """6.0: feature flags."""

    @property
    def label(self) -> str:
        """As people write it: "5.3"."""
        return version_label(self)

    @property
    def has_interrupt_page(self) -> bool:
        """Host and guest share the channel bitmap."""
        return self < Version.WIN8

    @property
    def names_connection(self) -> bool:
        """VERSION_RESPONSE names the connection to use from then on."""
        return self >= Version.WIN10_RS3_1


def version_label(value: int) -> str:
    """Any 32-bit version number as people write it."""
    return f"{value >> 16}.{value & 0xFFFF}"


def find_version(value: int) -> Version | None:
    """The version with exactly this number, None when there is none."""
    try:
        return Version(value)
    except ValueError:
        return None


class FeatureFlags(IntFlag):
    """What host and guest may agree on from version 6.0 on. Bits without a name are cleared in the host's answer."""

    GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x01
    """OPEN_CHANNEL carries the event flag and connection ID that the guest chose."""
    CHANNEL_INTERRUPT_REDIRECTION = 0x02
    """OPEN_CHANNEL may redirect the interrupt."""
    MODIFY_CONNECTION = 0x04
    """Messages 25 and 26."""
    CLIENT_ID = 0x08
    """INITIATE_CONTACT is 56 bytes and says who the guest is."""
    CONFIDENTIAL_CHANNELS = 0x10
    """Offers may say that a ring, or external memory, is encrypted. Trusted connections only."""
    PAUSE_RESUME = 0x20
    """Messages 27 to 29."""
    SERVER_SPECIFIED_MONITOR_PAGES = 0x40
    """The host may give monitor pages of its own."""
    GPA_PINNING = 0x80
    """Offers may ask for pinned external memory."""


NO_FEATURES = FeatureFlags(0)
ALWAYS_SUPPORTED = FeatureFlags(0x6F)
"""What this server agrees to wherever it is asked."""
CLIENT_FEATURES = FeatureFlags(0x2F)
"""What this client asks for."""
OPEN2_FEATURES = FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS | FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION
"""With either of these an OPEN_CHANNEL has its long form."""
