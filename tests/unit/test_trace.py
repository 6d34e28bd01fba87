"""The trace: its file format, its stream, and the flow that a message keeps through all steps of its way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import (
    DamagedDocument,
    HvStatus,
    Partition,
    PartitionConfig,
    PeerError,
    Trace,
    TraceRecorder,
    UnsupportedVersion,
    VirtualProcessor,
    Vtl,
    read_trace,
    receive_events,
    receive_messages,
    serve_messages,
)
from broker import trace as kinds
from broker.inbox import Message
from broker.trace import EVENT_TYPES, AnyEvent, encode_event

HEADER = b'{"format":"vmbus-trace","version":1}\n'
REQUESTS, SIGNALS, UNKNOWN = 1, 2, 0x99
SINT = 2

EOM = kinds.Eom(id=7, time=20, cause=6, flow=3, vp=1, vtl=0)
EOM_LINE = b'{"event":"eom","id":7,"time":20,"cause":6,"flow":3,"vp":1,"vtl":0}\n'
POST = kinds.Post(id=1, time=0, vp=0, vtl=0, connection_id=1, message_type=1, payload=b"\x00\xffabc")


def _fields_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A strategy for each field of an event, by its type."""
    strategies = {
        bool: st.booleans(),
        int: st.integers(-(1 << 63), (1 << 64) - 1),
        str: st.text(),
        bytes: st.binary(max_size=240),
    }
    return {field.name: strategies[field.type] for field in msgspec.structs.fields(kind)}


any_event = st.one_of([st.builds(kind, **_fields_of(kind)) for kind in EVENT_TYPES])


def _record(path: Path, *events: AnyEvent) -> None:
    with TraceRecorder(path) as recorder:
        for event in events:
            recorder(event)


# the file


