"""The server put together: store, zones, keys, writer, push, listeners. Starts in order and stops in the reverse."""

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from protocol.name import from_text, to_text
from protocol.tsig import MD5
from server.catalog import ensure_catalog
from server.config import ServerSettings, split_host_port
from server.dispatch import Dispatcher
from server.fastpath import FastPath
from server.guard import Guard
from server.keyring import Keyring, Principal, principal_of
from server.members import ensure_service_zone
from server.metrics import Metrics
from server.monitor import Monitor
from server.peer import Peer
from server.policy import Policy, Rule
from server.pruning import prune_journal
from server.push.dso_service import DsoService
from server.push.service import PushService
from server.push.survival import SAVE_SECONDS
from server.querylog import QueryLog
from server.reload import merge
from server.service_settings import control_socket, service_of
from server.signed_queries import SignedQueries
from server.startup import (
    StartError,
    make_room_for_descriptors,
    plain,
    raise_guard,
    read_cookie_secrets,
    read_tls_context,
    stream_limits,
)
from server.status import status
from server.store.api import KeyRow, Store, StoreError
from server.store.sql import SqlStore
from server.system import Clock, Entropy, SystemClock, SystemEntropy
from server.transfer.notify import Notifier
from server.transfer.service import TransferService
from server.transport.ports import Alike, UdpListener
from server.transport.stream import StreamServer
from server.transport.udp import open_udp
from server.webhook.message import Refused, read_secret
from server.webhook.post import Poster, PostError
from server.webhook.service import WebhookService
from server.writer import Outcome, Writer, load_zone
from server.zone.leases import LeaseQueue
from server.zone.model import Change
from server.zone.zone import Zone, Zones

log = structlog.get_logger(__name__)

_LEASE_CLOCK: Final = "lease clock "  # and the node's name: what leases count from, in the store
POLL_SECONDS: Final = 0.5  # how soon another process's commit is noticed
KEY_USE_SECONDS: Final = 30.0  # how often the last use of keys is written
STOP_SECONDS: Final = 10.0
FREE_PORT_TRIES: Final = 20


class _Watchers:
    """Tells of streams to all who live on them: subscriptions, stateful sessions and transfers."""

    def __init__(self, push: PushService, dso: DsoService, transfers: TransferService) -> None:
        self._push = push
        self._dso = dso
        self._transfers = transfers

    def stream_closed(self, via: int) -> None:
        self._push.stream_closed(via)
        self._dso.stream_closed(via)
        self._transfers.stream_closed(via)

    def stream_paused(self, via: int) -> None:
        self._push.stream_paused(via)
        self._dso.stream_paused(via)
        self._transfers.stream_paused(via)

    def stream_resumed(self, via: int) -> None:
        self._push.stream_resumed(via)
        self._dso.stream_resumed(via)
        self._transfers.stream_resumed(via)

    def is_watching(self, via: int) -> bool:
        return self._push.is_watching(via) or self._dso.has_session(via)


