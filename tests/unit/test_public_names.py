"""What `from broker import X` gives: a snapshot, the contract's names with their parameters, and a docstring for each."""

from __future__ import annotations

import inspect
from enum import IntEnum

import pytest

import broker

PUBLIC = [
    "BACKENDS",
    "OPENVMM",
    "PROFILES",
    "TLFS",
    "Backend",
    "BrokerError",
    "CalledFromOwnHandler",
    "ConfigurationError",
    "ConnectionIdInUse",
    "DamagedDocument",
    "EventFlags",
    "EventPort",
    "GuestEventPort",
    "GuestFault",
    "GuestMemory",
    "GuestMessagePort",
    "GuestSynic",
    "HostError",
    "HostSynic",
    "HvStatus",
    "Interrupt",
    "InvariantError",
    "LocalGuestSynic",
    "MapStatistics",
    "MemoryAccessError",
    "Message",
    "MessageInbox",
    "MessagePort",
    "MessageType",
    "MonitorIdInUse",
    "MonitorInfo",
    "MonitorPageGpas",
    "Msr",
    "Partition",
    "PartitionClosed",
    "PartitionConfig",
    "PeerError",
    "PortClosed",
    "PortHandle",
    "PortStatistics",
    "ProcessorRun",
    "Profile",
    "RunEnd",
    "Synic",
    "SynicMessage",
    "SynicMonitorAccess",
    "SynicPortAccess",
    "SynicPortMap",
    "SynicPorts",
    "SynicUnsupported",
    "Trace",
    "TraceRecorder",
    "UnknownProcessor",
    "UnsupportedVersion",
    "VirtualProcessor",
    "Vtl",
    "read_trace",
    "receive_events",
    "receive_messages",
    "serve_messages",
]

CONTRACT = {
    "MessagePort.handle_message": "self message trusted",
    "EventPort.handle_event": "self flag",
    "SynicPortAccess.add_message_port": "self connection_id minimum_vtl port",
    "SynicPortAccess.add_event_port": "self connection_id minimum_vtl port monitor_info os_event",
    "SynicPortAccess.new_guest_message_port": "self vtl vp sint",
    "SynicPortAccess.new_guest_event_port": "self port_id vtl vp sint flag monitor_info",
    "SynicPortAccess.wait_reset": "self",
    "SynicPorts.add_message_port": "self connection_id minimum_vtl port",
    "SynicPorts.add_event_port": "self connection_id minimum_vtl port monitor_info os_event",
    "SynicPorts.new_guest_message_port": "self vtl vp sint",
    "SynicPorts.new_guest_event_port": "self port_id vtl vp sint flag monitor_info",
    "SynicPorts.wait_reset": "self",
    "PortHandle.close": "self",
    "PortHandle.aclose": "self",
    "GuestMessagePort.try_post_message": "self message_type payload",
    "GuestMessagePort.post_message": "self message_type payload",
    "GuestMessagePort.set_target_vp": "self vp",
    "GuestMessagePort.close": "self",
    "GuestEventPort.interrupt": "self",
    "GuestEventPort.set_target_vp": "self vp",
    "GuestEventPort.close": "self",
    "Interrupt.deliver": "self",
    "SynicMonitorAccess.set_monitor_page": "self vtl pages",
    "SynicMonitorAccess.allocate_monitor_page": "self vtl",
    "MonitorInfo": "monitor_id latency_ticks",
    "MonitorPageGpas": "parent_to_child child_to_parent",
    "Message": "payload trusted",
    "receive_messages": "access connection_id depth minimum_vtl",
    "MessageInbox.receive_batch": "self",
    "serve_messages": "access connection_id handler depth minimum_vtl",
    "receive_events": "access connection_id minimum_vtl",
    "Partition": "config",
    "Partition.synic": "self",
    "Partition.start": "self vp_index guest",
    "Partition.reset": "self",
    "Partition.save": "self",
    "Partition.restore": "self document",
    "Partition.vp": "self vp_index",
    "ProcessorRun.wait": "self",
    "GuestMemory.read": "self gpa size",
    "GuestMemory.write": "self gpa data",
    "GuestMemory.view": "self gpa size",
    "VirtualProcessor.post_message": "self connection_id message_type payload vtl trusted",
    "VirtualProcessor.signal_event": "self connection_id flag_number vtl",
    "VirtualProcessor.hypercall": "self control input_gpa_or_value second vtl",
    "VirtualProcessor.read_msr": "self msr vtl",
    "VirtualProcessor.write_msr": "self msr value vtl",
    "VirtualProcessor.wait_for_interrupt": "self vtl",
    "VirtualProcessor.try_take_interrupt": "self vtl",
    "VirtualProcessor.write_memory": "self gpa data",
    "VirtualProcessor.guest_synic": "self vtl",
    "GuestSynic.post_message": "self connection_id message_type payload",
    "GuestSynic.signal_event": "self connection_id flag_number",
    "GuestSynic.messages": "self sint eom",
    "GuestSynic.end_of_message": "self",
    "GuestSynic.events": "self sint",
    "SynicPortMap.handle_post_message": "self vtl connection_id secure message",
    "SynicPortMap.handle_signal_event": "self vtl connection_id flag_number",
    "SynicPortMap.statistics": "self",
}
"""Section 3 of the design: other programs call these with these names."""

