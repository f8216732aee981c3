"""Requests to a NAT-PMP and PCP gateway and what the RFCs have it answer: one list for our tests and for comparisons.

Each case is told to a server over a `Wire` and uses ports of its own, so that all can go to one server in a row. An
answer is put in words by `describe`; epochs are left out, for they differ.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Reply = bytes | None
A, B = 0, 1
"""The two hosts of the LAN."""
UDP, TCP = 1, 2
NONCE, OTHER = b"twelve octet", b"other octets"
MANDATORY, OPTIONAL = 0x7F, 0xFF
Wire = Callable[[int, bytes], Reply]
"""Sends a datagram from a host and gives the answer, or None if there is none."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent in order, and whether the answers are right; `expected` says the rule in words."""

    name: str
    section: str
    expected: str
    sent: Callable[[Sequence[str]], Sequence[tuple[int, bytes]]]
    is_right: Callable[[list[Reply]], bool]

    def run(self, wire: Wire, hosts: Sequence[str]) -> list[Reply]:
        """Tell it to a server."""
        return [wire(host, octets) for host, octets in self.sent(hosts)]


def natpmp(op: int, internal: int, suggested: int = 0, lifetime: int = 3600) -> bytes:
    return struct.pack("!BBHHHI", 0, op, 0, internal, suggested, lifetime)


