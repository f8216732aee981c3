"""What must be true once the world has been quiet for longer than every lease and every retry."""

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from client_stub.agent import Agent
from client_stub.identity import host_of_service, service_name
from client_stub.llq_client import State
from client_stub.mapping_core import NatKind
from client_stub.tunnels import Tunnel, TunnelState
from gateway.mappings import Key as MappingKey
from gateway.mappings import Transport
from protocol.constants import Type
from protocol.name import fold, from_text
from protocol.rdata import canonical
from server.zone.model import RR
from server.zone.node import check_node
from server.zone.zone import Zone
from tests.sim.world import INTERNAL_PORT, ZONE, Host, World, canonical_set
from tests.support.zones import rows_of_nodes

QUIET_SECONDS: Final = 11_400.0
"""Longer than an update lease (5400 s) and then 80 % of an LLQ lease (5760 s): a record lapses, the event about it
finds nobody behind a NAT that forgot, and the client hears at its next refresh that it has to set up again."""
LAPSE_SECONDS: Final = 2
OWN_RECORDS: Final = 5
Plain = tuple[bytes, int, int, bytes]


class Journal:
    """Replays the journal beside the zones, step by step."""

    def __init__(self) -> None:
        self._seen = 0
        self._zones: dict[int, dict[Plain, None]] = {}

    async def check(self, world: World) -> None:
        note = world.observer.note
        assert world.server is not None
        for row in await world.store.journal(after=self._seen, limit=1_000_000):
            self._seen = row.id
            zone = self._zones.setdefault(row.zone_id, {})
            for rr in row.change.removed:
                if rr.rtype == Type.SOA and not zone:
                    continue  # the SOA a zone is born with stands in its row
                if zone.pop(_plain(rr), 0) == 0:
                    note(f"the journal removes what is not there: {rr} at serial {row.change.serial_to}")
            for rr in row.change.added:
                if _plain(rr) in zone:
                    note(f"the journal adds what is there: {rr} at serial {row.change.serial_to}")
                zone[_plain(rr)] = None
        now = int(world.clock.lease())
        for served in world.server.zones:
            memory = {_plain(rr) for rr in served.records(now)}
            replayed = set(self._zones.get(served.id, ()))
            if memory != replayed:
                note(f"zone and journal differ: {sorted(memory ^ replayed)}")
            rows = rows_of_nodes(check_node(*name).decode() for name in world.store._data.nodes[served.id].values())
            stored = {_plain(RR(*row[:4])) for row in rows.values()}
            stored.add(_plain(served.soa_rr()))
            if memory != stored:
                note(f"zone and store differ: {sorted(memory ^ stored)}")
            if world.store._data.zones[served.id].serial != served.serial:
                note(f"serial {served.serial} in memory, {world.store._data.zones[served.id].serial} in the store")
            _check_lapses(world, served, now)


def _plain(rr: RR) -> Plain:
    return fold(rr.owner), rr.rtype, rr.ttl, rr.rdata if rr.rtype == Type.SOA else canonical(rr.rtype, rr.rdata)


def _check_lapses(world: World, zone: Zone, now: int) -> None:
    for key in zone.nodes:
        node = zone.node(key)
        assert node is not None
        for rrset in node.rrsets.values():
            if any(0 < at < now - LAPSE_SECONDS for at in rrset.expires):
                world.observer.note(f"lapsed and still there: {key!r} {rrset}")


def check_quiet(world: World) -> None:
    """Views, tunnels, mappings and records of everything that runs. Notes violations with the observer."""
    _check_mappings(world)
    established = 0
    for host in world.hosts:
        if host.agent is not None:
            _check_own_records(world, host)
            established += _check_views(world, host)
            _check_list_of_tunnels(world, host)
    check_tunnels(world, world.hosts, world.hosts)
    assert world.server is not None
    if world.server.push.subscriptions != established:
        world.observer.note(f"{world.server.push.subscriptions} subscriptions at the server, {established} at clients")
    expected_leases = {fold(owner) for host in world.hosts if host.agent for owner in _owners(host)}
    leased = world.server.leases.watched()
    if {key for _, key in leased} != expected_leases:
        world.observer.note(f"leases of {sorted({key for _, key in leased} ^ expected_leases)}")


def _owners(host: Host) -> tuple[bytes, ...]:
    assert host.agent is not None
    names = session(host.agent)._names
    return names.host, names.autotunnel, names.service, names.browse


def session(agent: Agent):  # type: ignore[no-untyped-def]  # the session is the agent's own affair
    """The running session of an agent."""
    assert agent._session is not None
    return agent._session


def answer(world: World, owner: bytes, rtype: int) -> tuple[bytes, ...]:
    """What the zone says to a question, as canonical rdata in order."""
    assert world.server is not None
    key = fold(owner)
    zone = world.server.zones.enclosing(key)
    rrset = zone.rrset(key, rtype, int(world.clock.lease())) if zone is not None else None
    return tuple(sorted(canonical_set(rtype, rrset.rdatas))) if rrset is not None else ()


def outside(world: World, host: Host) -> tuple[IPv4Address, int] | None:
    """Where the Internet really reaches a machine."""
    if host.router is None:
        return IPv4Address(host.address), INTERNAL_PORT
    gateway = host.router.gateway
    assert gateway is not None
    mapping = gateway._table.find(MappingKey(Transport.UDP, host.address, INTERNAL_PORT))
    address = host.router.lan.external_address
    if mapping is None or address is None:
        return None
    if host.router.lan.inbound(mapping.external_port) != (host.address, INTERNAL_PORT):
        world.observer.note(f"mapping {mapping} of {host.label} carries nothing")
    return IPv4Address(address), mapping.external_port


