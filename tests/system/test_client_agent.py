"""The whole client on loopback sockets against a small scripted server and gateway."""

import asyncio
import base64
import datetime
import random
import ssl
import struct
import time
from ipaddress import IPv4Address, IPv6Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client_stub.agent import Agent, AgentError
from client_stub.config import ClientConfig
from client_stub.identity import service_name
from client_stub.probe import ANSWER, HELLO, decode_packet, derive_probe_key, encode_packet
from client_stub.resolver import ResolveError, Resolver
from client_stub.updates import srv_rdata
from protocol.constants import AA, OPCODE_SHIFT, QR, TC, Class, Opcode, Type
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LlqOpcode, LlqOption, Opt, UpdateLease, llq_options, update_lease
from protocol.message import Question, decode, encode
from protocol.name import fold, from_text, is_at_or_below
from protocol.natpmp import AddressRequest, AddressResponse, MapResponse, decode_request
from protocol.tsig import SHA256, Key, decode_tsig, sign, verify

HERE = "127.0.0.1"
CLIENT = "127.0.0.31"
OUTSIDE = IPv4Address("127.0.0.31")  # our NAT maps nothing away, so that hellos find their way
ZONE = from_text("members.example")
DOMAIN = from_text("alice.members.example")
NS = from_text("ns.members.example")
KEY = Key(from_text("alice.key"), SHA256, b"secret")
TUNNEL = fold(from_text("AutoTunnel-00-22-69-FF-FE-8E-34-2A.alice.members.example"))
SOA = NS + NS + struct.pack("!5I", 1, 2, 3, 4, 5)


