"""The presets do and refuse what OpenVMM's backends do and refuse (`reference` 5.2; delivery rules: 4.1, 4.6, 4.7).

What a partition does is compared with the columns written down here, not with the table in `broker.synic.presets`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from broker import (
    BACKENDS,
    TLFS,
    ConfigurationError,
    HvStatus,
    MonitorPageGpas,
    Msr,
    Partition,
    PartitionConfig,
    SynicUnsupported,
    Vtl,
)

SINT, VECTOR = 2, 0x42
SIM_PAGE, SIEF_PAGE = 0x3000, 0x4000
PORT = 7

MASKED, PROXY = 1 << 16, 1 << 20
"""Bits of SINTx."""


@dataclass(frozen=True)
class Column:
    """One column of the table, as far as a consumer or a guest notices it."""

    vtls: tuple[int, ...] = (0,)
    prefer_os_events: bool = False
    uses_given_eventfds: bool = False
    interrupts_are_eventfds: bool = False
    monitor: str = "none"
    trusted: bool = False
    reflects_unknown_connections: bool = False
    """VTL 2 may take a call of VTL 0 to an unknown connection."""


COLUMNS = {
    "whp": Column(
        vtls=(0, 2),
        prefer_os_events=True,
        uses_given_eventfds=True,
        interrupts_are_eventfds=True,
        monitor="yes",
        reflects_unknown_connections=True,
    ),
    "mshv": Column(),
    "kvm": Column(),
    "hvf": Column(),
    "openhcl": Column(vtls=(0, 1), monitor="with allocation", trusted=True),
}
columns = pytest.mark.parametrize(("name", "column"), COLUMNS.items(), ids=COLUMNS)


class Recorder:
    """A port of either kind that keeps what it gets; `fails` makes its handler raise."""

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[object] = []
        self._fails = fails

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        self.calls.append((message, trusted))
        return HvStatus.SUCCESS

    async def handle_event(self, flag: int) -> None:
        self.calls.append(flag)
        if self._fails:
            raise RuntimeError("this handler always fails")


@dataclass
class Host:
    """The host's SynIC that keeps what it gets."""

    posted: list[tuple[int, int, int, int, bytes]] = field(default_factory=list)
    signalled: list[tuple[int, int, int, int]] = field(default_factory=list)

    def post_message(self, vtl: Vtl, vp: int, sint: int, message_type: int, payload: bytes) -> None:
        self.posted.append((vtl, vp, sint, message_type, payload))

    def signal_event(self, vtl: Vtl, vp: int, sint: int, flag: int) -> None:
        self.signalled.append((vtl, vp, sint, flag))


@dataclass
class Guest:
    """A partition whose processor 0 has its SynIC pages on and SINT 2 at a vector, and the host's ports towards it."""

    partition: Partition

    @classmethod
    @asynccontextmanager
    async def start(cls, backend: str, **settings: object) -> AsyncIterator[Guest]:
        config = PartitionConfig(backend=backend, memory_size=1 << 20, **settings)  # type: ignore[arg-type]
        async with Partition(config) as partition:
            guest = cls(partition)
            await guest.write(Msr.SCONTROL, 1)
            await guest.write(Msr.SIMP, SIM_PAGE | 1)
            await guest.write(Msr.SIEFP, SIEF_PAGE | 1)
            await guest.set_sint(0)
            yield guest

    async def write(self, msr: int, value: int) -> None:
        await self.partition.vp(0).write_msr(msr, value)

    async def set_sint(self, bits: int) -> None:
        await self.write(Msr.SINT0 + SINT, VECTOR | bits)

    async def post(self, payload: bytes) -> None:
        port = await self.partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        assert port.try_post_message(1, payload)

    async def signal(self, flag: int) -> None:
        port = await self.partition.synic().new_guest_event_port(0, Vtl.VTL0, 0, SINT, flag)
        port.interrupt().deliver()

    def slot(self) -> bytes | None:
        """The payload of SINT 2's message, None while its slot is empty."""
        slot = self.partition.memory.read(SIM_PAGE + 256 * SINT, 256)
        return slot[16 : 16 + slot[4]] if any(slot[:4]) else None

    def flags(self) -> bytes:
        """The first byte of SINT 2's event flags."""
        return self.partition.memory.read(SIEF_PAGE + 256 * SINT, 1)

    def interrupt(self) -> int | None:
        return self.partition.vp(0).try_take_interrupt()

    @property
    def dropped(self) -> int:
        machine = self.partition.vp(0).machine()
        assert machine is not None
        return machine.dropped


