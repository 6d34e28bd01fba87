"""The target of the server's machine: a guest that says anything, a backend and devices that answer when they like.

After each step every invariant holds, memory is bounded, each message is one that the guest may be sent, and the effects
come in an order in which a shell can carry them out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from broker.errors import HostError, OfferRefused, ProtocolError
from channels.core.server import MAX_HVSOCK_CONNECTS, ServerMachine
from channels.core.server import effects as do
from channels.core.server.effects import Effect, MonitorPages
from channels.core.server.offer_params import OfferParams
from channels.core.server.state import ServerConfig
from channels.protocol.connect import InitiateContact2, ModifyConnection, Pause, Resume, Unload, target_info
from channels.protocol.gpadl import GpadlTeardown, gpadl_messages
from channels.protocol.gparange import GpaRange
from channels.protocol.hvsock import TlConnectRequest2
from channels.protocol.ids import MAX_CHANNELS, MAX_MESSAGE
from channels.protocol.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL, ChannelMessage, ConnectionState
from channels.protocol.offer import AllOffersDelivered, PipeType, RelidReleased, RequestOffers
from channels.protocol.open import (
    CloseChannel,
    CloseReservedChannel,
    ModifyChannel,
    OpenChannel,
    OpenChannel2,
    OpenReservedChannel,
)
from channels.protocol.parse import Agreed, Sender, parse_message
from channels.protocol.versions import FeatureFlags, Version
from channels.protocol.wire import NO_GUID

from . import vectors
from .built import FORMS, built, range_buffer, small_guid
from .script import Script, text

CONFIGS = (
    ServerConfig(),
    ServerConfig(gpadl_words=600),
    ServerConfig(first_channel_id=MAX_CHANNELS - 2, gpa_pinning=True),
    ServerConfig(max_version=Version.IRON, max_version_after_unload=Version.WIN8),
    ServerConfig(must_allocate_monitor_pages=True, absolute_order=True),
    ServerConfig(max_version=Version.WIN7, gpadl_words=100),
    ServerConfig(features=FeatureFlags.PAUSE_RESUME),
)
UNANSWERED = 256
"""Devices forget older requests."""
BACKEND_REQUESTS = 4
"""Requests of the backend that may wait for an answer: contact, modification, reset."""

_ASKS = (
    do.ModifyConnection,
    do.OpenDevice,
    do.CloseDevice,
    do.ModifyDevice,
    do.CreateGpadl,
    do.TeardownGpadl,
    do.ConnectHvsock,
)


def server_machine(data: bytes) -> None:
    """Byte 0: the configuration. Then steps."""
    script = Script(data)
    ServerGame(config_of(script)).play(script)


def config_of(script: Script) -> ServerConfig:
    """One of few configurations."""
    return script.pick(CONFIGS)


class ServerGame:
    """See the module."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.machine = ServerMachine(config)
        self._offers: dict[int, OfferParams] = {}
        """What devices offer."""
        self._asked: list[Effect] = []
        """What is not answered yet."""
        self._ports: set[int] = set()
        """Offers whose channels have event ports."""
        self._steps: tuple[Callable[[Script], list[Effect]], ...] = (
            self._raw_message,
            self._built_message,
            self._answer,
            self._answer_all,
            self._gpadl,
            self.offer,
            self._revoke,
            self._unasked,
            self._reset,
            self._save_and_restore,
        )

    def play(self, script: Script) -> None:
        """All steps of a script."""
        while script:
            self.step(script)

    def step(self, script: Script) -> None:
        """One step."""
        state = self.machine.state
        before, held = state.connection.agreed, len(state.held)
        most = 64 + held + 8 * (len(self._asked) + self._size())
        effects = script.pick(self._steps)(script)
        state = self.machine.state
        assert len(effects) <= most + 8 * self._size(), f"{len(effects)} effects of one input"
        self._follow(effects, before)
        self.machine.check()
        assert len(state.hvsock) <= MAX_HVSOCK_CONNECTS
        assert len(state.backend) <= BACKEND_REQUESTS, f"the backend is asked {list(state.backend)}"
        assert len(state.held) <= 4 * MAX_CHANNELS + self.config.gpadl_words
        assert len(state.complaints) <= 32, "complaints are counted by few words"

    def offer(self, script: Script) -> list[Effect]:
        """A device offers."""
        maker = script.pick(_OFFERS)
        params = maker(script)
        try:
            offer_id, effects = self.machine.offer(params)
        except OfferRefused:
            return []
        self._offers[offer_id] = params
        return effects

    def devices_come_back(self, script: Script) -> None:
        """After a restore: devices say how their channels stand, most of them, then the server goes on."""
        for offer_id in list(self._offers):
            if script.number() % 8 == 7:
                continue
            is_open = script.flag()
            try:
                effects = self._come_back(offer_id, is_open)
            except HostError as error:
                if "monitor ID" in str(error):
                    continue
                raise
            self._follow(effects, Agreed())
        self._follow(self.machine.start(), Agreed())
        self.machine.check()

    def _come_back(self, offer_id: int, is_open: bool) -> list[Effect]:
        try:
            return self.machine.restore_channel(offer_id, is_open=is_open)
        except HostError:
            return self.machine.restore_channel(offer_id, is_open=not is_open)

    # steps

    def _raw_message(self, script: Script) -> list[Effect]:
        flags = script.number()
        return self._receive(script.text(), flags)

    def _built_message(self, script: Script) -> list[Effect]:
        return self._receive(built(script, FORMS[Sender.GUEST]).pack(), script.number())

    def _gpadl(self, script: Script) -> list[Effect]:
        """All messages of a GPADL, or the first of them."""
        channel_id, gpadl_id = script.value(32), script.value(32)
        count, buffer = range_buffer(script)
        messages = gpadl_messages(channel_id, gpadl_id, count + script.pick((0, 0, 0, 1)), buffer)
        sent = messages[: len(messages) - script.number() % 2]
        return [effect for message in sent for effect in self._receive(message.pack(), 0)]

    def _receive(self, data: bytes, flags: int) -> list[Effect]:
        if not self.machine.may_receive:
            return []
        return self.machine.receive(data, trusted=bool(flags & 1), multiclient=not flags & 2)

    def _revoke(self, script: Script) -> list[Effect]:
        offer_id = script.number()
        self._offers.pop(offer_id, None)
        return self.machine.revoke(offer_id)

    def _answer(self, script: Script) -> list[Effect]:
        if not self._asked:
            return []
        return self._answered(self._asked.pop(script.number() % len(self._asked)), script.number())

    def _answer_all(self, script: Script) -> list[Effect]:
        asked, self._asked = self._asked, []
        return [effect for ask in asked for effect in self._answered(ask, 0)]

    def _answered(self, ask: Effect, how: int) -> list[Effect]:
        machine, good = self.machine, not how & 1
        status = STATUS_SUCCESS if good else STATUS_UNSUCCESSFUL
        match ask:
            case do.ModifyConnection():
                pages = MonitorPages(0, 0x7000) if ask.allocate and how & 2 else None
                state = ConnectionState.SUCCESSFUL if good else ConnectionState.FAILED_LOW_RESOURCES
                return machine.connection_modified(state, pages, supported=not how & 4)
            case do.OpenDevice():
                return machine.open_ended(ask.offer_id, status)[1]
            case do.CloseDevice():
                return machine.close_ended(ask.offer_id)
            case do.ModifyDevice():
                return machine.modify_ended(ask.offer_id, status)
            case do.CreateGpadl():
                return machine.gpadl_created(ask.offer_id, ask.gpadl_id, accepted=good)
            case do.TeardownGpadl():
                return machine.gpadl_torn_down(ask.offer_id, ask.gpadl_id)
            case do.ConnectHvsock():
                return machine.hvsock_connected(ask.request, accepted=good)
        raise AssertionError(ask)

    def _unasked(self, script: Script) -> list[Effect]:
        """An answer to what may not have been asked."""
        machine, offer_id, gpadl_id = self.machine, script.number(), script.number()
        status = script.value(32)
        answers: tuple[Callable[[], list[Effect]], ...] = (
            lambda: machine.open_ended(offer_id, status)[1],
            lambda: machine.close_ended(offer_id),
            lambda: machine.modify_ended(offer_id, status),
            lambda: machine.gpadl_created(offer_id, gpadl_id, accepted=script.flag()),
            lambda: machine.gpadl_torn_down(offer_id, gpadl_id),
            machine.connection_modified,
            lambda: machine.hvsock_connected(TlConnectRequest2(NO_GUID, NO_GUID), accepted=False),
        )
        return script.pick(answers)()

    def _reset(self, script: Script) -> list[Effect]:
        return self.machine.reset()

    def _save_and_restore(self, script: Script) -> list[Effect]:
        """Another server goes on; devices come back before the restore or after it, or not at all."""
        try:
            document = self.machine.save([AllOffersDelivered().pack()] * (script.number() % 3))
        except HostError:
            assert self.machine.state.connection.host_owns_monitor_pages
            return []
        offers = list(self._offers.values())
        self.machine = ServerMachine(self.config)
        self._offers, self._asked, self._ports = {}, [], set()
        early = [params for params in offers if script.number() % 3 == 1]
        late = [params for params in offers if params not in early and script.number() % 4 != 1]
        self._offer_again(early)
        self.machine.restore(document)
        self._offer_again(late)
        self.devices_come_back(script)
        return []

    def _offer_again(self, offers: list[OfferParams]) -> None:
        for params in offers:
            offer_id, effects = self.machine.offer(params)
            self._offers[offer_id] = params
            self._follow(effects, Agreed())

    # the shell

    def _follow(self, effects: list[Effect], before: Agreed) -> None:
        for effect in effects:
            match effect:
                case do.SendMessage():
                    self._check_message(effect.message, before, is_reserved=effect.target is not None)
                case do.SendSaved():
                    assert len(effect.data) <= MAX_MESSAGE
                case do.CreatePorts():
                    assert effect.offer_id not in self._ports, "the channel has its ports already"
                    self._ports.add(effect.offer_id)
                case do.DestroyPorts():
                    self._ports.discard(effect.offer_id)
                case do.OpenDevice() | do.ResumeDevice():
                    assert effect.offer_id in self._ports, "the event ports exist before the device hears of the open"
                case do.RemoveOffer():
                    self._offers.pop(effect.offer_id, None)
                    assert effect.offer_id not in self._ports, "a channel that is gone has no ports"
            if isinstance(effect, _ASKS):
                self._asked.append(effect)
        del self._asked[:-UNANSWERED]

    def _check_message(self, message: ChannelMessage, before: Agreed, *, is_reserved: bool) -> None:
        """It is one that a host may send on the connection that there was, or that there is now.

        Reserved channels outlive connections, and are answered as they were opened.
        """
        data = message.pack()
        assert len(data) <= MAX_MESSAGE
        if is_reserved:
            parse_message(data, Sender.HOST)
            return
        with suppress(ProtocolError):
            parse_message(data, Sender.HOST, before)
            return
        parse_message(data, Sender.HOST, self.machine.state.connection.agreed)

    def _size(self) -> int:
        """How much there is to talk about."""
        channels = self.machine.state.channels.by_offer.values()
        return len(self.machine.state.channels) + sum(len(channel.gpadls) for channel in channels)


