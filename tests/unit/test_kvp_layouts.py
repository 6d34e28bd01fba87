"""Bodies of key-value pairs lie where vmbus.md 8.3 puts them, come back as they went, and are refused where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol.integration.kvp import (
    KvpDelete,
    KvpEnumerate,
    KvpExchange,
    KvpOperation,
    KvpPool,
    KvpRecord,
    KvpValueType,
    parse_record,
)
from channels.protocol.integration.kvp_ip import (
    IpFamily,
    IpInfo,
    KvpIpBinary,
    KvpIpText,
    pack_ip_binary,
    pack_ip_text,
    parse_ip_binary,
    parse_ip_text,
)
from channels.protocol.integration.text import parse_text

Pack = Callable[[int, IpInfo], bytes]
Parse = Callable[[bytes], IpInfo]

FULL = IpInfo(
    "00:15:5D:00:00:01",
    IpFamily.BOTH,
    False,
    (ip_interface("10.1.2.3/20"), ip_interface("192.168.0.9/32"), ip_interface("fe80::7/64")),
    (ip_address("10.1.2.254"), ip_address("fe80::1")),
    (ip_address("9.9.9.9"), ip_address("2001:db8::53")),
)
FORMS = pytest.mark.parametrize(
    ("pack", "parse"), [(pack_ip_text, parse_ip_text), (pack_ip_binary, parse_ip_binary)], ids=["text", "binary"]
)


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"


# keys and values


def test_sizes_are_those_of_the_protocol() -> None:
    sizes = {kind: kind.layout().size for kind in (KvpExchange, KvpDelete, KvpEnumerate, KvpIpText, KvpIpBinary)}
    assert list(sizes.values()) == [2576, 520, 2580, 7428, 7428]
    assert max(field.offset + field.size for field in KvpIpBinary.layout().fields) == 3716


def test_a_set_lies_where_it_should_and_is_zero_elsewhere() -> None:
    body = KvpRecord(KvpOperation.SET, KvpPool.GUEST, "key", "välue").pack()
    expected = bytearray(2580)
    expected[0:2] = b"\x01\x01"
    struct.pack_into("<III", expected, 4, 1, 8, 12)
    expected[16:24], expected[528:540] = utf16("key"), utf16("välue")
    assert body == expected


def test_an_enumeration_lies_four_bytes_further() -> None:
    body = KvpRecord(KvpOperation.ENUMERATE, KvpPool.AUTO, "k", 1 << 40, KvpValueType.UINT64, 9).pack()
    expected = bytearray(2580)
    expected[0:2] = b"\x03\x02"
    struct.pack_into("<IIII", expected, 4, 9, 11, 4, 8)
    expected[20:24] = utf16("k")
    struct.pack_into("<Q", expected, 532, 1 << 40)
    assert body == expected


def test_a_delete_has_a_key_alone() -> None:
    body = KvpRecord(KvpOperation.DELETE, KvpPool.EXTERNAL, "k").pack()
    assert body == b"\x02\0\0\0" + struct.pack("<I", 4) + utf16("k") + bytes(2580 - 12)


@pytest.mark.parametrize(
    ("value_type", "raw", "value"),
    [
        (1, utf16("text"), "text"),
        (2, utf16("%PATH%"), "%PATH%"),
        (4, struct.pack("<I", 7), 7),
        (8, struct.pack("<Q", 1 << 63), 1 << 63),
        (11, struct.pack("<Q", 5), 5),
        (77, b"", ""),
    ],
)
def test_each_type_of_value_is_read(value_type: int, raw: bytes, value: str | int) -> None:
    body = bytearray(KvpRecord(KvpOperation.GET, 0, "k").pack())
    struct.pack_into("<III", body, 4, value_type, 4, len(raw))
    body[528 : 528 + len(raw)] = raw
    found = parse_record(bytes(body))
    assert (found.value, found.value_type) == (value, value_type)
    assert parse_record(found.pack()) == found


TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-16-le"), max_size=120)


@given(
    st.sampled_from([KvpOperation.GET, KvpOperation.SET, KvpOperation.ENUMERATE]),
    st.integers(0, 255),
    TEXTS,
    st.one_of(TEXTS, st.integers(0, (1 << 64) - 1)),
)
def test_a_record_comes_back_as_it_went(operation: int, pool: int, key: str, value: str | int) -> None:
    record = KvpRecord(operation, pool, key, value, 1 if isinstance(value, str) else 11)
    assert parse_record(record.pack()) == record


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (KvpRecord(1, 0, "k" * 256), "255 UTF-16 code units fit, not 256"),
        (KvpRecord(1, 0, "😀" * 128), "255 UTF-16 code units fit, not 256"),
        (KvpRecord(1, 0, "k", "v" * 1024), "1023 UTF-16 code units fit"),
        (KvpRecord(1, 0, "a\0b"), "a text ends at its first NUL"),
        (KvpRecord(1, 0, "k", 1 << 32, 4), "not a number of type 4"),
        (KvpRecord(1, 0, "k", -1, 11), "not a number of type 11"),
        (KvpRecord(1, 0, "k", 5, 1), "not a number of type 1"),
        (KvpRecord(1, 0, "k", "5", 4), "is a text, type 4 is not"),
        (KvpRecord(4, 0, "k"), "operation 4 is not about a key"),
        (KvpRecord(1, 0, "\ud800"), "surrogates not allowed"),
    ],
)
def test_what_does_not_fit_is_not_sent(record: KvpRecord, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        record.pack()


def test_the_longest_key_and_value_fit() -> None:
    record = KvpRecord(1, 0, "k" * 255, "v" * 1023)
    assert parse_record(record.pack()) == record


@pytest.mark.parametrize(
    ("at", "raw", "sentence"),
    [
        (0, b"\x09", "an operation from 0 to 3, got 9"),
        (8, struct.pack("<I", 514), "an even size of at most 512 bytes, got 514"),
        (8, struct.pack("<I", 3), "an even size"),
        (8, struct.pack("<I", 6), "a NUL within 6 bytes, got none"),
        (12, struct.pack("<I", 2050), "an even size of at most 2048 bytes"),
        (4, struct.pack("<I", 3), "type 1, 2, 4, 8 or 11, got 3"),
        (4, struct.pack("<I", 4), "4 bytes for type 4, got 12"),
        (16, b"\x00\xdc", "expected UTF-16"),
    ],
)
def test_a_record_that_lies_is_refused(at: int, raw: bytes, sentence: str) -> None:
    body = bytearray(KvpRecord(1, 0, "keys", "value").pack())
    body[at : at + len(raw)] = raw
    with pytest.raises(ProtocolError, match=sentence):
        parse_record(bytes(body))


@pytest.mark.parametrize(("operation", "size"), [(0, 2575), (1, 2575), (2, 519), (3, 2579), (1, 1), (1, 0)])
def test_a_body_that_ends_too_early_is_refused(operation: int, size: int) -> None:
    with pytest.raises(ProtocolError, match="an end after"):
        parse_record(KvpRecord(operation, 0, "k").pack()[:size])


def test_a_text_ends_at_its_nul_and_not_between_two_units() -> None:
    assert parse_text("ĀA".encode("utf-16-le") + b"\0\0\xff\xdb", "text", 0) == "ĀA"
    with pytest.raises(ProtocolError, match="a NUL within 4 bytes"):
        parse_text(b"A\x01\0\0"[1:] + b"\x01", "text", 0)


# IP information


@FORMS
def test_ip_information_comes_back_as_it_went(pack: Pack, parse: Parse) -> None:
    body = pack(KvpOperation.SET_IP, FULL)
    assert (len(body), body[:2]) == (7428, b"\x05\x00")
    assert parse(body) == FULL
    dhcp = IpInfo("{guid}", IpFamily.IPV4, True)
    assert parse(pack(KvpOperation.GET_IP, dhcp)) == dhcp


def test_the_form_of_4_0_is_text() -> None:
    body = pack_ip_text(KvpOperation.SET_IP, FULL)
    expected = bytearray(7428)
    expected[0] = 5
    expected[258:260] = b"\x03\x00"
    for at, text in (
        (2, "00:15:5D:00:00:01"),
        (260, "10.1.2.3;192.168.0.9;fe80::7"),
        (2308, "255.255.240.0;255.255.255.255;64"),
        (4356, "10.1.2.254;fe80::1"),
        (5380, "9.9.9.9;2001:db8::53"),
    ):
        expected[at : at + 2 * len(text)] = text.encode("utf-16-le")
    assert body == expected


def test_the_form_of_5_0_is_binary() -> None:
    body = pack_ip_binary(KvpOperation.SET_IP, FULL)
    expected = bytearray(7428)
    expected[0] = 5
    struct.pack_into("<6I", expected, 4, 2, 1, 1, 1, 1, 1)
    expected[28:62] = "00:15:5D:00:00:01".encode("utf-16-le")
    expected[284:286] = b"\x03\x00"
    for at, raw in (
        (288, "0a010203 c0a80009"),
        (544, "fe80 0000000000000000000000000007"),
        (1568, "fffff000 ffffffff"),
        (1824, "40000000"),
        (2080, "0a0102fe"),
        (2100, "fe80 0000000000000000000000000001"),
        (2180, "09090909"),
        (2436, "20010db8 000000000000000000000053"),
        (3460, "0200 0200 0200"),
    ):
        data = bytes.fromhex(raw)
        expected[at : at + len(data)] = data
    assert body == expected


def test_texts_are_read_as_linux_writes_them() -> None:
    body = bytearray(pack_ip_text(KvpOperation.GET_IP, IpInfo("a")))
    for at, text in ((260, " 10.0.0.1; fe80::1;"), (2308, "255.0.0.0;/64"), (4356, "10.0.0.254;;")):
        body[at : at + 2 * len(text)] = text.encode("utf-16-le")
    found = parse_ip_text(bytes(body))
    assert found.addresses == (ip_interface("10.0.0.1/8"), ip_interface("fe80::1/64"))
    assert found.gateways == (ip_address("10.0.0.254"),)


@pytest.mark.parametrize("version", [4, 6])
def test_as_many_addresses_fit_as_there_is_room_for(version: int) -> None:
    base = 10 << 24 if version == 4 else 0xFD << 120
    kind = type(ip_address(base))
    most = IpInfo(
        "a",
        addresses=tuple(ip_interface((int(kind(base + number)), 24)) for number in range(64)),
        gateways=tuple(kind(base + number) for number in range(5)),
        dns_servers=tuple(kind(base + number) for number in range(64)),
    )
    assert parse_ip_binary(pack_ip_binary(5, most)) == most
    assert parse_ip_text(pack_ip_text(5, most)) == most


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: IpInfo("a", addresses=(ip_interface("10.0.0.1/8"),) * 65), "64 IPv4 addresses at most, 65"),
        (lambda: IpInfo("a", gateways=(ip_address("::1"),) * 6), "5 IPv6 gateways at most, 6"),
        (lambda: IpInfo("a", dns_servers=(ip_address("::1"),) * 65), "64 IPv6 name servers at most"),
        (lambda: IpInfo("a", IpFamily.IPV4, addresses=(ip_interface("::1/64"),)), "not of the family"),
        (lambda: IpInfo("a", addresses=(ip_interface("fe80::1%eth0/64"),)), "has a scope"),
        (lambda: IpInfo("a", gateways=(ip_address("fe80::1%eth0"),)), "has a scope"),
        (lambda: pack_ip_text(5, IpInfo("a" * 128)), "adapter ID: 127 UTF-16 code units fit"),
        (
            lambda: pack_ip_text(5, IpInfo("a", dns_servers=(ip_address(f"2001:{'db81:' * 6}db81"),) * 64)),
            "name servers: 1023 UTF-16 code units fit",
        ),
    ],
)
def test_more_than_an_adapter_can_have_is_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("at", "text", "sentence"),
    [
        (260, "10.0.0.1;10.0.0.2", "one for each of 2 addresses, got 1"),
        (260, "10.0.0.256", "expected addresses"),
        (2308, "255.0.255.0", "a mask or the length of a prefix"),
        (2308, "0.0.0.255", "a mask, got 0.0.0.255"),
        (2308, "33", "a mask or the length of a prefix"),
        (4356, ";".join(["1.1.1.1"] * 6), "5 IPv4 gateways at most"),
        (5380, ";".join(["1.1.1.1"] * 65), "64 IPv4 name servers at most"),
        (5380, "x" * 1024, "a NUL within 2048 bytes"),
        (2, "x" * 128, "a NUL within 256 bytes"),
        (258, "\x04", "a family from 0 to 3, got 4"),
        (258, "\x02", "not of the family"),
    ],
)
def test_texts_that_lie_are_refused(at: int, text: str, sentence: str) -> None:
    body = bytearray(pack_ip_text(4, IpInfo("a", addresses=(ip_interface("10.0.0.1/8"),))))
    raw = (
        text.encode("latin-1")
        if at == 258
        else text.encode("utf-16-le") + (b"" if len(text) in (128, 1024) else b"\0\0")
    )
    body[at : at + len(raw)] = raw
    with pytest.raises(ProtocolError, match=sentence):
        parse_ip_text(bytes(body))


@pytest.mark.parametrize(
    ("at", "raw", "sentence"),
    [
        (4, struct.pack("<I", 65), "a count of at most 64, got 65"),
        (8, struct.pack("<I", 1 << 31), "a count of at most 64"),
        (12, struct.pack("<I", 6), "a count of at most 5, got 6"),
        (16, struct.pack("<I", 6), "a count of at most 5"),
        (20, struct.pack("<I", 65), "a count of at most 64"),
        (24, struct.pack("<I", 65), "a count of at most 64"),
        (1568, b"\xff\x00\xff\x00", "a mask or the length of a prefix"),
        (1568, b"\x00\x00\x00\xff", "a mask, got 0.0.0.255"),
        (1824, struct.pack("<I", 129), "a mask or the length of a prefix"),
        (284, b"\x04", "a family from 0 to 3"),
        (284, b"\x01", "not of the family"),
        (28, b"x" * 256, "a NUL within 256 bytes"),
    ],
)
def test_numbers_that_lie_are_refused(at: int, raw: bytes, sentence: str) -> None:
    body = bytearray(pack_ip_binary(4, FULL))
    body[at : at + len(raw)] = raw
    with pytest.raises(ProtocolError, match=sentence):
        parse_ip_binary(bytes(body))


@FORMS
@given(data=st.data())
def test_whatever_a_peer_writes_is_read_or_refused(pack: Pack, parse: Parse, data: st.DataObject) -> None:
    body = bytearray(pack(4, FULL))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(body) - 1))
        raw = data.draw(st.binary(min_size=1, max_size=8))
        body[at : at + len(raw)] = raw
    size = data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    try:
        found = parse(bytes(body[:size]))
    except ProtocolError:
        return
    assert parse(pack(4, found)).addresses == found.addresses


@FORMS
def test_ip_information_that_ends_too_early_is_refused(pack: Pack, parse: Parse) -> None:
    for size in (0, 1, 258, 7427):
        with pytest.raises(ProtocolError, match="an end after"):
            parse(pack(4, FULL)[:size])
