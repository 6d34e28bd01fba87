"""RNDIS requests of a driver: one at a time over the primary channel, from a page of their own, answered by ID.

Whoever asks may give up. The page is the host's until the host has completed the packet, so a task of the adapter's carries
each request, and the next one waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio.abc

from broker.access import Wakeup
from broker.errors import BrokerError, ChannelClosed, ConnectionFailed, ProtocolError
from broker.hvdef import PAGE_SIZE
from broker.hvdef.registers import PAGE_SHIFT

from ...client.opens import GuestChannel
from ...protocol.gparange import GpaRange
from ...protocol.network import nvsp, rndis
from ...protocol.network.nvsp import NO_SECTION, ChannelType, NvspStatus, NvspVersion
from ...protocol.network.rndis import RndisMessage, RndisStatus


class RndisControl:
    """See the module. Whoever reads the channel hands in what comes (`take`), and why it ends (`fail`)."""

    def __init__(self, channel: GuestChannel, gpn: int, version: NvspVersion, group: anyio.abc.TaskGroup) -> None:
        """`gpn`: a page for requests; `group`: for what carries them."""
        self._channel = channel
        self._group = group
        self._gpn = gpn
        self._version = version
        self._next_id = 1
        self._waiting: int | None = None
        """The ID of the request that is on its way; a reset has none and counts as 0."""
        self._answer: RndisMessage | None = None
        self._failure: BrokerError | None = None
        self._given_up: set[int] = set()
        """IDs of requests that were cancelled: their answers may come yet, and are for nobody."""
        self._is_carried = False
        """The host has not completed the packet of the last request."""
        self._changed: Wakeup = channel.turns.wakeup(("network-control", channel.channel_id))

    async def initialize(self) -> rndis.InitializeComplete:
        """Begin. `ProtocolError` when the adapter says no."""
        answer = await self._request(rndis.Initialize(self._new_id()))
        if not isinstance(answer, rndis.InitializeComplete) or answer.status != RndisStatus.SUCCESS:
            raise ProtocolError("RNDIS message", 12, "INITIALIZE_COMPLETE with status 0", f"{answer}")
        return answer

    async def query(self, oid: int, information: bytes = b"") -> tuple[int, bytes]:
        """(status, value) of an OID."""
        answer = await self._request(rndis.Query.of(self._new_id(), oid, information))
        if not isinstance(answer, rndis.QueryComplete):
            raise ProtocolError("RNDIS message", 0, "QUERY_COMPLETE", answer.TYPE.name)
        return answer.status, answer.information

    async def set(self, oid: int, information: bytes) -> int:
        """Set an OID: the status."""
        answer = await self._request(rndis.Set.of(self._new_id(), oid, information))
        if not isinstance(answer, rndis.SetComplete):
            raise ProtocolError("RNDIS message", 0, "SET_COMPLETE", answer.TYPE.name)
        return answer.status

    async def keep_alive(self) -> int:
        """Ask whether the adapter is there: the status."""
        answer = await self._request(rndis.KeepAlive(self._new_id()))
        if not isinstance(answer, rndis.KeepAliveComplete):
            raise ProtocolError("RNDIS message", 0, "KEEP_ALIVE_COMPLETE", answer.TYPE.name)
        return answer.status

    async def reset(self) -> int:
        """Let the adapter forget packet filter and multicast list: the status."""
        answer = await self._request(rndis.Reset())
        if not isinstance(answer, rndis.ResetComplete):
            raise ProtocolError("RNDIS message", 0, "RESET_COMPLETE", answer.TYPE.name)
        return answer.status

    async def halt(self) -> None:
        """Stop; there is no answer."""
        await self._begin(rndis.Halt(self._new_id()), None)
        while self._is_carried:
            self._check()
            await self._changed.wait()

    def take(self, message: RndisMessage) -> None:
        """An answer has come. `ProtocolError` for one that nobody asked for."""
        number = getattr(message, "request_id", 0)
        if number in self._given_up:
            self._given_up.discard(number)
            return
        if number != self._waiting or self._answer is not None:
            raise ProtocolError("RNDIS message", 8, f"an answer to request {self._waiting}", f"to {number}")
        self._answer = message
        self._changed.notify()

    def fail(self, error: BrokerError) -> None:
        """Nothing more will come: who waits gets this error."""
        self._failure = self._failure or error
        self._changed.notify()

    async def _request(self, message: RndisMessage) -> RndisMessage:
        number: int = getattr(message, "request_id", 0)
        await self._begin(message, number)
        try:
            while self._answer is None:
                self._check()
                await self._changed.wait()
            return self._answer
        except BaseException:
            if self._answer is None:
                self._given_up.add(number)
            raise
        finally:
            self._waiting = None
            self._changed.notify()

    async def _begin(self, message: RndisMessage, waiting: int | None) -> None:
        """Wait for the page, and have the message carried; `waiting`: the ID of its answer."""
        data = message.pack()
        if len(data) > PAGE_SIZE:
            raise ValueError(f"an RNDIS request has up to {PAGE_SIZE} bytes, not {len(data)}")
        self._check()
        while self._is_carried or self._waiting is not None:
            await self._changed.wait()
            self._check()
        self._is_carried, self._waiting, self._answer = True, waiting, None
        self._channel.memory.write(self._gpn << PAGE_SHIFT, data)
        begin = self._channel.turns.expect(("network-control", self._channel.channel_id))
        self._group.start_soon(self._carry, begin, len(data))

    async def _carry(self, begin: Callable[[], Awaitable[None]], size: int) -> None:
        try:
            await begin()
            payload = nvsp.RndisPacket(ChannelType.CONTROL, NO_SECTION, 0).padded(self._version)
            completion = await self._channel.request(payload, [GpaRange(size, 0, (self._gpn,))])
            answer = nvsp.parse_from_host(completion.payload)
            if not isinstance(answer, nvsp.RndisPacketComplete) or answer.status != NvspStatus.SUCCESS:
                raise ProtocolError("completion", 4, "RNDIS_PACKET_COMPLETE with status 1", f"{answer}")
            self._is_carried = False
            self._changed.notify()
        except (ChannelClosed, ProtocolError, ConnectionFailed) as error:
            self.fail(error)
        finally:
            self._channel.turns.leave()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _new_id(self) -> int:
        number, self._next_id = self._next_id, self._next_id % 0xFFFF_FFFF + 1
        return number
