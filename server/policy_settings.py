"""Rules as people write them: `[policy]` of the configuration, and the same words for one key on the command line."""

import tomllib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.constants import MAX_LABEL_OCTETS, Type, is_meta_type, type_from_text, type_text
from protocol.name import from_text, to_text
from server.policy import (
    TARGET_TYPES,
    Action,
    Lease,
    Match,
    Policy,
    Quota,
    Rule,
    SiteRule,
    pattern_of,
)

Limit = int | None
_MOST_SECONDS = 30 * 86400


class RuleSettings(BaseModel):
    """One rule. What it allows is what the key may do; what it denies, no later rule gives back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    effect: Literal["allow", "deny"] = "allow"
    actions: list[Action] = Field(default=[Action.UPDATE, Action.QUERY, Action.LLQ], min_length=1)
    match: Match = Match.SUBTREE
    owner: str | None = None
    """A name, or a pattern for `match = "pattern"`; without a final dot it goes on with the zone's or member's."""
    types: list[str] | None = Field(default=None, min_length=1)
    """Record types; ANY is the deletion of a whole name. Without it every type that a user has."""
    target: str | None = None
    """Only PTR, CNAME and SRV records that point at or below this name."""
    lease: Lease | None = None
    """Whether adds must bring an update lease; when not said, members' must and administrators' need not."""
    default_lease_seconds: int = Field(default=0, ge=0, le=_MOST_SECONDS)
    """What an add without the option is granted where the lease is optional; 0: it is permanent."""
    records_per_name: Limit = Field(default=None, ge=0)
    names_per_member: Limit = Field(default=None, ge=0)
    updates_per_minute: Limit = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _makes_sense(self) -> "RuleSettings":
        if self.match is Match.SELF and self.owner is not None:
            raise ValueError('match = "self" takes no owner: it is the key\'s own name')
        if self.match is Match.PATTERN and self.owner is None:
            raise ValueError('match = "pattern" needs an owner')
        if self.owner is not None:
            (pattern_of if self.match is Match.PATTERN else from_text)(self.owner)
        if self.target is not None:
            from_text(self.target)
            if not (self.types and {type_from_text(text) for text in self.types} <= TARGET_TYPES):
                raise ValueError("target goes with types of PTR, CNAME and SRV only")
        for text in self.types or ():
            rtype = type_from_text(text)
            if rtype != Type.ANY and is_meta_type(rtype):
                raise ValueError(f"{text} is no type of records")
        if self.effect == "deny" and (self.lease or self.default_lease_seconds or any(self._limits())):
            raise ValueError("a rule that denies takes no lease and no limits")
        if self.default_lease_seconds and self.lease is not Lease.OPTIONAL:
            raise ValueError('default_lease_seconds goes with lease = "optional"')
        if Action.UPDATE not in self.actions and (self.lease or self.default_lease_seconds or any(self._limits())):
            raise ValueError("lease and limits are for updates: name the action")
        return self

    def _limits(self) -> tuple[Limit, Limit, Limit]:
        return self.records_per_name, self.names_per_member, self.updates_per_minute

    def rule(self, origin: bytes) -> Rule:
        """As data; names without a final dot are completed with the wire name `origin`. `ValueError` if too long."""
        owner = None if self.owner is None else absolute(self.owner, origin)
        if owner is not None and self.match is Match.PATTERN:
            pattern_of(owner)
        return Rule(
            frozenset(self.actions),
            self.effect == "allow",
            self.match,
            owner,
            None if self.types is None else frozenset(map(type_from_text, self.types)),
            None if self.target is None else absolute(self.target, origin),
            self.lease,
            self.default_lease_seconds,
            Quota(*self._limits()),
        )


class SiteRuleSettings(RuleSettings):
    """A rule of the configuration, for the keys it names."""

    name: str = Field(default="", max_length=MAX_LABEL_OCTETS)
    """What refusals and `homing explain` call it; its number when not set."""
    keys: list[str] = Field(min_length=1)
    """Names of keys, or patterns of them as for owners: `**.alice` is every key of alice, `**` every key."""

    @model_validator(mode="after")
    def _keys_are_names(self) -> "SiteRuleSettings":
        for text in self.keys:
            pattern_of(text)
        if not self.name.isprintable():
            raise ValueError("name must be printable")
        return self


class PolicySettings(BaseModel):
    """`[policy]`: what members may do beyond or short of the default, and how much of it. 0 is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    records_per_name: int = Field(default=0, ge=0)
    names_per_member: int = Field(default=0, ge=0)
    updates_per_minute: int = Field(default=0, ge=0)
    """Of one key; these three hold for members' keys where no rule says another number."""
    rules: list[SiteRuleSettings] = []

    def policy(self, zone: bytes) -> Policy:
        """As data; `zone` completes names without a final dot. `ValueError` when one gets too long."""
        rules = tuple(
            SiteRule(
                f"policy rule {item.name!r}" if item.name else f"policy rule {number}",
                tuple(absolute(text, zone) for text in item.keys),
                item.rule(zone),
            )
            for number, item in enumerate(self.rules, start=1)
        )
        return Policy(rules, Quota(self.records_per_name, self.names_per_member, self.updates_per_minute))


def absolute(text: str, origin: bytes) -> str:
    """A name or pattern in lower case with a final dot; `@` is the origin. `ValueError` when it gets too long."""
    if text == "@":
        return to_text(origin)
    name = from_text(text)
    whole = to_text(name if text.endswith(".") else name[:-1] + origin)
    from_text(whole)
    return whole.lower()


def rule_from_text(text: str, origin: bytes) -> Rule:
    """A rule from the words of the configuration on one line, as TOML: `types = ["TXT"], lease = "optional"`.

    `ValueError` in one plain sentence.
    """
    try:
        values = tomllib.loads(f"rule = {{ {text} }}")["rule"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f'{text[:80]!r} is not a rule such as: types = ["TXT"], lease = "optional" ({error})'
        ) from None
    try:
        return RuleSettings.model_validate(values).rule(origin)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ValueError("; ".join(_problem(item["loc"], item["msg"]) for item in problems)) from None


def _problem(place: Sequence[int | str], message: str) -> str:
    said = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{'.'.join(map(str, place))}: {said}" if place else said


def rule_settings(rule: Rule) -> dict[str, Any]:
    """A rule in the words of the configuration, defaults left out: what `rule_from_text` reads."""
    values: dict[str, Any] = {}
    if not rule.allow:
        values["effect"] = "deny"
    values["actions"] = [action.value for action in Action if action in rule.actions]
    if rule.match is not Match.SUBTREE:
        values["match"] = rule.match.value
    if rule.owner is not None:
        values["owner"] = rule.owner
    if rule.types is not None:
        values["types"] = sorted(map(type_text, rule.types))
    if rule.target is not None:
        values["target"] = rule.target
    if rule.lease is not None:
        values["lease"] = rule.lease.value
    if rule.default_lease:
        values["default_lease_seconds"] = rule.default_lease
    values.update({name: limit for name, limit in rule.quota._asdict().items() if limit is not None})
    return values
