"""`Host`: a `ServerMachine` and what a shell does for it, so that a test talks to it in bytes.

What a device or the backend is asked for is answered by itself with success, unless the test `holds` requests of that
kind and answers them when it likes. The machine is checked after every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from channels.core.server import ServerMachine
from channels.core.server import effects as do
from channels.core.server.offer_params import OfferParams
from channels.core.server.state import ServerConfig

from . import wire

INTERFACE = UUID("12345678-9abc-def0-1122-334455667788")
ENDPOINT = UUID("00112233-4455-6677-8899-aabbccddeeff")
SERVICE = UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
SILO = UUID("f0e0d0c0-b0a0-9080-7060-504030201000")
CLIENT = UUID("ceb1cd55-6a3b-41c5-9473-4dd30624c3d8")
PAGES = (0x321F000, 0x123F000)
"""Monitor pages of a guest: parent to child, child to parent."""

ANSWERED = (
    *(do.ModifyConnection, do.OpenDevice, do.CloseDevice, do.ModifyDevice),
    *(do.CreateGpadl, do.TeardownGpadl, do.ConnectHvsock),
)
"""Requests that want an answer."""


class To(NamedTuple):
    """A message to a processor and SINT of the guest's choice."""

    vp: int
    sint: int
    message: bytes


Out = bytes | To | do.Effect
"""A message to the guest, one to a target of its choice, or a request."""


def instance(number: int) -> UUID:
    return UUID(int=number << 96 | 0xFEED)


def device(number: int = 1, **fields: object) -> OfferParams:
    """What device `number` offers."""
    return OfferParams(interface_id=INTERFACE, instance_id=instance(number), **fields)  # type: ignore[arg-type]


def offered(channel_id: int, number: int | None = None, **fields: object) -> bytes:
    """The OFFER_CHANNEL of device `number`, by default the one with the channel's number."""
    return wire.offer_channel(channel_id, INTERFACE, instance(number or channel_id), **fields)  # type: ignore[arg-type]


def reading(out: Iterable[Out]) -> list[str]:
    """These in words."""
    return [_word(entry) for entry in out]


def _word(entry: Out) -> str:
    if isinstance(entry, bytes):
        return wire.words(entry)
    if isinstance(entry, To):
        return f"{wire.words(entry.message)} to {entry.vp}:{entry.sint}"
    if isinstance(entry, do.ModifyConnection):
        return "backend reset" if entry.version is None else "backend"
    return _WORDS[type(entry)]


_WORDS: dict[type[do.Effect], str] = {
    do.CreatePorts: "ports",
    do.DestroyPorts: "no ports",
    do.OpenDevice: "device open",
    do.ResumeDevice: "device resume",
    do.DropOpen: "device drop",
    do.CloseDevice: "device close",
    do.ModifyDevice: "device modify",
    do.CreateGpadl: "device gpadl",
    do.ResumeGpadl: "device gpadl resume",
    do.TeardownGpadl: "device teardown",
    do.RemoveOffer: "removed",
    do.ConnectHvsock: "hvsock connect",
    do.ForwardContact: "forward",
    do.DropMessages: "messages dropped",
    do.UnloadDone: "unloaded",
    do.ResetDone: "reset done",
    do.SendSaved: "saved message",
}


