"""The pytest plugin that comes with vmbus-broker: a partition, a VMBus server with your devices, a guest's client.

    @pytest.fixture
    def vmbus_devices():
        return [EchoDevice(INSTANCE)]

    async def test_my_driver(vmbus_client):
        channel = await vmbus_client.open(await vmbus_client.wait_offer(instance_id=INSTANCE))

    @pytest.mark.vmbus(faults=["refused-posts:3", "late-eom"], seed=7)
    async def test_my_driver_when_things_go_wrong(vmbus_client):
        ...

Tests are async and run under anyio's own plugin (`anyio_mode = "auto"`, or `pytest.mark.anyio`), on asyncio and on trio.
Time is virtual unless told: a test that waits a minute takes none, and one that waits for what never comes fails at once. It is
the partition's time (`vmbus_time`); anyio's own timeouts are in yours. A device that raises ends the test with what it raised:
each block (partition, server, client) runs in a task of its own, so that its end does not end pytest's.

`pytest.mark.vmbus` takes `faults` (see `channels.faults`), `seed`, `version` (what the client asks for) and any field of
`PartitionConfig`. Fixtures that a project may override: `vmbus_config`, `vmbus_devices`. Others: `vmbus_partition`,
`vmbus_access` (with the faults), `vmbus_refusing_access`, `vmbus_server`, `vmbus_hvsock` (an `HvsockHost` at that server),
`vmbus_guest` (a `GuestSynic` of processor 0, with the faults), `vmbus_client`, `vmbus_time`, `vmbus_faults`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest

if TYPE_CHECKING:  # a test run that uses none of this should not pay for it
    from channels.client import VmbusClient
    from channels.devices import Device
    from channels.faults import Faults, RefusingAccess
    from channels.hvsock import HvsockHost
    from channels.server import VmbusServer

    from .access import GuestSynic, SynicPortAccess
    from .partition import Partition, PartitionConfig

T = TypeVar("T")

PATIENCE_DAYS = 7
"""Of virtual time: where nobody can go on, time jumps there at once, and the test fails."""
_OWN = ("faults", "version")
"""Arguments of the marker that are no fields of `PartitionConfig`."""


class VirtualTime:
    """The partition's time. In virtual time, waiting takes none of yours."""

    def __init__(self, partition: Partition) -> None:
        self._turns = partition.turns
        self._waits = 0

    @property
    def now(self) -> float:
        """Seconds since the partition began."""
        from .clock import TICKS_PER_SECOND

        return self._turns.clock.now() / TICKS_PER_SECOND

    async def sleep(self, seconds: float) -> None:
        """Let so much time pass, and everything happen that is due in it."""
        from .clock import TICKS_PER_SECOND

        self._waits += 1
        tick = self._turns.clock.now() + round(seconds * TICKS_PER_SECOND)
        await self._turns.sleep_until(tick, ("test-sleep", self._waits))

    async def settled(self) -> None:
        """Wait until nobody can go on without time passing."""
        await self._turns.settled()


class _Guard:
    """Ends the test when one of the blocks that it stands on ends with an error."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """What a block ended with, and nobody has raised yet."""
        self.has_failed = False
        self._scope: anyio.CancelScope | None = None
        self._blocks: list[anyio.CancelScope] = []
        """Each stands on those before it."""

    def fail(self, error: BaseException, block: anyio.CancelScope) -> None:
        """A block has ended with this; the first one counts. Whoever waits in those that stand on it is told by them."""
        if not self.has_failed:
            self.error, self.has_failed = error, True
        if self._scope is not None:
            self._scope.cancel()
        for standing in self._blocks[self._blocks.index(block) + 1 :]:
            standing.cancel()

    def give_up(self) -> None:
        """Nobody can go on: the first block, the partition, has nothing left to do."""
        self.fail(TimeoutError("nobody can go on: somebody waits for what does not come"), self._blocks[0])

    def raise_error(self) -> None:
        """Raise what a block ended with, once."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def around(self, test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """The test, ended by `fail`."""

        @wraps(test)
        async def guarded(*args: Any, **kwargs: Any) -> None:
            self.raise_error()
            with anyio.CancelScope() as self._scope:
                await test(*args, **kwargs)
            self.raise_error()

        return guarded

    @asynccontextmanager
    async def hold(self, block: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """Hold this block open, in a task of its own."""
        self.raise_error()
        scope = anyio.CancelScope()
        self._blocks.append(scope)
        entered, leave = anyio.Event(), anyio.Event()
        values: list[T] = []

        async def host() -> None:
            try:
                with scope:
                    async with block() as value:
                        values.append(value)
                        entered.set()
                        await leave.wait()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                self.fail(error, scope)
            finally:
                entered.set()

        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await entered.wait()
            if values:
                yield values[0]
            if self.has_failed:  # whoever it would say goodbye to may be gone
                group.cancel_scope.cancel()
            leave.set()
        self.raise_error()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "vmbus(faults, seed, version, ...): faults, and fields of PartitionConfig, for the fixtures of vmbus-broker",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let a block that fails end the test that stands on it."""
    guard = pyfuncitem.funcargs.get("_vmbus_guard")
    if isinstance(guard, _Guard) and iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = guard.around(pyfuncitem.obj)
    return (yield)


