"""May this key make this update of this zone: asked when it comes, and again when something changed while it waited.

Between the moment an update is let in and its commit, another process may revoke the key, narrow it, or make a member
private. The writer notices when its commit is overtaken; what waits is then asked for again before a second try.
"""

from typing import Final

from protocol.constants import Ede, Rcode, Type
from protocol.name import to_text
from server.authz import may_update
from server.keyring import Keyring, Principal
from server.policy import Grant
from server.request import Refusal
from server.zone.update import Update
from server.zone.zone import Zone, Zones

_AT_A_CUT: Final = (Type.NS, Type.DS)


class Authority:
    """Policy on the zones and keys of now."""

    def __init__(self, zones: Zones, keyring: Keyring) -> None:
        self._zones = zones
        self._by_apex = zones.by_apex
        self._keyring = keyring

    def grant(self, principal: Principal, zone: Zone, update: Update, *, leased: bool) -> Grant:
        """What the update runs under; `Refusal` when it may not be made. `leased`: it asks for an update lease."""
        self._check_zone(zone, update)
        return may_update(principal, zone, update, leased=leased)

    def again(self, principal: Principal, update: Update, leased: bool) -> Grant:
        """The same on what is known now of its key and zone."""
        known = self._keyring.find(principal.key.name)
        if known is None or known.key != principal.key:
            who = f"key {to_text(principal.key.name)}"
            raise Refusal(Rcode.REFUSED, f"{who} holds no more", ede=Ede.PROHIBITED)
        zone = self._zones.at(update.apex)
        if zone is None:
            raise Refusal(Rcode.NOTAUTH, f"zone {to_text(update.apex)} is gone", ede=Ede.NOT_AUTHORITATIVE)
        return self.grant(known, zone, update, leased=leased)

    def _check_zone(self, zone: Zone, update: Update) -> None:
        """NOTZONE for a name that lies in a deeper zone of ours: the parent has no say there (RFC 2136 §3.4.1).

        At the cut itself only what delegates is the parent's, so that no "delete all of this name" unhooks the zone.
        """
        if len(self._by_apex) == 1:
            return
        for key, rtype in update.touched:
            deeper = self._zones.enclosing(key)
            if deeper is None or deeper is zone or (key == deeper.apex and rtype in _AT_A_CUT):
                continue
            raise Refusal(Rcode.NOTZONE, f"{to_text(key)} is in zone {to_text(deeper.apex)}, send it there")
