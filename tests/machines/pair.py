"""`Pair`: a client's machine and a server's, joined by two queues of bytes, with devices, a backend and listeners that are
models. No loop, no clock: whoever drives it says what happens next (`pair_moves`), one step at a time.

After each step both machines are checked, and so is what the server has asked of ports and devices. What the user of the
client has asked for and not heard the end of is in `began`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from random import Random

import msgspec

from broker.errors import HostError
from channels.core.client import ClientMachine
from channels.core.client import effects as say
from channels.core.client.states import ClientChannel, ClientState, GpadlState
from channels.core.server import ServerMachine
from channels.core.server import effects as do
from channels.core.server.offer_params import OfferParams
from channels.core.server.restoring import RESTORE_TABLE
from channels.core.server.state import ConnectionPhase
from channels.core.server.table import ChannelState
from channels.protocol.hvsock import TlConnectRequest
from channels.protocol.ids import MESSAGE_CONNECTION, REDIRECT_CONNECTION
from channels.protocol.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL, ChannelMessage, ConnectionState, MessageType
from channels.protocol.open import CloseReservedChannel, CloseReservedChannelResponse, OpenReservedChannel, OpenResult
from channels.protocol.parse import message_type_of

from .pair_device import Device
from .pair_setup import Setup

HOST_PAGES = do.MonitorPages(0x5000, 0x6000)
IDS = range(1, 32)
"""Channel IDs that a pair looks at; its tests have fewer devices."""
_WITH_PORTS = (ChannelState.OPENING, ChannelState.OPEN, ChannelState.OPENING_CLIENT_RELEASE)


class Pair:
    """See the module."""

    def __init__(self, setup: Setup | None = None) -> None:
        self.setup = setup or Setup()
        self.config = self.setup.config()
        self.offers = self.setup.offers()
        self.client = ClientMachine()
        self.server = ServerMachine(self.config)
        self.to_host: deque[tuple[bytes, bool]] = deque()
        """(message, came over a multiclient connection)."""
        self.to_guest: deque[bytes] = deque()
        self.devices: dict[int, Device] = {}
        """By offer ID, those that are there."""
        self.ports: dict[int, do.OpenParams] = {}
        self.backend: deque[do.ModifyConnection] = deque()
        self.listeners: deque[TlConnectRequest] = deque()
        self.began: Counter[tuple[str, object]] = Counter()
        self.reserved: dict[int, str] = {}
        """Channels that the guest uses as reserved ones, past its client: "opening", "open" or "closing"."""
        self.was_reserved: set[int] = set()
        """Those that it has used so: an ordinary client need not know them."""
        self.is_stale = False
        """An answer to an earlier contact may come: VERSION_RESPONSE does not say which it belongs to."""
        self.is_lossy = False
        """Messages of a connection that one end has lost, or has not saved all of, may be on their way."""
        self.is_rude = False
        """The guest has sent what its client knows nothing of."""
        self.next_endpoint = 1
        self.complaints: Counter[tuple[str, str]] = Counter()

    # views

    def channels(self) -> dict[int, ClientChannel]:
        """The client's channels."""
        found = {channel_id: self.client.channel(channel_id) for channel_id in IDS}
        return {channel_id: channel for channel_id, channel in found.items() if channel is not None}

    def gpadl_ids(self) -> set[int]:
        """GPADL IDs that the client uses."""
        return {gpadl_id for channel in self.channels().values() for gpadl_id in channel.gpadls}

    def check(self) -> None:
        """Every invariant, of both machines and of what surrounds them."""
        self.client.check()
        self.server.check()
        channels = self.server.state.channels.by_offer
        with_ports = {n for n, channel in channels.items() if channel.state in _WITH_PORTS and channel.restored}
        assert set(self.ports) == with_ports, "ports are there exactly while a channel may be signalled"
        for offer_id, params in self.ports.items():
            assert channels[offer_id].state is ChannelState.OPENING_CLIENT_RELEASE or channels[offer_id].open in (
                params,
                msgspec.structs.replace(params, target_vp=getattr(channels[offer_id].open, "target_vp", None)),
            )
        absent = {ChannelState.REVOKED}
        with_device = {n for n, c in channels.items() if c.state not in absent and n not in self.server.state.unmatched}
        assert with_device == set(self.devices), "each device has its channel"

    # the guest's user

    def user(self, name: str, *arguments: object, begins: tuple[str, object] | None = None) -> bool:
        """Ask the client for something that ends (`begins`) or not; False when it refuses, as documented."""
        method: Callable[..., list[do.Effect]] = getattr(self.client, name)
        try:
            effects = method(*arguments)
        except HostError:
            self.check()
            return False
        if begins is not None:
            self.began[begins] += 1
        self.guest(effects)
        self.check()
        return True

    def connect(self) -> None:
        """Ask for a connection."""
        self.user("connect", self.setup.request(), begins=("connect", 0))

    def lose(self) -> None:
        """The guest has lost its connection without the host's knowing: a crash kernel starts, say."""
        phase, following = self.server.state.connection.phase, self.server.state.connection.next
        kinds = [message_type_of(data) for data in (*self.to_guest, *(data for data, _ in self.to_host))]
        self.is_stale |= (
            self.client.state is ClientState.CONNECTING
            or phase is ConnectionPhase.CONNECTING
            or (following is not None and following.kind == "reconnect")
            or MessageType.VERSION_RESPONSE in kinds
            or MessageType.INITIATE_CONTACT in kinds
        )
        self.is_lossy = True
        self.began.clear()
        self.user("connection_lost")

    def unload(self) -> None:
        """Let go of everything; nothing else ends after that."""
        before, self.began = self.began, Counter()
        if not self.user("unload", begins=("unload", 0)):
            self.began = before

    def raw(self, message: ChannelMessage, *, is_rude: bool = True) -> None:
        """The guest posts a message past its client."""
        self.is_rude |= is_rude
        if isinstance(message, OpenReservedChannel):
            self.reserved.setdefault(message.channel_id, "opening")
            self.was_reserved.add(message.channel_id)
        version = self.client.agreed.version
        self.to_host.append((message.pack(), version is not None and version.names_connection))

    def restart_client(self) -> None:
        """Save the client, which is paused or disconnected, and go on with another one; `claim` and `resume` follow."""
        document = self.client.save()
        self.client, self.is_lossy = ClientMachine(), True
        self.began.clear()
        self.guest(self.client.restore(document), is_restored=True)
        self._count_teardowns()
        self.check()

    def end_claims(self) -> None:
        """Channels of a restored client that nobody has claimed are closed, and their GPADLs torn down."""
        self.user("end_claims")
        self._count_teardowns()

    def _count_teardowns(self) -> None:
        for channel in self.channels().values():
            for gpadl_id, state in channel.gpadls.items():
                if state is GpadlState.TEARING_DOWN:
                    self.began["teardown", gpadl_id] = 1

    def guest(self, effects: list[do.Effect], *, is_restored: bool = False) -> None:
        """Carry out what the client says."""
        for effect in effects:
            match effect:
                case say.Post(connection_id, message):
                    if connection_id == REDIRECT_CONNECTION:
                        self.guest(self.client.contact_refused())
                    else:
                        self.to_host.append((message.pack(), connection_id != MESSAGE_CONNECTION))
                case say.Connected() if not is_restored:
                    self._end("connect", 0)
                case say.ConnectFailed():
                    self._end("connect", 0)
                case say.OpenEnded(channel_id, _):
                    self._end("open", channel_id)
                case say.GpadlCreateEnded(_, gpadl_id, _):
                    self._end("create", gpadl_id)
                case say.GpadlTornDown(_, gpadl_id):
                    self._end("teardown", gpadl_id)
                case say.ModifyEnded(channel_id, _):
                    self._end("modify", channel_id)
                case say.ModifyConnectionEnded():
                    self._end("pages", 0)
                case say.HvsockEnded(_, endpoint_id, _):
                    self._end("hvsock", endpoint_id)
                case say.Paused():
                    self._end("pause", 0)
                case say.UnloadEnded():
                    self._end("unload", 0)
                case say.OfferRescinded(channel_id):
                    self.reserved.pop(channel_id, None)
                case do.Complaint():
                    assert self.is_lossy or self.is_rude or self._is_of_reserved(effect), effect.reason
                    self.complaints["client", effect.event + " " + effect.name] += 1

    def _is_of_reserved(self, complaint: do.Complaint) -> bool:
        """The client does not know a channel that the guest has kept open as a reserved one over several connections."""
        return bool(self.was_reserved) and complaint.name == "RESCIND_CHANNEL_OFFER"

    def _end(self, what: str, key: object) -> None:
        assert self.began[what, key] > 0 or self.is_rude, f"{what} {key} has ended and was not asked for"
        self.began[what, key] -= self.began[what, key] > 0

    # messages

    def deliver_to_host(self) -> None:
        """The server takes the oldest message of the guest."""
        data, multiclient = self.to_host.popleft()
        if message_type_of(data) is MessageType.CLOSE_RESERVED_CHANNEL and self.server.state.connection.paused:
            self.reserved[CloseReservedChannel.unpack(data).channel_id] = "open"  # a paused host does not listen
        self.host(self.server.receive(data, trusted=self.setup.trusted, multiclient=multiclient))
        self.check()

    def deliver_to_guest(self) -> None:
        """The client takes the oldest message of the host."""
        self.guest(self.client.receive(self.to_guest.popleft()))
        self.check()

    # the host

    def host(self, effects: list[do.Effect]) -> None:
        """Carry out what the server says."""
        for effect in effects:
            match effect:
                case do.SendMessage(message, None):
                    self.to_guest.append(message.pack())
                case do.SendMessage(message):
                    self._reserved_answered(message)
                case do.SendSaved(data):
                    self.to_guest.append(data)
                case do.ModifyConnection():
                    self.backend.append(effect)
                case do.CreatePorts(offer_id, _, params):
                    assert offer_id not in self.ports
                    self.ports[offer_id] = params
                case do.DestroyPorts(offer_id):
                    self.ports.pop(offer_id, None)
                case do.RemoveOffer(offer_id):
                    self.devices.pop(offer_id, None)
                case do.ConnectHvsock(request):
                    self.listeners.append(request)
                case do.DropOpen(offer_id):
                    self.devices[offer_id].drop_open()
                case do.DropMessages():
                    self.to_guest.clear()
                case do.Complaint():
                    may_be = self.is_lossy or self.is_rude or effect.event != "message_refused"
                    assert may_be, effect.reason
                    self.complaints["server", effect.event + " " + effect.name] += 1
                case do.OpenDevice(offer_id, _) | do.ResumeDevice(offer_id, _):
                    assert offer_id in self.ports, "ports come before the device hears of the open"
                    self.devices[offer_id].ask(effect)
                case do.CloseDevice() | do.ModifyDevice() | do.CreateGpadl() | do.ResumeGpadl() | do.TeardownGpadl():
                    self.devices[effect.offer_id].ask(effect)

    def _reserved_answered(self, message: ChannelMessage) -> None:
        match message:
            case OpenResult(channel_id, _, status) if status == STATUS_SUCCESS:
                self.reserved[channel_id] = "open"
            case OpenResult(channel_id) | CloseReservedChannelResponse(channel_id):
                self.reserved.pop(channel_id, None)

    def offer(self, params: OfferParams) -> int | None:
        """A device offers; None when there is one like it."""
        try:
            offer_id, effects = self.server.offer(params)
        except HostError:
            return None
        self.devices[offer_id] = Device(params)
        self.host(effects)
        return offer_id

    def revoke(self, offer_id: int) -> None:
        """A device is gone, its sub-channels before it."""
        params = self.devices[offer_id].params
        if params.subchannel_index == 0:
            self._revoke_subchannels(params)
        self.host(self.server.revoke(offer_id))
        self.check()

    def _revoke_subchannels(self, params: OfferParams) -> None:
        for offer_id, device in list(self.devices.items()):
            if device.params.subchannel_index and device.params.instance_id == params.instance_id:
                self.host(self.server.revoke(offer_id))

    def answer(self, offer_id: int, what: str, number: int, is_ok: bool) -> None:
        """A device answers what it was asked. A primary that has closed takes its sub-channels back."""
        device, server = self.devices[offer_id], self.server
        device.answered(what, number, is_ok)
        status = STATUS_SUCCESS if is_ok else STATUS_UNSUCCESSFUL
        match what:
            case "open":
                is_open, effects = server.open_ended(offer_id, status)
                assert not is_open or is_ok
                self.host(effects)
            case "close":
                if device.params.subchannel_index == 0:
                    self._revoke_subchannels(device.params)
                self.host(server.close_ended(offer_id))
            case "modify":
                self.host(server.modify_ended(offer_id, status))
            case "create":
                self.host(server.gpadl_created(offer_id, number, accepted=is_ok))
            case "teardown":
                self.host(server.gpadl_torn_down(offer_id, number))
        self.check()

    def answer_backend(self, how: str) -> None:
        """The backend has done the oldest that it was asked: "ok", "own pages", "failed" or "unsupported"."""
        self.backend.popleft()
        status = ConnectionState.FAILED_LOW_RESOURCES if how == "failed" else ConnectionState.SUCCESSFUL
        pages = HOST_PAGES if how == "own pages" else None
        self.host(self.server.connection_modified(status, pages, supported=how != "unsupported"))
        self.check()

    def answer_listener(self, is_ok: bool) -> None:
        """A listener takes the oldest connection, by an offer, or nobody does."""
        request = self.listeners.popleft()
        if is_ok:
            self.offer(OfferParams.hvsock(request.service_id, request.endpoint_id, guest_accepts=False))
        self.host(self.server.hvsock_connected(request, accepted=is_ok))
        self.check()

    def reset(self) -> None:
        """The VM is reset, its guest with it."""
        self.to_host.clear()
        self.to_guest.clear()
        self.began.clear()
        self.reserved.clear()
        self.listeners.clear()
        self.is_stale = self.is_rude = False
        self.client = ClientMachine()
        self.host(self.server.reset())
        self.check()

    def restart_server(self, seed: int) -> None:
        """Save the server and go on with another one: devices come back before or after the restore, or do not."""
        random = Random(seed)
        if self.server.state.connection.is_resetting:
            return
        sent = random.randint(0, len(self.to_guest))
        queue = list(self.to_guest)
        try:
            document = self.server.save(queue[sent:])
        except HostError:
            return  # the monitor pages are the host's own
        self.to_guest = deque(queue[:sent])
        self.backend.clear()
        self.listeners.clear()
        self.ports.clear()
        fates = [(random.choice(_FATES), device.params) for device in self.devices.values()]
        self.devices, self.server = {}, ServerMachine(self.config)
        for fate, params in fates:
            if fate.startswith("before"):
                self.offer(params)
        self.server.restore(document)
        for fate, params in fates:
            if fate.startswith("after"):
                self.offer(params)
        self.server.check()
        silent = {params.key for fate, params in fates if fate.endswith("silent")}
        for offer_id, device in list(self.devices.items()):
            state = self.server.saved_state(offer_id)
            if device.params.key not in silent and state is not None:
                device.is_open = random.choice(RESTORE_TABLE[state])
                self.host(self.server.restore_channel(offer_id, is_open=device.is_open))
                self.server.check()
            if random.random() < 0.1 and offer_id in self.devices:
                self.revoke(offer_id)
        self.host(self.server.start())
        self.check()


_FATES = ("before", "before", "before, silent", "after", "after", "after, silent", "never")
