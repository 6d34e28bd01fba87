"""The target of the client's machine: a host that says anything, and a user that asks for anything.

The host's bytes raise nothing. The user's calls raise what is documented, and then nothing has changed. After each step
every invariant holds, and each message is one that the host takes from a guest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from broker.errors import HostError, ProtocolError
from channels.core.client import ClientMachine
from channels.core.client.channels import OpenRequest
from channels.core.client.contact import ConnectRequest
from channels.core.client.effects import OpenEnded, Post
from channels.core.server.effects import Effect, MonitorPages
from channels.protocol.connect import (
    ModifyConnectionResponse,
    PauseResponse,
    UnloadComplete,
    VersionResponse,
    VersionResponse2,
)
from channels.protocol.gpadl import GpadlCreated, GpadlTorndown
from channels.protocol.ids import MAX_CHANNELS, MAX_MESSAGE
from channels.protocol.message import ChannelMessage
from channels.protocol.offer import AllOffersDelivered, OfferChannel, RescindChannelOffer
from channels.protocol.open import ModifyChannelResponse, OpenResult
from channels.protocol.parse import Agreed, Sender, parse_message
from channels.protocol.versions import FeatureFlags, Version
from channels.protocol.wire import NO_GUID

from . import vectors
from .built import FORMS, VERSIONS, built, range_buffer, small_guid
from .script import Script, text


def client_machine(data: bytes) -> None:
    """Steps."""
    ClientGame().play(Script(data))


class ClientGame:
    """See the module."""

    def __init__(self) -> None:
        self.machine = ClientMachine()
        self._calls: tuple[Callable[[Script], list[Effect]], ...] = (
            self._connect,
            self._create_gpadl,
            self._open,
            lambda script: self.machine.modify_channel(script.value(32), script.value(32)),
            lambda script: self.machine.close(script.value(32)),
            lambda script: self.machine.teardown_gpadl(script.value(32), script.value(32)),
            lambda script: self.machine.release(script.value(32)),
            lambda script: self.machine.pause(),
            lambda script: self.machine.resume(),
            lambda script: self.machine.unload(),
            lambda script: self.machine.modify_connection(_pages(script)),
            lambda script: self.machine.connect_hvsock(small_guid(script), small_guid(script), small_guid(script)),
            lambda script: self.machine.forget_hvsock(small_guid(script), small_guid(script)),
            lambda script: self.machine.contact_refused(),
            lambda script: self.machine.connection_lost(),
            lambda script: self.machine.claim(script.value(32)),
            lambda script: self.machine.end_claims(),
            self._restore,
        )

    def play(self, script: Script) -> None:
        """All steps of a script."""
        while script:
            self.step(script)

    def step(self, script: Script) -> None:
        """The host says something, or the user calls something."""
        before, held = self.machine.agreed, self._held()
        what = script.number() % 4
        if what == 0:
            effects = self.machine.receive(script.text())
        elif what == 1:
            effects = self.machine.receive(built(script, FORMS[Sender.HOST]).pack())
        else:
            try:
                effects = script.pick(self._calls)(script)
            except (HostError, ValueError):
                assert self._held() == held, "after an exception nothing has changed"
                effects = []
        self.follow(effects, before)
        assert self._held() <= 4 * MAX_CHANNELS

    def follow(self, effects: list[Effect], before: Agreed | None = None) -> None:
        """What a shell does: post, and tell the user."""
        self.machine.check()
        for effect in effects:
            if isinstance(effect, Post):
                self._check_message(effect.message, before or Agreed())
            elif isinstance(effect, OpenEnded) and effect.status == 0:
                assert self.machine.is_connected

    # calls

    def _connect(self, script: Script) -> list[Effect]:
        first = script.number() % len(VERSIONS)
        request = ConnectRequest(
            versions=VERSIONS[first : first + script.number() % 4],
            target_message_vp=script.value(32),
            interrupt_page=script.value(64),
            monitor_pages=_pages(script),
            features=FeatureFlags(script.number()),
            vtl=script.pick((0, 2)),
            tries_redirect=script.flag(),
        )
        return self.machine.connect(request)

    def _create_gpadl(self, script: Script) -> list[Effect]:
        channel_id, gpadl_id = script.value(33), script.value(33)
        count, buffer = range_buffer(script)
        return self.machine.create_gpadl(channel_id, gpadl_id, count, buffer[: len(buffer) - script.pick((0, 0, 1, 8))])

    def _open(self, script: Script) -> list[Effect]:
        channel_id = script.value(33)
        flag, connection = script.pick((None, None, 1)), script.pick((None, None, 1))
        request = OpenRequest(
            gpadl_id=script.value(33),
            upstream_pages=script.value(33),
            target_vp=script.value(33),
            user_data=script.text(),
            redirect=script.flag(),
            event_flag=None if flag is None else script.value(17),
            connection_id=None if connection is None else script.value(33),
        )
        return self.machine.open(channel_id, request)

    def _restore(self, script: Script) -> list[Effect]:
        """Another client goes on."""
        document = self.machine.save()
        was = self.machine.agreed
        machine = ClientMachine()
        effects = machine.restore(document)
        self.machine = machine
        assert machine.agreed == was
        return effects

    def _held(self) -> int:
        """Messages that wait for the host to listen again."""
        return len(self.machine._out.held)  # what is bounded here shows nowhere else

    def _check_message(self, message: ChannelMessage, before: Agreed) -> None:
        """It is one that a guest may send on the connection that there was, or that there is now."""
        data = message.pack()
        assert len(data) <= MAX_MESSAGE
        with suppress(ProtocolError):
            parse_message(data, Sender.GUEST, before)
            return
        parse_message(data, Sender.GUEST, self.machine.agreed)


def _pages(script: Script) -> MonitorPages | None:
    return script.pick((None, MonitorPages(0x5000, 0x6000), MonitorPages(0, 0), MonitorPages(1 << 64, 1)))


_HOST, _CALL = b"\0", b"\2"


def client_seeds() -> list[bytes]:
    """The host of the Linux conversation, and for each version one that uses everything."""
    linux = b"".join(_HOST + text(step.data) for step in vectors.conversation() if step.sender == "host")
    return [_call(0, 9, 1, 0, 0, 1, 0x2F, 0, 0) + linux, *(_tour(number) for number in range(len(VERSIONS)))]


def _tour(number: int) -> bytes:
    """What may happen with this version, in the order in which it makes sense."""
    version = VERSIONS[number]
    connected: ChannelMessage = VersionResponse(1, 0, 4 if version.names_connection else version)
    if version >= Version.COPPER:
        connected = VersionResponse2(1, 0, 4, 0x2F)
    offers = [
        OfferChannel(NO_GUID, NO_GUID, channel_id=channel_id, connection_id=0x2000 + channel_id)
        for channel_id in (1, 2)
    ]
    return b"".join(
        (
            _call(0, number, 1, 0, 0, 1, 0x2F, 0, 0),
            *_says(connected, *offers, AllOffersDelivered()),
            _call(1, 1, 7, 0, 3, 0) + b"".join(_says(GpadlCreated(1, 7, 0))),
            _call(2, 1, 0, 0, 7, 2, 0, 0, 0) + b"".join(_says(OpenResult(1, 1, 0))),
            _call(3, 1, 1) + b"".join(_says(ModifyChannelResponse(1, 0))),
            _call(10, 1) + b"".join(_says(ModifyConnectionResponse(0))),
            _call(11, 1, 2, 0),
            _call(7) + b"".join(_says(PauseResponse())),
            _call(17) + _call(15, 1) + _call(16) + _call(8),
            _call(4, 1) + _call(5, 1, 7) + b"".join(_says(GpadlTorndown(7), RescindChannelOffer(2))),
            _call(6, 2) + _call(6, 1),
            _call(9) + b"".join(_says(UnloadComplete())),
        )
    )


def _call(number: int, *values: int) -> bytes:
    return _CALL + bytes((number, *values))


def _says(*messages: ChannelMessage) -> list[bytes]:
    return [_HOST + text(message.pack()) for message in messages]
