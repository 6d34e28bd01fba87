"""A VMBus server: the shell around `ServerMachine`, over a `SynicPortAccess` and guest memory, and nothing else.

    async with VmbusServer(partition.synic(), partition.memory) as server:
        async with serve_devices(server, EchoDevice(INSTANCE)):
            ...

Two tasks of the block do the work: one carries out effects and takes guest messages, one posts to the guest. The first
takes no new message while the second has any left, so that a guest that does not listen is not answered without end. What
waits is bounded: messages in by `depth`, messages out by what one message can cause plus two for each channel.

Will not: read or write rings, run devices. Those are the devices' own, behind `channels.bus`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self
from uuid import UUID

import anyio
import anyio.abc
import msgspec
import structlog

from broker.access import PortHandle, SynicPortAccess, Turns, Wakeup
from broker.errors import HostError, OfferRefused, PartitionClosed
from broker.hvdef import HvStatus
from broker.memory import GuestMemory
from broker.trace import NO_CONTEXT, Context, Trace

from ..bus import ChannelRequests
from ..core.server import ServerMachine
from ..core.server import effects as do
from ..core.server.offer_params import OfferParams
from ..core.server.state import ServerConfig
from ..protocol.hvsock import TlConnectRequest
from .backend import ConnectionBackend, OuterHost
from .devices import ServerDevices
from .offer import ServerOffer
from .posts import ServerPosts
from .tell import tell_change, tell_message

MESSAGE_DEPTH = 64
"""Guest messages that may wait; a post that finds as many gets INSUFFICIENT_BUFFERS."""

HvsockListener = Callable[[UUID, UUID, UUID], Awaitable[bool]]
"""(service, endpoint, silo) of a guest's hvsock connect; True when somebody listens and offers the channel."""

_log = structlog.get_logger("channels")


class ServerStatistics(msgspec.Struct, frozen=True):
    """What a server has done so far, and what waits."""

    received: int
    """Guest messages taken."""
    sent: int
    """Messages posted to the guest."""
    complaints: dict[str, int]
    """What guests and devices did wrong, by kind."""
    waiting_in: int
    waiting_out: int
    open_channels: int


class _Incoming(msgspec.Struct, frozen=True):
    data: bytes
    trusted: bool
    multiclient: bool
    context: Context


class _MessagePort:
    """One of the connections that guests post control messages to."""

    def __init__(self, server: VmbusServer, multiclient: bool) -> None:
        self._server = server
        self._multiclient = multiclient

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        return self._server.take(message, trusted, self._multiclient)


