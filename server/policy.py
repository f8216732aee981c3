"""What a key may do, as data: rules, the order in which they are looked at, and the sentence that tells the outcome.

The first rule that matches decides. For one key they stand in this order: the service's own names, which no member
changes; the rules of the configuration, as written; the key's own rules; the default of its kind, unless it has rules
of its own. What no rule matches is refused. A key with rules of its own is narrowed: a rule of the configuration that
allows reaches it only when it names the key without a wildcard, so that no broad rule widens it again by accident.

Pure: rules are compiled once for each key, when keys are loaded. Nothing here looks at what a zone holds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from protocol.constants import Type, type_text
from protocol.name import ROOT, fold, from_text, is_at_or_below, label_starts, to_text
from server.discovery import is_discovery_name

NOT_FOR_MEMBERS: Final = frozenset(
    (
        *(Type.SOA, Type.NS, Type.DNAME, Type.SIG, Type.KEY, Type.NXT, Type.DS, Type.RRSIG, Type.NSEC),
        *(Type.DNSKEY, Type.NSEC3, Type.NSEC3PARAM, Type.CDS, Type.CDNSKEY),
    )
)
"""Types that a rule without `types` does not let anyone but an administrator change."""
TARGET_TYPES: Final = frozenset((Type.PTR, Type.CNAME, Type.SRV))
_SRV_TARGET: Final = 6  # octets of an SRV's rdata before its target


class Action(StrEnum):
    """What is asked for."""

    QUERY = "query"
    UPDATE = "update"
    TRANSFER = "transfer"
    LLQ = "llq"


class Match(StrEnum):
    """How a rule's `owner` is compared with an owner name."""

    SELF = "self"
    """The key's own name."""
    SUBTREE = "subtree"
    """The name and all below it; without `owner` the member's domain."""
    PATTERN = "pattern"
    """Label by label; `*` stands for any part of one label, a label `**` for any number of labels, none too."""
    ZONE = "zone"
    """Any name in the zone of that apex, not in those delegated from it; without `owner` in any zone."""


class Lease(StrEnum):
    """Whether an update that adds must bring an update lease."""

    REQUIRED = "required"
    OPTIONAL = "optional"


class Quota(NamedTuple):
    """Bounds on what a key's updates lead to; None: as the service's default, 0: none."""

    records_per_name: int | None = None
    names_per_member: int | None = None
    updates_per_minute: int | None = None

    def over(self, default: "Quota") -> "Quota":
        return Quota(*(theirs if ours is None else ours for ours, theirs in zip(self, default, strict=True)))

    @property
    def is_any(self) -> bool:
        return any(self)


NO_QUOTA: Final = Quota(0, 0, 0)
UNSET: Final = Quota()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as written. `owner` and `target` are absolute names in text; `types` None: every type a user has.

    `target`: only records of type PTR, CNAME and SRV that point at or below this name. `default_lease`: seconds that an
    add without the option is granted where the lease is optional; 0 makes it permanent.
    """

    actions: frozenset[Action]
    allow: bool = True
    match: Match = Match.SUBTREE
    owner: str | None = None
    types: frozenset[int] | None = None
    target: str | None = None
    lease: Lease | None = None
    default_lease: int = 0
    quota: Quota = UNSET

    def text(self) -> str:
        """In words: what explain and refusals call it."""
        types = "" if self.types is None else " of " + ", ".join(sorted(map(type_text, self.types)))
        said = ", ".join(action.value for action in Action if action in self.actions)
        words = f"{'allow' if self.allow else 'deny'} {said}{types} {self._where()}"
        if self.target is not None:
            words += f" pointing to {self.target} and below"
        if self.lease is Lease.OPTIONAL:
            words += f", without a lease {f'{self.default_lease} s' if self.default_lease else 'permanent'}"
        for name, limit in zip(("records a name", "names", "updates a minute"), self.quota, strict=True):
            if limit:
                words += f", at most {limit} {name}"
        return words

    def _where(self) -> str:
        if self.match is Match.SELF:
            return "at the key's own name"
        if self.match is Match.ZONE:
            return f"in zone {self.owner}" if self.owner else "in any zone"
        if self.match is Match.PATTERN:
            return f"at {self.owner}"
        return f"at {self.owner} and below" if self.owner else "in the member's domain"


@dataclass(frozen=True, slots=True)
class SiteRule:
    """A rule of the configuration: the keys it is for, as patterns of key names, and what it is called."""

    label: str
    keys: tuple[str, ...]
    rule: Rule

    def is_for(self, key_name: bytes, *, is_narrowed: bool) -> bool:
        """A narrowed key is widened only by a rule that names it outright."""
        return any(
            pattern_matches(pattern_of(text), key_name)
            for text in self.keys
            if not (is_narrowed and self.rule.allow and "*" in text)
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for all keys: the configuration's rules in order, and the quota of members without another."""

    rules: tuple[SiteRule, ...] = ()
    quota: Quota = NO_QUOTA