def test_a_trace_file_starts_with_what_it_is_and_has_one_event_in_each_line(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    _record(path, EOM, POST)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[0] == HEADER
    assert lines[1] == EOM_LINE
    assert json.loads(lines[2])["payload"] == "AP9hYmM="  # base64 of 00 ff 61 62 63
    assert len(lines) == 3


def test_a_trace_without_events_is_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    _record(path)
    assert path.read_bytes() == HEADER
    assert list(read_trace(path)) == []


@given(st.lists(any_event, max_size=8))
def test_what_was_recorded_is_read_back(tmp_path_factory: pytest.TempPathFactory, events: list[AnyEvent]) -> None:
    path = tmp_path_factory.getbasetemp() / "t.trace"
    _record(path, *events)
    assert list(read_trace(str(path))) == events


def test_event_names_in_the_file_are_those_of_the_types() -> None:
    tags = [kind.__struct_config__.tag for kind in EVENT_TYPES]
    assert tags == [kind.__name__.lower() for kind in EVENT_TYPES]
    assert len(set(tags)) == len(tags)


def test_an_event_has_no_line_end_of_its_own() -> None:
    assert encode_event(EOM) == EOM_LINE.rstrip(b"\n")


def test_closing_a_recorder_twice_is_harmless(tmp_path: Path) -> None:
    recorder = TraceRecorder(tmp_path / "t.trace")
    recorder(EOM)
    recorder.close()
    recorder.close()
    assert list(read_trace(tmp_path / "t.trace")) == [EOM]


def test_a_file_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        TraceRecorder(tmp_path / "nowhere" / "t.trace")
    with pytest.raises(OSError, match="missing"):
        list(read_trace(tmp_path / "missing.trace"))


@pytest.mark.parametrize(
    "damaged",
    [
        EOM_LINE[:-5],
        EOM_LINE.rstrip(b"\n"),
        b"\n",
        b"not json\n",
        b"[]\n",
        b"\xff\xfe\n",
        EOM_LINE.replace(b'"eom"', b'"nonsense"'),
        EOM_LINE.replace(b'"vp":1', b'"vp":"one"'),
        EOM_LINE.replace(b',"vtl":0', b""),
        EOM_LINE.replace(b"\n", b"}\n"),
    ],
)
def test_a_damaged_line_is_named_and_what_came_before_it_is_read(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "t.trace"
    path.write_bytes(HEADER + EOM_LINE + EOM_LINE + damaged)
    events = read_trace(path)
    assert [next(events), next(events)] == [EOM, EOM]
    with pytest.raises(DamagedDocument, match=r"t\.trace, line 4: "):
        next(events)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\n",
        EOM_LINE,
        b"garbage\n",
        b'{"format":"another","version":1}\n',
        b'{"format":"vmbus-trace"}\n',
        b"\xff\n",
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "t.trace"
    path.write_bytes(first)
    with pytest.raises(DamagedDocument, match=r"t\.trace is no trace file"):
        list(read_trace(path))


def test_a_newer_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    path.write_bytes(HEADER.replace(b"1", b"2") + b'{"event":"of a later time"}\n')
    with pytest.raises(UnsupportedVersion, match="version 2; this program reads up to 1"):
        list(read_trace(path))


@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_the_answer_is_an_event_or_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "t.trace"
    for data in (content, HEADER + content):
        path.write_bytes(data)
        try:
            events = list(read_trace(path))
        except PeerError as error:
            complaint = str(error)
        else:
            complaint = str(path)
            assert all(isinstance(event, EVENT_TYPES) for event in events)
        assert str(path) in complaint


# the stream


def test_each_observer_gets_each_event_once_and_in_order() -> None:
    first: list[AnyEvent] = []
    second: list[AnyEvent] = []
    order: list[str] = []
    trace = Trace(first.append, lambda event: order.append("first"))
    trace.emit(kinds.Reset)
    trace.subscribe(second.append)
    trace.subscribe(lambda event: order.append("second"))
    ids = [trace.emit(kinds.Eom, vp=0, vtl=0), trace.emit(kinds.Eoi, vp=0, vtl=0)]
    assert [event.id for event in first] == [1, 2, 3]
    assert second == first[1:]
    assert ids == [2, 3]
    assert order == ["first", "first", "second", "first", "second"]


def test_an_event_takes_time_cause_and_flow_from_what_the_task_works_on() -> None:
    events: list[AnyEvent] = []
    trace = Trace(events.append)
    trace.bind(lambda: 1234)
    with trace.working_on((5, 6)):
        trace.emit(kinds.Reset)
        trace.emit(kinds.Reset, cause=0, flow=9)
    trace.emit(kinds.Reset)
    assert [(event.time, event.cause, event.flow) for event in events] == [(1234, 5, 6), (1234, 0, 9), (1234, 0, 0)]


def test_an_event_cannot_be_changed_by_an_observer() -> None:
    events: list[AnyEvent] = []
    Trace(events.append).emit(kinds.Reset)
    with pytest.raises(AttributeError):
        events[0].flow = 9  # type: ignore[misc]


def test_flows_are_numbered_from_one_and_go_on_after_a_restore() -> None:
    trace, other = Trace(), Trace()
    trace.emit(kinds.Reset)
    assert [trace.new_flow(), trace.new_flow()] == [1, 2]
    other.restore(trace.save())
    assert (other.emit(kinds.Reset), other.new_flow()) == (2, 3)


def test_a_trace_is_off_by_default() -> None:
    assert PartitionConfig().trace is None


# a message's way


class Observed:
    """The events of one partition."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.trace = Trace(self.events.append)

    def config(self, **settings: Any) -> PartitionConfig:
        return PartitionConfig(virtual_time=True, trace=self.trace, **settings)

    def of_flow(self, flow: int) -> list[AnyEvent]:
        return [event for event in self.events if event.flow == flow]

    def of_kind(self, kind: type[AnyEvent]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def check(self) -> None:
        """What holds for every trace: ids count from 1, time never goes back, a cause is an earlier event."""
        assert [event.id for event in self.events] == list(range(1, len(self.events) + 1))
        assert [event.time for event in self.events] == sorted(event.time for event in self.events)
        assert all(0 <= event.cause < event.id for event in self.events)


@pytest.fixture
def observed() -> Observed:
    return Observed()


Answers = Callable[[bytes], list[bytes]]


async def _converse(partition: Partition, requests: list[bytes], answers: Answers) -> list[bytes]:
    """A guest posts its requests; the host's mailbox worker answers each. What the guest received."""
    access = partition.synic()
    port = await access.new_guest_message_port(Vtl.VTL0, 0, SINT)
    expected = sum(len(answers(request)) for request in requests)
    received: list[bytes] = []

    async def guest(vp: VirtualProcessor) -> None:
        synic = vp.guest_synic()
        async with synic.messages(SINT) as messages:
            for request in requests:
                assert await synic.post_message(REQUESTS, 1, request) is HvStatus.SUCCESS
            while len(received) < expected:
                received.append((await anext(messages)).payload)

    async def answer(message: Message) -> None:
        for payload in answers(message.payload):
            await port.post_message(1, payload)

    async with serve_messages(access, REQUESTS, answer):
        await partition.start(0, guest).wait()
    return received


def _kinds(events: list[AnyEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


async def test_one_flow_leads_from_the_guest_s_post_through_the_mailbox_and_the_answers_to_eom(
    observed: Observed,
) -> None:
    async with Partition(observed.config()) as partition:
        received = await _converse(partition, [b"hello"], lambda request: [request + b" 1", request + b" 2"])
    assert received == [b"hello 1", b"hello 2"]
    observed.check()
    (post,) = observed.of_kind(kinds.Post)
    flow = observed.of_flow(post.flow)
    steps = [event for event in flow if not isinstance(event, kinds.Write)]
    before_the_guest_looks = ["Post", "Route", "Queue", "Deliver", "Interrupt", "Queue", "Pending"]
    after = ["Acknowledge", "Eom", "Deliver", "Interrupt", "Acknowledge"]
    assert _kinds(steps) == [*before_the_guest_looks, *after]
    assert {type(event) for event in observed.events if event not in steps} == {kinds.Write}  # the guest's registers
    assert [event.payload for event in flow if isinstance(event, kinds.Deliver)] == received


async def test_the_causes_of_a_message_s_way_lead_back_to_the_post(observed: Observed) -> None:
    async with Partition(observed.config()) as partition:
        await _converse(partition, [b"hello"], lambda request: [request])
    by_id = {event.id: event for event in observed.events}
    event: AnyEvent = observed.of_kind(kinds.Acknowledge)[0]
    chain = [event]
    while chain[-1].cause:
        chain.append(by_id[chain[-1].cause])
    assert _kinds(chain) == ["Acknowledge", "Interrupt", "Deliver", "Queue", "Post"]


async def test_each_request_has_a_flow_of_its_own_all_the_way(observed: Observed) -> None:
    requests = [b"a", b"b", b"c"]
    async with Partition(observed.config()) as partition:
        assert await _converse(partition, requests, lambda request: [request]) == requests
    observed.check()
    posts = observed.of_kind(kinds.Post)
    assert len({post.flow for post in posts}) == 3
    for post in posts:
        flow = observed.of_flow(post.flow)
        assert {type(event) for event in flow} >= {
            kinds.Route,
            kinds.Queue,
            kinds.Deliver,
            kinds.Interrupt,
            kinds.Acknowledge,
        }
        assert {event.payload for event in flow if isinstance(event, kinds.Queue | kinds.Deliver)} == {post.payload}


async def test_a_batch_belongs_to_the_flow_of_its_latest_message(observed: Observed) -> None:
    async with Partition(observed.config()) as partition:
        access, vp = partition.synic(), partition.vp(0)
        port = await access.new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with receive_messages(access, REQUESTS) as inbox:
            await vp.post_message(REQUESTS, 1, b"a")
            await vp.post_message(REQUESTS, 1, b"b")
            assert [message.payload for message in await inbox.receive_batch()] == [b"a", b"b"]
            port.try_post_message(1, b"answer")
    (queued,) = observed.of_kind(kinds.Queue)
    assert queued.flow == observed.of_kind(kinds.Post)[1].flow


async def test_one_flow_leads_from_the_guest_s_signal_to_the_flag_that_the_host_sets(observed: Observed) -> None:
    async with Partition(observed.config()) as partition:
        access, vp = partition.synic(), partition.vp(0)
        port = await access.new_guest_event_port(1, Vtl.VTL0, 0, SINT, 7)
        async with vp.guest_synic().events(SINT) as flags, receive_events(access, SIGNALS) as signals:
            assert await vp.signal_event(SIGNALS, 3) is HvStatus.SUCCESS
            assert await signals.receive() == {3}
            port.interrupt().deliver()
            assert await anext(flags) == {7}
    observed.check()
    (signal,) = observed.of_kind(kinds.Signal)
    ours = [event for event in observed.of_flow(signal.flow) if not isinstance(event, kinds.Write)]
    assert _kinds(ours) == ["Signal", "Route", "Raise", "Interrupt", "Acknowledge"]
    assert ours[2].flag == 7  # type: ignore[union-attr]


async def test_each_message_of_the_host_s_own_starts_a_flow(observed: Observed) -> None:
    async with Partition(observed.config()) as partition:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with partition.vp(0).guest_synic().messages(SINT) as messages:
            for payload in (b"a", b"b"):
                port.try_post_message(1, payload)
            assert [(await anext(messages)).payload for _ in range(2)] == [b"a", b"b"]
    observed.check()
    queued = observed.of_kind(kinds.Queue)
    assert [event.flow > 0 for event in queued] == [True, True]
    assert queued[0].flow != queued[1].flow


async def test_a_refused_post_says_why_in_its_flow(observed: Observed) -> None:
    async with Partition(observed.config()) as partition:
        assert await partition.vp(0).post_message(UNKNOWN, 1, b"x") is HvStatus.INVALID_CONNECTION_ID
    post, refuse = observed.events
    assert isinstance(post, kinds.Post)
    assert isinstance(refuse, kinds.Refuse)
    assert (refuse.cause, refuse.flow) == (post.id, post.flow)
    assert (refuse.status, refuse.reason) == (0x12, "no port has this connection ID")


async def test_a_dropped_message_ends_its_flow_with_the_reason(observed: Observed) -> None:
    async with Partition(observed.config()) as partition:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        assert port.try_post_message(1, b"lost")  # every SINT is masked at reset
        await partition.settled()
    queued, dropped = observed.events
    assert isinstance(dropped, kinds.Drop)
    assert (dropped.cause, dropped.flow, dropped.reason) == (queued.id, queued.flow, "masked")


async def test_events_carry_the_reference_counter(observed: Observed) -> None:
    async with Partition(observed.config()) as partition:
        await partition.sleep(12_345)
        await partition.vp(0).post_message(UNKNOWN, 1, b"x")
    assert [event.time for event in observed.events] == [12_345, 12_345]


async def test_a_recorded_run_reads_back_as_it_was_observed(observed: Observed, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    with TraceRecorder(path) as recorder:
        observed.trace.subscribe(recorder)
        async with Partition(observed.config()) as partition:
            await _converse(partition, [b"a", b"b"], lambda request: [request])
    assert list(read_trace(path)) == observed.events


def _run(loop: str, settings: dict[str, Any]) -> list[str]:
    """Two guests post to one port; who was served when."""
    served: list[str] = []

    async def note(message: Message) -> None:
        served.append(message.payload.decode())

    async def guest(vp: VirtualProcessor) -> None:
        for n in range(100):
            while await vp.post_message(REQUESTS, 1, f"{vp.index}:{n}".encode()) is not HvStatus.SUCCESS:
                pass

    async def play() -> None:
        config = PartitionConfig(vp_count=2, seed=5, virtual_time=True, **settings)
        async with Partition(config) as partition, serve_messages(partition.synic(), REQUESTS, note):
            for run in [partition.start(index, guest) for index in range(2)]:
                await run.wait()
            await partition.settled()

    anyio.run(play, backend=loop)
    return served


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_watching_changes_nothing(loop: str) -> None:
    unwatched = _run(loop, {})
    assert len(unwatched) == 200
    assert _run(loop, {"trace": Trace()}) == unwatched
    assert _run(loop, {"trace": Trace(lambda event: None)}) == unwatched


def test_the_same_seed_gives_the_same_trace_on_both_loops() -> None:
    traces = []
    for loop in ("asyncio", "trio"):
        observed = Observed()
        _run(loop, {"trace": observed.trace})
        observed.check()
        traces.append(observed.events)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 400


async def test_an_observer_that_raises_changes_nothing_and_its_error_is_kept() -> None:
    def broken(event: AnyEvent) -> None:
        raise OSError("the disk is full")

    seen: list[AnyEvent] = []
    trace = Trace(broken, seen.append)
    async with Partition(PartitionConfig(trace=trace)) as partition:
        assert await partition.vp(0).post_message(1, 1, b"") is HvStatus.INVALID_CONNECTION_ID
        assert await partition.vp(0).post_message(1, 1, b"") is HvStatus.INVALID_CONNECTION_ID
    assert [type(event).__name__ for event in seen] == ["Post", "Refuse"] * 2
    assert [str(error) for error in trace.errors] == ["the disk is full"]
