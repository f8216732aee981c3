"""What the nftables back end does beyond the contract: ports kept outward, repairs, restarts, one table only."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.backend import netfilter
from gateway.backend.libnftables import Nftables, NftablesError
from gateway.backend.netfilter import ElementChange, NetfilterError
from gateway.backend.nftables import CLAIM_SECONDS, NftablesBackend
from gateway.backend.ruleset import NftablesOptions
from gateway.config import GatewayConfig
from gateway.errors import InstallRefusedError, StartError
from gateway.mappings import Transport
from tests.support.gateways import running, until
from tests.support.namespaces import (
    LAN_HOST,
    LAN_LINK,
    LAN_OTHER,
    LAN_ROUTER,
    PORT,
    WAN_HOST,
    WAN_LINK,
    WAN_ROUTER,
    Network,
    accept,
    connect,
    hear,
    install,
    made,
    read,
)

INNER_PORT = 4500


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made(f"hn{os.getpid() % 100000}") as network:
        yield network


@contextlib.asynccontextmanager
async def carrying(**options: object) -> AsyncIterator[NftablesBackend]:
    backend = NftablesBackend(NftablesOptions(wan_interface=WAN_LINK, **options))  # type: ignore[arg-type]
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def elements(network: Network, name: str) -> int:
    """The number of elements that the kernel has in one of our maps."""
    listing = json.loads(network.nft("-j", "list", "map", "inet", "homing", name))
    return len(next(entry["map"] for entry in listing["nftables"] if "map" in entry).get("elem", []))


def tables(network: Network) -> list[str]:
    return sorted(network.nft("list", "tables").splitlines())


@pytest.mark.rfc("6886", "3.3")
@pytest.mark.rfc("6886", "3.9")
async def test_own_packets_of_the_host_leave_from_the_mapped_port(network: Network) -> None:
    async with carrying() as backend:
        with (
            network.udp(network.lan, LAN_HOST, INNER_PORT) as inside,
            network.udp(network.wan, WAN_HOST) as first,
            network.udp(network.wan, WAN_HOST) as second,
        ):
            install(backend, (LAN_HOST, INNER_PORT))
            for peer in (first, second):
                inside.sendto(b"fresh", peer.getsockname())
                assert await hear(peer) == (b"fresh", (WAN_ROUTER, PORT))
                peer.sendto(b"answer", (WAN_ROUTER, PORT))
                assert await hear(inside) == (b"answer", peer.getsockname())


async def test_a_connection_of_the_host_leaves_from_the_mapped_port(network: Network) -> None:
    async with carrying() as backend:
        with (
            network.tcp(network.lan, LAN_HOST, INNER_PORT) as inside,
            network.listener(network.wan, WAN_HOST) as server,
        ):
            install(backend, (LAN_HOST, INNER_PORT), Transport.TCP)
            await connect(inside, server.getsockname())
            with await accept(server) as outside:
                assert outside.getpeername() == (WAN_ROUTER, PORT)


async def test_a_flow_from_before_the_mapping_moves_to_its_port(network: Network) -> None:
    async with carrying() as backend:
        with network.udp(network.lan, LAN_HOST, INNER_PORT) as inside, network.udp(network.wan, WAN_HOST) as peer:
            inside.sendto(b"before", peer.getsockname())
            assert await hear(peer) == (b"before", (WAN_ROUTER, INNER_PORT))  # as masquerading does it
            install(backend, (LAN_HOST, INNER_PORT))
            async with asyncio.timeout(1):
                while True:
                    inside.sendto(b"after", peer.getsockname())
                    if (await hear(peer))[1] == (WAN_ROUTER, PORT):
                        break
                    await asyncio.sleep(0.02)


async def test_hosts_see_who_calls(network: Network) -> None:
    async with carrying() as backend:
        with (
            network.udp(network.lan, LAN_HOST, INNER_PORT) as inside,
            network.udp(network.lan, LAN_OTHER, INNER_PORT) as neighbour,
            network.udp(network.wan, WAN_HOST) as outside,
        ):
            install(backend, (LAN_HOST, INNER_PORT), number=1)
            outside.sendto(b"outside", (WAN_ROUTER, PORT))
            assert await hear(inside) == (b"outside", outside.getsockname())
            # A neighbour appears as it would from outside: with its mapped port once it has a mapping.
            neighbour.sendto(b"neighbour", (WAN_ROUTER, PORT))
            assert await hear(inside) == (b"neighbour", (WAN_ROUTER, INNER_PORT))
            install(backend, (LAN_OTHER, INNER_PORT), port=PORT + 1, number=2)
            async with asyncio.timeout(1):
                while True:
                    neighbour.sendto(b"neighbour", (WAN_ROUTER, PORT))
                    if (await hear(inside))[1] == (WAN_ROUTER, PORT + 1):
                        break
                    await asyncio.sleep(0.02)


async def test_without_hairpin_only_the_outside_gets_in(network: Network) -> None:
    async with carrying(hairpin=False) as backend:
        with (
            network.udp(network.lan, LAN_HOST) as inside,
            network.udp(network.lan, LAN_OTHER) as neighbour,
            network.udp(network.wan, WAN_HOST) as outside,
        ):
            install(backend, inside.getsockname())
            await connect(neighbour, (WAN_ROUTER, PORT))
            neighbour.send(b"neighbour")
            with pytest.raises(ConnectionRefusedError):
                await read(neighbour)
            outside.sendto(b"outside", (WAN_ROUTER, PORT))
            assert (await hear(inside))[0] == b"outside"


async def test_named_inner_interfaces(network: Network) -> None:
    with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.lan, LAN_OTHER) as neighbour:
        for lan_interfaces, arrives in (((LAN_LINK, "inner1"), True), (("inner1",), False)):
            async with carrying(lan_interfaces=lan_interfaces) as backend:
                install(backend, inside.getsockname())
                neighbour.sendto(b"neighbour", (WAN_ROUTER, PORT))
                if arrives:
                    assert (await hear(inside))[0] == b"neighbour"
                else:
                    with pytest.raises(TimeoutError):
                        await hear(inside, 0.2)


async def test_the_guard_keeps_out_who_knows_internal_addresses(network: Network) -> None:
    network.nft("insert rule ip router forward accept")  # a router without a firewall of its own
    try:
        for guard, arrives in ((True, False), (False, True)):
            async with carrying(guard=guard) as backend:
                with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.wan, WAN_HOST) as outside:
                    install(backend, inside.getsockname())
                    outside.sendto(b"direct", inside.getsockname())
                    if arrives:
                        assert (await hear(inside))[0] == b"direct"
                    else:
                        with pytest.raises(TimeoutError):
                            await hear(inside, 0.2)
                    outside.sendto(b"mapped", (WAN_ROUTER, PORT))
                    assert (await hear(inside))[0] == b"mapped"
                    inside.sendto(b"own", outside.getsockname())
                    assert (await hear(outside))[0] == b"own"
    finally:
        handle = network.nft("-a", "list", "chain", "ip", "router", "forward").split("accept # handle ")[1].split()[0]
        network.nft(f"delete rule ip router forward handle {handle}")


DAMAGE = {
    "all rulesets flushed": "flush ruleset",
    "table deleted": "delete table inet homing",
    "rules flushed": "flush chain inet homing prerouting",
    "map flushed": "flush map inet homing inward",
    "element deleted": f"delete element inet homing outward {{ {LAN_HOST} . udp . {INNER_PORT} }}",
    "element added": f"add element inet homing inward {{ {WAN_ROUTER} . tcp . 22 : {LAN_HOST} . 22 }}",
    "chain added": "add chain inet homing more",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_what_somebody_else_changed_is_put_back(network: Network, damage: str) -> None:
    router_rules = network.nft("list", "table", "ip", "router")
    async with carrying() as backend:
        with network.udp(network.lan, LAN_HOST, INNER_PORT) as inside, network.udp(network.wan, WAN_HOST) as outside:
            install(backend, (LAN_HOST, INNER_PORT))
            before = network.nft("list", "table", "inet", "homing")
            network.nft(damage)
            await until(lambda: backend.counters["tables put back"] == 1, seconds=1)
            if damage == "flush ruleset":
                network.nft(router_rules)
            assert network.nft("list", "table", "inet", "homing") == before
            outside.sendto(b"in", (WAN_ROUTER, PORT))
            assert (await hear(inside))[0] == b"in"
            # Neither our own changes nor the repair look like somebody else's.
            backend.remove(1)
            install(backend, (LAN_HOST, INNER_PORT), number=2)
            await asyncio.sleep(0.3)
            assert backend.counters["tables put back"] == 1


async def test_a_change_on_a_lost_table_brings_it_back(network: Network) -> None:
    async with carrying() as backend:
        install(backend, (LAN_HOST, 1), number=1)
        network.nft("delete table inet homing")
        install(backend, (LAN_HOST, 2), port=PORT + 1, number=2)
        assert elements(network, "inward") == elements(network, "outward") == 2
        network.nft("delete table inet homing")
        backend.remove(1)
        assert elements(network, "inward") == elements(network, "outward") == 1


async def test_an_element_that_the_kernel_refuses_fails_its_round_and_no_other(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with carrying() as backend:
        install(backend, (LAN_HOST, 4500), number=1)
        assert backend._netfilter is not None and backend._nftables is not None
        change, run = backend._netfilter.change_elements, backend._nftables.run

        def refusing(table: str, changes: list[ElementChange], *, generation: int | None) -> None:
            if any(not each.is_deletion and each.key[8:10] == (4501).to_bytes(2, "big") for each in changes):
                raise NetfilterError(errno.ENOSPC, "no room for it")
            change(table, changes, generation=generation)

        def refusing_text(commands: str) -> None:
            if ". 4501 :" in commands:
                raise NftablesError("no room for it")
            run(commands)

        monkeypatch.setattr(backend._netfilter, "change_elements", refusing)
        monkeypatch.setattr(backend._nftables, "run", refusing_text)
        backend.hold()
        for port in (4501, 4502):
            install(backend, (LAN_HOST, port), port=port, number=port)
        backend.remove(1)
        with pytest.raises(InstallRefusedError):
            backend.flush()
        backend.hold()
        for port in (4501, 4502):
            backend.remove(port)
        backend.flush()
        assert elements(network, "inward") == elements(network, "outward") == 0
        with pytest.raises(InstallRefusedError):
            install(backend, (LAN_HOST, 4501), port=4501, number=1)
        install(backend, (LAN_HOST, 4502), port=4502, number=2)
        assert elements(network, "inward") == elements(network, "outward") == 1


async def test_changes_of_other_tables_are_no_concern(network: Network) -> None:
    async with carrying() as backend:
        install(backend, (LAN_HOST, INNER_PORT))
        network.nft("add table ip other")
        # At once, while we do not know yet that somebody was there, and after we have heard.
        install(backend, (LAN_HOST, INNER_PORT + 1), port=PORT + 1, number=2)
        network.nft("delete table ip other")
        await asyncio.sleep(0.3)
        install(backend, (LAN_HOST, INNER_PORT + 2), port=PORT + 2, number=3)
        backend.remove(1)
        assert elements(network, "inward") == elements(network, "outward") == 2
        assert backend.counters["tables put back"] == 0


async def test_a_lost_event_is_made_up_for(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.backend.nftables.CHECK_SECONDS", 0.3)
    async with carrying() as backend:
        install(backend, (LAN_HOST, INNER_PORT))
        assert backend._events is not None
        asyncio.get_running_loop().remove_reader(backend._events.fileno())
        network.nft("flush map inet homing inward")
        await until(lambda: backend.counters["tables put back"] == 1)
        assert elements(network, "inward") == 1


@pytest.mark.parametrize(("count", "flows"), [(2, 100_000), (2, 10), (20, 100_000)])
async def test_flows_of_many_mappings_end_together(
    network: Network, count: int, flows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few of very many flows are looked for one by one, others in one pass; those of other mappings stay."""
    monkeypatch.setattr(netfilter, "_flow_count", lambda: flows)
    async with carrying() as backend:
        with (
            network.udp(network.lan, LAN_HOST, INNER_PORT) as kept,
            network.udp(network.wan, WAN_HOST) as outside,
            contextlib.ExitStack() as stack,
        ):
            install(backend, (LAN_HOST, INNER_PORT), number=0)
            for number in range(1, count + 1):
                inside = stack.enter_context(network.udp(network.lan, LAN_HOST))
                install(backend, inside.getsockname(), port=PORT + number, number=number)
            await asyncio.sleep(0.3)
            before = backend.counters["flows dropped"]
            for number in range(count + 1):
                outside.sendto(b"in", (WAN_ROUTER, PORT + number))
            assert await hear(kept) == (b"in", outside.getsockname())
            for number in range(1, count + 1):
                backend.remove(number)
            await until(lambda: backend.counters["flows dropped"] - before == count, seconds=1)
            kept.sendto(b"out", outside.getsockname())
            assert await hear(outside) == (b"out", (WAN_ROUTER, PORT))
            await asyncio.sleep(0.1)
            assert backend.counters["flows dropped"] - before == count


