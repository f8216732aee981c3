"""Each rule of NAT-PMP and PCP that datagrams can tell, one row each; the same rows go to other gateways, too."""

from __future__ import annotations

import pytest

from gateway.mappings import Answer, Install, Limits, MappingTable
from gateway.natpmp import MapTicket, NatPmpFrontEnd, Peer
from gateway.pcp import PcpFrontEnd, PcpTicket
from tests.support.gateway_cases import NATPMP, PCP, Case, describe

HOSTS = ("192.168.1.10", "192.168.1.11")


class Server:
    """Both front ends on one table whose back end takes everything."""

    def __init__(self) -> None:
        self.table = MappingTable(Limits(), now=-100.0)
        self.table.set_external_address("198.51.100.7", now=0.0)
        self.natpmp = NatPmpFrontEnd(self.table)
        self.pcp = PcpFrontEnd(self.table)

    def ask(self, host: int, octets: bytes) -> bytes | None:
        front_end = self.natpmp if octets[:1] in (b"", b"\0") else self.pcp
        reply = front_end.receive(octets, Peer(0, HOSTS[host], 40000), draw=12345, now=0.0)
        while effects := self.table.take_effects():
            for effect in effects:
                if isinstance(effect, Install):
                    self.table.installed(effect.number, True, now=0.0)
                elif isinstance(effect, Answer):
                    assert isinstance(effect.ticket, MapTicket | PcpTicket)
                    reply = effect.ticket.reply(effect, 100)
        return reply


@pytest.mark.rfc("6886", "3.3")
@pytest.mark.rfc("6886", "3.4")
@pytest.mark.rfc("6886", "3.5")
@pytest.mark.parametrize("case", NATPMP, ids=lambda case: case.name)
def test_natpmp(case: Case) -> None:
    got = case.run(Server().ask, HOSTS)
    assert case.is_right(got), [describe(reply) for reply in got]


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.rfc("6887", "11.3")
@pytest.mark.parametrize("case", PCP, ids=lambda case: case.name)
def test_pcp(case: Case) -> None:
    got = case.run(Server().ask, HOSTS)
    assert case.is_right(got), [describe(reply) for reply in got]


def test_all_in_a_row_on_one_server() -> None:
    server = Server()
    wrong = [case.name for case in (*NATPMP, *PCP) if not case.is_right(case.run(server.ask, HOSTS))]
    assert wrong == []