def _check_mappings(world: World) -> None:
    for router in world.routers:
        assert router.gateway is not None
        mappings = router.gateway._table.mappings()
        places = [(mapping.key.transport, mapping.external_port) for mapping in mappings]
        if len(set(places)) != len(places) or len({mapping.key for mapping in mappings}) != len(mappings):
            world.observer.note(f"gateway {router.number}: mappings not unique: {mappings}")
        installed = {
            (item.mapping.key, item.mapping.external_port, item.external_address)
            for item in router.lan.installed.values()
        }
        wanted = {(item.key, item.external_port, router.lan.external_address) for item in mappings}
        if installed != wanted or router.gateway.external_address != router.lan.external_address:
            world.observer.note(f"gateway {router.number}: table {wanted}, installed {installed}")
        here = {host.address for host in world.hosts if host.agent is not None and host.router is router}
        if {mapping.key.host for mapping in mappings} != here:
            world.observer.note(f"gateway {router.number}: mappings {mappings} but hosts {here}")


def _check_own_records(world: World, host: Host) -> None:
    """What the machine published is what is true."""
    assert host.agent is not None
    here = session(host.agent)
    status = host.agent.status()
    truth = outside(world, host)
    where = f"{host.label} (at {host.address})"
    if here._outside.kind not in (NatKind.MAPPED, NatKind.PUBLIC) or status.lease_seconds_left is None:
        world.observer.note(f"{where}: not published: {status}")
        return
    if truth is None or status.external != f"{truth[0]}:{truth[1]}":
        world.observer.note(f"{where}: believes in {status.external}, is at {truth}")
        return
    names = here._names
    inner = here._interface.address.packed
    port = truth[1].to_bytes(2, "big")
    expected = {
        (names.host, Type.AAAA): inner,
        (names.autotunnel, Type.AAAA): inner,
        (names.autotunnel, Type.A): truth[0].packed,
        (names.autotunnel, Type.TXT): b"\x0cmodel=homing",
        (names.service, Type.SRV): canonical(Type.SRV, bytes(4) + port + names.autotunnel),
    }
    for (owner, rtype), rdata in expected.items():
        if answer(world, owner, rtype) != (rdata,):
            world.observer.note(f"{where}: zone says {answer(world, owner, rtype)!r} for {owner!r} {rtype}")
    if canonical(Type.PTR, names.service) not in answer(world, names.browse, Type.PTR):
        world.observer.note(f"{where}: not in the list of hosts")


def _check_views(world: World, host: Host) -> int:
    """Every view equals the zone. Returns the number of subscriptions."""
    assert host.agent is not None
    client = session(host.agent)._watcher._client
    states = client.states()
    for question, state, lapses_at in states:
        if state is not State.ESTABLISHED or lapses_at is None:
            world.observer.note(f"{host.label}: {question} is {state}")
        view = tuple(sorted(canonical_set(question.rtype, client.view(question))))
        told = answer(world, question.name, question.rtype)
        if view != told:
            how = "datagrams" if host.uses_datagrams else "a stream"
            world.observer.note(f"{host.label} over {how}: view of {question} is {view}, zone says {told}")
    return len(states)


def _check_list_of_tunnels(world: World, host: Host) -> None:
    """The tunnel table lists this member's running machines and no others."""
    assert host.agent is not None
    table = {fold(row.peer) for row in session(host.agent)._table.rows()}
    running = {fold(other.wire_name) for other in _peers(host, world.hosts)}
    listed = {
        fold(peer)
        for rdata in answer(world, service_name(from_text(f"{host.member}.{ZONE}")), Type.PTR)
        if (peer := host_of_service(rdata)) is not None
    } - {fold(host.wire_name)}
    if not table == running == listed:
        world.observer.note(f"{host.label}: tunnels {table}, listed {listed}, running {running}")


def _peers(host: Host, hosts: Iterable[Host]) -> list[Host]:
    """Other running machines of the same member."""
    return [other for other in hosts if other.member == host.member and other is not host and other.agent is not None]


def check_tunnels(world: World, hosts: Iterable[Host], others: Iterable[Host]) -> None:
    """The tunnels of running `hosts` to those of `others` lead where these really are, and they answer."""
    for host in hosts:
        if host.agent is not None:
            for other in _peers(host, others):
                _check_tunnel(world, host, other)


def _check_tunnel(world: World, host: Host, other: Host) -> None:
    assert host.agent is not None
    assert other.agent is not None
    name = fold(other.wire_name)
    row: Tunnel | None = next((row for row in session(host.agent)._table.rows() if fold(row.peer) == name), None)
    truth = outside(world, other)
    inner = session(other.agent)._interface.address
    if row is None or row.state is not TunnelState.UP or truth != (row.outer_address, row.outer_port):
        world.observer.note(f"{host.label}: tunnel {row}, but {other.label} is at {truth}")
    elif row.inner != IPv6Address(inner):
        world.observer.note(f"{host.label}: tunnel to {row.inner}, but {other.label} has {inner}")
    reach = session(host.agent)._prober.reachability(other.wire_name)
    if reach is None or reach.rtt_ms is None:
        world.observer.note(f"{host.label}: no answer from {other.label}: {reach}")


async def quiet(world: World, journal: Journal, seconds: float = QUIET_SECONDS) -> None:
    """Let things settle, then check everything."""
    end = world.now + seconds
    while world.now < end:
        await asyncio.sleep(min(600.0, end - world.now))
        world.check_kept()
    await journal.check(world)
    check_quiet(world)