async def test_nothing_is_left_behind(network: Network) -> None:
    before = tables(network)
    rules = network.nft("list", "ruleset")
    async with carrying() as backend:
        install(backend, (LAN_HOST, INNER_PORT))
        assert tables(network) == sorted([*before, "table inet homing"])
    assert tables(network) == before
    assert network.nft("list", "ruleset") == rules


async def test_kept_mappings_work_without_and_with_the_next_run(network: Network) -> None:
    with network.udp(network.lan, LAN_HOST, INNER_PORT) as inside, network.udp(network.wan, WAN_HOST) as outside:

        async def travels() -> bool:
            outside.sendto(b"in", (WAN_ROUTER, PORT))
            with contextlib.suppress(TimeoutError):
                return (await hear(inside, 0.2))[0] == b"in"
            return False

        async with carrying(keep_on_stop=True) as backend:
            install(backend, (LAN_HOST, INNER_PORT), number=1)
            install(backend, (LAN_HOST, INNER_PORT + 1), port=PORT + 1, number=2)
            install(backend, (LAN_HOST, INNER_PORT + 2), port=PORT + 2, number=3)
            backend.remove(3)
        assert elements(network, "inward") == 2
        assert await travels()
        async with carrying() as backend:
            # Between start and installation, too: nobody's packets are lost for a restart.
            assert await travels()
            install(backend, (LAN_HOST, INNER_PORT), number=1)
            assert await travels()
            await until(lambda: elements(network, "inward") == 1, CLAIM_SECONDS + 1)
            assert elements(network, "outward") == 1
            assert await travels()
        assert not await travels()


