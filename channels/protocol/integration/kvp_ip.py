"""IP information of an adapter, as the key-value pair component carries it (vmbus.md 8.3): texts in 4.0, bytes in 5.0.

`IpInfo` is what a body says in either form. Both take 7428 bytes; the form of 5.0 ends at 3716, zeros follow it.

In texts, entries are separated by semicolons. The subnet of an IPv6 address is the length of its prefix: hosts write "64",
Linux answers with "/64"; both are read, with blanks around entries and empty entries (Linux ends some lists with a semicolon).
Addresses and subnets correspond, in order. In the form of 5.0 the IPv4 addresses come first, then the IPv6 ones; their
origins lie in one array without gaps. Origins are written (what DHCP has given is OTHER, else STATIC) and not read.

It will: check counts, families, masks and texts. It will not: resolve names, or carry IPv6 scopes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Annotated, ClassVar, TypeVar

import msgspec

from broker.errors import ProtocolError

from ..wire import At
from .kvp import KvpHeader, KvpPool
from .text import pack_text, parse_text

IP_SIZE = 7428
"""Bytes of a body, in both forms."""
MAX_ADDRESSES = 64
"""Of each family; of name servers as well."""
MAX_GATEWAYS = 5
"""Of each family."""

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
"""An address and its subnet."""

_T = TypeVar("_T")
_SEPARATOR = ";"
_WHAT = "IP information"
_PREFIXES = struct.Struct(f"<{MAX_ADDRESSES}I")
_ORIGINS = struct.Struct(f"<{2 * MAX_ADDRESSES}H")


class IpFamily(IntFlag):
    """Protocols that a body is about."""

    NONE = 0
    IPV4 = 1
    IPV6 = 2
    BOTH = 3


class IpOrigin(IntEnum):
    """Where an address comes from."""

    UNKNOWN = 0
    OTHER = 1
    STATIC = 2


class IpInfo(msgspec.Struct, frozen=True):
    """One adapter. `ValueError` for more than `MAX_ADDRESSES` or `MAX_GATEWAYS` of a family, an address of a family that
    is not meant, an IPv6 scope."""

    adapter_id: str
    """Up to 127 characters. Linux looks for a MAC address when it is asked, and for a GUID when it is told."""
    family: IpFamily = IpFamily.BOTH
    """What is asked for, or told."""
    is_dhcp: bool = False
    """IPv4 addresses come by DHCP."""
    addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()
    dns_servers: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        for what, found, most in (
            ("addresses", self.addresses, MAX_ADDRESSES),
            ("gateways", self.gateways, MAX_GATEWAYS),
            ("name servers", self.dns_servers, MAX_ADDRESSES),
        ):
            for version in (4, 6):
                count = sum(entry.version == version for entry in found)
                if count > most:
                    raise ValueError(f"{most} IPv{version} {what} at most, {count} are too many")
            for entry in found:
                if isinstance(entry, IPv6Address) and entry.scope_id is not None:
                    raise ValueError(f"{entry} has a scope, which has no place here")
        for address in self.addresses:
            if not self.family & (IpFamily.IPV4 if address.version == 4 else IpFamily.IPV6):
                raise ValueError(f"{address} is not of the family {self.family!r}")


class KvpIpText(KvpHeader, frozen=True):
    """The form of 4.0, 7428 bytes."""

    adapter_id: Annotated[bytes, At(2, "256s", "UTF-16LE")] = b""
    family: Annotated[int, At(258, "B", "1 IPv4, 2 IPv6, 3 both")] = 0
    dhcp: Annotated[int, At(259, "B", "1: IPv4 addresses come by DHCP")] = 0
    addresses: Annotated[bytes, At(260, "2048s", "UTF-16LE, separated by semicolons")] = b""
    subnets: Annotated[bytes, At(2308, "2048s", "UTF-16LE, separated by semicolons")] = b""
    gateways: Annotated[bytes, At(4356, "1024s", "UTF-16LE, separated by semicolons")] = b""
    dns_servers: Annotated[bytes, At(5380, "2048s", "UTF-16LE, separated by semicolons")] = b""


class KvpIpBinary(KvpHeader, frozen=True):
    """The form of 5.0, 3716 bytes and zeros up to 7428. Addresses are in network byte order."""

    LEAST_SIZE: ClassVar[int] = IP_SIZE

    ipv4_count: Annotated[int, At(4, "I", "IPv4 addresses and subnets")] = 0
    ipv6_count: Annotated[int, At(8, "I", "IPv6 addresses and prefixes")] = 0
    ipv4_gateway_count: Annotated[int, At(12, "I", "IPv4 gateways")] = 0
    ipv6_gateway_count: Annotated[int, At(16, "I", "IPv6 gateways")] = 0
    ipv4_dns_count: Annotated[int, At(20, "I", "IPv4 name servers")] = 0
    ipv6_dns_count: Annotated[int, At(24, "I", "IPv6 name servers")] = 0
    adapter_id: Annotated[bytes, At(28, "256s", "UTF-16LE")] = b""
    family: Annotated[int, At(284, "B", "1 IPv4, 2 IPv6, 3 both")] = 0
    dhcp: Annotated[int, At(285, "B", "1: IPv4 addresses come by DHCP")] = 0
    ipv4: Annotated[bytes, At(288, "256s", "64 IPv4 addresses")] = b""
    ipv6: Annotated[bytes, At(544, "1024s", "64 IPv6 addresses")] = b""
    ipv4_masks: Annotated[bytes, At(1568, "256s", "64 IPv4 masks")] = b""
    ipv6_prefixes: Annotated[bytes, At(1824, "256s", "64 prefix lengths, u32")] = b""
    ipv4_gateways: Annotated[bytes, At(2080, "20s", "5 IPv4 addresses")] = b""
    ipv6_gateways: Annotated[bytes, At(2100, "80s", "5 IPv6 addresses")] = b""
    ipv4_dns: Annotated[bytes, At(2180, "256s", "64 IPv4 addresses")] = b""
    ipv6_dns: Annotated[bytes, At(2436, "1024s", "64 IPv6 addresses")] = b""
    origins: Annotated[bytes, At(3460, "256s", "128 origins, u16, IPv4 addresses first, without gaps")] = b""


_V4, _V6 = 4, 16
"""Bytes of an address."""


def pack_ip_text(operation: int, info: IpInfo) -> bytes:
    """The body in the form of 4.0. `ValueError` when a list does not fit."""
    subnets = (str(entry.netmask) if entry.version == 4 else f"{entry.network.prefixlen}" for entry in info.addresses)
    return KvpIpText(
        operation,
        KvpPool.EXTERNAL,
        pack_text(info.adapter_id, 256, "adapter ID"),
        info.family,
        info.is_dhcp,
        _pack_list((entry.ip for entry in info.addresses), 2048, "IP addresses"),
        _pack_list(subnets, 2048, "subnets"),
        _pack_list(info.gateways, 1024, "gateways"),
        _pack_list(info.dns_servers, 2048, "name servers"),
    ).pack()


def parse_ip_text(body: bytes) -> IpInfo:
    """Read a body in the form of 4.0.

    `ProtocolError` for bytes that are missing, texts that nothing ends, what is no address, subnets that do not
    correspond to the addresses, and for all that `IpInfo` refuses.
    """
    raw = KvpIpText.unpack(body)
    addresses = _parse_list(raw.addresses, "IP addresses", 260, ip_address)
    subnets = _parse_list(raw.subnets, "subnets", 2308, lambda entry: entry.removeprefix("/"))
    if len(addresses) != len(subnets):
        raise ProtocolError("subnets", 2308, f"one for each of {len(addresses)} addresses", f"{len(subnets)}")
    return _checked(
        raw,
        tuple(_parse_interface(address, subnet, 2308) for address, subnet in zip(addresses, subnets, strict=True)),
        _parse_list(raw.gateways, "gateways", 4356, ip_address),
        _parse_list(raw.dns_servers, "name servers", 5380, ip_address),
    )


def pack_ip_binary(operation: int, info: IpInfo) -> bytes:
    """The body in the form of 5.0."""
    ipv4 = [entry for entry in info.addresses if isinstance(entry, IPv4Interface)]
    ipv6 = [entry for entry in info.addresses if isinstance(entry, IPv6Interface)]
    ipv4_gateways, ipv6_gateways = _by_family(info.gateways)
    ipv4_dns, ipv6_dns = _by_family(info.dns_servers)
    given = IpOrigin.OTHER if info.is_dhcp else IpOrigin.STATIC
    origins = [given] * len(ipv4) + [IpOrigin.STATIC] * len(ipv6)
    prefixes = [entry.network.prefixlen for entry in ipv6]
    return KvpIpBinary(
        operation,
        KvpPool.EXTERNAL,
        len(ipv4),
        len(ipv6),
        len(ipv4_gateways),
        len(ipv6_gateways),
        len(ipv4_dns),
        len(ipv6_dns),
        pack_text(info.adapter_id, 256, "adapter ID"),
        info.family,
        info.is_dhcp,
        _pack_array(ipv4),
        _pack_array(ipv6),
        _pack_array([entry.netmask for entry in ipv4]),
        _PREFIXES.pack(*prefixes, *[0] * (MAX_ADDRESSES - len(prefixes))),
        _pack_array(ipv4_gateways),
        _pack_array(ipv6_gateways),
        _pack_array(ipv4_dns),
        _pack_array(ipv6_dns),
        _ORIGINS.pack(*origins, *[0] * (2 * MAX_ADDRESSES - len(origins))),
    ).pack()


def parse_ip_binary(body: bytes) -> IpInfo:
    """Read a body in the form of 5.0.

    `ProtocolError` for bytes that are missing, counts beyond their arrays, masks and prefixes that are none, an adapter ID
    that nothing ends, and for all that `IpInfo` refuses.
    """
    raw = KvpIpBinary.unpack(body)
    ipv4 = _parse_array(raw.ipv4, _V4, raw.ipv4_count, 4, IPv4Address)
    masks = _parse_array(raw.ipv4_masks, _V4, raw.ipv4_count, 4, IPv4Address)
    ipv6 = _parse_array(raw.ipv6, _V6, raw.ipv6_count, 8, IPv6Address)
    prefixes = _PREFIXES.unpack(raw.ipv6_prefixes)
    return _checked(
        raw,
        (
            *(_parse_interface(address, str(mask), 1568) for address, mask in zip(ipv4, masks, strict=True)),
            *(_parse_interface(address, str(prefix), 1824) for address, prefix in zip(ipv6, prefixes, strict=False)),
        ),
        (
            *_parse_array(raw.ipv4_gateways, _V4, raw.ipv4_gateway_count, 12, IPv4Address),
            *_parse_array(raw.ipv6_gateways, _V6, raw.ipv6_gateway_count, 16, IPv6Address),
        ),
        (
            *_parse_array(raw.ipv4_dns, _V4, raw.ipv4_dns_count, 20, IPv4Address),
            *_parse_array(raw.ipv6_dns, _V6, raw.ipv6_dns_count, 24, IPv6Address),
        ),
    )


def _checked(
    raw: KvpIpText | KvpIpBinary,
    addresses: tuple[Interface, ...],
    gateways: tuple[Address, ...],
    dns_servers: tuple[Address, ...],
) -> IpInfo:
    layout = type(raw).layout()
    at = {field.name: field.offset for field in layout.fields}
    if raw.family > IpFamily.BOTH:
        raise ProtocolError(_WHAT, at["family"], "a family from 0 to 3", f"{raw.family}")
    adapter_id = parse_text(raw.adapter_id, "adapter ID", at["adapter_id"])
    try:
        return IpInfo(adapter_id, IpFamily(raw.family), bool(raw.dhcp), addresses, gateways, dns_servers)
    except ValueError as error:
        raise ProtocolError(_WHAT, at["family"], "what an adapter can have", str(error)) from None


def _pack_list(entries: Iterable[object], size: int, what: str) -> bytes:
    return pack_text(_SEPARATOR.join(map(str, entries)), size, what)


def _parse_list(area: bytes, what: str, offset: int, read: Callable[[str], _T]) -> tuple[_T, ...]:
    """The entries of a text. No more than fit an area, so their number needs no check here."""
    entries = (entry.strip() for entry in parse_text(area, what, offset).split(_SEPARATOR))
    try:
        return tuple(read(entry) for entry in entries if entry)
    except ValueError as error:
        raise ProtocolError(what, offset, "addresses", str(error)) from None


def _parse_interface(address: Address, subnet: str, offset: int) -> Interface:
    try:
        found = ip_interface(f"{address}/{subnet}")
    except ValueError as error:
        raise ProtocolError("subnet", offset, "a mask or the length of a prefix", str(error)) from None
    if "." in subnet and str(found.netmask) != subnet:  # the inverse of a mask
        raise ProtocolError("subnet", offset, "a mask", subnet)
    return found


def _pack_array(addresses: Sequence[Address]) -> bytes:
    return b"".join(address.packed for address in addresses)


def _parse_array(area: bytes, size: int, count: int, count_offset: int, kind: Callable[[bytes], _T]) -> tuple[_T, ...]:
    most = len(area) // size
    if count > most:
        raise ProtocolError(_WHAT, count_offset, f"a count of at most {most}", f"{count}")
    return tuple(kind(area[start : start + size]) for start in range(0, size * count, size))


def _by_family(addresses: Sequence[Address]) -> tuple[list[Address], list[Address]]:
    return [entry for entry in addresses if entry.version == 4], [entry for entry in addresses if entry.version == 6]
