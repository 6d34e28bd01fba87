"""What the pair tests have found, each as the shortest story that shows it."""

from __future__ import annotations

import pytest

from channels.core.client.states import ClientState, PauseState
from channels.core.server import ServerMachine
from channels.core.server import effects as do
from channels.core.server.table import ChannelState
from channels.protocol.hvsock import TlConnectResult
from channels.protocol.message import STATUS_UNSUCCESSFUL, ConnectionState, MessageType
from channels.protocol.open import CloseReservedChannel, CloseReservedChannelResponse, OpenChannel2, OpenReservedChannel
from channels.protocol.parse import message_type_of, parse_message
from channels.protocol.versions import Version

from . import pair_moves
from .pair import Pair
from .pair_rest import settle, wind_down
from .pair_setup import GUEST_PAGES, Setup

OTHER_PAGES = do.MonitorPages(0x7000, 0x8000)


def connected(version: Version = Version.COPPER, **more: object) -> Pair:
    """A pair with a connection and one device."""
    pair = Pair(Setup(version=version, devices=1, **more))  # type: ignore[arg-type]
    pair.offer(pair.offers[0])
    pair.connect()
    settle(pair)
    return pair


def say(pair: Pair, name: str, *arguments: object) -> None:
    """The user of the client asks, and the host hears it."""
    pair_moves.do(pair, ("guest", name, arguments))
    while pair.to_host:
        pair.deliver_to_host()


def heard(pair: Pair) -> list[MessageType]:
    """What is on its way to the guest."""
    return [message_type_of(data) for data in pair.to_guest]


@pytest.mark.parametrize("how", ["close", "release"])
def test_a_channel_that_is_closed_while_it_is_modified_answers_the_modification(how: str) -> None:
    pair = connected(Version.IRON)
    say(pair, "open", 1, 0)
    settle(pair)
    say(pair, "modify", 1, 1)
    say(pair, how, 1)
    assert heard(pair) == [MessageType.MODIFY_CHANNEL_RESPONSE]
    pair.answer(1, "modify", 0, True)
    assert heard(pair) == [MessageType.MODIFY_CHANNEL_RESPONSE], "the device's own answer comes too late"
    settle(pair)
    say(pair, "pause")
    settle(pair)
    assert pair.client.pause_state is PauseState.PAUSED


def test_a_channel_that_is_revoked_while_it_is_modified_can_be_released() -> None:
    pair = connected(Version.IRON)
    say(pair, "open", 1, 0)
    settle(pair)
    say(pair, "modify", 1, 1)
    pair.revoke(1)
    assert heard(pair) == [MessageType.MODIFY_CHANNEL_RESPONSE, MessageType.RESCIND_CHANNEL_OFFER]
    assert parse_message(pair.to_guest[0]).status == STATUS_UNSUCCESSFUL  # type: ignore[attr-defined]
    pair.user("release", 1)
    settle(pair)
    assert not pair.channels()
    assert pair.server.state.channels.is_id_free(1)


def test_monitor_pages_that_the_backend_refuses_are_not_used() -> None:
    pair = connected()
    say(pair, "pages", OTHER_PAGES)
    pair.answer_backend("failed")
    settle(pair)
    assert pair.client.monitor_pages == pair.server.state.connection.monitor_pages == GUEST_PAGES


def test_monitor_pages_that_are_refused_after_a_restore_are_not_used() -> None:
    pair = connected()
    say(pair, "pages", OTHER_PAGES)
    server = restored(pair)
    server.start()
    server.connection_modified(ConnectionState.FAILED_LOW_RESOURCES)
    assert server.state.connection.monitor_pages == GUEST_PAGES


def test_a_restored_server_answers_a_modification_with_what_the_backend_says_of_that_one() -> None:
    pair = connected()
    server = restored(pair)
    (again,) = [effect for effect in server.start() if isinstance(effect, do.ModifyConnection)]
    assert again.monitor_pages == GUEST_PAGES
    pair.user("modify_connection", OTHER_PAGES)
    server.receive(pair.to_host[0][0])
    assert not [e for e in server.connection_modified() if isinstance(e, do.SendMessage)], "that was for the restore"
    (answer,) = [e for e in server.connection_modified() if isinstance(e, do.SendMessage)]
    assert answer.message.TYPE is MessageType.MODIFY_CONNECTION_RESPONSE


def restored(pair: Pair, *messages: bytes) -> ServerMachine:
    """Another server that has the state of this one; its device is back."""
    server = ServerMachine(pair.config)
    server.offer(pair.offers[0])
    server.restore(pair.server.save(messages))
    server.check()
    return server


def test_the_answer_to_a_contact_from_before_a_reset_does_not_reach_the_guest_after_it() -> None:
    pair = Pair()
    pair.connect()
    pair.deliver_to_host()
    pair.reset()
    pair.connect()
    pair.answer_backend("ok")
    assert not pair.to_guest
    settle(pair)
    assert pair.client.state is ClientState.CONNECTED


def test_a_reset_waits_for_reserved_channels_also_when_the_contact_before_it_fails() -> None:
    pair = connected()
    say(pair, "open_reserved", 1)
    settle(pair)
    pair.lose()
    pair.connect()
    pair.deliver_to_host()
    pair.answer_backend("ok")  # the old connection is gone, the new one is asked for
    pair.reset()
    pair.answer_backend("failed")
    assert pair.devices[1].asked == [("close", 0)]
    assert not pair.server.may_receive
    settle(pair)
    assert pair.server.channel_state(1) is ChannelState.CLIENT_RELEASED


