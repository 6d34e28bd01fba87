"""The host's devices of a conversation: what each of them is, and one that says yes to everything.

What an offer is says, first of these that knows: the step itself (`kind`); the device's name, for the names that the
shipped conversation uses; its interface, for the well-known classes (`reference/vmbus.md`, 8.1); the offer that was
recorded for it, further down; else it is a plain device. Single fields of the step (`flags`, ...) go before all of that.
A sub-channel, or a device that comes back, is what its device was, but for what its own step says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import UNSET

from channels.bus import Bus, Offer, OfferParams, OpenParams
from channels.core.server.offer_params import OfferKey
from channels.doorbell import Doorbell
from channels.explain.readings import service
from channels.protocol import ids
from channels.protocol.gparange import GpaRange
from channels.protocol.offer import USER_AREA, OfferChannel, OfferFlags, PipeType
from channels.protocol.parse import Sender, parse_message

from ..access import Interrupt
from ..errors import ProtocolError
from .conversation import Conversation, DeviceStep, HostMessage, Kind

Make = Callable[[UUID, UUID], OfferParams]

MONITOR_LATENCY = 1000
"""100 us, in ticks: what hosts ask for where they ask."""
VIDEO_MMIO = 8

KINDS: dict[Kind, Make] = {
    "device": OfferParams.device,
    "device with pipe packets": lambda interface, instance: OfferParams.device(interface, instance, pipe_packets=True),
    "pipe": OfferParams.pipe,
    "byte pipe": lambda interface, instance: OfferParams.pipe(interface, instance, PipeType.BYTE),
    "interface": OfferParams.interface,
    "hvsock from guest": lambda interface, instance: OfferParams.hvsock(interface, instance, guest_accepts=False),
    "hvsock to guest": lambda interface, instance: OfferParams.hvsock(interface, instance, guest_accepts=True),
}

NAMES: dict[str, Make] = {
    "nic": OfferParams.device,
    "pipe": lambda interface, instance: OfferParams.pipe(interface, instance, monitor_latency=MONITOR_LATENCY),
}
"""Devices of `linux_guest_conversation.json`."""

CLASSES: dict[UUID, Make] = {
    ids.HEARTBEAT: OfferParams.pipe,
    ids.SHUTDOWN: OfferParams.pipe,
    ids.TIME_SYNC: OfferParams.pipe,
    ids.KEY_VALUE_PAIRS: OfferParams.pipe,
    ids.VOLUME_SNAPSHOT: OfferParams.pipe,
    ids.FILE_COPY: OfferParams.pipe,
    ids.DYNAMIC_MEMORY: OfferParams.device,
    ids.NETWORK: lambda interface, instance: OfferParams.device(interface, instance, monitor_latency=MONITOR_LATENCY),
    ids.SCSI: OfferParams.device,
    ids.FIBRE_CHANNEL: OfferParams.device,
    ids.VIRTUAL_PCI: OfferParams.device,
    ids.KEYBOARD: OfferParams.device,
    ids.MOUSE: lambda interface, instance: OfferParams.device(interface, instance, pipe_packets=True),
    ids.VIDEO: lambda interface, instance: OfferParams.device(
        interface, instance, pipe_packets=True, mmio_megabytes=VIDEO_MMIO
    ),
}
"""The well-known classes whose kind is known; IDE accelerators are not among them, their offers name the disk."""

HOSTS_DIFFER: dict[UUID, tuple[str, ...]] = {ids.NETWORK: ("monitor_latency",), ids.VIDEO: ("mmio_megabytes",)}
"""What hosts do in different ways: here a recorded offer counts more than the class."""

_SERVER_FLAGS = OfferFlags.CONFIDENTIAL_RING | OfferFlags.CONFIDENTIAL_EXTERNAL_MEMORY
"""Flags that the server adds by itself."""
_DEFAULTS = tuple(zip(DeviceStep.__struct_fields__[1:], DeviceStep.__struct_defaults__, strict=True))
"""Fields of a step that it may leave out, and what they are then."""
_FROM_FILE = ("flags", "mmio_megabytes", "mmio_megabytes_optional", "order", "monitor_latency", "monitor_id")
_FROM_RECORD = ("flags", "user_defined", "mmio_megabytes", "mmio_megabytes_optional", "monitor_latency")

Source = Literal["step", "name", "class", "recorded offer", "nothing"]


class Offered(msgspec.Struct, frozen=True):
    """A device offers."""

    name: str
    params: OfferParams
    source: Source
    """What said what it is."""
    unchecked: tuple[str, ...] = ()
    """Fields that only the recorded offer knew: in that offer they cannot differ."""


class Revoked(msgspec.Struct, frozen=True):
    """A device is gone."""

    name: str
    key: OfferKey


class AcceptingDevice:
    """Accepts every open, GPADL, teardown, close and modification at once."""

    def __init__(self) -> None:
        self._offer: Offer

    async def offer(self, bus: Bus, params: OfferParams) -> None:
        """Offer it. `OfferRefused`."""
        self._offer = await bus.offer(params, self)

    def revoke(self) -> None:
        """Take it back."""
        self._offer.revoke()

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """See `bus.ChannelRequests`."""
        self._offer.open_ended()

    def drop_open(self) -> None:
        """See `bus.ChannelRequests`; every open has ended."""

    def close_channel(self) -> None:
        """See `bus.ChannelRequests`."""
        self._offer.close_ended()

    def create_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """See `bus.ChannelRequests`."""
        self._offer.gpadl_created(gpadl_id)

    def teardown_gpadl(self, gpadl_id: int) -> None:
        """See `bus.ChannelRequests`."""
        self._offer.gpadl_torn_down(gpadl_id)

    def resume_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """See `bus.ChannelRequests`; nothing is restored here."""

    def resume_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """See `bus.ChannelRequests`; nothing is restored here."""

    def modify_channel(self, target_vp: int) -> None:
        """See `bus.ChannelRequests`."""
        self._offer.modify_ended()

    def removed(self) -> None:
        """See `bus.ChannelRequests`."""


def plan_devices(conversation: Conversation) -> dict[int, Offered | Revoked]:
    """What the devices do, by step. `DamagedDocument` for an offer or a revoke that cannot be."""
    return _Planner(conversation).plan()


class _Planner:
    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._recorded = _recorded_offers(conversation)
        self._devices: dict[str, tuple[DeviceStep, Offered]] = {}
        """By name: the step that offered it last (of the primary channel, where there is one), and as what."""
        self._live: set[OfferKey] = set()

    def plan(self) -> dict[int, Offered | Revoked]:
        planned: dict[int, Offered | Revoked] = {}
        for number, step in self._conversation.steps.items():
            if not isinstance(step, DeviceStep) or step.action == "refuse":
                continue  # the server refuses by itself
            full = self._completed(step)
            if full.interface is None or full.instance is None:
                what = f"nothing says which interface and instance {_name(step)} has"
                raise self._conversation.damage(number, what)
            key = OfferKey(full.interface, full.instance, full.subchannel or 0)
            if (step.action == "offer") == (key in self._live):
                what = (
                    f"{_name(step)} is offered already" if step.action == "offer" else f"{_name(step)} is not offered"
                )
                raise self._conversation.damage(number, what)
            self._live ^= {key}
            planned[number] = self._offered(number, full, key) if step.action == "offer" else Revoked(_name(step), key)
        return planned

    def _completed(self, step: DeviceStep) -> DeviceStep:
        """The step with what the device's last offer says and it leaves out."""
        before = self._devices.get(step.device or "")
        if before is None:
            return msgspec.structs.replace(step, subchannel=step.subchannel or 0)
        said = {name: value for name, default in _DEFAULTS if (value := getattr(step, name)) is not default}
        return msgspec.structs.replace(before[0], **{"subchannel": 0, **said})

    def _offered(self, number: int, step: DeviceStep, key: OfferKey) -> Offered:
        recorded = next((offer for at, offer in self._recorded.get(key, ()) if at > number), None)
        params, source = self._known(step, key, recorded)
        given = {name: value for name in _FROM_FILE if (value := getattr(step, name)) is not UNSET}
        if "flags" in given:
            given["flags"] = OfferFlags(given["flags"])
        if step.user_defined is not UNSET:
            given["user_defined"] = bytes.fromhex(step.user_defined).ljust(USER_AREA, b"\0")
        learned: dict[str, object] = {}
        if recorded is not None:
            names = {"recorded offer": _FROM_RECORD, "class": HOSTS_DIFFER.get(key.interface_id, ())}.get(source, ())
            as_recorded = _as_recorded(recorded)
            learned = {name: getattr(as_recorded, name) for name in names if name not in given}
        params = msgspec.structs.replace(params, **{"subchannel_index": key.subchannel_index, **learned, **given})
        offered = Offered(_name(step), params, source, tuple(learned))
        if step.device is not None and (key.subchannel_index == 0 or step.device not in self._devices):
            self._devices[step.device] = (step, offered)
        return offered

    def _known(self, step: DeviceStep, key: OfferKey, recorded: OfferChannel | None) -> tuple[OfferParams, Source]:
        both = (key.interface_id, key.instance_id)
        if step.kind is not UNSET:
            return KINDS[step.kind](*both), "step"
        if step.device in NAMES:
            return NAMES[step.device](*both), "name"
        if key.interface_id in CLASSES:
            return CLASSES[key.interface_id](*both), "class"
        if service(key.interface_id):
            return KINDS["hvsock from guest"](*both), "class"
        if recorded is not None:
            return OfferParams.device(*both), "recorded offer"
        before = self._devices.get(step.device or "")
        if before is not None:
            params = msgspec.structs.replace(before[1].params, interface_id=both[0], instance_id=both[1])
            return params, before[1].source
        return OfferParams.device(*both), "nothing"


def _recorded_offers(conversation: Conversation) -> dict[OfferKey, list[tuple[int, OfferChannel]]]:
    offers: dict[OfferKey, list[tuple[int, OfferChannel]]] = {}
    for number, step in conversation.steps.items():
        if not isinstance(step, HostMessage):
            continue
        try:
            message = parse_message(step.payload, Sender.HOST)
        except ProtocolError:
            continue
        if isinstance(message, OfferChannel):
            key = OfferKey(message.interface_id, message.instance_id, message.subchannel_index)
            offers.setdefault(key, []).append((number, message))
    return offers


def _as_recorded(offer: OfferChannel) -> OfferParams:
    return OfferParams(
        interface_id=offer.interface_id,
        instance_id=offer.instance_id,
        flags=OfferFlags(offer.flags) & ~_SERVER_FLAGS,
        user_defined=offer.user_defined,
        mmio_megabytes=offer.mmio_megabytes,
        mmio_megabytes_optional=offer.mmio_megabytes_optional,
        monitor_latency=MONITOR_LATENCY if offer.monitor_allocated else None,
    )


def _name(step: DeviceStep) -> str:
    name = step.device or str(step.instance or "a device without a name")
    return f"{name}, sub-channel {step.subchannel}" if step.subchannel else name
