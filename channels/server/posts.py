"""What a server posts to its guest: one message after the other, in order, when the SynIC takes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
import structlog

from broker.access import GuestMessagePort, SynicPortAccess, Turns
from broker.errors import PortClosed
from broker.trace import NO_CONTEXT, Context, Trace

from ..core.server import ServerConfig
from ..core.server.effects import Target
from ..protocol.ids import CHANNEL_MESSAGE
from .tell import tell_message

_log = structlog.get_logger("channels")


class ServerPosts:
    """See the module. `drained` is called when the last message has gone out. Nothing is posted before `start`."""

    def __init__(
        self,
        access: SynicPortAccess,
        config: ServerConfig,
        turns: Turns,
        trace: Trace | None,
        drained: Callable[[], None],
    ) -> None:
        self.sent = 0
        """Messages that were posted."""
        self._access = access
        self._config = config
        self._trace = trace
        self._drained = drained
        self._waiting: deque[tuple[bytes, Context]] = deque()
        self._changed = turns.wakeup(("vmbus send", 0))
        self._scope = anyio.CancelScope()
        """Of the post that is under way."""
        self._is_running = False
        self._port: GuestMessagePort | None = None
        """None while standing still; another is made at the next post."""
        self._target_vp = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> list[bytes]:
        """What has not gone out, oldest first."""
        return [data for data, _ in self._waiting]

    def add(self, data: bytes) -> None:
        """Post this after all that waits."""
        self._waiting.append((data, NO_CONTEXT if self._trace is None else self._trace.context()))
        self._changed.notify()

    def drop(self) -> None:
        """The VM is reset: what waits is not posted, nor what is being posted."""
        self._waiting.clear()
        self._scope.cancel()

    def start(self) -> None:
        """Post what waits."""
        self._is_running = True
        self._changed.notify()

    def stop(self) -> None:
        """Post nothing: a post that waits for room waits here from now on."""
        self._is_running = False
        if self._port is not None:
            self._port.close()
            self._port = None

    async def aim(self, target_vp: int | None) -> None:
        """Messages go to this processor from now on; None: to the one that they go to."""
        if target_vp is not None:
            self._target_vp = target_vp
            if self._port is not None:
                await self._port.set_target_vp(target_vp)

    async def post_through(self) -> None:
        """The task that posts; it ends with the partition."""
        told = None
        while True:
            if not self._waiting or not self._is_running:
                await self._changed.wait()
                continue
            if self._port is None:
                config = self._config
                self._port = await self._access.new_guest_message_port(
                    config.message_vtl, self._target_vp, config.message_sint
                )
                continue
            port = self._port
            data, context = message = self._waiting[0]
            if self._trace is not None:
                self._trace.work_on(context)
                if message is not told:  # a stop may have interrupted its post
                    tell_message(self._trace, "out", data)
                    told = message
            try:
                with anyio.CancelScope() as self._scope:
                    if not port.try_post_message(CHANNEL_MESSAGE, data):
                        await port.post_message(CHANNEL_MESSAGE, data)
                    self.sent += 1
                    if self._waiting and self._waiting[0] is message:  # a reset may have dropped it meanwhile
                        self._waiting.popleft()
            except PortClosed:
                if self._port is port:
                    return  # the partition has ended
            if not self._waiting:
                self._drained()

    async def post_at_once(self, target: Target, data: bytes) -> None:
        """Now or never, to a processor and SINT that the guest chose."""
        try:
            port = await self._access.new_guest_message_port(self._config.message_vtl, target.vp, target.sint)
        except ValueError as error:
            _log.info("answer_dropped", reason=str(error))
            return
        if self._trace is not None:
            tell_message(self._trace, "out", data)
        if port.try_post_message(CHANNEL_MESSAGE, data):
            self.sent += 1
        else:
            _log.info("answer_dropped", reason=f"the slot of SINT {target.sint}, processor {target.vp}, is busy")
        port.close()