def test_a_reserved_channel_that_is_opened_again_while_it_closes_answers_the_close() -> None:
    pair = connected()
    say(pair, "open_reserved", 1)
    settle(pair)
    pair.raw(CloseReservedChannel(1, 2, 6), is_rude=False)
    pair.raw(OpenChannel2(1, 1), is_rude=False)
    pair.deliver_to_host()
    pair.deliver_to_host()
    assert pair.server.channel_state(1) is ChannelState.CLOSING_REOPEN
    effects = pair.server.close_ended(1)
    assert do.SendMessage(CloseReservedChannelResponse(1), do.Target(2, 6)) in effects
    assert pair.server.channel_state(1) is ChannelState.OPENING
    restored(pair)  # and it is an ordinary channel: nothing in the saved state contradicts that


def test_the_reopening_of_a_reserved_channel_goes_with_the_connection() -> None:
    pair = connected()
    say(pair, "open_reserved", 1)
    settle(pair)
    pair.raw(CloseReservedChannel(1, 2, 6), is_rude=False)
    pair.raw(OpenChannel2(1, 1), is_rude=False)
    pair.deliver_to_host()
    pair.deliver_to_host()
    pair.unload()
    pair.deliver_to_host()
    assert pair.server.channel_state(1) is ChannelState.CLOSING
    pair.answer_backend("ok")
    pair.answer(1, "close", 0, True)
    assert pair.server.channel_state(1) is ChannelState.CLIENT_RELEASED


def test_a_device_that_is_revoked_between_restore_and_start_stays_revoked() -> None:
    pair = connected()
    server = restored(pair)
    effects = [*server.revoke(1), *server.start()]
    rescinds = [e for e in effects if isinstance(e, do.SendMessage)]
    assert [e.message.TYPE for e in rescinds] == [MessageType.RESCIND_CHANNEL_OFFER]
    assert server.channel_state(1) is ChannelState.REVOKED
    server.check()


def test_a_reserved_channel_that_its_device_does_not_go_on_with_is_the_devices_alone_without_a_connection() -> None:
    pair = connected()
    say(pair, "open_reserved", 1)
    settle(pair)
    pair.unload()
    settle(pair)
    server = restored(pair)
    assert not [effect for effect in server.start() if isinstance(effect, do.SendMessage)]
    assert server.channel_state(1) is ChannelState.CLIENT_RELEASED
    server.check()


def test_memory_of_a_device_that_was_revoked_is_not_given_to_its_successor_by_a_restore() -> None:
    pair = connected()
    pair.revoke(1)
    say(pair, "create", 1, "short")
    server = restored(pair)
    effects = [*server.restore_channel(1, is_open=False), *server.start()]
    assert not [effect for effect in effects if isinstance(effect, do.ResumeGpadl)]


def test_what_had_not_gone_out_goes_before_what_a_restore_leads_to() -> None:
    pair = connected()
    say(pair, "open", 1, 0)
    server = restored(pair, b"old")
    effects = [*server.restore_channel(1, is_open=True), *server.start()]
    sent = [effect for effect in effects if isinstance(effect, (do.SendMessage, do.SendSaved))]
    assert sent[0] == do.SendSaved(b"old")
    assert [effect.message.TYPE for effect in sent[1:]] == [MessageType.OPEN_CHANNEL_RESULT]  # type: ignore[union-attr]


def test_a_connect_that_a_save_refuses_is_told_after_resume_only() -> None:
    pair = connected()
    say(pair, "hvsock")
    say(pair, "pause")
    server = restored(pair)
    effects = [*server.restore_channel(1, is_open=False), *server.start()]
    assert not [effect for effect in effects if isinstance(effect, (do.SendMessage, do.SendSaved))]
    (held,) = server.state.held
    assert isinstance(held, TlConnectResult)


def test_tearing_down_what_an_earlier_guest_left_is_not_told_to_the_next() -> None:
    pair = connected()
    say(pair, "create", 1, "short")
    say(pair, "open_reserved", 1)
    settle(pair)
    pair.unload()
    settle(pair)
    pair.connect()
    pair.deliver_to_host()
    pair.answer_backend("ok")  # connected; the guest has not asked for offers
    pair.raw(CloseReservedChannel(1), is_rude=False)
    pair.deliver_to_host()
    pair.answer(1, "close", 0, True)
    pair.deliver_to_guest()
    pair.deliver_to_host()  # REQUEST_OFFERS
    assert pair.server.channel_state(1) is ChannelState.CLOSED
    pair.answer(1, "teardown", 1, True)
    assert MessageType.GPADL_TORNDOWN not in heard(pair)
    wind_down(pair, "unload")


def test_a_guest_may_open_the_same_channel_as_a_reserved_one_again() -> None:
    pair = connected()
    for _ in range(2):
        pair.raw(OpenReservedChannel(1), is_rude=False)
        settle(pair)
        assert pair.reserved == {1: "open"}
        say(pair, "close_reserved", 1)
        settle(pair)
    wind_down(pair, "release")
