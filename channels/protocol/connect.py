"""Messages about the connection as a whole: contact, version, unload, monitor pages, pause."""

from __future__ import annotations

from typing import Annotated, ClassVar
from uuid import UUID

from .message import ChannelMessage, MessageType
from .versions import FeatureFlags, Version
from .wire import NO_GUID, At


class InitiateContact(ChannelMessage, frozen=True):
    """INITIATE_CONTACT, 40 bytes: the guest asks for a version.

    Bytes 16 to 23 are the GPA of the interrupt page (0.13 and 1.1); from 5.0 on they are SINT, VTL and feature flags.
    """

    TYPE: ClassVar[MessageType] = MessageType.INITIATE_CONTACT

    version_requested: Annotated[int, At(8, "I", "major << 16 | minor")]
    target_message_vp: Annotated[int, At(12, "I", "processor that gets control messages (from 3.0)")] = 0
    interrupt_page_or_target_info: Annotated[
        int, At(16, "Q", "< 5.0: interrupt page GPA; >= 5.0: SINT, VTL, features")
    ] = 0
    parent_to_child_monitor_page_gpa: Annotated[int, At(24, "Q", "0: none")] = 0
    child_to_parent_monitor_page_gpa: Annotated[int, At(32, "Q", "0: none")] = 0

    @property
    def sint(self) -> int:
        """Byte 16, the SINT that the guest wants messages on (from 5.0)."""
        return self.interrupt_page_or_target_info & 0xFF

    @property
    def vtl(self) -> int:
        """Byte 17, the VTL of the server that is meant (from 5.1)."""
        return self.interrupt_page_or_target_info >> 8 & 0xFF

    @property
    def feature_flags(self) -> FeatureFlags:
        """Bytes 20 to 23 (from 6.0)."""
        return FeatureFlags(self.interrupt_page_or_target_info >> 32)


class InitiateContact2(InitiateContact, frozen=True):
    """INITIATE_CONTACT, 56 bytes: with feature 0x8 the guest says who it is."""

    client_id: Annotated[UUID, At(40, "guid", "who the guest is")] = NO_GUID


def target_info(sint: int, vtl: int, features: int = 0) -> int:
    """Bytes 16 to 23 of an INITIATE_CONTACT from 5.0 on."""
    return sint | vtl << 8 | features << 32


class VersionResponse(ChannelMessage, frozen=True):
    """VERSION_RESPONSE, 16 bytes: the host's answer. Unsupported is all zero."""

    TYPE: ClassVar[MessageType] = MessageType.VERSION_RESPONSE

    version_supported: Annotated[int, At(8, "B", "1: yes")] = 0
    connection_state: Annotated[int, At(9, "B", "0 successful, 1 low resources, 2 unknown failure")] = 0
    selected_version_or_connection_id: Annotated[
        int, At(12, "I", "< 5.0: the version; >= 5.0: connection to post to")
    ] = 0


class VersionResponse2(VersionResponse, frozen=True):
    """VERSION_RESPONSE, 20 bytes: version 6.0."""

    supported_features: Annotated[int, At(16, "I", "the feature flags that were agreed on")] = 0


class VersionResponse3(VersionResponse2, frozen=True):
    """VERSION_RESPONSE, 40 bytes: with monitor pages of the host (feature 0x40)."""

    parent_to_child_monitor_page_gpa: Annotated[int, At(24, "Q", "may be 0")] = 0
    child_to_parent_monitor_page_gpa: Annotated[int, At(32, "Q", "never 0")] = 0


class Unload(ChannelMessage, frozen=True):
    """UNLOAD, 8 bytes: the guest lets go of everything."""

    TYPE: ClassVar[MessageType] = MessageType.UNLOAD


class UnloadComplete(ChannelMessage, frozen=True):
    """UNLOAD_COMPLETE, 8 bytes: everything is let go of."""

    TYPE: ClassVar[MessageType] = MessageType.UNLOAD_COMPLETE


class ModifyConnection(ChannelMessage, frozen=True):
    """MODIFY_CONNECTION, 24 bytes: new monitor pages, both or none."""

    TYPE: ClassVar[MessageType] = MessageType.MODIFY_CONNECTION

    parent_to_child_monitor_page_gpa: Annotated[int, At(8, "Q", "0: none")] = 0
    child_to_parent_monitor_page_gpa: Annotated[int, At(16, "Q", "0: none")] = 0


class ModifyConnectionResponse(ChannelMessage, frozen=True):
    """MODIFY_CONNECTION_RESPONSE, 9 bytes."""

    TYPE: ClassVar[MessageType] = MessageType.MODIFY_CONNECTION_RESPONSE

    connection_state: Annotated[int, At(8, "B", "0 successful, 1 low resources, 2 unknown failure")] = 0


class Pause(ChannelMessage, frozen=True):
    """PAUSE, 8 bytes: no more control messages after PAUSE_RESPONSE, please."""

    TYPE: ClassVar[MessageType] = MessageType.PAUSE


class PauseResponse(ChannelMessage, frozen=True):
    """PAUSE_RESPONSE, 8 bytes: nothing follows until RESUME."""

    TYPE: ClassVar[MessageType] = MessageType.PAUSE_RESPONSE


class Resume(ChannelMessage, frozen=True):
    """RESUME, 8 bytes: go on sending."""

    TYPE: ClassVar[MessageType] = MessageType.RESUME


def version_field(version: Version, connection_id: int) -> int:
    """Bytes 12 to 15 of a VERSION_RESPONSE that is not "unsupported"."""
    return connection_id if version.names_connection else int(version)
