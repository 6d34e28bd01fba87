"""Runs devices behind a `Bus`: a device is an offer and a `run`, which gets the channel whenever a guest opens it.

    class Beeper(Device):
        offer = OfferParams.device(INTERFACE, INSTANCE)

        async def run(self, channel):
            async for packet in channel:
                await channel.complete(packet, b"beep")

    async with serve_devices(server, Beeper()):
        ...

`run` is cancelled when the guest closes or is gone. A guest that spoils a ring or lies in a packet (`PeerError`) ends
that channel alone, until it opens it again, also from within a task group of the device. Any other exception is the
device's own: its offer is revoked, and the block that serves it ends with the exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType

import anyio
import anyio.abc
import msgspec
import structlog

from broker.access import Interrupt, Turns
from broker.clock import TICKS_PER_MILLISECOND
from broker.errors import ChannelClosed, HostError, PartitionClosed, PeerError, RingCorrupt

from ..bus import Bus, Offer
from ..channel import Channel, split_rings
from ..core.server.effects import OpenParams
from ..core.server.offer_params import OfferParams
from ..core.server.table import ChannelState
from ..doorbell import Doorbell
from ..protocol.gparange import GpaRange
from ..protocol.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL

KICK_DELAY = 100 * TICKS_PER_MILLISECOND
"""After an open, a guest that has not heard an early signal is signalled again (OpenVMM does; see vmbus.md 4.8)."""

_STREAM_ERRORS = (anyio.BrokenResourceError, anyio.EndOfStream)

_log = structlog.get_logger("channels")


class RefuseOpen(HostError):
    """Raised by `Device.open`: the guest's open fails with `status`, and nothing is wrong with the device."""

    def __init__(self, reason: str, status: int = STATUS_UNSUCCESSFUL) -> None:
        super().__init__(reason)
        self.status = status


class Device:
    """Base of devices. Sub-channels, where a device has them, run the same methods, at the same time."""

    __slots__ = ()

    offer: OfferParams
    """What is offered; sub-channels are offered with the same and their index."""
    max_subchannels: int = 0
    """Sub-channels that a guest may ask for."""

    def attached(self, turns: Turns) -> None:
        """Before the offer: where tasks wait that use this device."""
        return

    def detached(self) -> None:
        """Nobody serves the device any more: whoever waits for a guest of it waits in vain."""
        return

    async def open(self, channel: DeviceChannel) -> None:
        """Before the guest hears of the open: packets may be there already. `RefuseOpen` refuses, `PeerError` as well."""

    async def run(self, channel: DeviceChannel) -> None:
        """Serve the channel. It stays open when this returns, until the guest closes it."""
        raise NotImplementedError

    async def close(self, channel: DeviceChannel) -> None:
        """After `run`, however it ended; the rings may still be used."""

    async def modify(self, channel: DeviceChannel, target_vp: int) -> None:
        """Interrupts go to another processor from now on."""


class DeviceChannel(Channel):
    """A channel as a device sees it."""

    __slots__ = ("_interrupt", "_offered", "params")

    def __init__(
        self, offered: _Offered, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell
    ) -> None:
        bus = offered.bus
        self.params = params
        """What the guest opened it with: user data, target processor, confidentiality."""
        self._offered = offered
        self._interrupt = interrupt
        ranges = offered.gpadls.get(params.gpadl_id)
        if ranges is None:
            raise RefuseOpen(f"channel {channel_id} has no GPADL {params.gpadl_id:#x} for its rings")
        rings = split_rings(bus.memory, ranges, params.page_offset)
        super().__init__(channel_id, bus.memory, rings, doorbell, bus.turns, is_host=True, trace=bus.trace)

    async def signal(self) -> None:
        """See `Channel.signal`."""
        self._interrupt.deliver()

    @property
    def subchannel_index(self) -> int:
        """0 for the primary channel."""
        return self._offered.offer_params.subchannel_index

    @property
    def gpadls(self) -> dict[int, tuple[GpaRange, ...]]:
        """Guest memory that the guest has given to this channel, by GPADL ID."""
        return self._offered.gpadls

    def kick(self) -> None:
        """Signal the guest once more if the rings say that it waits."""
        with contextlib.suppress(RingCorrupt):  # whoever runs the channel will notice
            if self.peer_waits:
                self._interrupt.deliver()

    async def offer_subchannels(self, count: int) -> None:
        """Offer sub-channels 1 to `count`, those that are not offered yet. `HostError` above `Device.max_subchannels`."""
        await self._offered.offer_subchannels(count)


