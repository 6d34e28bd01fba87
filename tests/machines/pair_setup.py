"""How the two ends of a `Pair` are set up: the version, features, monitor pages, and what the devices offer."""

from __future__ import annotations

from uuid import UUID

import msgspec

from channels.core.client.contact import ConnectRequest
from channels.core.server.effects import MonitorPages
from channels.core.server.offer_params import OfferParams
from channels.core.server.state import ServerConfig
from channels.protocol.versions import ALWAYS_SUPPORTED, CLIENT_FEATURES, FeatureFlags, Version

GUEST_PAGES = MonitorPages(0x1000, 0x2000)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """How both ends are set up."""

    version: Version = Version.COPPER
    """The newest that the server takes."""
    asks_newer: bool = False
    """The client tries the next newer version first."""
    features: int = int(CLIENT_FEATURES)
    server_features: int = int(ALWAYS_SUPPORTED)
    trusted: bool = False
    monitor_pages: bool = True
    tries_redirect: bool = False
    devices: int = 3
    subchannels: int = 0
    """Sub-channels of the first device."""

    def config(self) -> ServerConfig:
        """The server's."""
        features = FeatureFlags(self.server_features)
        return ServerConfig(max_version=self.version, features=features, gpa_pinning=True)

    def request(self) -> ConnectRequest:
        """The client's."""
        newer = [version for version in Version if version > self.version][:1] if self.asks_newer else []
        return ConnectRequest(
            (*newer, self.version),
            monitor_pages=GUEST_PAGES if self.monitor_pages else None,
            features=FeatureFlags(self.features),
            tries_redirect=self.tries_redirect,
        )

    def offers(self) -> list[OfferParams]:
        """What the devices offer; sub-channels follow their primary."""
        keys = [(1, index) for index in range(self.subchannels + 1)] + [(n, 0) for n in range(2, self.devices + 1)]
        return [
            OfferParams.device(UUID(int=7), UUID(int=n), subchannel_index=index, monitor_latency=100 if n % 2 else None)
            for n, index in keys
        ]