async def test_what_a_crash_left_makes_way(network: Network) -> None:
    """Neither the port nor the host of a mapping that is gone hinders another one."""
    async with carrying(keep_on_stop=True) as backend:
        install(backend, (LAN_HOST, INNER_PORT), port=PORT, number=1)
        install(backend, (LAN_HOST, INNER_PORT + 1), port=PORT + 1, number=2)
    async with carrying() as backend:
        with (
            network.udp(network.lan, LAN_HOST, INNER_PORT + 1) as inside,
            network.udp(network.wan, WAN_HOST) as outside,
        ):
            install(backend, (LAN_HOST, INNER_PORT + 1), port=PORT, number=1)
            outside.sendto(b"in", (WAN_ROUTER, PORT))
            assert (await hear(inside))[0] == b"in"
            assert elements(network, "inward") == elements(network, "outward") == 1


async def test_a_table_of_another_shape_is_replaced(network: Network) -> None:
    for shape in (
        "table inet homing { }",
        "table inet homing { map inward { type mark : mark; elements = { 1 : 2 }; }; }",
    ):
        network.nft(shape)
        async with carrying() as backend:
            install(backend, (LAN_HOST, INNER_PORT))
            assert elements(network, "inward") == 1


async def test_only_ipv4_is_mapped(network: Network) -> None:
    async with carrying() as backend:
        with pytest.raises(InstallRefusedError, match="IPv6 is left to others"):
            install(backend, ("fd00::2", INNER_PORT))