NO_POLICY: Final = Policy()


# --- owner patterns ---

_Label = tuple[bytes, bytes] | bytes | None  # prefix and suffix around a `*`; a whole label; None for `**`


def pattern_of(text: str) -> tuple[_Label, ...]:
    """Compile a pattern in text; `ValueError` for what is no name, two `*` in a label, or two labels `**`."""
    name = fold(from_text(text))
    labels: list[_Label] = []
    for start in label_starts(name):
        label = name[start + 1 : start + 1 + name[start]]
        if label == b"**":
            if None in labels:
                raise ValueError(f"pattern {text!r}: a label ** may stand in it once")
            labels.append(None)
        elif label.count(b"*") > 1:
            raise ValueError(f"pattern {text!r}: a label may have one *")
        elif b"*" in label:
            before, _, after = label.partition(b"*")
            labels.append((before, after))
        elif label:
            labels.append(label)
    return tuple(labels)


def pattern_matches(pattern: Sequence[_Label], name: bytes) -> bool:
    """Whether a folded name has the form of a compiled pattern."""
    labels = [name[start + 1 : start + 1 + name[start]] for start in label_starts(name)][:-1]
    if None not in pattern:
        return len(pattern) == len(labels) and all(map(_label_matches, pattern, labels))
    cut = pattern.index(None)
    after = len(pattern) - cut - 1
    return (
        len(labels) >= cut + after
        and all(map(_label_matches, pattern[:cut], labels))
        and all(map(_label_matches, pattern[cut + 1 :], labels[len(labels) - after :]))
    )


def _label_matches(wanted: _Label, label: bytes) -> bool:
    if not isinstance(wanted, tuple):
        return wanted == label
    before, after = wanted
    return len(label) >= len(before) + len(after) and label.startswith(before) and label.endswith(after)


# --- one key's rules, compiled ---

_Where = Callable[[bytes, bytes], bool]  # of the zone's apex and the owner name, both folded


@dataclass(frozen=True, slots=True)
class Grant:
    """What an allowed update runs under. `default_lease`: seconds for adds without the option, 0 permanent."""

    default_lease: int = 0
    quota: Quota = NO_QUOTA
    rule: str = ""
    bounds_content: bool = field(init=False)
    """Whether the draft must be looked at, not only the rate."""

    def __post_init__(self) -> None:
        bounds_content = bool(self.quota.records_per_name or self.quota.names_per_member)
        object.__setattr__(self, "bounds_content", bounds_content)