class Host:
    """See the module. What a step did is the list that it returns, in order."""

    def __init__(self, config: ServerConfig | None = None, *, holds: Iterable[type[do.Effect]] = ()) -> None:
        self.machine = ServerMachine(config)
        self.holds: set[type[do.Effect]] = {do.ConnectHvsock, *holds}
        self.waiting: list[do.Effect] = []
        """Requests that are not answered."""
        self.complaints: list[do.Complaint] = []
        self.last_vp: int | None = None
        """The processor of control messages, as the backend was told."""
        self._ports: set[int] = set()

    # inputs

    def hear(self, data: bytes, *, trusted: bool = False, multiclient: bool = True) -> list[Out]:
        """The guest says this."""
        return self._do(self.machine.receive(data, trusted=trusted, multiclient=multiclient))

    def refusal(self, data: bytes, **how: bool) -> str:
        """The guest says this, of which nothing comes but a complaint; its sentence."""
        before = len(self.complaints)
        assert self.hear(data, **how) == []
        (complaint,) = self.complaints[before:]
        return complaint.reason

    def offer(self, params: OfferParams | int = 1) -> tuple[int, list[Out]]:
        """A device offers: the number of its offer, and what comes of it."""
        offer_id, effects = self.machine.offer(device(params) if isinstance(params, int) else params)
        return offer_id, self._do(effects)

    def revoke(self, offer_id: int) -> list[Out]:
        return self._do(self.machine.revoke(offer_id))

    def reset(self) -> list[Out]:
        return self._do(self.machine.reset())

    def answer(self, kind: type[do.Effect], **how: object) -> list[Out]:
        """Answer the oldest request of this kind that waits."""
        request = next(effect for effect in self.waiting if isinstance(effect, kind))
        self.waiting.remove(request)
        return self._do(self._answer(request, **how))

    def ended(self, effects: list[do.Effect]) -> list[Out]:
        """What comes of a call of the machine."""
        return self._do(effects)

    def restore(self, document: bytes) -> None:
        self.machine.restore(document)
        self._ports.clear()

    def restore_channel(self, offer_id: int, *, is_open: bool) -> list[Out]:
        return self._do(self.machine.restore_channel(offer_id, is_open=is_open))

    def start(self) -> list[Out]:
        return self._do(self.machine.start())

    # ways there

    def connect(
        self,
        version: int = wire.COPPER,
        features: int = 0,
        *,
        pages: tuple[int, int] = (0, 0),
        vp: int = 0,
        trusted: bool = False,
    ) -> list[Out]:
        """A contact, with what the version has of these."""
        target = wire.info(features=features) if version >= wire.RS3_1 else 0
        client = CLIENT if features & 8 else None
        return self.hear(wire.contact(version, vp, target, pages, client), trusted=trusted)

    def state(self, offer_id: int) -> str | None:
        """Where the channel of an offer is."""
        state = self.machine.channel_state(offer_id)
        return None if state is None else state.value

    @property
    def phase(self) -> str:
        """Where the connection is."""
        return self.machine.state.connection.phase.value

    def hold(self, *kinds: type[do.Effect]) -> None:
        """Do not answer requests of these kinds from now on; all kinds where none is named."""
        self.holds |= set(kinds or ANSWERED)

    def go_on(self) -> list[Out]:
        """Answer all that waits, and what comes from now on."""
        self.holds = {do.ConnectHvsock}
        out: list[Out] = []
        while self.waiting and not isinstance(self.waiting[0], do.ConnectHvsock):
            out += self._do(self._answer(self.waiting.pop(0)))
        return out

    # within

    def _do(self, effects: list[do.Effect]) -> list[Out]:
        self.machine.check()
        out: list[Out] = []
        todo = list(effects)
        while todo:
            effect = todo.pop(0)
            self._note(effect)
            if isinstance(effect, do.SendMessage):
                data = effect.message.pack()
                assert 8 <= len(data) <= 240
                target = effect.target
                out.append(data if target is None else To(target.vp, target.sint, data))
            elif not isinstance(effect, (do.Complaint, do.ChannelChanged, do.GpadlChanged)):
                out.append(effect)
            if isinstance(effect, ANSWERED):
                if type(effect) in self.holds:
                    self.waiting.append(effect)
                else:
                    todo += self._answer(effect)
                    self.machine.check()
        return out

    def _note(self, effect: do.Effect) -> None:
        """Ports come and go in turn; complaints and the processor are kept."""
        match effect:
            case do.Complaint():
                self.complaints.append(effect)
            case do.CreatePorts():
                assert effect.offer_id not in self._ports
                self._ports.add(effect.offer_id)
            case do.DestroyPorts():
                self._ports.discard(effect.offer_id)
            case do.OpenDevice() | do.ResumeDevice():
                assert effect.offer_id in self._ports
            case do.ModifyConnection(target_vp=int(vp)):
                self.last_vp = vp

    def _answer(self, request: do.Effect, **how: object) -> list[do.Effect]:
        machine = self.machine
        match request:
            case do.ModifyConnection():
                return machine.connection_modified(**how)  # type: ignore[arg-type]
            case do.OpenDevice():
                return machine.open_ended(request.offer_id, **how)[1]  # type: ignore[arg-type]
            case do.CloseDevice():
                return machine.close_ended(request.offer_id)
            case do.ModifyDevice():
                return machine.modify_ended(request.offer_id, **how)  # type: ignore[arg-type]
            case do.CreateGpadl():
                return machine.gpadl_created(request.offer_id, request.gpadl_id, **how)  # type: ignore[arg-type]
            case do.TeardownGpadl():
                return machine.gpadl_torn_down(request.offer_id, request.gpadl_id)
            case do.ConnectHvsock():
                return machine.hvsock_connected(request.request, **how)  # type: ignore[arg-type]
        raise AssertionError(f"{request} has no answer")


def connected(
    version: int = wire.COPPER,
    features: int = 0,
    *,
    devices: int = 1,
    config: ServerConfig | None = None,
    pages: tuple[int, int] = (0, 0),
    trusted: bool = False,
) -> Host:
    """A host whose guest has connected and has been offered devices 1, 2, ... as channels 1, 2, ..."""
    host = Host(config)
    for number in range(1, devices + 1):
        host.offer(number)
    host.connect(version, features, pages=pages, trusted=trusted)
    assert reading(host.hear(wire.REQUEST_OFFERS, trusted=trusted)) == ["OFFER"] * devices + ["ALL_OFFERS_DELIVERED"]
    return host