# the columns


def test_the_backends_are_two_and_the_presets() -> None:
    assert list(BACKENDS) == ["emulated", "offloaded", "whp", "mshv", "kvm", "kvm-arm64", "hvf", "openhcl"]
    assert set(COLUMNS) == set(BACKENDS) - {"emulated", "offloaded", "kvm-arm64"}


async def test_an_unknown_backend_is_a_sentence_that_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"no backend 'xen'; choose one of emulated, offloaded, .*openhcl"):
        Partition(PartitionConfig(backend="xen"))


@columns
@pytest.mark.parametrize("vtl", list(Vtl))
async def test_a_partition_has_the_vtls_of_its_backend_and_no_others(name: str, column: Column, vtl: Vtl) -> None:
    config = PartitionConfig(backend=name, memory_size=1 << 20, vtls=tuple(sorted({Vtl.VTL0, vtl})))
    if vtl in column.vtls:
        async with Partition(config) as partition:
            assert await partition.vp(0).read_msr(Msr.SVERSION, vtl=vtl) == 1
    else:
        allowed = ", ".join(map(str, column.vtls))
        with pytest.raises(ConfigurationError, match=f"backend {name} has VTL {allowed}; vtls asks for {int(vtl)}"):
            Partition(config)


@columns
async def test_a_consumer_is_advised_to_hand_in_eventfds_where_they_are_used(name: str, column: Column) -> None:
    port, fd = Recorder(), os.eventfd(0, os.EFD_NONBLOCK)
    try:
        async with Guest.start(name) as guest:
            assert guest.partition.synic().prefer_os_events == column.prefer_os_events
            await guest.partition.synic().add_event_port(PORT, Vtl.VTL0, port, os_event=fd)
            assert await guest.partition.vp(0).signal_event(PORT) is HvStatus.SUCCESS
            if column.uses_given_eventfds:
                await anyio.wait_readable(fd)
                assert os.eventfd_read(fd) == 1
            assert port.calls == ([] if column.uses_given_eventfds else [0])
    finally:
        os.close(fd)


@columns
async def test_without_an_eventfd_the_event_ports_of_every_preset_are_dispatched(name: str, column: Column) -> None:
    async with Guest.start(name) as guest:
        await guest.partition.synic().add_event_port(PORT, Vtl.VTL0, Recorder(fails=True))
        assert await guest.partition.vp(0).signal_event(PORT) is HvStatus.OPERATION_FAILED


@columns
async def test_a_guest_event_port_is_a_trigger_or_a_function(name: str, column: Column) -> None:
    async with Guest.start(name, vtls=tuple(map(Vtl, column.vtls))) as guest:
        for vtl in map(Vtl, column.vtls):
            port = await guest.partition.synic().new_guest_event_port(0, vtl, 0, SINT, 1)
            is_trigger = column.interrupts_are_eventfds and vtl != Vtl.VTL2
            assert (port.interrupt().event() is not None) == is_trigger


@columns
async def test_monitors_are_there_where_the_backend_has_them(name: str, column: Column) -> None:
    async with Guest.start(name) as guest:
        monitor = guest.partition.synic().monitor_support
        assert (monitor is not None) == (column.monitor != "none")
        if monitor is not None:
            pages = await monitor.allocate_monitor_page(Vtl.VTL0)
            assert isinstance(pages, MonitorPageGpas) == (column.monitor == "with allocation")


@columns
async def test_a_trusted_post_is_trusted_only_in_the_paravisor(name: str, column: Column) -> None:
    port = Recorder()
    async with Guest.start(name) as guest:
        await guest.partition.synic().add_message_port(PORT, Vtl.VTL0, port)
        await guest.partition.vp(0).post_message(PORT, 1, b"", trusted=True)
    assert port.calls == [(b"", column.trusted)]


