"""Key-value pairs, host side: pools of a guest are read and written, and IP information of its adapters.

    kvp = KvpDevice()
    async with serve_devices(server, kvp):
        await kvp.set(KvpPool.EXTERNAL, "greeting", "hello")
        about = await kvp.items(KvpPool.AUTO)

It will: send numbers in the type that the guest knows, zero what a request does not say. It will not: repair what Linux
does to values (vmbus.md 8.12): its answer to `get` lacks the first four characters, its `items` are whole; it stores an
empty value for an expand string; its values come back as texts.
"""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from broker.errors import HostError, ProtocolError

from ...protocol.ids import KEY_VALUE_PAIRS
from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.kvp import (
    KVP_BINARY_IP,
    KVP_INSTANCE,
    KVP_TEXT_IP,
    KVP_VERSIONS,
    KvpOperation,
    KvpPool,
    KvpRecord,
    KvpValueType,
    parse_record,
)
from ...protocol.integration.kvp_ip import (
    IpFamily,
    IpInfo,
    pack_ip_binary,
    pack_ip_text,
    parse_ip_binary,
    parse_ip_text,
)
from .asking import ask
from .component import Conversation, GuestRefused, IntegrationDevice

MOST_ITEMS = 4096
"""Pairs that `items` takes from one pool."""


class KvpDevice(IntegrationDevice):
    """See the module. All methods wait for a guest.

    Errors of all: `GuestRefused` with the guest's status (NO_MORE_ITEMS from Linux where there is no such key),
    `ProtocolError` for an answer that breaks a rule, `ValueError` for what does not fit (keys have up to 255 UTF-16 code
    units, texts up to 1023), else as in `call`.
    """

    interface_id: ClassVar[UUID] = KEY_VALUE_PAIRS
    well_known_id: ClassVar[UUID] = KVP_INSTANCE
    message_type: ClassVar[IcMessageType] = IcMessageType.KEY_VALUE_PAIRS
    message_versions = KVP_VERSIONS

    async def get(self, pool: KvpPool, key: str) -> str | int:
        """The value of a key, as the guest says it."""
        conversation = await self._wait_conversation()
        return (await self._exchange(conversation, KvpRecord(KvpOperation.GET, pool, key))).value

    async def set(self, pool: KvpPool, key: str, value: str | int, *, expand: bool = False) -> None:
        """Store a text or an unsigned number of up to 64 bits. `expand`: the text names variables, as in "%PATH%"."""
        conversation = await self._wait_conversation()
        kind = _value_type(value, expand, conversation.version)
        await self._exchange(conversation, KvpRecord(KvpOperation.SET, pool, key, value, kind))

    async def delete(self, pool: KvpPool, key: str) -> None:
        """Forget a key."""
        conversation = await self._wait_conversation()
        await self._exchange(conversation, KvpRecord(KvpOperation.DELETE, pool, key))

    async def items(self, pool: KvpPool) -> dict[str, str | int]:
        """All pairs of a pool, in the guest's order; of a key that comes twice, the later value. `ProtocolError` for more
        than `MOST_ITEMS`."""
        conversation = await self._wait_conversation()
        found: dict[str, str | int] = {}
        for index in range(MOST_ITEMS + 1):
            try:
                record = await self._exchange(conversation, KvpRecord(KvpOperation.ENUMERATE, pool, index=index))
            except GuestRefused as refused:
                if refused.status != IcStatus.NO_MORE_ITEMS:
                    raise
                return found
            found[record.key] = record.value
        raise ProtocolError("enumeration", 4, f"an end after {MOST_ITEMS} pairs", "one more")

    async def get_ip(self, adapter_id: str, family: IpFamily = IpFamily.BOTH) -> IpInfo:
        """What the guest says about an adapter (from 4.0, `HostError` below): Linux wants its MAC address,
        "00:15:5D:00:00:01"."""
        conversation = await self._wait_conversation()
        asked = IpInfo(adapter_id, family)
        return await self._exchange_ip(conversation, KvpOperation.GET_IP, asked, "to tell an adapter's addresses")

    async def set_ip(self, info: IpInfo) -> None:
        """Tell the guest what an adapter is to have (from 4.0, `HostError` below): Linux wants its GUID."""
        conversation = await self._wait_conversation()
        await self._exchange_ip(conversation, KvpOperation.SET_IP, info, "an adapter's addresses")

    async def _exchange(self, conversation: Conversation, asked: KvpRecord) -> KvpRecord:
        operation = KvpOperation(asked.operation)
        what = f"to {operation.name.lower()} a pair of pool {_pool_name(asked.pool)}"
        answer = await ask(conversation, what, asked.pack())
        found = parse_record(answer)
        if (found.operation, found.index) != (operation, asked.index):
            raise ProtocolError(
                "answer about a pair",
                0,
                f"operation {asked.operation}, index {asked.index}",
                f"operation {found.operation}, index {found.index}",
            )
        return found

    async def _exchange_ip(
        self, conversation: Conversation, operation: KvpOperation, info: IpInfo, what: str
    ) -> IpInfo:
        version = conversation.version
        if version < KVP_TEXT_IP:
            raise HostError(f"IP information needs version {KVP_TEXT_IP} of key-value pairs, the guest took {version}")
        is_binary = version >= KVP_BINARY_IP
        body = (pack_ip_binary if is_binary else pack_ip_text)(operation, info)
        answer = await ask(conversation, what, body)
        return (parse_ip_binary if is_binary else parse_ip_text)(answer)


def _pool_name(pool: int) -> str:
    """Its name, where it has one."""
    return next((known.name for known in KvpPool if known == pool), str(pool))


def _value_type(value: str | int, expand: bool, version: IcVersion) -> KvpValueType:
    """Linux, which has at most 4.0, has a number of its own for 64 bits."""
    if isinstance(value, str):
        return KvpValueType.EXPAND_STRING if expand else KvpValueType.STRING
    if value < 1 << 32:
        return KvpValueType.UINT32
    return KvpValueType.UINT64 if version >= KVP_BINARY_IP else KvpValueType.UINT64_LINUX