# -- what stops the start ----------------------------------------------------------------------------------------------


async def test_a_missing_library_is_one_plain_line(network: Network) -> None:
    backend = NftablesBackend(NftablesOptions(wan_interface=WAN_LINK), library="libnftables.so.0")
    with pytest.raises(StartError, match=r"^back end nftables: libnftables.so.0 is not installed .*libnftables1\)$"):
        await backend.start()


async def test_forwarding_that_is_off_is_one_plain_line(network: Network) -> None:
    setting = Path(f"/proc/sys/net/ipv4/conf/{WAN_LINK}/forwarding")
    setting.write_text("0")
    try:
        with pytest.raises(StartError, match=r"^back end nftables: forwarding is off \(sysctl -w [a-z0-9._=]+\)$"):
            async with carrying():
                pass
        assert "table inet homing" not in tables(network)
    finally:
        setting.write_text("1")


def test_a_missing_capability_is_one_plain_line(network: Network) -> None:
    """Of a process that has given up all capabilities; in a child, for there is no way back."""
    script = f"""
import asyncio, ctypes, struct, sys
from gateway.backend.nftables import NftablesBackend
from gateway.backend.ruleset import NftablesOptions
from gateway.errors import StartError
header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
assert ctypes.CDLL(None).capset(header, none) == 0
try:
    asyncio.run(NftablesBackend(NftablesOptions(wan_interface="{WAN_LINK}")).start())
except StartError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    assert done.stdout == "back end nftables: needs root or CAP_NET_ADMIN\n"


def test_libnftables_says_what_is_wrong(network: Network) -> None:
    nftables = Nftables()
    try:
        with pytest.raises(NftablesError, match="syntax error"):
            nftables.run("add nonsense")
        with pytest.raises(NftablesError, match="No such file or directory"):
            nftables.run("add table inet unmade\ndelete chain inet unmade absent")
        assert "table inet unmade" not in tables(network)
    finally:
        nftables.close()
        nftables.close()


# -- the whole gateway -------------------------------------------------------------------------------------------------


async def test_a_mapping_through_the_gateway_lapses_and_survives_a_restart(network: Network, tmp_path: Path) -> None:
    config = GatewayConfig.model_validate(
        {
            "backend": "nftables",
            "nftables": {"wan_interface": WAN_LINK},
            "natpmp": {"listen": [f"{LAN_ROUTER}:5351"]},
            "external": {"address": WAN_ROUTER},
            "limits": {"shortest_lifetime_seconds": 1},
            "state": {"file": str(tmp_path / "state.sqlite")},
        }
    )

    async def ask(lifetime: int) -> int:
        request = struct.pack(">BBHHHI", 0, 1, 0, INNER_PORT, PORT, lifetime)
        client.sendto(request, (LAN_ROUTER, 5351))
        reply, _ = await hear(client)
        assert reply[:4] == b"\0\x81\0\0"
        port: int = struct.unpack_from(">H", reply, 10)[0]
        return port

    async def is_open() -> bool:
        outside.sendto(b"in", (WAN_ROUTER, PORT))
        with contextlib.suppress(TimeoutError):
            return (await hear(inside, 0.1))[0] == b"in"
        return False

    async def opens() -> bool:
        """Within a second: what was sent to the closed port has left an entry, which goes first."""
        async with asyncio.timeout(1):
            while not await is_open():
                pass
        return True

    with (
        network.udp(network.lan, LAN_HOST) as client,
        network.udp(network.lan, LAN_HOST, INNER_PORT) as inside,
        network.udp(network.wan, WAN_HOST) as outside,
    ):
        async with running(config):
            assert not await is_open()
            assert await ask(3600) == PORT
            assert await opens()
        assert not await is_open()
        async with running(config) as gateway:
            assert await opens()
            assert await ask(1) == PORT
            await asyncio.sleep(2)  # the lifetime, and the second in which it has to be closed
            assert not await is_open()
            assert gateway.mappings() == []
            assert elements(network, "inward") == elements(network, "outward") == 0