def ipv4(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + socket.inet_aton(address)


def pcp(
    host: str,
    internal: int,
    suggested: int = 0,
    lifetime: int = 3600,
    options: bytes = b"",
    nonce: bytes = NONCE,
    protocol: int = 17,
    op: int = 1,
) -> bytes:
    head = struct.pack("!BBHI", 2, op, 0, lifetime) + ipv4(host)
    body = nonce + struct.pack("!B3xHH", protocol, internal, suggested) + ipv4("0.0.0.0")
    return head + body + options


def option(code: int, content: bytes = b"") -> bytes:
    return struct.pack("!BxH", code, len(content)) + content + bytes(-len(content) % 4)


def describe(reply: Reply) -> str:
    """An answer in words."""
    if reply is None:
        return "silence"
    if len(reply) >= 24 and reply[0] == 2:
        lifetime = int.from_bytes(reply[4:8], "big")
        text = f"PCP op {reply[1]}, result {reply[3]}, lifetime {lifetime}"
        if len(reply) >= 60 and reply[1] == 129:
            text += f", external port {int.from_bytes(reply[42:44], 'big')}"
        return f"{text}, {len(reply)} octets"
    text = f"op {reply[1]}, result {int.from_bytes(reply[2:4], 'big')}"
    if len(reply) == 12 and reply[1] == 128:
        text += f", address {socket.inet_ntoa(reply[8:12])}"
    if len(reply) == 16:
        internal, external, lifetime = struct.unpack("!HHI", reply[8:16])
        text += f", {internal} at {external} for {lifetime} s"
    return f"{text}, {len(reply)} octets"


def mapped(reply: Reply) -> tuple[int, int, int, int, int]:
    """Opcode, result, internal port, external port and lifetime of a NAT-PMP map response; zeros if it is none."""
    if reply is None or len(reply) != 16 or reply[0]:
        return 0, -1, 0, 0, 0
    op, result, internal, external, lifetime = struct.unpack("!xBHxxxxHHI", reply)
    return op, result, internal, external, lifetime


def answered(reply: Reply, result: int, op: int = 129) -> bool:
    """Whether this is the PCP answer of this opcode with this result."""
    return reply is not None and len(reply) >= 24 and reply[:2] == bytes((2, op)) and reply[3] == result


def external(reply: Reply) -> int:
    """The external port of a PCP MAP answer."""
    return int.from_bytes(reply[42:44], "big") if reply is not None and len(reply) >= 60 else -1


def _steps(*steps: tuple[int, bytes]) -> Callable[[Sequence[str]], Sequence[tuple[int, bytes]]]:
    return lambda hosts: steps


NATPMP: tuple[Case, ...] = (
    Case(
        "external address",
        "3.2",
        "12 octets, op 128, result 0",
        _steps((A, b"\0\0")),
        lambda got: got[0] is not None and len(got[0]) == 12 and got[0][:4] == b"\0\x80\0\0" and any(got[0][8:]),
    ),
    Case(
        "map UDP and TCP",
        "3.3",
        "16 octets each, op 129 and 130, the suggested port",
        _steps((A, natpmp(UDP, 4500, 4500)), (A, natpmp(TCP, 4500, 4500))),
        lambda got: [mapped(each) for each in got] == [(129, 0, 4500, 4500, 3600), (130, 0, 4500, 4500, 3600)],
    ),
    Case(
        "repeated with another suggestion",
        "3.3",
        "the port stays",
        _steps((A, natpmp(UDP, 4501, 4501)), (A, natpmp(UDP, 4501, 9999))),
        lambda got: mapped(got[1])[:4] == (129, 0, 4501, 4501),
    ),
    Case(
        "a second client suggests the same port",
        "3.3",
        "another port, result 0",
        _steps((A, natpmp(UDP, 4502, 4502)), (B, natpmp(UDP, 4502, 4502))),
        lambda got: mapped(got[1])[1] == 0 and mapped(got[1])[3] not in (0, 4502),
    ),
    Case(
        "the companion port for another client",
        "3.3",
        "another port, result 0",
        _steps((A, natpmp(TCP, 4503, 4503)), (B, natpmp(UDP, 4503, 4503))),
        lambda got: mapped(got[1])[1] == 0 and mapped(got[1])[3] not in (0, 4503),
    ),
    Case(
        "the companion port for the same client",
        "3.3",
        "that port",
        _steps((A, natpmp(TCP, 4504, 4504)), (A, natpmp(UDP, 4504, 4504))),
        lambda got: mapped(got[1])[:4] == (129, 0, 4504, 4504),
    ),
    Case(
        "the longest lifetime",
        "3.3",
        "less than asked: a gateway may reduce, and should not keep a row for 136 years",
        _steps((A, natpmp(UDP, 4505, 4505, 0xFFFFFFFF))),
        lambda got: mapped(got[0])[1] == 0 and 0 < mapped(got[0])[4] <= 7 * 86400,
    ),
    Case(
        "a lifetime of a minute",
        "3.3",
        "not more than asked",
        _steps((A, natpmp(UDP, 4506, 4506, 60))),
        lambda got: mapped(got[0])[1] == 0 and 0 < mapped(got[0])[4] <= 60,
    ),
    Case(
        "delete",
        "3.4",
        "result 0, external port and lifetime 0",
        _steps((A, natpmp(UDP, 4507, 4507)), (A, natpmp(UDP, 4507, 0, 0))),
        lambda got: mapped(got[1]) == (129, 0, 4507, 0, 0),
    ),
    Case(
        "delete what is not there",
        "3.4",
        "the same success",
        _steps((A, natpmp(UDP, 4508, 0, 0))),
        lambda got: mapped(got[0]) == (129, 0, 4508, 0, 0),
    ),
    Case(
        "delete naming an external port",
        "3.4",
        "the port is ignored",
        _steps((A, natpmp(UDP, 4509, 4509)), (A, natpmp(UDP, 4509, 4510, 0))),
        lambda got: mapped(got[1]) == (129, 0, 4509, 0, 0),
    ),
    Case(
        "delete all of TCP",
        "3.4",
        "zeros; UDP stays",
        _steps(
            (A, natpmp(UDP, 4511, 4511)),
            (A, natpmp(TCP, 4511, 4511)),
            (A, natpmp(TCP, 0, 0, 0)),
            (A, natpmp(UDP, 4511, 4512)),
        ),
        lambda got: mapped(got[2]) == (130, 0, 0, 0, 0) and mapped(got[3])[3] == 4511,
    ),
    Case(
        "delete all leaves other clients alone",
        "3.4",
        "the other client's port stays",
        _steps((B, natpmp(TCP, 4513, 4513)), (A, natpmp(TCP, 0, 0, 0)), (B, natpmp(TCP, 4513, 4514))),
        lambda got: mapped(got[2])[3] == 4513,
    ),
    Case(
        "delete all with an external port",
        "3.4",
        "no delete-all: result 2, nothing deleted",
        _steps((A, natpmp(TCP, 4515, 4515)), (A, natpmp(TCP, 0, 4515, 0)), (A, natpmp(TCP, 4515, 4516))),
        lambda got: mapped(got[1])[1] == 2 and mapped(got[2])[3] == 4515,
    ),
    Case(
        "internal port 0 with a lifetime",
        "3.3",
        "result 2",
        _steps((A, natpmp(UDP, 0, 4517, 3600))),
        lambda got: mapped(got[0])[1] == 2,
    ),
    Case("a response, op 129", "3.5", "silence", _steps((A, b"\0\x81" + bytes(14))), lambda got: got[0] is None),
    Case(
        "op 77 in 12 octets",
        "3.5",
        "the request with op 205 and result 5",
        _steps((A, b"\0\x4d\1\2\3\4\5\6\7\x08\x09\x0a")),
        lambda got: got[0] == b"\0\xcd\0\5\3\4\5\6\7\x08\x09\x0a",
    ),
    Case(
        "op 77 in 2 octets",
        "3.5",
        "op 205 and result 5, with room for the result",
        _steps((A, b"\0\x4d")),
        lambda got: got[0] is not None and len(got[0]) >= 4 and got[0][:4] == b"\0\xcd\0\5",
    ),
    Case("a map request cut short", "3.3", "silence", _steps((A, natpmp(UDP, 4518)[:11])), lambda got: got[0] is None),
    Case("one octet", "3.5", "silence", _steps((A, b"\0")), lambda got: got[0] is None),
    Case(
        "more octets than a map request has",
        "3.3",
        "the surplus is ignored",
        _steps((A, natpmp(UDP, 4519, 4519) + b"more")),
        lambda got: mapped(got[0])[:4] == (129, 0, 4519, 4519),
    ),
    Case(
        "the gateway's own port suggested",
        "3.3; RFC 6887 §11.3",
        "another port",
        _steps((A, natpmp(UDP, 4520, 5351))),
        lambda got: mapped(got[0])[1] == 0 and mapped(got[0])[3] not in (0, 5350, 5351),
    ),
    Case(
        "version 1",
        "3.5; RFC 6887 §9",
        "result 1, in version 2 where PCP is spoken",
        _steps((A, b"\1\0")),
        lambda got: got[0] is not None and int.from_bytes(got[0][2:4], "big") == 1,
    ),
)

PCP: tuple[Case, ...] = (
    Case(
        "MAP",
        "11",
        "60 octets, result 0, the suggested port",
        lambda hosts: [(A, pcp(hosts[A], 4600, 4600))],
        lambda got: answered(got[0], 0) and external(got[0]) == 4600 and len(got[0] or b"") == 60,
    ),
    Case(
        "repeated with another suggestion",
        "11.3",
        "the port stays",
        lambda hosts: [(A, pcp(hosts[A], 4601, 4601)), (A, pcp(hosts[A], 4601, 9999))],
        lambda got: answered(got[1], 0) and external(got[1]) == 4601,
    ),
    Case(
        "another nonce",
        "11.3",
        "NOT_AUTHORIZED for the rest of the mapping's life",
        lambda hosts: [(A, pcp(hosts[A], 4602, 4602)), (A, pcp(hosts[A], 4602, 4602, nonce=OTHER))],
        lambda got: answered(got[1], 2) and 0 < int.from_bytes((got[1] or b"")[4:8], "big") <= 3600,
    ),
    Case(
        "delete with another nonce",
        "15",
        "NOT_AUTHORIZED, the mapping stays",
        lambda hosts: [
            (A, pcp(hosts[A], 4603, 4603)),
            (A, pcp(hosts[A], 4603, 0, 0, nonce=OTHER)),
            (A, pcp(hosts[A], 4603, 4604)),
        ],
        lambda got: answered(got[1], 2) and external(got[2]) == 4603,
    ),
    Case(
        "delete",
        "15",
        "SUCCESS, lifetime 0",
        lambda hosts: [(A, pcp(hosts[A], 4605, 4605)), (A, pcp(hosts[A], 4605, 0, 0))],
        lambda got: answered(got[1], 0) and not any((got[1] or b"")[4:8]),
    ),
    Case(
        "delete what is not there",
        "15",
        "SUCCESS",
        lambda hosts: [(A, pcp(hosts[A], 4606, 0, 0))],
        lambda got: answered(got[0], 0),
    ),
    Case(
        "internal port 0 deletes nothing else",
        "15",
        "other mappings stay",
        lambda hosts: [
            (A, pcp(hosts[A], 4607, 4607)),
            (A, pcp(hosts[A], 0, 0, 0)),
            (A, pcp(hosts[A], 4607, 4608)),
        ],
        lambda got: external(got[2]) == 4607,
    ),
    Case(
        "a second client suggests the same port",
        "11.3",
        "another port",
        lambda hosts: [(A, pcp(hosts[A], 4609, 4609)), (B, pcp(hosts[B], 4609, 4609))],
        lambda got: answered(got[1], 0) and external(got[1]) not in (0, 4609),
    ),
    Case(
        "PREFER_FAILURE for a port that is taken",
        "13.2",
        "CANNOT_PROVIDE_EXTERNAL",
        lambda hosts: [(A, pcp(hosts[A], 4610, 4610)), (B, pcp(hosts[B], 4610, 4610, options=option(2)))],
        lambda got: answered(got[1], 11),
    ),
    Case(
        "PREFER_FAILURE without a port",
        "13.2",
        "MALFORMED_OPTION",
        lambda hosts: [(A, pcp(hosts[A], 4611, 0, options=option(2)))],
        lambda got: answered(got[0], 6),
    ),
    Case(
        "FILTER",
        "13.3",
        "SUCCESS with the option",
        lambda hosts: [(A, pcp(hosts[A], 4612, 4612, options=_filter()))],
        lambda got: answered(got[0], 0) and (got[0] or b"")[60:] == _filter(),
    ),
    Case(
        "THIRD_PARTY, off",
        "13.1",
        "UNSUPP_OPTION",
        lambda hosts: [(A, pcp(hosts[A], 4613, 4613, options=option(1, ipv4(hosts[B]))))],
        lambda got: answered(got[0], 5),
    ),
    Case(
        "an unknown option that must be understood",
        "7.3",
        "UNSUPP_OPTION",
        lambda hosts: [(A, pcp(hosts[A], 4614, 4614, options=option(MANDATORY)))],
        lambda got: answered(got[0], 5),
    ),
    Case(
        "an unknown option that need not be",
        "7.3",
        "SUCCESS without it",
        lambda hosts: [(A, pcp(hosts[A], 4615, 4615, options=option(OPTIONAL)))],
        lambda got: answered(got[0], 0) and len(got[0] or b"") == 60,
    ),
    Case(
        "an option past the end",
        "7.3",
        "MALFORMED_OPTION",
        lambda hosts: [(A, pcp(hosts[A], 4616, 4616, options=b"\xff\0\0\x40"))],
        lambda got: answered(got[0], 6),
    ),
    Case(
        "another client address",
        "8.2",
        "ADDRESS_MISMATCH",
        lambda hosts: [(A, pcp(hosts[B], 4617, 4617))],
        lambda got: answered(got[0], 12),
    ),
    Case(
        "an unknown opcode",
        "8.2",
        "UNSUPP_OPCODE",
        lambda hosts: [(A, pcp(hosts[A], 4618, 4618, op=99))],
        lambda got: answered(got[0], 4, 0x80 | 99),
    ),
    Case(
        "a length that is no multiple of 4",
        "8.2",
        "MALFORMED_REQUEST",
        lambda hosts: [(A, pcp(hosts[A], 4619, 4619) + b"\0")],
        lambda got: answered(got[0], 3),
    ),
    Case(
        "a response",
        "8.2",
        "silence",
        lambda hosts: [(A, b"\2\x81" + pcp(hosts[A], 4620)[2:])],
        lambda got: got[0] is None,
    ),
    Case(
        "a header cut short",
        "8.2",
        "silence",
        lambda hosts: [(A, pcp(hosts[A], 4621)[:20])],
        lambda got: got[0] is None,
    ),
    Case(
        "version 3",
        "9",
        "UNSUPP_VERSION, version 2",
        lambda hosts: [(A, b"\3" + pcp(hosts[A], 4622)[1:])],
        lambda got: answered(got[0], 1),
    ),
    Case(
        "ANNOUNCE",
        "14.1",
        "SUCCESS, lifetime 0",
        lambda hosts: [(A, struct.pack("!BBHI", 2, 0, 0, 0) + ipv4(hosts[A]))],
        lambda got: answered(got[0], 0, 128) and len(got[0] or b"") == 24,
    ),
    Case(
        "a port of no protocol",
        "11.3",
        "MALFORMED_REQUEST",
        lambda hosts: [(A, pcp(hosts[A], 4623, 0, protocol=0))],
        lambda got: answered(got[0], 3),
    ),
    Case(
        "an unsupported protocol",
        "11.3",
        "UNSUPP_PROTOCOL",
        lambda hosts: [(A, pcp(hosts[A], 4624, 4624, protocol=99))],
        lambda got: answered(got[0], 9),
    ),
    Case(
        "the longest lifetime",
        "15",
        "not for ever",
        lambda hosts: [(A, pcp(hosts[A], 4625, 4625, 0xFFFFFFFF))],
        lambda got: answered(got[0], 0) and 0 < int.from_bytes((got[0] or b"")[4:8], "big") <= 7 * 86400,
    ),
    Case(
        "the gateway's own port suggested",
        "11.3",
        "another port",
        lambda hosts: [(A, pcp(hosts[A], 4626, 5351))],
        lambda got: answered(got[0], 0) and external(got[0]) not in (0, 5350, 5351),
    ),
)


def _filter() -> bytes:
    """One remote peer, whatever its port."""
    return option(3, struct.pack("!xBH", 128, 0) + ipv4("203.0.113.9"))
