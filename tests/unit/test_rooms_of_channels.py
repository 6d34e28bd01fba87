"""What the rooms of `channels` show: a snapshot of their public names, and a docstring for each."""

from __future__ import annotations

from importlib import import_module
from inspect import isclass, isfunction

import pytest

ROOMS = {
    "bus": ("Bus ChannelRequests ChannelState Offer OfferParams OpenParams "),
    "client": ("CLIENT_ID ForOthers ForeignChannel GuestChannel GuestGpadl OWN_VP OpenRefused RING_PAGES VmbusClient "),
    "devices": ("Device DeviceChannel EchoDevice OfferParams RefuseOpen SerialConsole SerialPort serve_devices "),
    "devices.input": ("KeyboardDevice MouseDevice "),
    "devices.integration": (
        "Conversation FileCopyDevice GuestRefused HeartbeatDevice HeartbeatState IcMessageType IcStatus IcVersion "
        "IntegrationDevice IpFamily IpInfo KvpDevice KvpPool ShutdownDevice ShutdownKind TimeSyncDevice "
        "VIRTUAL_EPOCH VssDevice system_time "
    ),
    "devices.network": (
        "AdapterStatistics Frame LINK_SPEED Loopback NetworkAdapter NetworkBackend PcapFile PortStatistics "
        "QUEUE_SIZE Recorded Replay Station SwitchPort VirtualSwitch deliver_all read_pcap "
    ),
    "devices.storage": ("Disk FileDisk MemoryDisk ScsiController "),
    "drivers": ("Driver open_serial run_drivers "),
    "drivers.integration": (
        "FileCopyDriver HeartbeatDriver HeartbeatState IcMessageType IcStatus IcVersion IntegrationDriver IpFamily "
        "IpInfo KvpDriver KvpPool Request ShutdownDriver ShutdownKind TimeSample TimeSyncDriver VssDriver "
        "well_known_pairs "
    ),
    "drivers.network": (
        "Frame InfoKind NEWEST_FIRST NetworkClient NvspVersion Oid PacketFilter PacketInfo USUAL_FILTER "
    ),
    "drivers.storage": ("LINUX_VERSIONS Pending ScsiDisk ScsiError ScsiInitiator ScsiReply "),
    "faults": (
        "AccessWrapper FAULTS Fault FaultKind Faults GuestSynicWrapper HandlerAccess InjectedFault RefusingAccess "
        "parse_fault "
    ),
    "hvsock": (
        "BACKLOG HvsockAttribute HvsockGuest HvsockHost HvsockListener HvsockStream connect_streams "
        "port_of_service_id relay_unix service_id_of_port "
    ),
    "relay": ("REQUIRED_FEATURES VmbusRelay "),
    "ring": ("IncomingRing OutgoingRing RingMemory footprint split_rings "),
    "scenarios": (
        "Flag GuestRun Scenario ScenarioFailed Settings Stage disk driver_test echo expect hello hvsock "
        "integration network reset_storm serve start_task starved_guest subchannels "
    ),
    "server": ("HvsockListener MESSAGE_DEPTH OuterHost ServerConfig ServerStatistics VmbusServer "),
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_the_names_of_the_snapshot(room: str) -> None:
    assert sorted(import_module(f"channels.{room}").__all__) == ROOMS[room].split()


@pytest.mark.parametrize("room", ROOMS)
def test_its_classes_and_functions_say_what_they_are(room: str) -> None:
    module = import_module(f"channels.{room}")
    assert module.__doc__
    for name in module.__all__:
        shown = getattr(module, name)
        if isclass(shown) or isfunction(shown):
            assert shown.__doc__, name