def _wanted(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the markers of the test say; the nearest one wins."""
    wanted: dict[str, Any] = {}
    for marker in request.node.iter_markers("vmbus"):
        if marker.args:
            raise pytest.UsageError("pytest.mark.vmbus takes keyword arguments only, such as faults=[...] or seed=1")
        wanted = dict(marker.kwargs) | wanted
    return wanted


@pytest.fixture
def _vmbus_guard() -> _Guard:
    return _Guard()


@pytest.fixture
def vmbus_config(request: pytest.FixtureRequest) -> PartitionConfig:
    """How the partition is made: virtual time, and what the test's marker says."""
    from .partition import PartitionConfig

    fields = {name: value for name, value in _wanted(request).items() if name not in _OWN}
    try:
        return PartitionConfig(**{"virtual_time": True} | fields)
    except TypeError as error:
        raise pytest.UsageError(f"pytest.mark.vmbus: {error}") from None


@pytest.fixture
def vmbus_devices() -> Sequence[Device]:
    """The devices that the server offers: override it."""
    return ()


@pytest.fixture
def vmbus_faults(request: pytest.FixtureRequest, vmbus_config: PartitionConfig) -> Faults:
    """The faults that the test's marker asks for; it counts how often each has struck."""
    from channels.faults import Faults, parse_fault

    texts = _wanted(request).get("faults", ())
    return Faults(map(parse_fault, [texts] if isinstance(texts, str) else texts), vmbus_config.seed or 0)


@pytest.fixture
async def vmbus_partition(
    anyio_backend: object, _vmbus_guard: _Guard, vmbus_config: PartitionConfig
) -> AsyncIterator[Partition]:
    """A partition that lives as long as the test."""
    from .clock import TICKS_PER_SECOND
    from .partition import Partition

    async with _vmbus_guard.hold(lambda: Partition(vmbus_config)) as partition:
        if vmbus_config.virtual_time:
            partition.turns.schedule(
                PATIENCE_DAYS * 86_400 * TICKS_PER_SECOND, ("test-patience", 0), _vmbus_guard.give_up
            )
        yield partition


@pytest.fixture
async def vmbus_time(anyio_backend: object, vmbus_partition: Partition) -> VirtualTime:
    """The partition's time."""
    return VirtualTime(vmbus_partition)


@pytest.fixture
async def vmbus_access(anyio_backend: object, vmbus_partition: Partition, vmbus_faults: Faults) -> SynicPortAccess:
    """What a host-side consumer holds, with the faults in place."""
    return vmbus_faults.access(vmbus_partition.synic())


@pytest.fixture
async def vmbus_refusing_access(
    anyio_backend: object, vmbus_partition: Partition, vmbus_config: PartitionConfig
) -> RefusingAccess:
    """The same, but a quarter of all posts is refused, both ways."""
    from channels.faults import RefusingAccess

    return RefusingAccess(vmbus_partition.synic(), vmbus_config.seed or 0)


@pytest.fixture
def vmbus_hvsock() -> HvsockHost:
    """The host's sockets, served by `vmbus_server`: listen and connect here."""
    from channels.hvsock import HvsockHost

    return HvsockHost()


@pytest.fixture
async def vmbus_server(
    anyio_backend: object,
    _vmbus_guard: _Guard,
    vmbus_partition: Partition,
    vmbus_access: SynicPortAccess,
    vmbus_faults: Faults,
    vmbus_devices: Sequence[Device] | Device,
    vmbus_hvsock: HvsockHost,
) -> AsyncIterator[VmbusServer]:
    """A VMBus server that serves `vmbus_devices`, and takes hvsock connections for `vmbus_hvsock`."""
    from channels.devices import Device, serve_devices
    from channels.server import VmbusServer

    devices = (vmbus_devices,) if isinstance(vmbus_devices, Device) else vmbus_devices

    @asynccontextmanager
    async def serve() -> AsyncIterator[VmbusServer]:
        async with (
            VmbusServer(vmbus_access, vmbus_partition.memory, hvsock_listener=vmbus_hvsock.accepts) as server,
            vmbus_hvsock.serve(vmbus_faults.bus(server)),
            serve_devices(vmbus_faults.bus(server), *devices),
        ):
            yield server

    async with _vmbus_guard.hold(serve) as server:
        yield server


@pytest.fixture
async def vmbus_guest(anyio_backend: object, vmbus_partition: Partition, vmbus_faults: Faults) -> GuestSynic:
    """What a driver of processor 0 holds, with the faults in place."""
    return vmbus_faults.guest(vmbus_partition.vp(0).guest_synic())


@pytest.fixture
async def vmbus_client(
    request: pytest.FixtureRequest,
    anyio_backend: object,
    _vmbus_guard: _Guard,
    vmbus_server: VmbusServer,
    vmbus_guest: GuestSynic,
) -> AsyncIterator[VmbusClient]:
    """A VMBus client of that driver, connected to `vmbus_server`."""
    from channels.client import VmbusClient
    from channels.protocol import Version

    version = _wanted(request).get("version")
    if isinstance(version, str):
        version = next((known for known in Version if known.label == version), version)
        if isinstance(version, str):
            raise pytest.UsageError(f"pytest.mark.vmbus: there is no version {version}")
    async with _vmbus_guard.hold(lambda: VmbusClient(vmbus_guest, version=version)) as client:
        yield client
