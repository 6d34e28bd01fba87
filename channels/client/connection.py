"""The plumbing of a `VmbusClient`: its tasks, what it does with the effects of its machine, the offers there are.

It will: run one task for messages, one for the event flags of each processor, one that posts; end its block with the first
error of any of them, unwrapped; keep count of what is in use of a channel, and release a rescinded one that nothing is in
use of. It will not: ask the host for anything by itself but releases.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Self, TypeVar

import anyio
import structlog

from broker.access import GuestSynic
from broker.errors import ConnectionFailed, HostError
from broker.hvdef import SynicMessage
from broker.trace import Channel, Control, Gpadl

from ..core.client import ClientMachine
from ..core.client import effects as done
from ..core.effects import ChannelChanged, Complaint, Effect, GpadlChanged
from ..protocol.ids import CHANNEL_MESSAGE, REDIRECT_SINT, VMBUS_SINT
from ..protocol.message import STATUS_SUCCESS
from ..protocol.offer import OfferChannel
from ..protocol.parse import name_of
from .answers import Answer, Answers
from .posts import PostQueue
from .signals import Signals

_log = structlog.get_logger("channels")

T = TypeVar("T", bound=Effect)


class ClientConnection:
    """See the module. `synics`: the client's own, then further ones for event flags alone."""

    def __init__(self, synics: Sequence[GuestSynic], *, redirect: bool = False) -> None:
        self.synic = synic = synics[0]
        self.machine = ClientMachine()
        self.answers = Answers(synic.turns)
        self.posts = PostQueue(synic, self._contact_refused)
        self.signals = Signals(synic)
        self.offers: dict[int, OfferChannel] = {}
        """What the host offers, by channel ID, oldest first."""
        self.complaints: Counter[str] = Counter()
        self.agreed: done.Connected | None = None
        self._synics = synics
        self._sints = (VMBUS_SINT, REDIRECT_SINT) if redirect else (VMBUS_SINT,)
        """Where messages and event flags may come."""
        self._trace = synic.trace
        self._group: anyio.abc.TaskGroup | None = None
        self._errors: list[BaseException] = []
        self._tasks = 0
        self._uses: Counter[int] = Counter()
        """Opens and GPADLs of each channel."""
        self._arrivals: dict[int, int] = {}
        """Channel ID -> number of its offer, counted from 1."""
        self._arrived = 0
        self._changes = 0
        """How often an offer has come or gone."""
        self._offers_changed = synic.turns.wakeup(("vmbus-offers", synic.vp_index))
        self._actions: dict[type[Effect], Callable[..., None]] = {
            done.Post: self.posts.add,
            done.Connected: self._connected,
            done.ConnectFailed: self._connect_failed,
            done.OfferAdded: lambda effect: self._add_offer(effect.offer),
            done.OfferRescinded: self._rescinded,
            done.Released: lambda effect: None,
            done.OpenEnded: self._open_ended,
            done.GpadlCreateEnded: lambda effect: self.answers.give(effect, effect.gpadl_id),
            done.GpadlTornDown: lambda effect: self.answers.give(effect, effect.gpadl_id),
            done.ModifyEnded: lambda effect: self.answers.give(effect, effect.channel_id),
            done.ModifyConnectionEnded: self._connection_modified,
            done.HvsockEnded: self._hvsock_ended,
            done.Paused: self.answers.give,
            done.UnloadEnded: self.answers.give,
            Complaint: self._complained,
            ChannelChanged: self._tell_channel,
            GpadlChanged: self._tell_gpadl,
        }

    @property
    def is_running(self) -> bool:
        """The tasks run, and nothing has gone wrong in them."""
        return self._group is not None and not self._group.cancel_scope.cancel_called

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The block in which the tasks run."""
        async with AsyncExitStack() as stack:
            messages = [await stack.enter_async_context(self.synic.messages(sint)) for sint in self._sints]
            events = [
                (synic, sint, await stack.enter_async_context(synic.events(sint)))
                for synic in self._synics
                for sint in self._sints
            ]
            async with anyio.create_task_group() as self._group:
                vp_index = self.synic.vp_index
                for sint, arriving in zip(self._sints, messages, strict=True):
                    self._begin((f"vmbus-messages-{sint}", vp_index), partial(self._take_messages, arriving))
                self._begin(("vmbus-poster", vp_index), self.posts.run)
                for synic, sint, flags in events:
                    self._begin((f"vmbus-events-{sint}", synic.vp_index), partial(self._take_events, flags))
                try:
                    yield
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # not from within the group, which would wrap it
                    self._errors.insert(0, error)
                finally:
                    self._group.cancel_scope.cancel()
                    self._end("this client has ended")
        if self._errors:
            raise self._errors[0]

    def later(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this in the background, as long as the client runs; host's errors in it are of no interest."""

        async def quietly() -> None:
            try:
                await work()
            except HostError:
                return

        if self.is_running:
            self._tasks += 1
            self._begin(("vmbus-later", self._tasks), quietly)

    def ask(self, kind: type[T], about: Hashable, request: Callable[[], list[Effect]]) -> Answer[T]:
        """Let the machine take a request that ends with such an effect. Its exceptions, `HostError` when one is due."""
        answer = self.answers.expect(kind, about)
        try:
            self.do(request())
        except BaseException:
            self.answers.forget(kind, about)
            raise
        return answer

    async def request(self, kind: type[T], about: Hashable, request: Callable[[], list[Effect]]) -> T:
        """Ask, and wait for the end of it."""
        answer = self.ask(kind, about, request)
        try:
            return await answer.wait()
        finally:
            self.answers.forget(kind, about)

    def do(self, effects: Iterable[Effect]) -> None:
        """Do what the machine says."""
        for effect in effects:
            self._actions[type(effect)](effect)

    def use(self, channel_id: int) -> None:
        """Something of this channel is in use: its ID is not given back."""
        self._uses[channel_id] += 1

    def unuse(self, channel_id: int) -> None:
        """The reverse."""
        self._uses[channel_id] -= 1
        self._release_if_unused(channel_id)

    def forget(self, reason: str) -> None:
        """All answers and channels end."""
        self.answers.fail_all(ConnectionFailed(reason))
        self.signals.forget_all(reason)
        self.offers.clear()
        self._uses.clear()
        self._note_change()

    async def next_offers(self, since: int) -> tuple[int, list[OfferChannel]]:
        """The offers that came after number `since` and are still there, at least one, and the last number.

        `ConnectionFailed` when the connection ends.
        """
        while self._arrived <= since or not (found := self._arrived_since(since)):
            if not self.machine.is_connected:
                raise ConnectionFailed("the connection has ended; there will be no more offers")
            await self._offers_changed.wait()
        return self._arrived, found

    async def next_change(self, seen: int) -> int:
        """See `VmbusClient.wait_change`."""
        while self._changes == seen and self.machine.is_connected:
            await self._offers_changed.wait()
        if not self.machine.is_connected:
            raise ConnectionFailed("the connection has ended, and with it all offers")
        return self._changes

    # tasks

    def _begin(self, key: tuple[str, int], work: Callable[[], Awaitable[None]]) -> None:
        assert self._group is not None
        self._group.start_soon(self._guard, self.synic.turns.expect(key), work, self._group.cancel_scope)

    async def _guard(
        self, begin: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[None]], scope: anyio.CancelScope
    ) -> None:
        try:
            await begin()
            await work()
        except (KeyboardInterrupt, SystemExit, GeneratorExit, anyio.get_cancelled_exc_class()):
            raise
        except BaseException as error:
            self._errors.append(error)
            scope.cancel()

    async def _take_messages(self, messages: AsyncIterator[SynicMessage]) -> None:
        async for message in messages:
            if message.message_type == CHANNEL_MESSAGE:
                self._receive(message.payload)
            else:
                reason = f"a message of type {message.message_type:#x} came to VMBus's SINT"
                self._complained(Complaint("host_message_invalid", reason))

    def _receive(self, data: bytes) -> None:
        effects = self.machine.receive(data)
        if self._trace is not None:
            refused = next((effect.reason for effect in effects if isinstance(effect, Complaint)), "")
            name, channel_id = name_of(data)
            event = self._trace.emit(
                Control, side="guest", direction="in", name=name, channel_id=channel_id, refused=refused
            )
            self._trace.work_on((event, self._trace.context()[1]))
        self.do(effects)

    async def _take_events(self, events: AsyncIterator[set[int]]) -> None:
        async for flags in events:
            self.signals.ring(flags)

    def _end(self, reason: str) -> None:
        self.do(self.machine.connection_lost())
        self.forget(reason)

    # effects

    def _contact_refused(self) -> None:
        self.do(self.machine.contact_refused())

    def _connected(self, effect: done.Connected) -> None:
        self.agreed = effect
        self.signals.version = effect.version
        self.signals.monitor_pages = effect.monitor_pages
        self.answers.give(effect)

    def _connect_failed(self, effect: done.ConnectFailed) -> None:
        self.answers.fail(done.Connected, ConnectionFailed(effect.reason))

    def _add_offer(self, offer: OfferChannel) -> None:
        self._arrived += 1
        self.offers[offer.channel_id] = offer
        self._arrivals[offer.channel_id] = self._arrived
        self._note_change()

    def _rescinded(self, effect: done.OfferRescinded) -> None:
        channel_id = effect.channel_id
        self.offers.pop(channel_id, None)
        self._note_change()
        self.signals.forget(channel_id, f"the host rescinded channel {channel_id:#x}")
        self._release_if_unused(channel_id)

    def _open_ended(self, effect: done.OpenEnded) -> None:
        if effect.status != STATUS_SUCCESS:
            self.signals.forget(effect.channel_id, f"channel {effect.channel_id:#x} was not opened")
        self.answers.give(effect, effect.channel_id)

    def _connection_modified(self, effect: done.ModifyConnectionEnded) -> None:
        self.signals.monitor_pages = effect.monitor_pages
        self.answers.give(effect)

    def _hvsock_ended(self, effect: done.HvsockEnded) -> None:
        if effect.offer is not None:
            self._add_offer(effect.offer)
        self.answers.give(effect, (effect.service_id, effect.endpoint_id))

    def _complained(self, effect: Complaint) -> None:
        self.complaints[effect.event] += 1
        _log.warning(effect.event, vp=self.synic.vp_index, reason=effect.reason)

    def _tell_channel(self, effect: ChannelChanged) -> None:
        if self._trace is not None:
            self._trace.emit(
                Channel, side="guest", channel_id=effect.channel_id, before=effect.before, after=effect.after
            )

    def _tell_gpadl(self, effect: GpadlChanged) -> None:
        if self._trace is not None:
            self._trace.emit(
                Gpadl,
                side="guest",
                channel_id=effect.channel_id,
                gpadl_id=effect.gpadl_id,
                before=effect.before,
                after=effect.after,
            )

    # offers

    def _release_if_unused(self, channel_id: int) -> None:
        channel = self.machine.channel(channel_id)
        is_gone = channel is not None and channel.is_held and channel_id not in self.offers
        if is_gone and not self._uses[channel_id] and self.machine.is_connected:
            del self._uses[channel_id]
            self.do(self.machine.release(channel_id))

    def _note_change(self) -> None:
        self._changes += 1
        self._offers_changed.notify()

    def _arrived_since(self, since: int) -> list[OfferChannel]:
        return [offer for channel_id, offer in self.offers.items() if self._arrivals[channel_id] > since]


class NewOffers:
    """The offers of a connection as they come, see `VmbusClient.new_offers`."""

    def __init__(self, link: ClientConnection) -> None:
        self._link = link
        self._since = 0
        self._found: deque[OfferChannel] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OfferChannel:
        while True:
            while self._found:
                offer = self._found.popleft()
                if self._link.offers.get(offer.channel_id) is offer:
                    return offer
            self._since, found = await self._link.next_offers(self._since)
            self._found.extend(found)