@columns
async def test_unknown_connections_reach_vtl_2_only_where_the_backend_has_the_intercept(
    name: str, column: Column
) -> None:
    async def reflection(vp_index: int, connection_id: int) -> bool:
        await guest.partition.synic().add_message_port(connection_id, Vtl.VTL0, Recorder())
        return True

    async with Guest.start(name) as guest:
        post = (0x5C, 0x8000)  # HvCallPostMessage, parameter block
        guest.partition.memory.write(0x8000, PORT.to_bytes(4, "little") + bytes(4) + b"\x01\x00\x00\x00" + bytes(4))
        if column.reflects_unknown_connections:
            guest.partition.intercept_unknown_connections(reflection)
            assert await guest.partition.vp(0).hypercall(*post) == HvStatus.SUCCESS
        else:
            with pytest.raises(SynicUnsupported, match=f"backend {name} has no intercept"):
                guest.partition.intercept_unknown_connections(reflection)
            assert await guest.partition.vp(0).hypercall(*post) == HvStatus.INVALID_CONNECTION_ID


async def test_kvm_on_arm64_has_no_synic_and_says_so_at_once() -> None:
    async with Partition(PartitionConfig(backend="kvm-arm64")) as partition:
        with pytest.raises(SynicUnsupported, match=r"kvm-arm64 has no SynIC .*choose another backend"):
            partition.synic()


# delivery: KVM's VMM writes slots and flags itself, the others follow the emulator

DROPPING = [name for name in COLUMNS if name != "kvm"]


@pytest.mark.parametrize("name", DROPPING)
async def test_a_message_to_a_masked_sint_is_dropped(name: str) -> None:
    async with Guest.start(name) as guest:
        await guest.set_sint(MASKED)
        await guest.post(b"lost")
        await guest.set_sint(0)
        assert (guest.slot(), guest.interrupt(), guest.dropped) == (None, None, 1)


async def test_kvm_a_message_to_a_masked_sint_fills_the_slot_without_an_interrupt() -> None:
    async with Guest.start("kvm") as guest:
        await guest.set_sint(MASKED)
        await guest.post(b"silent")
        assert (guest.slot(), guest.interrupt(), guest.dropped) == (b"silent", None, 0)
        await guest.set_sint(0)
        assert guest.interrupt() is None


async def test_kvm_a_message_waits_while_the_synic_is_off() -> None:
    async with Guest.start("kvm") as guest:
        await guest.write(Msr.SCONTROL, 0)
        await guest.post(b"waits")
        assert (guest.slot(), guest.interrupt()) == (None, None)
        await guest.write(Msr.SCONTROL, 1)
        assert (guest.slot(), guest.interrupt()) == (b"waits", VECTOR)


async def test_kvm_a_message_waits_while_the_message_page_is_off() -> None:
    async with Guest.start("kvm") as guest:
        await guest.write(Msr.SIMP, SIM_PAGE)
        await guest.post(b"waits")
        assert guest.interrupt() is None
        await guest.write(Msr.SIMP, SIM_PAGE | 1)
        assert (guest.slot(), guest.interrupt()) == (b"waits", VECTOR)


async def test_kvm_a_message_for_a_busy_slot_waits_for_eom() -> None:
    async with Guest.start("kvm") as guest:
        await guest.post(b"first")
        await guest.post(b"second")
        slot = SIM_PAGE + 256 * SINT
        assert guest.slot() == b"first"
        assert guest.partition.memory.read(slot + 5, 1) == b"\x01"
        guest.partition.memory.write(slot, bytes(4))
        await guest.write(Msr.EOM, 0)
        assert guest.slot() == b"second"
        assert guest.partition.memory.read(slot + 5, 1) == b"\x00"


async def test_elsewhere_a_message_is_delivered_while_the_synic_or_its_page_is_off() -> None:
    for register, off, on in ((Msr.SCONTROL, 0, 1), (Msr.SIMP, SIM_PAGE, SIM_PAGE | 1)):
        async with Guest.start("hvf") as guest:
            await guest.write(register, off)
            await guest.post(b"arrives")
            assert guest.interrupt() == VECTOR
            await guest.write(register, on)
            assert guest.slot() == b"arrives"


