"""How a driver and a network adapter come to terms over NVSP, in the order in which Linux does it (`netvsc.c`).

Versions newest first, NDIS configuration, NDIS version, receive buffer, send buffer. What the host answers is checked: a
buffer that it divides into more than there is raises `ProtocolError`. An adapter that agrees to no version, or takes no
receive buffer, raises `ConnectionFailed`; without a send buffer it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from broker.errors import ConnectionFailed, ProtocolError
from broker.hvdef import PAGE_SIZE

from ...buffer import GuestBuffer
from ...client import VmbusClient
from ...client.gpadls import GuestGpadl
from ...client.opens import GuestChannel
from ...protocol.gparange import GpaRange
from ...protocol.network import nvsp
from ...protocol.network.frames import ETHERNET_HEADER, USUAL_MTU
from ...protocol.network.nvsp import NvspMessage, NvspStatus, NvspVersion, parse_from_host

Answer = TypeVar("Answer", bound=NvspMessage)

LEAST_SECTION = 128
"""Bytes of a section or suballocation, at least: an RNDIS header and a short frame."""


class Agreement(msgspec.Struct, frozen=True):
    """What was agreed on."""

    version: NvspVersion
    mtu: int
    receive: GuestBuffer
    suballocations: int
    """How many frames the host can have on the way."""
    suballocation_size: int
    """Bytes of one, at most."""
    send: GuestBuffer | None
    section_size: int
    """Bytes of a section of the send buffer, 0 without one."""


async def negotiate(
    client: VmbusClient,
    channel: GuestChannel,
    versions: Iterable[NvspVersion],
    mtu: int,
    receive_pages: int,
    send_pages: int,
    gpadls: list[GuestGpadl],
) -> Agreement:
    """See the module. `mtu` counts from version 3.2 on; it is 1500 before. `gpadls` gets those that were created."""
    version = await _agree(channel, versions)
    if version >= NvspVersion.V2:
        capabilities = nvsp.Capabilities.IEEE_802_1Q
        await _tell(channel, version, nvsp.NdisConfig(mtu + ETHERNET_HEADER, capabilities))
    else:
        mtu = USUAL_MTU
    await _tell(channel, version, nvsp.NdisVersion(6, 1 if version <= NvspVersion.V4 else 30))

    receive_gpadl = await client.create_gpadl(channel, receive_pages)
    gpadls.append(receive_gpadl)
    taken = await ask(channel, version, nvsp.ReceiveBuffer(receive_gpadl.gpadl_id), nvsp.ReceiveBufferComplete)
    if taken.status != NvspStatus.SUCCESS:
        raise ConnectionFailed(f"the adapter does not take a receive buffer: status {taken.status}")
    receive = _buffer(channel, receive_gpadl)
    if (
        taken.sections != 1
        or taken.size < LEAST_SECTION
        or not taken.count
        or taken.offset + taken.size * taken.count > receive.size
    ):
        raise ProtocolError(
            "RECEIVE_BUFFER_COMPLETE", 8, f"one section inside {receive.size} bytes", f"{taken.count} of {taken.size}"
        )

    send = None
    section_size = 0
    if send_pages:
        send_gpadl = await client.create_gpadl(channel, send_pages)
        gpadls.append(send_gpadl)
        told = await ask(channel, version, nvsp.SendBuffer(send_gpadl.gpadl_id), nvsp.SendBufferComplete)
        if told.status == NvspStatus.SUCCESS:
            send, section_size = _buffer(channel, send_gpadl), told.section_size
            if not LEAST_SECTION <= section_size <= send.size:
                raise ProtocolError(
                    "SEND_BUFFER_COMPLETE", 8, f"sections of {LEAST_SECTION} to {send.size} bytes", f"{section_size}"
                )
    return Agreement(version, mtu, receive, taken.count, taken.size, send, section_size)


async def revoke(channel: GuestChannel, agreement: Agreement) -> None:
    """Take both buffers back, before their GPADLs are torn down."""
    await _tell(channel, agreement.version, nvsp.RevokeReceiveBuffer())
    if agreement.send is not None:
        await _tell(channel, agreement.version, nvsp.RevokeSendBuffer())


async def ask(channel: GuestChannel, version: NvspVersion | None, message: NvspMessage, kind: type[Answer]) -> Answer:
    """Send a request; its answer is of this kind, else `ProtocolError`."""
    completion = await channel.request(message.padded(version))
    answer = parse_from_host(completion.payload)
    if not isinstance(answer, kind):
        raise ProtocolError("completion", 0, kind.__name__, type(answer).__name__)
    return answer


async def _agree(channel: GuestChannel, versions: Iterable[NvspVersion]) -> NvspVersion:
    for version in versions:
        answer = await ask(channel, None, nvsp.Init(version, version), nvsp.InitComplete)
        if answer.status == NvspStatus.SUCCESS:
            return version
    raise ConnectionFailed("the adapter speaks none of the NVSP versions that were asked for")


async def _tell(channel: GuestChannel, version: NvspVersion, message: NvspMessage) -> None:
    await channel.send(message.padded(version))


def _buffer(channel: GuestChannel, gpadl: GuestGpadl) -> GuestBuffer:
    return pages_buffer(channel, gpadl.gpns)


def pages_buffer(channel: GuestChannel, gpns: tuple[int, ...]) -> GuestBuffer:
    """These pages of the guest's own as a buffer."""
    return GuestBuffer(channel.memory, [GpaRange(len(gpns) * PAGE_SIZE, 0, gpns)])