class VmbusServer(anyio.AsyncContextManagerMixin):
    """See the module; a `Bus` for devices. `ConnectionIdInUse` when another server has its connections."""

    def __init__(
        self,
        access: SynicPortAccess,
        memory: GuestMemory,
        config: ServerConfig | None = None,
        *,
        depth: int = MESSAGE_DEPTH,
        saved: bytes | None = None,
        hvsock_listener: HvsockListener | None = None,
        forward: Callable[[do.ForwardContact], None] | None = None,
        assigns_monitors: bool | None = None,
    ) -> None:
        """`saved`: go on from such a document; the server stands still until `start`, so that devices may come back first.
        `hvsock_listener`: without one, every hvsock connect is refused. `forward`: takes contacts for another VTL.
        `assigns_monitors`: devices that ask for a monitor ID get one; where `access` has monitors, unless told."""
        if depth < 1:
            raise ValueError(f"a server keeps at least one guest message, not {depth}")
        self.config = config or ServerConfig()
        self.machine = ServerMachine(self.config)
        self.memory = memory
        self._access = access
        self._depth = depth
        self._listener = hvsock_listener
        self._forward = forward
        self._assigns_monitors = access.monitor_support is not None if assigns_monitors is None else assigns_monitors
        self._outer: OuterHost | None = None
        self._incoming: deque[_Incoming] = deque()
        self._effects: deque[tuple[do.Effect, Context]] = deque()
        self._is_resetting = False
        self._is_running = saved is None
        self._is_restored = saved is not None
        if saved is not None:
            self.machine.restore(saved)
        self._received = 0
        self._connects = 0
        self._is_open = self._was_opened = False
        self._posts: ServerPosts
        self._devices: ServerDevices
        self._backend: ConnectionBackend
        self._turns: Turns
        self._trace: Trace | None = None
        self._work: Wakeup
        self._reset_done: Wakeup
        self._group: anyio.abc.TaskGroup

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        errors: list[BaseException] = []
        async with AsyncExitStack() as stack:
            await self._open(stack)
            async with anyio.create_task_group() as group:
                self._group = group
                for number, task in enumerate((self._work_through, self._posts.post_through, self._follow_resets)):
                    group.start_soon(self._supervise, self._turns.expect(("vmbus", number)), task, errors)
                try:
                    yield self
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # not from within the group, which would wrap it
                    errors.insert(0, error)
                finally:
                    self._close()
                    group.cancel_scope.cancel()
        if errors:
            raise errors[0]

    async def _open(self, stack: AsyncExitStack) -> None:
        config, access = self.config, self._access
        handle: PortHandle | None = None
        for connection_id, multiclient in config.connections.items():
            handle = await access.add_message_port(connection_id, config.message_vtl, _MessagePort(self, multiclient))
            stack.push_async_exit(handle)
        assert handle is not None
        self._turns, self._trace = turns, trace = handle.turns, handle.trace
        self._work, self._reset_done = (turns.wakeup((kind, 0)) for kind in ("vmbus work", "vmbus reset"))
        self._posts = ServerPosts(access, config, turns, trace, self._work.notify)
        self._devices = ServerDevices(access, config, turns, self)
        self._backend = ConnectionBackend(access, config, self.memory, self._posts, self._devices.ports)
        if self._is_running:
            self._posts.start()
        self._is_open = self._was_opened = True

    def _close(self) -> None:
        self._is_open = False
        self._posts.stop()
        self._incoming.clear()
        self._effects.clear()
        self._devices.close()
        self._reset_done.notify()

    async def _supervise(
        self, begin: Callable[[], Awaitable[None]], task: Callable[[], Awaitable[None]], errors: list[BaseException]
    ) -> None:
        try:
            await begin()
            await task()
        except (KeyboardInterrupt, SystemExit, GeneratorExit, anyio.get_cancelled_exc_class()):
            raise
        except PartitionClosed:
            return  # there is nobody left to serve
        except BaseException as error:
            errors.append(error)
            self._group.cancel_scope.cancel()

    # for devices, see `channels.bus`

    @property
    def turns(self) -> Turns:
        """Where tasks of devices wait."""
        return self._turns

    @property
    def trace(self) -> Trace | None:
        """The partition's trace."""
        return self._trace

    async def offer(self, params: OfferParams, requests: ChannelRequests) -> ServerOffer:
        """See `Bus.offer`."""
        if not self._is_open:
            raise OfferRefused("the VMBus server is not running; offer within its `async with` block")
        if not self._assigns_monitors or self._outer is not None:  # an ID that nobody looks at would swallow signals
            params = msgspec.structs.replace(params, monitor_latency=None)
        offer_id, effects = self.machine.offer(params)
        self._devices.add(offer_id, requests)
        self.run(effects)
        return ServerOffer(self, offer_id, params)

    def run(self, effects: Iterable[do.Effect]) -> None:
        """Carry these effects out after those that wait; what devices' answers lead to comes in here."""
        if not self._is_open:
            return
        context = NO_CONTEXT if self._trace is None else self._trace.context()
        self._effects.extend((effect, context) for effect in effects)
        if self._effects:
            self._work.notify()

    # for a relay

    async def relay_for(self, outer: OuterHost | None) -> None:
        """Let this host set up connections from now on, or none again. What a connection uses already goes over to it:
        `HostError` when it cannot take it, and then nothing has changed."""
        connection = self.machine.state.connection
        if outer is not None and connection.is_connected:
            await outer.set_monitor_pages(connection.monitor_pages)
        self._outer = outer

    # for the host

    def statistics(self) -> ServerStatistics:
        """Counts since the start, and what waits now."""
        return ServerStatistics(
            received=self._received,
            sent=self._posts.sent if self._was_opened else 0,
            complaints=dict(self.machine.state.complaints),
            waiting_in=len(self._incoming),
            waiting_out=len(self._posts) if self._was_opened else 0,
            open_channels=len(self.machine.open_offers()),
        )

    async def reset(self) -> None:
        """The VM is reset: drop what waits, let go of every channel; returns when every device has, too."""
        self._begin_reset()
        while self._is_resetting and self._is_open:
            await self._reset_done.wait()

    def _begin_reset(self) -> None:
        self._is_resetting = True
        self._incoming.clear()
        self.run(self.machine.reset())

    def stop(self) -> None:
        """Stand still: nothing is taken from the guest nor posted to it, and devices are asked nothing, until `start`."""
        self._is_running = False
        if self._is_open:
            self._posts.stop()

    def start(self) -> None:
        """Go on after `stop`, or begin after a restore: devices that have not come back are rescinded now."""
        if self._is_running:
            return
        self._is_running = True
        if self._is_restored:
            self._is_restored = False
            self._begin_restored()
        self._work.notify()
        self._posts.start()

    def _begin_restored(self) -> None:
        """What the connection uses comes before all that devices have asked for: ports and posts depend on it."""
        waiting, effects = list(self._effects), self.machine.start()
        uses = [effect for effect in effects if isinstance(effect, do.ModifyConnection) and effect.version is not None]
        self._effects.clear()
        self.run(uses)
        self._effects.extend(waiting)
        self.run(effect for effect in effects if effect not in uses)

    def save(self) -> bytes:
        """What the guest relies on, as a document for `saved`; see `channels.core.server.saved`. Call it while stopped.

        `HostError` while it runs, or while monitor pages are the host's own. Guest messages that it has accepted and not
        looked at yet are not in it: a guest is stopped before its host.
        """
        if self._is_running:
            raise HostError("stop the VMBus server before saving it")
        waiting = self._posts.waiting
        for effect, _ in self._effects:
            match effect:
                case do.SendSaved(data):
                    waiting.append(data)
                case do.SendMessage(message, None):  # one with a target goes out now or never
                    waiting.append(message.pack())
        return self.machine.save(waiting)

    # from the guest

    def take(self, data: bytes, trusted: bool, multiclient: bool) -> HvStatus:
        """A guest's post: keep it, or INSUFFICIENT_BUFFERS when `depth` of them wait."""
        if len(self._incoming) >= self._depth:
            return HvStatus.INSUFFICIENT_BUFFERS
        context = NO_CONTEXT if self._trace is None else self._trace.context()
        self._incoming.append(_Incoming(data, trusted, multiclient, context))
        self._work.notify()
        return HvStatus.SUCCESS

    # the tasks

    async def _work_through(self) -> None:
        while True:
            if not self._is_running:
                await self._work.wait()
            elif self._effects:
                effect, context = self._effects.popleft()
                if self._trace is not None:
                    self._trace.work_on(context)
                await self._execute(effect)
            elif self._incoming and not len(self._posts) and self.machine.may_receive:
                self._receive(self._incoming.popleft())
            else:
                await self._work.wait()

    def _receive(self, message: _Incoming) -> None:
        self._received += 1
        if self._trace is not None:
            self._trace.work_on(message.context)
        effects = self.machine.receive(message.data, trusted=message.trusted, multiclient=message.multiclient)
        if self._trace is not None:
            refused = next((effect.reason for effect in effects if isinstance(effect, do.Complaint)), "")
            tell_message(self._trace, "in", message.data, refused)
        self.run(effects)

    async def _follow_resets(self) -> None:
        while True:
            await self._access.wait_reset()
            probe = await self._access.new_guest_message_port(self.config.message_vtl, 0, self.config.message_sint)
            probe.close()  # PartitionClosed instead, where it was the partition's end
            self._begin_reset()

    # effects

    async def _execute(self, effect: do.Effect) -> None:
        if await self._devices.execute(effect):
            return
        match effect:
            case do.SendMessage(message, None):
                self._posts.add(message.pack())
            case do.SendSaved(data):
                self._posts.add(data)
            case do.SendMessage(message, target) if target is not None:
                await self._posts.post_at_once(target, message.pack())
            case do.ModifyConnection():
                await self._modify_connection(effect)
            case do.ConnectHvsock():
                self._connects += 1
                begin = self._turns.expect(("hvsock connect", self._connects))
                self._group.start_soon(self._connect_hvsock, begin, effect)
            case do.ForwardContact() if self._forward is not None:
                self._forward(effect)
            case do.DropMessages():
                self._posts.drop()
            case do.ResetDone():
                self._is_resetting = False
                self._reset_done.notify()
            case do.Complaint():
                _log.info(effect.event, reason=effect.reason)
            case do.ChannelChanged() | do.GpadlChanged() if self._trace is not None:
                tell_change(self._trace, effect)

    async def _modify_connection(self, effect: do.ModifyConnection) -> None:
        outer = self._outer
        if outer is not None and effect.version is not None and not outer.supports(effect.version):
            await self._posts.aim(effect.target_vp)
            self.run(self.machine.connection_modified(supported=False))
            return
        features = None if outer is None else outer.features
        status, host_pages = await self._backend.modify(effect, outer)
        self.run(self.machine.connection_modified(status, host_pages, features=features))

    async def _connect_hvsock(self, begin: Callable[[], Awaitable[None]], effect: do.ConnectHvsock) -> None:
        request: TlConnectRequest = effect.request
        accepted = False
        await begin()
        listeners = [self._listener, None if self._outer is None else self._outer.connect_hvsock]
        for listener in filter(None, listeners):
            try:
                accepted = accepted or await listener(request.service_id, request.endpoint_id, effect.silo_id)
            except Exception as error:
                _log.error("hvsock_listener_failed", service=str(request.service_id), exc_info=error)
        self.run(self.machine.hvsock_connected(request, accepted=accepted))
        self._work.notify()
        self._turns.leave()
