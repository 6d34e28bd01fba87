"""How a client asks for a connection: which version over which connection ID comes when, and what the contact says.

Newest version first. From 5.0 on a contact goes to connection 4 (to 0x800074 before, where the server of a paravisor is
looked for), below to connection 1 (Linux, `connection.c`).
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from broker.errors import ConfigurationError

from ...protocol.connect import (
    InitiateContact,
    InitiateContact2,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
    target_info,
)
from ...protocol.ids import MESSAGE_CONNECTION, MULTICLIENT_CONNECTION, REDIRECT_CONNECTION, VMBUS_SINT
from ...protocol.parse import Agreed
from ...protocol.versions import CLIENT_FEATURES, NO_FEATURES, FeatureFlags, Version, version_label
from ...protocol.wire import NO_GUID
from ..effects import MonitorPages

ALL_VERSIONS: tuple[Version, ...] = tuple(sorted(Version, reverse=True))
"""Newest first."""


class ConnectRequest(msgspec.Struct, frozen=True):
    """What a client wants. Pages are GPAs in bytes."""

    versions: tuple[Version, ...] = ALL_VERSIONS
    """Those to try, in this order."""
    client_id: UUID = NO_GUID
    """Who the guest is; told with feature 0x8."""
    target_message_vp: int = 0
    """Processor that gets control messages (from 3.0, VP 0 before)."""
    interrupt_page: int = 0
    """The channel bitmap, told below 5.0; used below 2.4, and then without one there are no channel signals."""
    monitor_pages: MonitorPages | None = None
    features: FeatureFlags = CLIENT_FEATURES
    """Asked for with 6.0."""
    vtl: int = 0
    """VTL of the server that is meant (from 5.1)."""
    tries_redirect: bool = False
    """Look for the server of a paravisor first, at connection 0x800074 (from 5.0)."""


class Attempt(msgspec.Struct, frozen=True):
    """One contact: a version over a connection."""

    version: Version
    connection_id: int


class Agreement(msgspec.Struct, frozen=True):
    """What a successful VERSION_RESPONSE comes to."""

    agreed: Agreed
    connection_id: int
    """Where messages go from now on."""
    interrupt_page: int
    """0 where the version has none."""
    monitor_pages: MonitorPages | None
    surplus: FeatureFlags
    """Features that the host named and nobody asked for; they do not count."""


class Negotiation:
    """The contacts that are still to try; the first is the one that is due an answer."""

    def __init__(self) -> None:
        self.request = ConnectRequest()
        self.attempts: list[Attempt] = []

    def begin(self, request: ConnectRequest) -> None:
        """Try these. `ConfigurationError` without a version, `ValueError` for a number that does not fit its field."""
        tries = attempts(request)
        for attempt in tries:
            contact(request, attempt.version).pack()
        self.request, self.attempts = request, tries

    def next_connection(self) -> None:
        """The connection of the first does not exist."""
        self.attempts.pop(0)

    def next_version(self) -> None:
        """The version of the first is not supported."""
        version = self.attempts[0].version
        self.attempts = [attempt for attempt in self.attempts if attempt.version is not version]

    def tried(self) -> str:
        """The versions, as people write them."""
        return ", ".join(version_label(version) for version in self.request.versions)

    def agree(self, response: VersionResponse) -> Agreement:
        """What this positive answer to the first comes to."""
        version, request = self.attempts[0].version, self.request
        asked = features_to_ask(request, version)
        named = NO_FEATURES
        if isinstance(response, VersionResponse2) and version >= Version.COPPER:
            named = FeatureFlags(response.supported_features)
        pages = request.monitor_pages
        if isinstance(response, VersionResponse3) and named & asked & FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES:
            pages = MonitorPages(response.parent_to_child_monitor_page_gpa, response.child_to_parent_monitor_page_gpa)
        connection_id = response.selected_version_or_connection_id if version.names_connection else MESSAGE_CONNECTION
        return Agreement(
            Agreed(version, named & asked),
            connection_id,
            request.interrupt_page if version.has_interrupt_page else 0,
            pages if pages is not None and pages.child_to_parent else None,
            named & ~asked,
        )


def attempts(request: ConnectRequest) -> list[Attempt]:
    """All contacts to try, in order. `ConfigurationError` when the request has no version."""
    if not request.versions:
        raise ConfigurationError("a client needs a version to ask for")
    found = []
    for version in request.versions:
        connections = [MULTICLIENT_CONNECTION] if version.names_connection else [MESSAGE_CONNECTION]
        if version.names_connection and request.tries_redirect:
            connections.insert(0, REDIRECT_CONNECTION)
        found += [Attempt(version, connection_id) for connection_id in connections]
    return found


def features_to_ask(request: ConnectRequest, version: Version) -> FeatureFlags:
    """The features that a contact for this version asks for."""
    return request.features if version >= Version.COPPER else FeatureFlags(0)


def contact(request: ConnectRequest, version: Version) -> InitiateContact:
    """The contact for one version: 56 bytes exactly when it asks for feature 0x8, else 40."""
    features = features_to_ask(request, version)
    pages = request.monitor_pages or MonitorPages(0, 0)
    vtl = request.vtl if version >= Version.WIN10_RS4 else 0
    common = (
        int(version),
        request.target_message_vp,
        target_info(VMBUS_SINT, vtl, int(features)) if version.names_connection else request.interrupt_page,
        pages.parent_to_child,
        pages.child_to_parent,
    )
    if features & FeatureFlags.CLIENT_ID:
        return InitiateContact2(*common, request.client_id)
    return InitiateContact(*common)
