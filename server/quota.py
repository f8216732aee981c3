"""The bounds a rule puts on what a key's updates lead to: checked on the draft, before anything is written."""

from dataclasses import dataclass, field
from typing import Final

from protocol.constants import Ede, Rcode, Type
from protocol.name import to_text
from server.keyring import Principal
from server.policy import Grant
from server.request import Refusal
from server.zone.census import Census
from server.zone.draft import Draft
from server.zone.node import Node
from server.zone.zone import Zone

_MINUTE: Final = 60.0


@dataclass(slots=True)
class NamesInBatch:
    """Names that updates of a batch have made or taken away, by zone and member's domain, until the census hears."""

    changed: dict[tuple[bytes, bytes], int] = field(default_factory=dict)

    def note(self, zone: Zone, draft: Draft) -> None:
        for domain, more in _names_made(zone.census, draft).items():
            entry = (zone.apex, domain)
            self.changed[entry] = self.changed.get(entry, 0) + more


def check_quota(who: str, grant: Grant, draft: Draft, census: Census, batch: NamesInBatch) -> None:
    """Raise `Refusal` when an update's draft goes beyond its grant; what shrinks is always let through."""
    per_name, per_member, _ = grant.quota
    if per_name:
        for key, node in draft.touched.items():
            count = _records(draft, key, node)
            if count > per_name and count > _records(draft, key, draft.below(key)):
                raise _refused(
                    f"{who} may keep {per_name} records a name ({grant.rule}): {to_text(key)} would have {count}"
                )
    if per_member:
        for domain, more in _names_made(census, draft).items():
            count = census.count(domain) + batch.changed.get((draft.apex, domain), 0) + more
            if more > 0 and count > per_member:
                raise _refused(
                    f"{who} may keep {per_member} names ({grant.rule}): {to_text(domain)} would have {count}"
                )


def _records(draft: Draft, key: bytes, node: Node | None) -> int:
    """Records at a name; the NS of the zone itself are the service's."""
    if node is None:
        return 0
    return sum(
        len(rrset.rdatas) for rtype, rrset in node.rrsets.items() if not (key == draft.apex and rtype == Type.NS)
    )


def _names_made(census: Census, draft: Draft) -> dict[bytes, int]:
    made: dict[bytes, int] = {}
    for key, node in draft.touched.items():
        was = draft.below(key)
        if (node is None) is not (was is None):
            domain = census.domain_of(key)
            if domain is not None:
                made[domain] = made.get(domain, 0) + (1 if was is None else -1)
    return made


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class UpdateRates:
    """How many updates each key may still make now: a bucket that holds a minute's worth and fills evenly.

    Only keys of the keyring whose grant has a limit get one, so there are no more than keys.
    """

    def __init__(self) -> None:
        self._buckets: dict[bytes, _Bucket] = {}

    def check(self, principal: Principal, grant: Grant, now: float) -> None:
        """Count one update at the monotonic moment `now`; `Refusal` when the key has none left."""
        limit = grant.quota.updates_per_minute
        if not limit:
            return
        name, who = principal.key.name, principal.policy.who
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(limit, now)
        bucket.left = min(float(limit), bucket.left + (now - bucket.at) * limit / _MINUTE)
        bucket.at = now
        if bucket.left < 1:
            wait = (1 - bucket.left) * _MINUTE / limit
            raise _refused(f"{who} may make {limit} updates a minute ({grant.rule}): try again in {wait:.0f} s")
        bucket.left -= 1


def _refused(sentence: str) -> Refusal:
    return Refusal(Rcode.REFUSED, sentence, ede=Ede.PROHIBITED)