async def test_kvm_an_event_at_a_masked_sint_sets_the_flag_and_loses_the_interrupt() -> None:
    async with Guest.start("kvm") as guest:
        await guest.set_sint(MASKED)
        await guest.signal(3)
        assert (guest.flags(), guest.interrupt()) == (b"\x08", None)


@pytest.mark.parametrize("name", ["mshv", "hvf", "openhcl"])
async def test_elsewhere_an_event_at_a_masked_sint_is_lost(name: str) -> None:
    async with Guest.start(name) as guest:
        await guest.set_sint(MASKED)
        await guest.signal(3)
        await guest.set_sint(0)
        assert (guest.flags(), guest.interrupt()) == (b"\x00", None)


@pytest.mark.parametrize(("register", "off", "on"), [(Msr.SCONTROL, 0, 1), (Msr.SIEFP, SIEF_PAGE, SIEF_PAGE | 1)])
async def test_kvm_an_event_is_dropped_while_the_synic_or_its_page_is_off(register: int, off: int, on: int) -> None:
    async with Guest.start("kvm") as guest:
        await guest.write(register, off)
        await guest.signal(3)
        await guest.write(register, on)
        assert (guest.flags(), guest.interrupt()) == (b"\x00", None)
        await guest.signal(3)
        assert (guest.flags(), guest.interrupt()) == (b"\x08", VECTOR)


@pytest.mark.parametrize("name", ["hvf", "openhcl"])
async def test_an_emulated_synic_sets_a_flag_while_its_page_is_off(name: str) -> None:
    async with Guest.start(name) as guest:
        await guest.write(Msr.SIEFP, SIEF_PAGE)
        await guest.signal(3)
        assert guest.interrupt() == VECTOR
        await guest.write(Msr.SIEFP, SIEF_PAGE | 1)
        assert guest.flags() == b"\x08"


async def test_kvm_keeps_its_delivery_rules_under_another_profile() -> None:
    async with Guest.start("kvm", profile=TLFS) as guest:
        await guest.set_sint(MASKED)
        await guest.signal(3)
        assert guest.flags() == b"\x08"


# proxied SINTs


async def test_openhcl_a_proxied_sint_belongs_to_the_hosts_synic() -> None:
    host = Host()
    async with Guest.start("openhcl", host_synic=host) as guest:
        await guest.set_sint(PROXY)
        await guest.post(b"to the host")
        await guest.signal(3)
        assert host.posted == [(0, 0, SINT, 1, b"to the host")]
        assert host.signalled == [(0, 0, SINT, 3)]
        assert (guest.slot(), guest.flags(), guest.interrupt(), guest.dropped) == (None, b"\x00", None, 0)
        await guest.set_sint(0)
        await guest.post(b"local")
        await guest.signal(3)
        assert (guest.slot(), guest.flags(), guest.interrupt()) == (b"local", b"\x08", VECTOR)
        assert len(host.posted) == len(host.signalled) == 1


async def test_openhcl_a_full_local_slot_does_not_hold_a_proxied_message_back() -> None:
    host = Host()
    async with Guest.start("openhcl", host_synic=host) as guest:
        await guest.post(b"local")
        await guest.set_sint(PROXY)
        await guest.post(b"to the host")
        assert host.posted == [(0, 0, SINT, 1, b"to the host")]
        assert guest.slot() == b"local"
        assert guest.partition.memory.read(SIM_PAGE + 256 * SINT + 5, 1) == b"\x00"


async def test_openhcl_without_a_hosts_synic_drops_what_is_for_it() -> None:
    async with Guest.start("openhcl") as guest:
        await guest.set_sint(PROXY)
        await guest.post(b"lost")
        await guest.signal(3)
        assert (guest.slot(), guest.flags(), guest.interrupt(), guest.dropped) == (None, b"\x00", None, 1)


@pytest.mark.parametrize("name", ["mshv", "kvm", "hvf"])
async def test_a_backend_without_proxied_sints_leaves_the_hosts_synic_alone(name: str) -> None:
    host = Host()
    async with Guest.start(name, host_synic=host) as guest:
        await guest.set_sint(PROXY)
        await guest.post(b"lost")
        await guest.signal(3)
        assert host == Host()
        assert (guest.slot(), guest.flags(), guest.interrupt()) == (None, b"\x00", None)