class _Offered:
    """One offer of a device, and the requests of its guest (`bus.ChannelRequests`)."""

    __slots__ = (
        "_channel",
        "_device",
        "_errors",
        "_group",
        "_is_closing",
        "_is_dropped",
        "_offer",
        "_subchannels",
        "_task",
        "_torn_down_later",
        "bus",
        "gpadls",
        "offer_params",
    )

    def __init__(
        self, device: Device, bus: Bus, params: OfferParams, group: anyio.abc.TaskGroup, errors: list[BaseException]
    ) -> None:
        self.bus = bus
        self.gpadls: dict[int, tuple[GpaRange, ...]] = {}
        self.offer_params = params
        self._device = device
        self._group = group
        self._errors = errors
        self._offer: Offer
        self._channel: DeviceChannel | None = None
        self._task: anyio.TaskHandle[None] | None = None
        """Runs the channel, while it does."""
        self._is_closing = False
        self._is_dropped = False
        """The VM was reset while the channel opened."""
        self._torn_down_later: tuple[int, ...] = ()
        """GPADLs that the guest wants back once the channel is closed."""
        self._subchannels: tuple[_Offered, ...] = ()

    async def begin(self) -> None:
        """Offer it. `OfferRefused`. Where the server was restored: go on with the channel as it was saved."""
        self._offer = await self.bus.offer(self.offer_params, self)
        saved_state = self._offer.saved_state
        if saved_state is not None:
            self._offer.restore(is_open=saved_state is ChannelState.OPEN)

    def revoke(self) -> None:
        """Take it back, sub-channels first; idempotent."""
        self.revoke_subchannels()
        self._offer.revoke()

    def revoke_subchannels(self) -> None:
        """The primary channel closes: its sub-channels go."""
        subchannels, self._subchannels = self._subchannels, ()
        for offered in subchannels:
            offered.revoke()

    async def offer_subchannels(self, count: int) -> None:
        """See `DeviceChannel.offer_subchannels`."""
        if not 0 <= count <= self._device.max_subchannels or self.offer_params.subchannel_index:
            raise HostError(
                f"this device has up to {self._device.max_subchannels} sub-channels, {count} were asked for"
            )
        for index in range(len(self._subchannels) + 1, count + 1):
            params = msgspec.structs.replace(self.offer_params, subchannel_index=index)
            offered = _Offered(self._device, self.bus, params, self._group, self._errors)
            await offered.begin()
            self._subchannels += (offered,)

    # requests of the guest

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """Start the task that runs the channel."""
        try:
            channel = DeviceChannel(self, channel_id, params, interrupt, doorbell)
            channel.initialize()
        except (PeerError, RefuseOpen) as error:
            _log.info("open_refused", channel_id=channel_id, reason=str(error))
            self._offer.open_ended(error.status if isinstance(error, RefuseOpen) else STATUS_UNSUCCESSFUL)
            return
        self._start(channel, is_resumed=False)

    def resume_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """Start the task again; the rings are as they were."""
        try:
            channel = DeviceChannel(self, channel_id, params, interrupt, doorbell)
        except (PeerError, RefuseOpen) as error:
            _log.info("channel_ended", channel_id=channel_id, reason=str(error))
            return
        self._start(channel, is_resumed=True)

    def resume_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """Note it."""
        self.gpadls[gpadl_id] = ranges

    def _start(self, channel: DeviceChannel, *, is_resumed: bool) -> None:
        self._channel, self._is_closing = channel, False
        begin = self.bus.turns.expect(("device", channel.channel_id))
        self._task = self._group.create_task(self._run(begin, channel, is_resumed), name=type(self._device).__name__)

    def drop_open(self) -> None:
        """Stop the task, which has not answered yet and need not any more."""
        self.revoke_subchannels()
        if self._task is not None:
            self._is_dropped = True
            self._task.cancel()

    def close_channel(self) -> None:
        """Stop the task; it answers when it is done."""
        self.revoke_subchannels()
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()
        else:
            self._ended()

    def create_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """Note it."""
        self.gpadls[gpadl_id] = ranges
        self._offer.gpadl_created(gpadl_id)

    def teardown_gpadl(self, gpadl_id: int) -> None:
        """Forget it, unless the rings of the open channel lie in it: then once the channel is closed."""
        if self._channel is not None and self._channel.params.gpadl_id == gpadl_id:
            self._torn_down_later += (gpadl_id,)
            return
        self.gpadls.pop(gpadl_id, None)
        self._offer.gpadl_torn_down(gpadl_id)

    def modify_channel(self, target_vp: int) -> None:
        """Tell the device."""
        if self._channel is None:
            self._offer.modify_ended()
        else:
            begin = self.bus.turns.expect(("device modify", self._channel.channel_id))
            self._group.start_soon(self._modify, begin, self._channel, target_vp)

    def removed(self) -> None:
        """The offer is gone."""
        self.revoke_subchannels()
        if self._channel is not None:
            self._channel.end("the offer was revoked")
        if self._task is not None:
            self._task.cancel()

    # the task of an open channel

    async def _run(self, begin: Callable[[], Awaitable[None]], channel: DeviceChannel, is_resumed: bool) -> None:
        try:
            await begin()
            if await self._open(channel):
                turns = self.bus.turns
                tick = turns.clock.now() + KICK_DELAY
                kick = turns.schedule(tick, ("kick", channel.channel_id), lambda: self._kick(channel))
                try:
                    if is_resumed:
                        channel.kick()
                    if is_resumed or self._offer.open_ended():
                        with _UNWRAPPED:
                            await self._device.run(channel)
                finally:
                    kick.cancel()
                    with anyio.CancelScope(shield=True):
                        # Channels that are closed at once take turns again, so that a seed decides their order.
                        await turns.expect(("device", channel.channel_id))()
                        with _UNWRAPPED:
                            await self._device.close(channel)
        except PartitionClosed:
            channel.end("the partition has ended")
        except Exception as error:
            end = _end_of_channel(error)
            if end is None:
                self._fail(channel, error)
            else:
                channel.end(str(end))
                _log.info("channel_ended", channel_id=channel.channel_id, reason=str(end))
        finally:
            self._task = None
            if self._is_closing:
                self._ended()
            elif self._is_dropped:
                self._is_dropped = False
                self._let_go()
            elif channel.doorbell.ended is not None:
                channel.let_go(channel.doorbell.ended)
            self.bus.turns.leave()

    def _fail(self, channel: DeviceChannel, error: Exception) -> None:
        """The device is broken: its offer goes, and its author sees why."""
        _log.error("device_failed", channel_id=channel.channel_id, exc_info=error)
        self._errors.append(error)
        self.revoke()
        self._group.cancel_scope.cancel()

    async def _open(self, channel: DeviceChannel) -> bool:
        try:
            with _UNWRAPPED:
                await self._device.open(channel)
        except (RefuseOpen, ChannelClosed, PeerError, *_STREAM_ERRORS) as error:  # a peer's open has to be answered
            end = _end_of_channel(error)
            if end is None and not isinstance(error, RefuseOpen):
                raise
            _log.info("open_refused", channel_id=channel.channel_id, reason=str(end or error))
            self._offer.open_ended(error.status if isinstance(error, RefuseOpen) else STATUS_UNSUCCESSFUL)
            self._let_go()
            return False
        return True

    def _kick(self, channel: DeviceChannel) -> None:
        """The guest may have ignored signals that came before the result of its open."""
        if channel is self._channel and channel.doorbell.ended is None:
            channel.kick()

    async def _modify(self, begin: Callable[[], Awaitable[None]], channel: DeviceChannel, target_vp: int) -> None:
        try:
            await begin()
            with _UNWRAPPED:
                await self._device.modify(channel, target_vp)
            self._modified(channel, STATUS_SUCCESS)
        except PartitionClosed:
            return
        except Exception as error:
            end = _end_of_channel(error)
            if end is None:
                self._fail(channel, error)
            else:
                channel.end(str(end))
                self._modified(channel, STATUS_UNSUCCESSFUL)
        finally:
            self.bus.turns.leave()

    def _modified(self, channel: DeviceChannel, status: int) -> None:
        """Say so, unless the channel was closed meanwhile: then nobody waits for it."""
        if channel is self._channel and not self._is_closing:
            self._offer.modify_ended(status)

    def _ended(self) -> None:
        """Nothing uses the rings any more."""
        self._is_closing = False
        self._offer.close_ended()
        self._let_go()

    def _let_go(self) -> None:
        """GPADLs that the guest wanted back meanwhile are free now."""
        if self._channel is not None:
            self._channel.let_go("the channel was closed")
            self._channel = None
        torn_down, self._torn_down_later = self._torn_down_later, ()
        for gpadl_id in sorted(torn_down):
            self.gpadls.pop(gpadl_id, None)
            self._offer.gpadl_torn_down(gpadl_id)


