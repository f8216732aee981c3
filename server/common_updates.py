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
from protocol.tsig import MD5, Tsig, common_name, sign_common, verify_common
from server.authority import Authority
from server.keyring import Keyring, Principal
from server.metrics import Metrics
from server.peer import Peer
from server.policy import Grant
from server.quota import UpdateRates
from server.replays import Replays
from server.reply import UDP_PAYLOAD
from server.request import Refusal, Send
from server.system import Clock
from server.writer import Outcome, PendingUpdate, Writer
from server.zone.common_update import CommonUpdate, read_common_update
from server.zone.model import Actor
from server.zone.zone import Zones

Finish = Callable[[bytes, Peer, Principal, Tsig, float, Outcome, Send], None]
"""Tells the outcome of an update from its octets: what the dispatcher does for every other."""
LogUpdate = Callable[[bytes | None, Peer, Principal | None, float, Outcome], None]
"""Zone, peer, key, when it came, outcome."""

_FLAGS: Final = (b"\xa8\x00", b"\xa9\x00")  # a response to an UPDATE, NOERROR, by RD
_COUNTS: Final = (bytes.fromhex("0001000000000000"), bytes.fromhex("0001000000000001"))  # without and with OPT
_key_text = lru_cache(maxsize=4096)(to_text)


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
        log_update: LogUpdate,
    ) -> None:
        self._zones = zones
        self._keyring = keyring
        self._writer = writer
        self._replays = replays
        self._clock = clock
        self._metrics = metrics
        self._authority = authority
        self._rates = rates
        self._finish = finish
        self._log_update = log_update

    def take(self, wire: bytes, peer: Peer, send: Send) -> bool:
        """Whether `wire`, an UPDATE request, is being carried out; else nothing has happened."""
        read = read_common_update(wire)
        if read is None:
            return False
        update, lease, _, _, tsig_at = read
        zone = self._zones.at(update.apex)
        principal = self._keyring.find(common_name(wire, tsig_at))
        if zone is None or principal is None or principal.key.algorithm is MD5:
            return False
        unix = self._clock.unix()
        tsig = verify_common(wire, tsig_at, principal.key, now=unix)
        if tsig is None or self._replays.is_stale(tsig):
            return False
        leased = lease is not None and lease.lease > 0
        try:
            grant = self._authority.grant(principal, zone, update, leased=leased)
        except Refusal:
            return False
        if self._replays.begin(tsig, unix) is not True:
            return False
        at = self._clock.monotonic()
        try:
            self._rates.check(principal, grant, at)
        except Refusal:
            self._replays.forget(tsig)
            return False
        actor = Actor("update", _key_text(principal.key.name), peer.address)
        request = _Request(self, wire, peer, send, read, principal, tsig, at)
        pending = PendingUpdate(update.apex, update, lease, grant, actor, request.done, request.again)
        if not self._writer.submit(pending):
            self._replays.forget(tsig)
            return False
        self._keyring.note_use(tsig.key_name, unix)
        self._metrics.requests.common_updates += 1
        return True

    def again(self, request: "_Request") -> Grant:
        """Whether it may still be made, when keys or zones changed while it waited."""
        update, lease = request.read.update, request.read.lease
        return self._authority.again(request.principal, update, lease is not None and lease.lease > 0)

    def tell(self, request: "_Request", outcome: Outcome) -> None:
        """Send the reply: of one that was carried out at once, of a refused one by the long way."""
        wire, peer, principal = request.wire, request.peer, request.principal
        if outcome.rcode != Rcode.NOERROR:
            self._finish(wire, peer, principal, request.tsig, request.at, outcome, request.send)
            return
        dnssec_ok = request.read.dnssec_ok
        reply = b"".join(
            (
                wire[:2],
                _FLAGS[wire[2] & 1],
                _COUNTS[dnssec_ok is not None],
                wire[12 : request.read.zone_end],
                b"" if dnssec_ok is None else _opt(outcome.lease, dnssec_ok),
            )
        )
        signed = sign_common(reply, principal.key, now=self._clock.unix(), request_mac=request.tsig.mac)
        self._replays.finish(request.tsig, signed)
        self._metrics.update_seconds.observe(self._clock.monotonic() - request.at)
        self._log_update(request.read.update.apex, peer, principal, request.at, outcome)
        self._metrics.requests.count(peer.transport, Opcode.UPDATE, Rcode.NOERROR)
        request.send(signed)


class _Request:
    """What the reply needs once the writer is done."""

    __slots__ = ("at", "path", "peer", "principal", "read", "send", "tsig", "wire")

    def __init__(
        self,
        path: CommonUpdates,
        wire: bytes,
        peer: Peer,
        send: Send,
        read: CommonUpdate,
        principal: Principal,
        tsig: Tsig,
        at: float,
    ) -> None:
        self.path = path
        self.wire = wire
        self.peer = peer
        self.send = send
        self.read = read
        self.principal = principal
        self.tsig = tsig
        self.at = at

    def done(self, outcome: Outcome) -> None:
        self.path.tell(self, outcome)

    def again(self) -> Grant:
        return self.path.again(self)
