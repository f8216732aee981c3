"""DSO messages and TLVs: octets in and out, by hand where it matters."""

import pytest

from protocol.constants import Class, Rcode, Type
from protocol.dso import (
    MAX_PUSH_OCTETS,
    PUSH_REMOVE_ONE,
    PUSH_REMOVE_SET,
    DsoType,
    PushedRecord,
    decode_dso,
    decode_keepalive,
    decode_push,
    decode_reconfirm,
    decode_subscribe,
    encode_dso,
    encode_push,
    is_dso,
    keepalive,
    padding_for,
    reconfirm,
    subscribe,
)
from protocol.errors import DecodeError, EncodeError
from protocol.message import Question
from protocol.name import from_text

MAC = from_text("mac.alice.members.example.")
A_QUESTION = Question(MAC, Type.A, Class.IN)


@pytest.mark.rfc("8490", "5.4")
def test_a_keepalive_request_by_hand() -> None:
    by_hand = bytes.fromhex("1234 3000 0000 0000 0000 0000  0001 0008 00003a98 000493e0")
    assert encode_dso(0x1234, [keepalive(15_000, 300_000)]) == by_hand
    message = decode_dso(by_hand)
    assert (message.id, message.is_response, message.rcode) == (0x1234, False, 0)
    assert message.primary is not None
    assert decode_keepalive(message.primary) == (15_000, 300_000)
    assert is_dso(by_hand)
    assert not is_dso(by_hand[:11])
    assert not is_dso(bytes(12))


@pytest.mark.rfc("8765", "6.2.1")
def test_a_subscribe_request_by_hand() -> None:
    tlv = "0040 001f" + MAC.hex() + "0001 0001"
    by_hand = bytes.fromhex("0001 3000 0000 0000 0000 0000" + tlv)
    assert encode_dso(1, [subscribe(A_QUESTION)]) == by_hand
    message = decode_dso(by_hand)
    assert message.primary is not None
    assert decode_subscribe(message.primary) == A_QUESTION


@pytest.mark.parametrize(
    "broken",
    [
        "0001 3000 0001 0000 0000 0000",  # QDCOUNT
        "0001 3000 0000 0000 0000 0001",  # ARCOUNT
        "0001 3000 0000 0000 0000 0000 0001",  # half a TLV
        "0001 3000 0000 0000 0000 0000 0001 0008 00",  # data runs past the end
    ],
)
def test_forms_that_are_none(broken: str) -> None:
    with pytest.raises(DecodeError):
        decode_dso(bytes.fromhex(broken))


@pytest.mark.parametrize(
    "data",
    [b"", MAC, MAC + b"\0\1\0", MAC + b"\0\1\0\1\0", b"\xc0\x0c\0\1\0\1", b"\x05mac\0\0\1\0\1", b"\x40\0\0\1\0\1"],
)
@pytest.mark.rfc("8765", "6.2.1")
def test_subscribe_takes_a_whole_uncompressed_name_a_type_and_a_class(data: bytes) -> None:
    message = decode_dso(encode_dso(1, [(DsoType.SUBSCRIBE, data)]))
    assert message.primary is not None
    with pytest.raises(DecodeError):
        decode_subscribe(message.primary)


@pytest.mark.rfc("8765", "6.5.1")
def test_reconfirm_round_trip() -> None:
    message = decode_dso(encode_dso(0, [reconfirm(A_QUESTION, b"\x0a\0\0\1")]))
    assert message.primary is not None
    assert decode_reconfirm(message.primary) == (A_QUESTION, b"\x0a\0\0\1")


@pytest.mark.rfc("8765", "6.3.1")
def test_a_push_by_hand_with_the_name_pointed_at() -> None:
    records = [
        PushedRecord(MAC, Type.A, Class.IN, PUSH_REMOVE_SET, b""),
        PushedRecord(MAC, Type.AAAA, Class.IN, PUSH_REMOVE_ONE, bytes(16)),
        PushedRecord(MAC, Type.A, Class.IN, 120, b"\xcb\0\x71\x07"),
    ]
    body = MAC.hex() + "0001 0001 fffffffe 0000"
    body += "c010 001c 0001 ffffffff 0010" + "00" * 16
    body += "c010 0001 0001 00000078 0004 cb007107"
    size = len(bytes.fromhex(body))
    by_hand = bytes.fromhex(f"0000 3000 0000 0000 0000 0000 0041 {size:04x}" + body)
    assert encode_push(records) == [by_hand]
    assert decode_push(decode_dso(by_hand)) == records


@pytest.mark.rfc("8765", "6.3.1")
def test_many_records_go_out_in_messages_of_at_most_16382_octets() -> None:
    records = [
        PushedRecord(from_text(f"h{number}.members.example."), Type.TXT, Class.IN, 60, b"\xff" + bytes(255))
        for number in range(200)
    ]
    messages = encode_push(records)
    assert len(messages) > 2
    assert all(len(wire) <= MAX_PUSH_OCTETS for wire in messages)
    assert [record for wire in messages for record in decode_push(decode_dso(wire))] == records
    with pytest.raises(EncodeError):
        encode_push([PushedRecord(MAC, 10, Class.IN, 60, bytes(MAX_PUSH_OCTETS))])


@pytest.mark.parametrize(
    "record",
    [
        PushedRecord(MAC, Type.A, Class.IN, PUSH_REMOVE_SET, b"\x0a\0\0\1"),
        PushedRecord(MAC, Type.ANY, Class.IN, 60, b""),
        PushedRecord(MAC, Type.A, Class.ANY, 60, b"\x0a\0\0\1"),
    ],
)
@pytest.mark.rfc("8765", "6.3.1")
def test_pushes_that_are_fatal(record: PushedRecord) -> None:
    (wire,) = encode_push([record])
    with pytest.raises(DecodeError):
        decode_push(decode_dso(wire))


def test_a_push_without_a_record_or_cut_short_is_an_error() -> None:
    with pytest.raises(DecodeError):
        decode_push(decode_dso(encode_dso(0, [(DsoType.PUSH, b"")])))
    (wire,) = encode_push([PushedRecord(MAC, Type.A, Class.IN, 60, b"\x0a\0\0\1")])
    cut = bytearray(wire[:-1])
    cut[14:16] = (len(cut) - 16).to_bytes(2, "big")
    with pytest.raises(DecodeError):
        decode_push(decode_dso(bytes(cut)))


@pytest.mark.rfc("8490", "7.3")
def test_padding_fills_a_block() -> None:
    plain = encode_dso(7, [keepalive(1, 2)], is_response=True, rcode=Rcode.NOERROR)
    padded = encode_dso(7, [keepalive(1, 2), padding_for(len(plain))], is_response=True)
    assert len(padded) % 468 == 0