UNLIMITED: Final = Grant()


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A rule ready to be asked. `label` says where it stands; `types` None: all; `quota` has no None left."""

    label: str
    rule: Rule
    where: _Where
    types: frozenset[int] | None
    not_types: frozenset[int]
    target: bytes | None
    quota: Quota
    grant: Grant

    def is_of_type(self, rtype: int) -> bool:
        return rtype not in self.not_types if self.types is None else rtype in self.types

    def points_well(self, rtype: int, rdata: bytes) -> bool:
        """Whether the one record at hand points where the rule wants it; never true of a whole RRset (no rdata)."""
        if self.target is None:
            return True
        if rtype not in TARGET_TYPES or not rdata:
            return False
        return is_at_or_below(fold(rdata[_SRV_TARGET:] if rtype == Type.SRV else rdata), self.target)

    def text(self) -> str:
        return f"{self.label}: {self.rule.text()}"


def grant_of(rules: Iterable[Compiled]) -> Grant:
    """The strictest of all rules that let parts of one update in."""
    rules = tuple(dict.fromkeys(rules))
    lease, limits, labels = 0, [0, 0, 0], []
    for rule in rules:
        if rule.rule.default_lease:
            lease = min(lease or rule.rule.default_lease, rule.rule.default_lease)
        for index, limit in enumerate(rule.quota):
            if limit:
                limits[index] = min(limits[index] or limit, limit)
        labels.append(rule.label)
    return Grant(lease, Quota(*limits), ", ".join(labels))


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome and its sentence: what the peer reads in the EDE, the operator in the log and from `explain`."""

    allowed: bool
    sentence: str
    rule: Compiled | None = None


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """All that holds for one key (`key_name` and `domain` folded; `domain` None for an administrator's).

    `is_plain`: nothing but the default of its kind, so that a caller may take the short way.
    """

    key_name: bytes
    domain: bytes | None
    rules: tuple[Compiled, ...]
    is_narrowed: bool
    is_plain: bool
    default_grant: Grant
    who: str

    def rule_for(self, action: Action, apex: bytes, key: bytes, rtype: int, rdata: bytes = b"") -> Compiled | None:
        """The rule that decides on an owner name (folded) in the zone at `apex`; None: no rule, so refused.

        A query for SOA is held to no rule's types: it is how a client finds the zone of a name it may change.
        """
        if action is Action.UPDATE:
            if self.domain is not None and is_discovery_name(key, self.domain):
                return None
            for rule in self.rules:
                if (
                    action in rule.rule.actions
                    and rule.is_of_type(rtype)
                    and rule.where(apex, key)
                    and rule.points_well(rtype, rdata)
                ):
                    return rule
            return None
        any_type = action is Action.TRANSFER or (action is Action.QUERY and rtype == Type.SOA)
        for rule in self.rules:
            of_type = any_type or rule.types is None or rtype in rule.types
            if of_type and action in rule.rule.actions and rule.where(apex, key):
                return rule
        return None

    def decide(self, action: Action, apex: bytes, key: bytes, rtype: int, rdata: bytes = b"") -> Decision:
        """The same with its sentence."""
        rule = self.rule_for(action, apex, key, rtype, rdata)
        if rule is None:
            return Decision(False, self._unmatched(action, key, rtype))
        may, verb = ("may", "allows") if rule.rule.allow else ("may not", "denies")
        what = self._what(action, key, rtype)
        return Decision(rule.rule.allow, f"{self.who} {may} {what}: {rule.label} {verb} it", rule)

    def may_name(self, apex: bytes, key: bytes) -> bool:
        """Whether a prerequisite may ask about this owner name: its RCODE tells of what is there.

        So where the key may update something; a rule that denies counts where it denies every type.
        """
        for rule in self.rules:
            if Action.UPDATE in rule.rule.actions and (rule.rule.allow or rule.types is None) and rule.where(apex, key):
                return rule.rule.allow
        return False

    def prerequisite_refusal(self, key: bytes) -> str:
        if not self.is_narrowed and self.domain is not None and not is_at_or_below(key, self.domain):
            return f"{self.who} may touch {to_text(self.domain)} and below, not {to_text(key)}"
        return f"{self.who} may not ask about {to_text(key)}: no rule lets it update anything there"

    def _what(self, action: Action, key: bytes, rtype: int) -> str:
        if action is Action.TRANSFER:
            return f"transfer zone {to_text(key)}"
        verb = "watch" if action is Action.LLQ else action.value
        return f"{verb} {to_text(key)} {type_text(rtype)}"

    def _unmatched(self, action: Action, key: bytes, rtype: int) -> str:
        if action is Action.UPDATE and self.domain is not None and is_discovery_name(key, self.domain):
            return f"{to_text(key)} is kept by the service, {self.who} may not change it"
        if self.is_narrowed:
            return f"{self.who} may not {self._what(action, key, rtype)}: it is narrowed, and no rule of it allows that"
        if self.domain is not None and action is Action.UPDATE:
            if is_at_or_below(key, self.domain):
                return f"{self.who} may not change type {type_text(rtype)} ({to_text(key)})"
            return f"{self.who} may touch {to_text(self.domain)} and below, not {to_text(key)}"
        return f"{self.who} may not {self._what(action, key, rtype)}: no rule allows it"


