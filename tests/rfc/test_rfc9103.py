"""Transfers over TLS: TLS 1.3 and ALPN "dot" or nothing, and nothing else where the zone says so."""

from typing import Any

import pytest

from protocol.constants import Ede, Rcode
from protocol.edns import Opt, extended_errors
from protocol.tsig import Key
from server.peer import Peer
from tests.support import simloop
from tests.support.builders import ADMIN, SERVICE_TEXT, TCP, UDP, ZONE, Seen, zone_of_text
from tests.support.transfers import TransferCore, axfr, ixfr

TLS = Peer("tls", "192.0.2.7", 40000, 7)
EDNS = Opt(1232)


def fetch(
    wire: bytes, peer: Peer, tls: tuple[str, str] = ("TLSv1.3", "dot"), *, by: Key | None = None, **transfer: Any
) -> Seen:
    async def run() -> Seen:
        core = TransferCore([zone_of_text(SERVICE_TEXT)], {"allow_addresses": ["192.0.2.7/32"], **transfer})
        core.streams.tls_facts = tls
        core.zone.serial = 5
        return (await core.fetch(core.signed(wire, by) if by else wire, peer))[0]

    return simloop.run(run())


def why(seen: Seen) -> tuple[int, int, str]:
    (found,) = extended_errors(seen.message.opt)
    return seen.rcode, found[0], found[1]


@pytest.mark.rfc("9103", "7.1")
@pytest.mark.rfc("9103", "7.2")
@pytest.mark.rfc("9103", "7.8")
@pytest.mark.parametrize("tls", [("TLSv1.2", "dot"), ("TLSv1.3", ""), ("TLSv1.3", "h2")])
def test_older_tls_or_another_protocol_is_refused(tls: tuple[str, str]) -> None:
    assert fetch(axfr(opt=EDNS), TLS).rcode == Rcode.NOERROR
    rcode, code, text = why(fetch(axfr(opt=EDNS), TLS, tls))
    assert (rcode, code) == (Rcode.REFUSED, Ede.NOT_SUPPORTED) and "TLS 1.3" in text


@pytest.mark.rfc("9103", "11")
@pytest.mark.rfc("9103", "7.5")
@pytest.mark.parametrize("general", [True, False])
def test_a_zone_that_goes_by_tls_only_goes_by_nothing_else(general: bool) -> None:
    rules = {"allow_addresses": ["192.0.2.7/32"], "xot_only": True}
    settings = rules if general else {"zones": [{"name": ZONE, **rules}]}
    assert fetch(axfr(opt=EDNS), TLS, **settings).rcode == Rcode.NOERROR
    for wire, peer in ((axfr(opt=EDNS), TCP), (ixfr(1, opt=EDNS), TCP), (ixfr(1, opt=EDNS), UDP)):
        rcode, code, text = why(fetch(wire, peer, **settings))
        assert (rcode, code) == (Rcode.REFUSED, Ede.NOT_SUPPORTED) and "over TLS only" in text
    signed = fetch(axfr(opt=EDNS), TCP, by=ADMIN, **settings)
    assert why(signed)[0] == Rcode.REFUSED, "an administrator's key too"