class Server:
    """One authoritative server in this process."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        on_change: Callable[[Change], None] | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.entropy = entropy or SystemEntropy()
        self.metrics = Metrics()
        self.zones = Zones()
        self.metrics.watch_zones(self.zones)
        self.keyring = Keyring()
        self._rules: dict[bytes, tuple[Rule, ...]] = {}
        self._operations = 0
        self.policy = settings.policy.policy(from_text(settings.zone.name))
        self.leases = LeaseQueue(self.zones)
        self._watch_change = on_change
        self.guard = Guard()
        self.fast = FastPath(self.zones, self.clock, self.metrics.requests, self.guard)
        self.fast.answer_signed = SignedQueries(self.fast, self.keyring, self.metrics.requests).answer
        self._udp: dict[int, UdpListener] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self.failed = False
        self.tls_port: int | None = None
        self._listening: list[tuple[str, str, int]] = []
        self._started_at = int(self.clock.lease())
        self._to_notify: set[bytes] = set()
        self._changed_at: dict[bytes, int] = {}
        self._unready: str | None = "starting"
        self.monitor = Monitor(self.metrics, unready=lambda: self._unready, status=self.status)
        share = settings.log.queries
        self.queries = QueryLog(share, clock=self.clock, entropy=self.entropy) if share else None
        self.webhook: WebhookService | None = None
        self.store: Store
        self.writer: Writer
        self.push: PushService
        self.transfers: TransferService
        self.streams: StreamServer

    async def start(self) -> None:
        """Serve when it returns. `StartError` when it cannot, with nothing left behind."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        settings = self.settings
        tls = read_tls_context(settings.dns)
        cookie_secrets = read_cookie_secrets(settings.dns)
        poster = self._webhook_poster()
        await self._listen_metrics()
        try:
            self.store = await SqlStore.open(settings.database.url, settings.database.master_key_file)
            generation = await self.store.generation()
            await self._anchor_clock()
        except StoreError as error:
            raise StartError(str(error)) from None
        if poster is not None:
            self.webhook = self._webhook(*poster)
        self.push = PushService(
            settings.llq,
            zones=self.zones,
            keyring=self.keyring,
            clock=self.clock,
            entropy=self.entropy,
            metrics=self.metrics,
            send=self._send_events,
            event_listener=self._event_listener,
        )
        self.dso = DsoService(
            settings.push,
            zones=self.zones,
            clock=self.clock,
            metrics=self.metrics,
            send=self._send_on_stream,
            abort=self._abort_stream,
        )
        self.writer = Writer(
            zones=self.zones,
            store=self.store,
            clock=self.clock,
            leases=self.leases,
            limits=settings.lease,
            metrics=self.metrics,
            on_change=self._changed,
            on_node=self.fast.node_changed,
            on_zones=self._zones_changed,
            on_overtaken=self._overtaken,
        )
        self.transfers = TransferService(
            settings.transfer,
            zones=self.zones,
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            notifier=Notifier(
                settings.transfer,
                zones=self.zones,
                keyring=self.keyring,
                clock=self.clock,
                entropy=self.entropy,
                send=self._send,
                listener_for=self._notify_listener,
            ),
            streams=lambda: self.streams,
        )
        dispatcher = Dispatcher(
            zones=self.zones,
            keyring=self.keyring,
            writer=self.writer,
            push=self.push,
            clock=self.clock,
            metrics=self.metrics,
            allow_md5=settings.dns.allow_md5,
            minimum_mac=settings.dns.minimum_mac_octets,
            replay_window_seconds=settings.dns.replay_window_seconds,
            version=settings.dns.version,
            transfers=self.transfers,
            guard=self.guard,
            idle_seconds=lambda: self.streams.told_idle_seconds,
            dso=self.dso,
            on_refused=self._refused,
        )
        raise_guard(
            self.guard,
            settings.dns,
            cookie_secrets,
            clock=self.clock,
            entropy=self.entropy,
            metrics=self.metrics,
        )
        watchers = _Watchers(self.push, self.dso, self.transfers)
        handle = dispatcher.handle if self.queries is None else self.queries.over(dispatcher.handle)
        self.streams = StreamServer(handle, stream_limits(settings.dns), self.metrics, watchers)
        self.streams.tls_context = tls
        make_room_for_descriptors(settings.dns.tcp_connections)
        await self._load()
        await self._load_keys()
        try:
            await self.push.restore(self.store, [*settings.dns.listen, *settings.dns.listen_tls])
        except StoreError as error:
            raise StartError(str(error)) from None
        await self._listen(dispatcher)
        await self._publish_service()
        await self.writer.catch_up()
        await self._load_keys()
        self._warn_of_md5()
        await self.writer.lapse_due()
        await self._listen_control()
        self.transfers.begin()
        self.push.begin()
        if self.webhook is not None:
            self._spawn("webhook", self.webhook.run())
        self._spawn("writer", self.writer.run())
        self._spawn("follow", self._follow(generation))
        self._spawn("key use", self._write_key_use())
        self._spawn(
            "pruning",
            prune_journal(self.store, settings.journal, clock=self.clock, metrics=self.metrics, pause=self._pause),
        )
        self._spawn("subscriptions", self._save_subscriptions())
        self._unready = None

    async def _anchor_clock(self) -> None:
        """Count leases from where the last process on this machine did, whatever was done to the clock since."""
        name = _LEASE_CLOCK + self.settings.llq.node
        stored = await self.store.meta(name)
        if stored is not None:
            self.clock.follow(stored)
        if stored != self.clock.anchor():
            async with self.store.transaction() as transaction:
                await transaction.set_meta(name, self.clock.anchor())

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._root(name, work), name=name))

    async def _root(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Root of a worker: a fault of ours is logged and counted, and stops the server, never silently the worker."""
        try:
            await work
        except Exception:
            self.metrics.faults.labels(name).inc()
            log.exception("worker failed, stopping", worker=name)
            self.failed = True
            self._stopping.set()

    async def wait(self) -> bool:
        """Until `request_stop` or a worker's fault; True when it was asked for."""
        await self._stopping.wait()
        return not self.failed

    def request_stop(self) -> None:
        self._stopping.set()

    async def stop(self) -> None:
        """Listeners first, then the queue is written, then streams, then the store."""
        self._stopping.set()
        self._unready = "stopping"
        for listener in self._udp.values():
            listener.pause()
        if hasattr(self, "writer"):
            self.writer.stop()
        if self.webhook is not None:
            self.webhook.stop()
        for task in self._tasks:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await task
            except TimeoutError:
                log.error("worker did not end in time", worker=task.get_name())
        self._tasks.clear()
        if hasattr(self, "push"):
            self.push.close()
            self.dso.close()
        if hasattr(self, "transfers"):
            await self.transfers.close()
        if hasattr(self, "streams"):
            await self.streams.close()
        for listener in self._udp.values():
            listener.close()
        self.monitor.close()
        if hasattr(self, "push"):
            await self.push.save()
        if hasattr(self, "store"):
            await self._flush_key_use()
            await self.store.close()

    async def _load(self) -> None:
        for row in await self.store.load_zones():
            self.zones.add(await load_zone(self.store, row, self.leases))

    async def _listen(self, dispatcher: Dispatcher) -> None:
        for number, text in enumerate(self.settings.dns.listen):
            address, port = split_host_port(text)
            try:
                listener = await self._open_pair(number, address, port, dispatcher)
            except OSError as error:
                raise StartError(f"cannot listen on {text}: {plain(error)}") from None
            self._listening += [("udp", address, listener.port), ("tcp", address, listener.port)]
        for number, text in enumerate(self.settings.dns.listen_tls, len(self.settings.dns.listen)):
            address, port = split_host_port(text)
            try:
                bound = await self.streams.listen(address, port, is_tls=True)
            except OSError as error:
                raise StartError(f"cannot listen on {text} (tls): {plain(error)}") from None
            self.tls_port = self.tls_port or bound
            self._listening.append(("tls", address, bound))
            try:
                # Apple's clients acknowledge events of a TLS stream by UDP to the TLS port's number
                self._udp[number] = await self._open_udp(number, address, bound, dispatcher)
            except OSError as error:
                log.warning("no UDP beside the TLS port", port=bound, error=str(error))

    async def _open_pair(self, number: int, address: str, port: int, dispatcher: Dispatcher) -> UdpListener:
        """UDP and TCP on one port; for port 0 on one that is free for both."""
        tries = 1 if port else FREE_PORT_TRIES
        while True:
            listener = self._udp[number] = await self._open_udp(number, address, port, dispatcher)
            tries -= 1
            try:
                await self.streams.listen(address, listener.port)
            except OSError:
                if not tries:
                    raise
                listener.close()
                del self._udp[number]
            else:
                return listener

    async def _open_udp(self, number: int, address: str, port: int, dispatcher: Dispatcher) -> UdpListener:
        return await open_udp(number, address, port, dispatcher.handle, self.fast, self.metrics, self.queries)

    @property
    def port(self) -> int:
        """The first listener's port."""
        return self._udp[0].port

    def listening(self) -> list[tuple[str, str, int]]:
        """(kind, address, port) of every listener, with the ports that were taken for port 0."""
        return list(self._listening)

    async def _publish_service(self) -> None:
        """The service zone, its name server and every discovery name, as the listeners now are."""
        service = service_of(self.settings, self.port, self.tls_port)
        try:
            now = int(self.clock.lease())
            await ensure_service_zone(self.store, service, now=now)
            catalog = self.settings.transfer.catalog
            await ensure_catalog(self.store, None if catalog is None else from_text(catalog), now=now)
        except (StoreError, ValueError) as error:
            raise StartError(str(error)) from None

    async def reconfigure(self, read: ServerSettings) -> list[str]:
        """Take over certificate, keys, policy and limits of a configuration; what it names besides needs a restart.

        All or nothing: `StartError` when a part of it cannot be had, and then nothing has changed.
        """
        settings, waiting = merge(self.settings, read)
        tls = read_tls_context(settings.dns)
        secrets = read_cookie_secrets(settings.dns)
        policy = settings.policy.policy(from_text(settings.zone.name))
        try:
            keys = await self._read_keys(policy)
        except StoreError as error:
            raise StartError(str(error)) from None
        self.settings, self.policy = settings, policy
        self._take_keys(*keys)
        self.push.recheck(keys=self.keyring.names())
        self.streams.tls_context = tls
        self.streams.replace(stream_limits(settings.dns))
        self.transfers.replace(settings.transfer)
        raise_guard(self.guard, settings.dns, secrets, clock=self.clock, entropy=self.entropy, metrics=self.metrics)
        make_room_for_descriptors(settings.dns.tcp_connections)
        self._warn_of_md5()
        return waiting

    async def reload(self) -> None:
        """Take over what was committed past the writer: members, keys, zones. Done when it is served."""
        await self._load_keys()
        await self.writer.follow()

    def _zones_changed(self, fresh: Sequence[Zone]) -> None:
        private = [zone.apex for zone in fresh if zone.is_private]
        if private:
            self.push.recheck(apexes=private)

    async def _overtaken(self) -> None:
        """Another process committed first: perhaps another server its updates, perhaps an operator."""
        if await self.store.operations() != self._operations:
            await self._load_keys()

    async def _load_keys(self) -> None:
        """Take over keys and their rules; what rested on those that hold no more ends."""
        operations = await self.store.operations()  # before reading: what is done meanwhile shows the next time
        self._take_keys(*await self._read_keys(self.policy))
        self._operations = operations

    async def _read_keys(self, policy: Policy) -> tuple[list[KeyRow], list[Principal]]:
        """Those that are valid, and what each may do."""
        unix = self.clock.unix()
        members = {member.id: member for member in await self.store.members()}
        rows = [
            row
            for row in await self.store.keys()
            if row.is_valid(unix) and (row.member_id is None or row.member_id in members)
        ]
        return rows, [principal_of(row, members, policy) for row in rows]

    def _take_keys(self, rows: list[KeyRow], principals: list[Principal]) -> None:
        before, rules = self.keyring.keys(), self._rules
        self.keyring.replace(principals)
        if self.webhook is not None:
            self.webhook.keys(rows)
        self._rules = own = {row.key.name: row.rules for row in rows if row.rules}
        self.writer.keys_changed()
        after = self.keyring.keys()
        for name, key in before.items():
            if after.get(name) != key:
                self.push.revoke_key(name)
        others = {name for name in own if rules.get(name) != own[name]}
        if others:
            self.push.recheck(keys=others)

    def _warn_of_md5(self) -> None:
        keys = [to_text(name) for name in sorted(self.keyring.names()) if self._is_md5(name)]
        if self.settings.dns.allow_md5:
            log.warning("hmac-md5 is accepted, which RFC 8945 forbids: [dns] allow_md5", keys=len(keys))
        elif keys:
            log.warning("keys with hmac-md5 are refused: [dns] allow_md5 is off", keys=" ".join(keys[:10]))

    def _is_md5(self, name: bytes) -> bool:
        principal = self.keyring.find(name)
        return principal is not None and principal.key.algorithm is MD5

    async def _follow(self, generation: int) -> None:
        """Notice what the command line and other nodes commit."""
        while not await self._pause(POLL_SECONDS):
            try:
                if self.keyring.next_expiry is not None and self.keyring.next_expiry <= self.clock.unix():
                    await self._load_keys()
                seen = await self.store.generation()
                self._unready = None
                if seen == generation:
                    continue
                generation = seen
                await self._load_keys()
                self.writer.follow()
            except StoreError as error:
                self.metrics.store_errors.inc()
                self._unready = "the database does not answer"
                log.error("cannot follow the database", error=str(error))

    async def _save_subscriptions(self) -> None:
        while not await self._pause(SAVE_SECONDS):
            await self.push.save()

    async def _write_key_use(self) -> None:
        while not await self._pause(KEY_USE_SECONDS):
            await self._flush_key_use()

    async def _flush_key_use(self) -> None:
        used = self.keyring.take_uses()
        if not used:
            return
        try:
            await self.store.touch_keys(used)
        except StoreError as error:
            self.metrics.store_errors.inc()
            log.error("cannot note key use", error=str(error))

    async def _pause(self, seconds: float) -> bool:
        """Wait; True when the server is stopping."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _webhook_poster(self) -> tuple[Poster, bytes] | None:
        """What the webhook needs from outside, looked for before anything else starts."""
        settings = self.settings.webhook
        if settings.url is None or settings.secret_file is None:
            return None
        try:
            secret = read_secret(settings.secret_file.read_text())
            poster = Poster(settings.url, settings.ca_file)
        except OSError as error:
            raise StartError(f"cannot read {settings.secret_file}: {plain(error)}") from None
        except ValueError as error:
            raise StartError(f"{settings.secret_file} {error}") from None
        except PostError as error:
            raise StartError(str(error)) from None
        if settings.url.startswith("http:"):
            log.warning("webhook over http: what it tells can be read on the way", url=settings.url)
        return poster, secret

    def _webhook(self, poster: Poster, secret: bytes) -> WebhookService:
        return WebhookService(
            self.settings.webhook,
            secret,
            store=self.store,
            zones=self.zones,
            clock=self.clock,
            entropy=self.entropy,
            metrics=self.metrics,
            post=poster,
        )

    def _refused(self, zone: bytes | None, peer: Peer, principal: Principal, outcome: Outcome) -> None:
        if self.webhook is not None:
            at, who = self.clock.unix(), f"{peer.address}#{peer.port}"
            self.webhook.refused(Refused(at, zone, principal.key.name, who, outcome.rcode, outcome.reason))

    async def _listen_metrics(self) -> None:
        """First of all, so that those who watch see a start that takes long."""
        if self.settings.metrics.listen:
            address, port = split_host_port(self.settings.metrics.listen)
            try:
                bound = await self.monitor.listen(address, port)
            except OSError as error:
                raise StartError(f"cannot listen on {address}:{port} (metrics): {plain(error)}") from None
            self._listening.append(("metrics", address, bound))

    async def _listen_control(self) -> None:
        path = control_socket(self.settings)
        if path is None:
            return
        try:
            await self.monitor.listen_socket(path)
        except OSError as error:
            if self.settings.control.socket is not None:
                raise StartError(f"cannot listen on {path} (control): {plain(error)}") from None
            log.warning("no control socket, homing status will not work", path=str(path), error=plain(error))

    def status(self) -> dict[str, Any]:
        """What `homing status` shows."""
        return status(
            zones=self.zones,
            changed_at=self._changed_at,
            leases=self.leases,
            metrics=self.metrics,
            told=self.transfers.told,
            subscriptions=self.push.subscriptions,
            streams=self.streams.count(),
            started_at=self._started_at,
            now=int(self.clock.lease()),
            unready=self._unready,
            webhook=None if self.webhook is None else self.webhook.status(),
        )

    def _changed(self, change: Change) -> None:
        self.fast.changed(change)
        self.push.publish(change)
        self.dso.publish(change)
        if not self._to_notify:  # once for all changes of a batch
            asyncio.get_running_loop().call_soon(self._notify)
        self._to_notify.add(change.apex)
        if self.webhook is not None:
            self.webhook.wake()
        if change.serial_to:
            self._changed_at[change.apex] = change.at
        else:
            self._changed_at.pop(change.apex, None)
        if self._watch_change is not None:
            self._watch_change(change)

    def _notify(self) -> None:
        """Tell secondaries of the zones that changed in this turn of the loop."""
        changed, self._to_notify = self._to_notify, set()
        for apex in changed:
            self.transfers.publish(apex)

    def _send_events(self, peers: Sequence[Peer], alike: Alike) -> None:
        """Send events where their subscriptions live; a stream that is gone has told the machine so already."""
        if peers[0].transport != "udp":
            for peer, wire in zip(peers, alike.each(), strict=True):
                self.streams.send(peer, wire)
        elif peers[0].via in self._udp:
            self._udp[peers[0].via].send(peers, alike)

    def _send(self, peer: Peer, wire: bytes) -> None:
        self._send_events((peer,), Alike(wire))

    def _send_on_stream(self, via: int, wire: bytes) -> None:
        connection = self.streams.connections.get(via)
        if connection is not None:
            connection.send(wire)

    def _abort_stream(self, via: int) -> None:
        connection = self.streams.connections.get(via)
        if connection is not None:
            connection.abort()

    def _notify_listener(self, host: str) -> int:
        """The UDP listener for a secondary at this address: of its family, on loopback when it is there."""
        target = ipaddress.ip_address(host)
        found = 0
        best = -1
        for number, text in enumerate(self.settings.dns.listen):
            ours = ipaddress.ip_address(split_host_port(text)[0])
            fits = -1 if ours.version != target.version else int(ours.is_loopback == target.is_loopback)
            if fits > best:
                found, best = number, fits
        return found

    def _event_listener(self, peer: Peer) -> int | None:
        """The UDP listener from which a stream's client can be reached at its event port."""
        connection = self.streams.connections.get(peer.via)
        port = connection.local_port if connection else None
        return next((number for number, listener in self._udp.items() if listener.port == port), 0)