@asynccontextmanager
async def serve_devices(bus: Bus, *devices: Device) -> AsyncIterator[None]:
    """Offer these devices and run them while the block lasts; then their offers are revoked. See the module.

    `OfferRefused` when one cannot be offered. An exception of a device ends the block and is raised by it, unwrapped.
    """
    errors: list[BaseException] = []
    offers: list[_Offered] = []
    async with _attached(devices, bus.turns), anyio.create_task_group() as group:
        try:
            for device in devices:
                offered = _Offered(device, bus, device.offer, group, errors)
                await offered.begin()
                offers.append(offered)
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # not from within the group, which would wrap it
            errors.insert(0, error)
        finally:
            for offered in offers:
                offered.revoke()
            group.cancel_scope.cancel()
    if errors:
        raise errors[0]


@asynccontextmanager
async def _attached(devices: Sequence[Device], turns: Turns) -> AsyncIterator[None]:
    """While the block lasts somebody serves these, or tries to."""
    for device in devices:
        device.attached(turns)
    try:
        yield
    finally:
        for device in devices:
            device.detached()


def _end_of_channel(error: BaseException) -> ChannelClosed | PeerError | None:
    """What this error says about the channel, None for one of the device's own. Pipes wrap it in a word of anyio's."""
    end = error.__cause__ if isinstance(error, _STREAM_ERRORS) else error
    return end if isinstance(end, (ChannelClosed, PeerError)) else None


def _is_end(error: BaseException) -> bool:
    return isinstance(error, (PartitionClosed, RefuseOpen)) or _end_of_channel(error) is not None


class _Unwrapped:
    """Around code of a device, whose task groups wrap what ends a channel, and on trio a cancellation along with it.

    It has no state: each channel would otherwise keep one while its device runs.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, BaseExceptionGroup):
            return
        errors = error.split(anyio.get_cancelled_exc_class())[1]
        if errors is None:
            return
        ends, own = errors.split(_is_end)
        first: BaseException = ends if own is None and ends is not None else errors
        while isinstance(first, BaseExceptionGroup) and (own is None or len(first.exceptions) == 1):
            first = first.exceptions[0]
        raise first from first.__cause__  # which says whose fault it is, where a pipe put it in words of its own


_UNWRAPPED = _Unwrapped()
