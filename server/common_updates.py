"""The short way of an UPDATE in its common form: the stages of `dispatch`, from octets to octets.

It decides nothing of its own. Stages are the same functions, and whatever is not plainly fine - another form, a
signature that does not hold, a refusal by policy, a repetition, a full queue - is left to the dispatcher, which starts
anew from the octets; so is the reply to an update that the writer refused. `tests/property/test_common_update.py`
holds both ways to the same replies and the same zone.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from protocol.constants import Opcode, Rcode
from protocol.edns import Opt, UpdateLease
from protocol.name import to_text
from protocol.tsig import MD5, Tsig, common_name, sign_reply, verify_common
from server.authority import Authority
from server.keyring import Keyring, Principal
from server.lines import LineBudget
from server.metrics import Metrics
from server.peer import Peer
from server.policy import Grant
from server.quota import UpdateRates
from server.replays import Replays
from server.reply import UDP_PAYLOAD
from server.request import Refusal, Send
from server.system import Clock
from server.writer import Outcome, Writer
from server.zone.common_update import CommonUpdate, read_common_update
from server.zone.model import Actor
from server.zone.update import Update
from server.zone.zone import Zones

Finish = Callable[[bytes, Peer, Principal, Tsig, float, Outcome, Send], None]
"""Tells the outcome of an update from its octets: what the dispatcher does for every other."""
LogUpdate = Callable[[bytes | None, Peer, Principal | None, float, Outcome], None]
"""Zone, peer, key, how long it took in seconds, outcome."""

_UPDATE, _NOERROR = int(Opcode.UPDATE), int(Rcode.NOERROR)  # enumerations are slow to reach
_FLAGS: Final = (b"\xa8\x00", b"\xa9\x00")  # a response to an UPDATE, NOERROR, by RD
_COUNTS: Final = (bytes.fromhex("0001000000000000"), bytes.fromhex("0001000000000001"))  # without and with OPT


@lru_cache(maxsize=4096)
def _actor(key_name: bytes, address: str) -> Actor:
    return Actor("update", to_text(key_name), address)


@lru_cache(maxsize=64)
def _opt(lease: UpdateLease | None, dnssec_ok: bool) -> bytes:
    options = () if lease is None else (lease.encode(),)
    return Opt(UDP_PAYLOAD, 0, 0, dnssec_ok, options).encode()


class CommonUpdates:
    """Takes the updates it can; `finish` tells refusals of the writer."""

    def __init__(
        self,
        *,
        zones: Zones,
        keyring: Keyring,
        writer: Writer,
        replays: Replays,
        clock: Clock,
        metrics: Metrics,
        authority: Authority,
        rates: UpdateRates,
        finish: Finish,
        lines: LineBudget,
        log_update: LogUpdate,
    ) -> None:
        self._zone_at = zones.by_apex.get
        self._keyring = keyring
        self._writer = writer
        self._replays = replays
        self._clock = clock
        self._metrics = metrics
        self._authority = authority
        self._rates = rates
        self._finish = finish
        self._lines = lines
        self._log_update = log_update

    def take(self, wire: bytes, peer: Peer, send: Send, at: float) -> bool:
        """Whether `wire`, an UPDATE request that came `at`, is being carried out; else nothing has happened."""
        read = read_common_update(wire)
        if read is None:
            return False
        update, lease, _, _, tsig_at = read
        zone = self._zone_at(update.apex)
        principal = self._keyring.find(common_name(wire, tsig_at))
        if zone is None or principal is None or principal.key.algorithm is MD5:
            return False
        unix = self._clock.unix()
        tsig = verify_common(wire, tsig_at, principal.key, now=unix)
        if tsig is None or self._replays.is_stale(tsig):
            return False
        try:
            grant = self._authority.grant(principal, zone, update, leased=lease is not None and lease.lease > 0)
        except Refusal:
            return False
        if self._replays.begin(tsig, unix) is not True:
            return False
        try:
            self._rates.check(principal, grant, at)
        except Refusal:
            self._replays.forget(tsig)
            return False
        if not self._writer.submit(_Request(self, wire, peer, send, read, principal, tsig, grant, at)):
            self._replays.forget(tsig)
            return False
        self._keyring.note_use(tsig.key_name, unix)
        self._metrics.requests.common_updates += 1
        return True

    def again(self, principal: Principal, update: Update, lease: UpdateLease | None) -> Grant:
        """Whether it may still be made, when keys or zones changed while it waited."""
        return self._authority.again(principal, update, lease is not None and lease.lease > 0)

    def tell(self, request: "_Request", outcome: Outcome) -> None:
        """Send the reply: of one that was carried out at once, of a refused one by the long way."""
        wire, peer, principal, at = request.wire, request.peer, request.principal, request.at
        if outcome.rcode != _NOERROR:
            self._finish(wire, peer, principal, request.tsig, at, outcome, request.send)
            return
        update, _, zone_end, dnssec_ok, _ = request.read
        message_id, zone, key = wire[:2], wire[12:zone_end], principal.key
        if dnssec_ok is None:
            reply = _FLAGS[wire[2] & 1] + _COUNTS[0] + zone
        else:
            reply = b"".join((_FLAGS[wire[2] & 1], _COUNTS[1], zone, _opt(outcome.lease, dnssec_ok)))
        mac = key.size_octets + request.tsig.mac
        signed = message_id + sign_reply(message_id, reply, key, now=self._clock.unix(), request_mac=mac)
        self._replays.finish(request.tsig, signed)
        metrics, now = self._metrics, self._clock.monotonic()
        metrics.update_seconds.observe(now - at)
        if self._lines.take(now):
            self._log_update(update.apex, peer, principal, now - at, outcome)
        metrics.requests.count(peer.transport, _UPDATE, _NOERROR)
        request.send(signed)


class _Request:
    """Keeps `writer.Pending`, with what the reply needs once the writer is done."""

    __slots__ = (
        *("actor", "apex", "at", "authorised_in", "grant", "lease", "path", "peer", "principal"),
        *("read", "send", "tsig", "update", "wire"),
    )

    def __init__(
        self,
        path: CommonUpdates,
        wire: bytes,
        peer: Peer,
        send: Send,
        read: CommonUpdate,
        principal: Principal,
        tsig: Tsig,
        grant: Grant,
        at: float,
    ) -> None:
        self.path = path
        self.wire = wire
        self.peer = peer
        self.send = send
        self.read = read
        self.update, self.lease, _, _, _ = read
        self.apex = self.update.apex
        self.principal = principal
        self.tsig = tsig
        self.grant = grant
        self.at = at
        self.actor = _actor(tsig.key_name, peer.address)
        self.authorised_in = 0

    def done(self, outcome: Outcome) -> None:
        self.path.tell(self, outcome)

    def again(self) -> Grant:
        return self.path.again(self.principal, self.update, self.lease)