def certificate(folder, name):
    """A self-signed certificate for `name`: (chain file, key file)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return chain, private


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answer):
        self.answer = answer

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        for reply in self.answer(data, addr):
            self.transport.sendto(reply, addr)


async def datagram_server(answer, address=HERE, port=0):
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Datagrams(answer), local_addr=(address, port))
    return transport, transport.get_extra_info("sockname")[1]


class Dns:
    """Zone data as a dict; takes signed updates and LLQs. Switches make it misbehave."""

    def __init__(self):
        self.data = {(ZONE, Type.SOA): {SOA}, (NS, Type.A): {IPv4Address(HERE).packed}}
        self.updates = []
        self.leases = []
        self.acks = []
        self.datagram_setups = []
        self.subscriptions = {}
        self.signs = True
        self.truncates = False
        self.noise = []
        self.writers = set()

    async def start(self, chain, private):
        self.tcp = await asyncio.start_server(self.serve, HERE, 0)
        self.port = self.tcp.sockets[0].getsockname()[1]
        self.udp, _ = await datagram_server(self.take_datagram, port=self.port)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, private)
        self.tls = await asyncio.start_server(self.serve, HERE, 0, ssl=context)
        self.tls_port = self.tls.sockets[0].getsockname()[1]
        self.announce_service("_dns-update-tls._tcp", self.tls_port)
        self.announce_service("_dns-llq-tls._udp", self.tls_port)

    def announce_service(self, labels, port):
        self.data[from_text(labels)[:-1] + DOMAIN, Type.SRV] = {srv_rdata(port, NS)}

    async def stop(self):
        self.udp.abort()
        for writer in list(self.writers):
            writer.transport.abort()
        for server in (self.tcp, self.tls):
            server.close()
            await server.wait_closed()
        await asyncio.sleep(0)

    async def serve(self, reader, writer):
        self.writers.add(writer)
        try:
            while True:
                wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                for reply in self.answer(wire, lambda event: self.frame(writer, event)):
                    self.frame(writer, reply)
        except (EOFError, OSError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    def frame(self, writer, wire):
        writer.write(len(wire).to_bytes(2, "big") + wire)

    def take_datagram(self, wire, addr):
        message = decode(wire)
        if llq_options(message.opt):
            return self.answer(wire, lambda event: self.udp.sendto(event, addr), is_stream=False)
        if self.truncates:
            return [encode(message.id, QR | TC, message.questions)]
        return [*self.noise, *self.answer(wire, None)]

    def answer(self, wire, push, is_stream=True):
        message = decode(wire)
        mac = b""
        if message.tsig is not None:
            tsig = decode_tsig(message.tsig, wire)
            mac = tsig.mac
            if not message.header.is_response:
                assert verify(message, tsig, KEY, now=int(time.time())).error == 0
        reply = self.reply(message, push, is_stream)
        if reply is None:
            return []
        if mac and self.signs:
            reply, _ = sign(reply, KEY, now=int(time.time()), request_mac=mac)
        return [reply]

    def reply(self, message, push, is_stream):
        if message.header.is_response:
            self.acks.append(message.id)
            return None
        if message.header.opcode == Opcode.UPDATE:
            return self.update(message)
        question = message.questions[0]
        options = llq_options(message.opt)
        if not options:
            return encode(message.id, QR | AA, (question,), self.records(question), self.negative(question))
        (option,) = options
        if not is_stream:
            self.datagram_setups.append(option)
        if option.opcode == LlqOpcode.SETUP and (is_stream or option.llq_id):
            llq_id = option.llq_id or len(self.subscriptions) + 1
            self.subscriptions[llq_id] = (question, push)
            granted = LlqOption(1, 1, 0, llq_id, 7200)
            return encode(
                message.id, QR | AA, (question,), self.records(question), opt=Opt(options=(granted.encode(),))
            )
        granted = LlqOption(1, option.opcode, 0, option.llq_id or len(self.subscriptions) + 1, 7200)
        return encode(message.id, QR | AA, (question,), opt=Opt(options=(granted.encode(),)))

    def records(self, question):
        rdatas = self.data.get((fold(question.name), question.rtype), ())
        return [(question.name, question.rtype, Class.IN, 120, rdata) for rdata in sorted(rdatas)]

    def negative(self, question):
        return () if self.records(question) else [(ZONE, Type.SOA, Class.IN, 5, SOA)]

    def update(self, message):
        assert message.tsig is not None
        before = {key: set(rdatas) for key, rdatas in self.data.items()}
        for record in message.authority:
            assert is_at_or_below(fold(record.name), DOMAIN)
            rrset = self.data.setdefault((fold(record.name), record.rtype), set())
            if record.rclass == Class.ANY:
                rrset.clear()
            elif record.rclass == Class.NONE:
                rrset.discard(record.rdata(message.wire))
            else:
                rrset.add(record.rdata(message.wire))
        self.updates.append(message)
        lease = update_lease(message.opt)
        self.leases.append(lease and lease.lease)
        self.push_changes(before)
        opt = Opt(options=(UpdateLease(lease.lease).encode(),)) if lease else None
        return encode(message.id, QR | Opcode.UPDATE << OPCODE_SHIFT, message.questions, opt=opt)

    def change(self, owner, rtype, *rdatas):
        before = {key: set(values) for key, values in self.data.items()}
        self.data[fold(owner), rtype] = set(rdatas)
        self.push_changes(before)

    def push_changes(self, before):
        for llq_id, (question, push) in list(self.subscriptions.items()):
            key = fold(question.name), question.rtype
            old, new = before.get(key, set()), self.data.get(key, set())
            if old == new:
                continue
            records = [(question.name, question.rtype, Class.IN, LLQ_EVENT_REMOVE_TTL, rdata) for rdata in old - new]
            records += [(question.name, question.rtype, Class.IN, 120, rdata) for rdata in new - old]
            opt = Opt(options=(LlqOption(1, 3, 0, llq_id, 0).encode(),))
            wire = encode(len(self.acks) + 1000 + llq_id, QR | AA, (question,), records, opt=opt)
            push(sign(wire, KEY, now=int(time.time()))[0])

    def rrset(self, owner, rtype):
        return self.data.get((fold(from_text(owner) if isinstance(owner, str) else owner), rtype), set())


class Gateway:
    """Maps every internal port to itself at `address`."""

    def __init__(self):
        self.address = OUTSIDE
        self.requests = []
        self.started_at = time.monotonic() - 1000

    async def start(self):
        self.transport, self.port = await datagram_server(self.answer)

    def epoch(self):
        return int(time.monotonic() - self.started_at)

    def answer(self, datagram, _):
        request = decode_request(datagram)
        self.requests.append(request)
        if isinstance(request, AddressRequest):
            return [AddressResponse(result=0, epoch=self.epoch(), address=self.address).encode()]
        port = request.internal_port if request.lifetime else 0
        return [
            MapResponse(
                opcode=request.opcode,
                result=0,
                epoch=self.epoch(),
                internal_port=request.internal_port,
                external_port=port,
                lifetime=request.lifetime,
            ).encode()
        ]

    def announce(self, endpoint):
        octets = AddressResponse(result=0, epoch=self.epoch(), address=self.address).encode()
        self.transport.sendto(octets, endpoint)


class World:
    def __init__(self, folder):
        self.folder = folder
        self.dns = Dns()
        self.gateway = Gateway()
        self.events = []
        self.agents = []

    def config(self, **tables):
        config = {
            "machine": {"name": "mac", "mac": "00:22:69:8E:34:2A", "internal_address": CLIENT, "internal_port": 0},
            "member": {
                "domain": "alice.members.example",
                "key": {"name": "alice.key", "secret": base64.b64encode(KEY.secret).decode()},
            },
            "dns": {"server": f"{HERE}:{self.dns.port}", "ca_file": str(self.folder / "ns.members.example.pem")},
            "nat": {
                "mode": "natpmp",
                "gateway": f"{HERE}:{self.gateway.port}",
                "announcements": f"{CLIENT}:{self.announcement_port}",
            },
            "timing": {"registration_delay_max": 0, "loss_delay_max": 0.05, "hello_every": 0.2},
        }
        for name, values in tables.items():
            config[name] = {**config.get(name, {}), **values}
        return ClientConfig.model_validate(config)

    async def agent(self, **tables):
        agent = Agent(self.config(**tables), on_event=lambda text, **fields: self.events.append((text, fields)))
        self.agents.append(agent)
        await agent.start()
        return agent

    def announce(self):
        self.gateway.announce((CLIENT, self.announcement_port))

    def told(self, text):
        return [fields for said, fields in self.events if said == text]


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    return folder, certificate(folder, "ns.members.example"), certificate(folder, "else.members.example")


@pytest.fixture
async def world(certificates):
    folder, own, _ = certificates
    built = World(folder)
    await built.dns.start(*own)
    await built.gateway.start()
    transport, built.announcement_port = await datagram_server(lambda data, addr: [], CLIENT)
    transport.abort()
    await asyncio.sleep(0)
    yield built
    for agent in built.agents:
        await agent.abort()
    built.gateway.transport.abort()
    await built.dns.stop()


@pytest.mark.rfc("6281", "5.1")
@pytest.mark.rfc("6281", "3")
@pytest.mark.rfc("6281", "4.1")
async def test_maps_then_publishes_everything_in_one_signed_update(world):
    agent = await world.agent()
    await until(lambda: world.dns.updates)
    assert len(world.gateway.requests) == 2, "address and mapping were known before"
    await until(lambda: agent.status().lease_seconds_left is not None)
    status = agent.status()
    port = int(status.internal.rpartition(":")[2])
    assert status.external == f"{OUTSIDE}:{port}"
    assert (status.nat, status.lease_seconds_left, status.mapping_seconds_left) == ("mapped", 5400, 3600)
    inner = IPv6Address(status.inner)
    assert inner.packed[0] == 0xFD
    assert inner.packed[8:] == bytes.fromhex("002269fffe8e342a")
    rrset = world.dns.rrset
    assert rrset("mac.alice.members.example", Type.AAAA) == rrset(TUNNEL, Type.AAAA) == {inner.packed}
    assert rrset(TUNNEL, Type.A) == {OUTSIDE.packed}
    assert rrset(TUNNEL, Type.TXT) == {b"\x0cmodel=homing"}
    (srv,) = rrset("_autotunnel._udp.mac.alice.members.example", Type.SRV)
    assert (srv[:6], fold(srv[6:])) == (struct.pack("!3H", 0, 0, port), TUNNEL)
    assert world.dns.leases == [5400]
    assert len(world.dns.updates) == 1


@pytest.mark.rfc("6281", "4.3")
@pytest.mark.rfc("6281", "6.1")
async def test_announced_address_is_remapped_and_republished(world):
    agent = await world.agent()
    await until(lambda: world.told("published"))
    inner = agent.status().inner
    world.gateway.address = IPv4Address("127.0.0.32")
    world.announce()
    await until(lambda: world.dns.rrset(TUNNEL, Type.A) == {world.gateway.address.packed}, 1.0)
    assert agent.status().inner == inner, "the inner address outlives a move"
    assert len(world.dns.updates) == 2


async def test_restarted_gateway_is_mapped_anew(world):
    await world.agent()
    await until(lambda: world.told("published"))
    world.gateway.started_at = time.monotonic()
    world.announce()
    await until(lambda: len(world.gateway.requests) == 4, 1.0)
    await until(lambda: len(world.dns.updates) == 2, 1.0)
    assert [registered["lease_seconds"] for registered in world.told("published")] == [5400]


@pytest.mark.rfc("6281", "5.3")
@pytest.mark.rfc("6281", "2")
async def test_peer_is_found_followed_and_dropped(world):
    key = derive_probe_key(KEY.secret)

    def say_hello_back(data, _):
        kind, nonce = decode_packet(key, data)
        return [encode_packet(key, ANSWER, nonce)] if kind == HELLO else []

    peers = [await datagram_server(say_hello_back, f"127.0.0.{number}") for number in (33, 34)]
    try:
        agent = await world.agent()
        await until(lambda: any(item.state == "established" for item in agent.status().subscriptions))
        host = from_text("mini.alice.members.example")
        target = from_text("AutoTunnel-peer.alice.members.example")
        world.dns.change(host, Type.AAAA, IPv6Address("fd00::2").packed)
        world.dns.change(service_name(host), Type.SRV, srv_rdata(peers[0][1], target))
        world.dns.change(target, Type.A, IPv4Address("127.0.0.33").packed)
        before = world.dns.rrset(service_name(DOMAIN), Type.PTR)
        world.dns.change(service_name(DOMAIN), Type.PTR, *before, service_name(host))
        await until(lambda: agent.status().tunnels and agent.status().tunnels[0].rtt_ms is not None)
        (row,) = agent.status().tunnels
        assert (row.peer, row.inner, row.outer) == (
            "mini.alice.members.example.",
            "fd00::2",
            f"127.0.0.33:{peers[0][1]}",
        )
        world.dns.change(target, Type.A, IPv4Address("127.0.0.34").packed)
        world.dns.change(service_name(host), Type.SRV, srv_rdata(peers[1][1], target))
        await until(
            lambda: (
                agent.status().tunnels[0].outer == f"127.0.0.34:{peers[1][1]}"
                and agent.status().tunnels[0].rtt_ms is not None
            ),
            1.0,
        )
        assert world.dns.acks
        world.dns.change(service_name(DOMAIN), Type.PTR, *before)
        await until(lambda: not agent.status().tunnels)
    finally:
        for transport, _ in peers:
            transport.abort()


async def test_silent_peer_is_shown_as_silent(world):
    agent = await world.agent(watch={"hosts": ["mini"]})
    host = from_text("mini.alice.members.example")
    target = from_text("AutoTunnel-peer.alice.members.example")
    world.dns.change(target, Type.A, IPv4Address("127.0.0.35").packed)
    world.dns.change(service_name(host), Type.SRV, srv_rdata(9, target))
    world.dns.change(host, Type.AAAA, IPv6Address("fd00::2").packed)
    await until(lambda: agent.status().tunnels and agent.status().tunnels[0].is_silent)
    assert agent.status().tunnels[0].rtt_ms is None


async def test_clean_stop_deregisters_and_unmaps_and_leaves_no_task(world):
    agent = await world.agent()
    await until(lambda: world.told("published"))
    await agent.stop()
    assert world.dns.rrset("mac.alice.members.example", Type.AAAA) == set()
    assert world.dns.rrset(TUNNEL, Type.A) == world.dns.rrset(service_name(DOMAIN), Type.PTR) == set()
    assert world.gateway.requests[-1].lifetime == 0
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not names & {"publisher", "watcher", "polls", "channel", "client mac"}
    assert agent.status().nat_reason == "not running"


async def test_crash_tells_nobody(world):
    agent = await world.agent()
    await until(lambda: world.told("published"))
    await agent.abort()
    assert world.dns.rrset(TUNNEL, Type.A) == {OUTSIDE.packed}
    assert world.gateway.requests[-1].lifetime == 3600
    assert len(world.dns.updates) == 1


async def test_stop_ends_though_the_server_is_gone(world):
    agent = await world.agent(timing={"stop_timeout": 0.5, "registration_delay_max": 0})
    await until(lambda: world.told("published"))
    await world.dns.stop()
    begun = time.monotonic()
    await agent.stop()
    assert time.monotonic() - begun < 2


@pytest.mark.rfc("6281", "5.2")
@pytest.mark.rfc("8765", "7")
async def test_certificate_for_another_name_gets_no_update(world, certificates):
    _, _, (chain, private) = certificates
    await world.dns.stop()
    await world.dns.start(chain, private)
    await world.agent(dns={"server": f"{HERE}:{world.dns.port}", "ca_file": str(chain)})
    await until(lambda: world.told("update failed"))
    assert "ns.members.example" in world.told("update failed")[0]["reason"]
    assert world.dns.updates == []


@pytest.mark.rfc("8765", "7")
async def test_unpinned_certificate_gets_no_update(world, certificates):
    _, _, (chain, _) = certificates
    await world.agent(dns={"server": f"{HERE}:{world.dns.port}", "ca_file": str(chain)})
    await until(lambda: world.told("update failed"))
    assert "CERTIFICATE_VERIFY_FAILED" in world.told("update failed")[0]["reason"]
    assert world.dns.updates == []


@pytest.mark.rfc("6281", "7.2")
@pytest.mark.rfc("8945", "5.4")
async def test_unsigned_reply_is_not_believed(world):
    world.dns.signs = False
    agent = await world.agent()
    await until(lambda: world.told("update failed"))
    assert "not signed" in world.told("update failed")[0]["reason"]
    assert agent.status().lease_seconds_left is None


async def test_stream_that_breaks_is_opened_again(world):
    agent = await world.agent()
    await until(lambda: world.told("published") and any(s.state == "established" for s in agent.status().subscriptions))
    count = len(world.dns.subscriptions)
    for writer in list(world.dns.writers):
        writer.transport.abort()
    await until(lambda: len(world.dns.subscriptions) > count)


async def test_subscribes_over_udp_where_only_that_is_announced(world):
    del world.dns.data[from_text("_dns-llq-tls._udp")[:-1] + DOMAIN, Type.SRV]
    world.dns.announce_service("_dns-llq._udp", world.dns.port)
    agent = await world.agent()
    await until(lambda: any(item.state == "established" for item in agent.status().subscriptions))
    assert [bool(option.llq_id) for option in world.dns.datagram_setups] == [False, True]
    (name,) = [item.name for item in agent.status().subscriptions]
    assert name == "_autotunnel._udp.alice.members.example."
    host = from_text("mini.alice.members.example")
    world.dns.change(host, Type.AAAA, IPv6Address("fd00::2").packed)
    world.dns.change(service_name(DOMAIN), Type.PTR, service_name(host))
    await until(lambda: agent.status().tunnels)


async def test_polls_where_nothing_is_announced(world):
    del world.dns.data[from_text("_dns-llq-tls._udp")[:-1] + DOMAIN, Type.SRV]
    host = from_text("mini.alice.members.example")
    world.dns.change(host, Type.AAAA, IPv6Address("fd00::2").packed)
    agent = await world.agent(watch={"hosts": ["mini"]})
    await until(lambda: agent.status().tunnels)
    assert {item.state for item in agent.status().subscriptions} == {"polling"}


@pytest.mark.rfc("6886", "3")
@pytest.mark.rfc("6281", "3")
async def test_without_nat_our_own_address_is_published(world):
    agent = await world.agent(nat={"mode": "none"})
    await until(lambda: world.told("published"))
    assert agent.status().nat == "public"
    assert world.dns.rrset(TUNNEL, Type.A) == {IPv4Address(CLIENT).packed}
    (srv,) = world.dns.rrset("_autotunnel._udp.mac.alice.members.example", Type.SRV)
    assert agent.status().internal == f"{CLIENT}:{int.from_bytes(srv[4:6], 'big')}"
    assert world.gateway.requests == []


@pytest.mark.rfc("6281", "4.1")
@pytest.mark.parametrize(("private", "nat"), [(True, "mapped"), (False, "public")])
async def test_only_a_private_address_makes_a_client_ask_its_gateway(world, monkeypatch, private, nat):
    monkeypatch.setattr("client_stub.agent.is_rfc1918", lambda address: private)
    agent = await world.agent(nat={"mode": "auto"})
    await until(lambda: world.told("published"))
    assert (agent.status().nat, bool(world.gateway.requests)) == (nat, private)


@pytest.mark.rfc("6281", "4.1")
async def test_silent_gateway_host_means_a_public_network(world):
    world.gateway.transport.abort()
    await asyncio.sleep(0)
    agent = await world.agent()
    await until(lambda: world.told("published"))
    assert agent.status().nat == "public"


@pytest.mark.rfc("6281", "4.4.1")
async def test_nat_behind_nat_is_not_published(world):
    world.gateway.address = IPv4Address("192.168.1.1")
    agent = await world.agent()
    await until(lambda: world.told("outside"))
    await asyncio.sleep(0.1)
    assert (agent.status().nat, agent.status().external, world.dns.updates) == ("nat behind nat", None, [])


async def test_port_taken_is_one_clear_error(world):
    transport, port = await datagram_server(lambda data, addr: [], CLIENT)
    try:
        with pytest.raises(AgentError, match="in use"):
            await world.agent(machine={"internal_port": port})
    finally:
        transport.abort()


async def test_no_mac_is_one_clear_error(world):
    with pytest.raises(AgentError, match="set \\[machine\\] mac"):
        await world.agent(machine={"mac": None})


# The resolver alone


def resolver(world):
    return Resolver((IPv4Address(HERE), world.dns.port), IPv4Address(CLIENT), random.Random(1))


@pytest.mark.rfc("8945", "5.3")
@pytest.mark.rfc("7766", "5")
async def test_truncated_answer_is_asked_for_over_tcp(world):
    world.dns.truncates = True
    assert await resolver(world).answers(NS, Type.A) == [IPv4Address(HERE).packed]


@pytest.mark.rfc("7766", "7")
@pytest.mark.rfc("1035", "7.3")
async def test_noise_before_the_answer_is_ignored(world):
    question = Question(NS, Type.A, Class.IN)
    world.dns.noise = [b"", b"\0" * 5, encode(1, QR, (question,)), encode(2, QR, (Question(NS, 28, 1),))]
    assert await resolver(world).answers(NS, Type.A) == [IPv4Address(HERE).packed]


@pytest.mark.rfc("8765", "6.1")
@pytest.mark.rfc("8764", "4")
@pytest.mark.rfc("2782", "-")
@pytest.mark.rfc("6281", "5.3")
async def test_zone_and_services_are_found(world):
    found = resolver(world)
    assert await found.zone_of(from_text("mac.alice.members.example")) == ZONE
    service = await found.service(from_text("_dns-llq-tls._udp")[:-1] + DOMAIN)
    assert (service.target, service.addresses, service.port) == (NS, (IPv4Address(HERE),), world.dns.tls_port)
    assert await found.service(from_text("_nothing._udp")[:-1] + DOMAIN) is None


@pytest.mark.rfc("2782", "-")
async def test_of_several_services_the_first_with_an_address_is_taken(world):
    owner, far = (from_text(labels)[:-1] + DOMAIN for labels in ("_several._udp", "far"))
    several = ((20, 1, NS), (10, 2, NS), (0, 3, far))
    world.dns.change(owner, Type.SRV, *(struct.pack("!3H", order, 0, port) + to for order, port, to in several))
    service = await resolver(world).service(owner)
    assert (service.target, service.addresses, service.port) == (NS, (IPv4Address(HERE),), 2)


@pytest.mark.rfc("8945", "5.1")
async def test_signed_query_wants_a_signed_answer(world, monkeypatch):
    monkeypatch.setattr("client_stub.resolver.UDP_WAITS", (0.05, 0.05))
    assert await resolver(world).answers(NS, Type.A, KEY)
    world.dns.signs = False
    with pytest.raises(ResolveError):
        await resolver(world).answers(NS, Type.A, KEY)