def _device(script: Script) -> OfferParams:
    latency = script.pick((None, 100))
    return OfferParams.device(small_guid(script), small_guid(script), order=script.number(), monitor_latency=latency)


def _subchannel(script: Script) -> OfferParams:
    return OfferParams.device(small_guid(script), NO_GUID, subchannel_index=script.number() % 8, pipe_packets=True)


def _pipe(script: Script) -> OfferParams:
    kind, confidential = script.pick(tuple(PipeType)), script.flag()
    return OfferParams.pipe(
        small_guid(script), small_guid(script), kind, b"user", confidential_external_memory=confidential
    )


def _hvsock(script: Script) -> OfferParams:
    accepts, relayed = script.flag(), script.flag()
    return OfferParams.hvsock(small_guid(script), small_guid(script), guest_accepts=accepts, relayed=relayed)


def _relayed(script: Script) -> OfferParams:
    return OfferParams.device(small_guid(script), small_guid(script), monitor_id=script.number() % 4, relayed=True)


_OFFERS = (_device, _subchannel, _pipe, _hvsock, _relayed)

_RAW, _ANSWER_ALL, _OFFER, _RESTORE = b"\0\0", b"\3", b"\5", b"\x09"


def server_seeds() -> list[bytes]:
    """The guest of the Linux conversation, and for each version one that uses everything."""
    offers = b"".join(_OFFER + bytes((kind, 1, 1, 0, 0)) for kind in (0, 2))
    linux = b"".join(_RAW + text(step.data) + _ANSWER_ALL for step in vectors.conversation() if step.sender == "guest")
    return [b"\0" + offers + linux, *(b"\0" + offers + _tour(version) for version in Version)]