CONTRACT_PROPERTIES = [
    "SynicPortAccess.prefer_os_events",
    "SynicPortAccess.monitor_support",
    "GuestSynic.memory",
    "GuestSynic.vp_index",
    "GuestSynic.vtl",
]

CONFIG_DEFAULTS = {
    "vp_count": 1,
    "memory_size": 16 << 20,
    "memory": None,
    "backend": "emulated",
    "profile": broker.OPENVMM,
    "vtls": (broker.Vtl.VTL0,),
    "quantum": 32,
    "message_queue_depth": 16,
    "seed": None,
    "virtual_time": False,
    "trace": None,
}

WITH_CODE = [name for name in PUBLIC if isinstance(getattr(broker, name), type) or callable(getattr(broker, name))]


def _find(path: str) -> object:
    found: object = broker
    for name in path.split("."):
        found = getattr(found, name)
    return found


def test_the_public_names_are_those_of_the_snapshot() -> None:
    assert sorted(broker.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert hasattr(broker, name)


@pytest.mark.parametrize(("path", "parameters"), CONTRACT.items())
def test_the_contract_s_names_and_parameters_stand(path: str, parameters: str) -> None:
    assert path.split(".", maxsplit=1)[0] in broker.__all__
    found = _find(path)
    assert callable(found)
    assert list(inspect.signature(found).parameters) == parameters.split()


@pytest.mark.parametrize("path", CONTRACT_PROPERTIES)
def test_the_contract_s_properties_stand(path: str) -> None:
    assert isinstance(_find(path), property)


@pytest.mark.parametrize("name", ["receive_messages", "serve_messages", "receive_events"])
def test_the_minimum_vtl_of_a_ready_made_port_is_a_keyword(name: str) -> None:
    parameter = inspect.signature(getattr(broker, name)).parameters["minimum_vtl"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default is broker.Vtl.VTL0


def test_a_partition_s_defaults_are_the_contract_s() -> None:
    config = broker.PartitionConfig()
    assert {name: getattr(config, name) for name in CONFIG_DEFAULTS} == CONFIG_DEFAULTS


def test_levels_and_statuses_are_int_enums() -> None:
    assert issubclass(broker.Vtl, IntEnum)
    assert issubclass(broker.HvStatus, IntEnum)
    assert [vtl.name for vtl in broker.Vtl] == ["VTL0", "VTL1", "VTL2"]


@pytest.mark.parametrize("name", WITH_CODE)
def test_a_public_class_or_function_has_a_docstring_of_its_own(name: str) -> None:
    thing = getattr(broker, name)
    docstring = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
    assert (docstring or "").strip()


@pytest.mark.parametrize("name", [name for name in WITH_CODE if isinstance(getattr(broker, name), type)])
def test_the_public_methods_of_a_class_of_the_contract_have_docstrings(name: str) -> None:
    members = inspect.getmembers(
        getattr(broker, name), lambda thing: inspect.isfunction(thing) or isinstance(thing, property)
    )
    own = [member for path, member in members if not path.startswith("_") and "broker" in _module_of(member)]
    assert [member for member in own if not inspect.getdoc(member)] == []


def _module_of(member: object) -> str:
    function = member.fget if isinstance(member, property) else member
    return str(getattr(function, "__module__", ""))


def test_every_exception_is_of_the_one_tree() -> None:
    raised = [thing for thing in vars(broker).values() if isinstance(thing, type) and issubclass(thing, Exception)]
    assert len(raised) > 10
    assert all(issubclass(error, broker.BrokerError) for error in raised)