_ALL: Final = frozenset(Action)


def compile_policy(
    key_name: bytes, domain: bytes | None, own: Sequence[Rule] = (), policy: Policy = NO_POLICY
) -> KeyPolicy:
    """The rules for one key in the order they are looked at. `domain` None: an administrator's key.

    Rules of a member's own key reach no further than its domain, whatever they say.
    """
    is_admin = domain is None
    is_narrowed = bool(own)
    rules = [
        _compiled(site.label, site.rule, key_name, domain, policy.quota, within=None)
        for site in policy.rules
        if site.is_for(key_name, is_narrowed=is_narrowed)
    ]
    rules += [
        _compiled(f"rule {number} of the key", rule, key_name, domain, policy.quota, within=domain)
        for number, rule in enumerate(own, start=1)
    ]
    default = _compiled(
        "administrator default" if is_admin else "member default",
        Rule(_ALL, match=Match.ZONE if is_admin else Match.SUBTREE),
        key_name,
        domain,
        policy.quota,
        within=None,
    )
    is_plain = not rules
    if not is_narrowed:
        rules.append(default)
    who = f"key {to_text(key_name)}"
    return KeyPolicy(key_name, domain, tuple(rules), is_narrowed, is_plain, default.grant, who)


def _compiled(
    label: str, rule: Rule, key_name: bytes, domain: bytes | None, default: Quota, *, within: bytes | None
) -> Compiled:
    is_admin = domain is None
    quota = rule.quota.over(NO_QUOTA if is_admin else default)
    return Compiled(
        label,
        rule,
        _where(rule, key_name, domain, within),
        rule.types,
        # a rule that denies means every type when it names none, one that allows a member means the user's own
        frozenset() if is_admin or not rule.allow else NOT_FOR_MEMBERS,
        None if rule.target is None else fold(from_text(rule.target)),
        quota,
        Grant(rule.default_lease, quota, label),
    )


def _where(rule: Rule, key_name: bytes, domain: bytes | None, within: bytes | None) -> _Where:
    test: _Where
    if rule.match is Match.SELF:

        def test(apex: bytes, key: bytes) -> bool:
            return key == key_name

    elif rule.match is Match.PATTERN:
        assert rule.owner is not None
        pattern = pattern_of(rule.owner)

        def test(apex: bytes, key: bytes) -> bool:
            return pattern_matches(pattern, key)

    elif rule.match is Match.ZONE:
        wanted = None if rule.owner is None else fold(from_text(rule.owner))

        def test(apex: bytes, key: bytes) -> bool:
            return wanted is None or apex == wanted

    else:
        top = (domain or ROOT) if rule.owner is None else fold(from_text(rule.owner))

        def test(apex: bytes, key: bytes) -> bool:
            return is_at_or_below(key, top)

    if within is None:
        return test
    return lambda apex, key: is_at_or_below(key, within) and test(apex, key)
