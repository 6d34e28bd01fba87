"""Runs drivers over a `VmbusClient`: the guest's counterpart of `channels.devices.framework`.

    async with VmbusClient(synic) as client, run_drivers(client, HeartbeatDriver(), ShutdownDriver()):
        ...

Each driver waits for its offer, opens it and runs until its channel ends: closed, rescinded or without a connection. That
ends the driver alone, and quietly. Anything else that a driver raises, `ProtocolError` about a host that lies among it,
ends the block, unwrapped.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import anyio
import structlog

from broker.access import Turns
from broker.errors import BrokerError, ChannelClosed, ConnectionFailed, PartitionClosed

from ..client import RING_PAGES, GuestChannel, VmbusClient

_log = structlog.get_logger("channels")


class Driver:
    """Base of drivers."""

    interface_id: UUID
    instance_id: UUID | None = None
    """Which device of this interface; whichever comes first unless given."""
    ring_pages: tuple[int, int] = RING_PAGES
    """Guest to host, host to guest, control pages included."""

    def attached(self, turns: Turns) -> None:
        """Before anything else: where tasks wait that use this driver."""
        return

    async def run(self, channel: GuestChannel) -> None:
        """Drive the device. The channel is closed when this returns."""
        raise NotImplementedError

    def ended(self) -> None:
        """After everything, however it ended; also where the channel was never opened."""
        return


@asynccontextmanager
async def run_drivers(client: VmbusClient, *drivers: Driver) -> AsyncIterator[None]:
    """Run these drivers while the block lasts; then their channels are closed. See the module."""
    errors: list[BaseException] = []
    turns = client.guest_synic.turns
    async with AsyncExitStack() as channels, anyio.create_task_group() as group:

        async def run(driver: Driver, begin: Callable[[], Awaitable[None]]) -> None:
            try:
                await begin()
                await _run(driver, client, channels)
            except Exception as raised:
                error = _reason(raised)
                if isinstance(error, (ChannelClosed, ConnectionFailed, PartitionClosed)):
                    _log.info("driver_ended", driver=type(driver).__name__, reason=str(error))
                else:  # the channel is closed with all others
                    errors.append(error)
                    group.cancel_scope.cancel()
            finally:
                driver.ended()
                turns.leave()

        try:
            for number, driver in enumerate(drivers):
                driver.attached(turns)
                begin = turns.expect(("driver", number))
                group.start_soon(run, driver, begin, name=type(driver).__name__)
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # not from within the group, which would wrap it
            errors.insert(0, error)
        finally:
            group.cancel_scope.cancel()
    if errors:
        raise errors[0]


async def _run(driver: Driver, client: VmbusClient, channels: AsyncExitStack) -> None:
    """Until the channel ends."""
    offer = await client.wait_offer(driver.interface_id, driver.instance_id)
    channel = await client.open(offer, ring_pages=driver.ring_pages)
    channels.push_async_callback(_close, client, channel)
    try:
        await driver.run(channel)
    except Exception as error:
        if not isinstance(_reason(error), ChannelClosed):
            raise
    await _close(client, channel)


async def _close(client: VmbusClient, channel: GuestChannel) -> None:
    with contextlib.suppress(ChannelClosed, ConnectionFailed):  # then there is nothing left to close
        await client.close(channel)


def _reason(error: Exception) -> Exception:
    """What ended a driver whose task groups wrapped it, or whose pipe put it in anyio's words."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, anyio.BrokenResourceError) and isinstance(error.__cause__, BrokerError):
        return error.__cause__
    return error