def _tour(version: Version) -> bytes:
    """What a guest may say with this version."""
    target = target_info(2, 0, 0xFF) if version.names_connection else 0
    pages = (0x5000, 0x6000)
    buffer = GpaRange(0x4000, 0, (16, 17, 18, 19)).pack()
    opening = (1, 1, 7, 0, 2)
    opens: ChannelMessage = OpenChannel(*opening)
    if version >= Version.COPPER:
        opens = OpenChannel2(*opening, connection_id=0x2001, event_flag=5)
    parts: list[ChannelMessage] = [
        InitiateContact2(version, 0, target, *pages),
        RequestOffers(),
        *gpadl_messages(1, 7, 1, buffer),
        opens,
        ModifyChannel(1, 1),
        *gpadl_messages(2, 8, 1, buffer),
        OpenReservedChannel(2, 0, 5, 8, 2),
        TlConnectRequest2(NO_GUID, NO_GUID),
        Pause(),
        Resume(),
        CloseReservedChannel(2, 0, 5),
        CloseChannel(1),
        GpadlTeardown(1, 7),
        ModifyConnection(*pages),
        RelidReleased(1),
        Unload(),
    ]
    steps = [_RAW + text(message.pack()) + _ANSWER_ALL for message in parts]
    middle = len(steps) // 2
    return b"".join(steps[:middle]) + _RESTORE + bytes(8) + b"".join(steps[middle:])
