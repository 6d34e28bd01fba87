"""Key-value pairs, guest side: pools that the host reads and writes, and the IP information of adapters, as Linux does it.

    driver = KvpDriver({KvpPool.GUEST: {"state": "ready"}}, [IpInfo("00:15:5D:00:00:01", ...)])
    async with run_drivers(client, driver):
        driver.pools[KvpPool.EXTERNAL]    # what the host has told

It will: say what Linux's daemon says (NO_MORE_ITEMS where there is no such key or pair, FAIL for an adapter that it cannot
tell about, NOT_FOUND for one that it cannot set), FAIL for what does not fit an answer (texts of 4.0 hold fewer addresses
than the bytes of 5.0), and give numbers back as texts below 5.0. It will not: have Linux's bugs (vmbus.md 8.12, facts 7
to 9, and the short enumeration of 13), or configure anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import ClassVar
from uuid import UUID

import msgspec

from broker.errors import ProtocolError

from ...protocol.ids import KEY_VALUE_PAIRS
from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.kvp import (
    KVP_BINARY_IP,
    KVP_TEXT_IP,
    VALUE_AREA,
    WELL_KNOWN_KEYS,
    KvpHeader,
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
from ...protocol.integration.text import UNIT
from .component import IntegrationDriver, Request

MOST_PAIRS = 4096
"""Of a pool that the host writes to; FAIL beyond."""

_ABOUT_THIS_GUEST = {
    "FullyQualifiedDomainName": "guest",
    "IntegrationServicesVersion": "3.1",
    "OSBuildNumber": "0",
    "OSName": "vmbus-broker",
    "OSMajorVersion": "0",
    "OSMinorVersion": "0",
    "OSVersion": "0",
    "ProcessorArchitecture": "x86_64",
}

Pools = dict[int, dict[str, str | int]]


def well_known_pairs(ip_info: Iterable[IpInfo] = (), **known: str) -> dict[str, str | int]:
    """What a guest publishes in `KvpPool.AUTO`, in the order of `WELL_KNOWN_KEYS`; `known` replaces what this one says.

    `ValueError` for a key that is not well known.
    """
    if unknown := known.keys() - set(WELL_KNOWN_KEYS):
        raise ValueError(f"{', '.join(sorted(unknown))}: well-known keys are {', '.join(WELL_KNOWN_KEYS)}")
    found = _ABOUT_THIS_GUEST | _network_addresses(ip_info) | known
    return {key: found[key] for key in WELL_KNOWN_KEYS}


def _network_addresses(ip_info: Iterable[IpInfo]) -> dict[str, str]:
    """The addresses of all adapters, as many as a value has room for."""
    addresses = [entry.ip for info in ip_info for entry in info.addresses]
    found = {}
    for version in (4, 6):
        text = "".join(f"{address};" for address in addresses if address.version == version)
        room = VALUE_AREA // UNIT  # the NUL takes the place of the last semicolon
        found[f"NetworkAddressIPv{version}"] = text[:room].rpartition(";")[0]
    return found


class KvpDriver(IntegrationDriver):
    """See the module. Versions 4.0, 3.0 and 1.0 as Linux; 5.0 where `message_versions` has it.

    INVALID_ARGUMENT for what breaks a rule and for unknown operations and pools, NOT_SUPPORTED for IP information below 4.0.
    """

    interface_id: UUID = KEY_VALUE_PAIRS
    message_type: ClassVar[IcMessageType] = IcMessageType.KEY_VALUE_PAIRS
    message_versions = (KVP_TEXT_IP, IcVersion(3, 0), IcVersion(1, 0))
    buffer_size = 16384
    answers_unknown = False

    def __init__(
        self,
        pools: Mapping[int, Mapping[str, str | int]] | None = None,
        ip_info: Iterable[IpInfo] = (),
        *,
        instance_id: UUID | None = None,
        framework_versions: Sequence[IcVersion] | None = None,
        message_versions: Sequence[IcVersion] | None = None,
    ) -> None:
        """`pools`: what they hold at first, `well_known_pairs` in `KvpPool.AUTO` unless given."""
        super().__init__(
            instance_id=instance_id, framework_versions=framework_versions, message_versions=message_versions
        )
        self.adapters = {_known_as(info.adapter_id): info for info in ip_info}
        """By adapter ID in capitals. Guest code may change them, and the pools."""
        given: Mapping[int, Mapping[str, str | int]] = {} if pools is None else pools
        about = {KvpPool.AUTO: well_known_pairs(self.adapters.values()), **given}
        self.pools: Pools = {pool: dict(about.get(pool, {})) for pool in KvpPool}

    async def answer(self, request: Request) -> tuple[int, bytes]:
        """One operation."""
        try:
            operation = KvpHeader.unpack(request.body).operation
            if operation in (KvpOperation.GET_IP, KvpOperation.SET_IP):
                return self._about_ip(operation, request)
            return self._about_pair(request)
        except ProtocolError:
            return IcStatus.INVALID_ARGUMENT, request.body
        except ValueError:  # what there is to say does not fit
            return IcStatus.FAIL, request.body

    def _about_pair(self, request: Request) -> tuple[int, bytes]:
        record = parse_record(request.body)
        pool = self.pools.get(record.pool)
        if pool is None:
            return IcStatus.INVALID_ARGUMENT, request.body
        status, found = _apply(pool, record)
        if found is None:
            return status, request.body
        told = found if request.version >= KVP_BINARY_IP else _as_text(found)
        return status, _over(request.body, told.pack())

    def _about_ip(self, operation: int, request: Request) -> tuple[int, bytes]:
        if request.version < KVP_TEXT_IP:
            return IcStatus.NOT_SUPPORTED, request.body
        is_binary = request.version >= KVP_BINARY_IP
        asked = (parse_ip_binary if is_binary else parse_ip_text)(request.body)
        key = _known_as(asked.adapter_id)
        known = self.adapters.get(key)
        if operation == KvpOperation.SET_IP:
            if known is None:
                return IcStatus.NOT_FOUND, request.body
            self.adapters[key] = asked
            self._publish_addresses()
            return IcStatus.SUCCESS, request.body
        if known is None:
            return IcStatus.FAIL, request.body
        told = _of_family(known, asked.family)
        return IcStatus.SUCCESS, _over(request.body, (pack_ip_binary if is_binary else pack_ip_text)(operation, told))

    def _publish_addresses(self) -> None:
        """Where they are published at all."""
        published = self.pools[KvpPool.AUTO]
        for key, value in _network_addresses(self.adapters.values()).items():
            if key in published:
                published[key] = value


def _over(body: bytes, answer: bytes) -> bytes:
    """The answer in the place of the request, which may be longer or shorter by zeros that nobody reads."""
    return answer[: len(body)] + body[len(answer) :]


def _apply(pool: dict[str, str | int], asked: KvpRecord) -> tuple[IcStatus, KvpRecord | None]:
    """Status, and what is to be said; None where the request says it already."""
    if asked.operation == KvpOperation.ENUMERATE:
        pair = next(islice(pool.items(), asked.index, None), None)
        return (IcStatus.NO_MORE_ITEMS, None) if pair is None else (IcStatus.SUCCESS, _with_value(asked, *pair))
    if not asked.key:
        return IcStatus.INVALID_ARGUMENT, None
    if asked.operation == KvpOperation.SET:
        if len(pool) >= MOST_PAIRS and asked.key not in pool:
            return IcStatus.FAIL, None
        pool[asked.key] = asked.value
        return IcStatus.SUCCESS, None
    if asked.key not in pool:
        return IcStatus.NO_MORE_ITEMS, None
    if asked.operation == KvpOperation.DELETE:
        del pool[asked.key]
        return IcStatus.SUCCESS, None
    return IcStatus.SUCCESS, _with_value(asked, asked.key, pool[asked.key])


def _with_value(asked: KvpRecord, key: str, value: str | int) -> KvpRecord:
    kind = KvpValueType.STRING
    if isinstance(value, int):
        kind = KvpValueType.UINT32 if value < 1 << 32 else KvpValueType.UINT64
    return msgspec.structs.replace(asked, key=key, value=value, value_type=kind)


def _as_text(record: KvpRecord) -> KvpRecord:
    return msgspec.structs.replace(record, value=str(record.value), value_type=KvpValueType.STRING)


def _of_family(info: IpInfo, family: IpFamily) -> IpInfo:
    """What is asked for; no family means both, as in Linux."""
    if not family or not info.family & ~family:
        return info
    wanted = info.family & family
    return msgspec.structs.replace(
        info,
        family=wanted,
        addresses=tuple(entry for entry in info.addresses if wanted & _family_of(entry.version)),
        gateways=tuple(entry for entry in info.gateways if wanted & _family_of(entry.version)),
        dns_servers=tuple(entry for entry in info.dns_servers if wanted & _family_of(entry.version)),
    )


def _family_of(version: int) -> IpFamily:
    return IpFamily.IPV4 if version == 4 else IpFamily.IPV6


def _known_as(adapter_id: str) -> str:
    return adapter_id.upper()
