"""One offer of a device: the requests of its guest, and the task that runs its channel while it is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import msgspec
import structlog

from broker.access import Interrupt
from broker.clock import TICKS_PER_MILLISECOND
from broker.errors import ChannelClosed, HostError, PartitionClosed, PeerError

from ..bus import Bus, ChannelState, Offer, OfferParams, OpenParams
from ..doorbell import Doorbell
from ..protocol.gparange import GpaRange
from ..protocol.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL
from .device import Device, DeviceChannel, RefuseOpen
from .ends import STREAM_ERRORS, UNWRAPPED, end_of_channel

KICK_DELAY = 100 * TICKS_PER_MILLISECOND
"""After an open, a guest that has not heard an early signal is signalled again (OpenVMM does; see vmbus.md 4.8)."""

_log = structlog.get_logger("channels")


class OfferedDevice:
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
        self._subchannels: tuple[OfferedDevice, ...] = ()

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
            offered = OfferedDevice(self._device, self.bus, params, self._group, self._errors)
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
                        with UNWRAPPED:
                            await self._device.run(channel)
                finally:
                    kick.cancel()
                    with anyio.CancelScope(shield=True):
                        # Channels that are closed at once take turns again, so that a seed decides their order.
                        await turns.expect(("device", channel.channel_id))()
                        with UNWRAPPED:
                            await self._device.close(channel)
        except PartitionClosed:
            channel.end("the partition has ended")
        except Exception as error:
            end = end_of_channel(error)
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
            with UNWRAPPED:
                await self._device.open(channel)
        except (RefuseOpen, ChannelClosed, PeerError, *STREAM_ERRORS) as error:  # a peer's open has to be answered
            end = end_of_channel(error)
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
            with UNWRAPPED:
                await self._device.modify(channel, target_vp)
            self._modified(channel, STATUS_SUCCESS)
        except PartitionClosed:
            return
        except Exception as error:
            end = end_of_channel(error)
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
