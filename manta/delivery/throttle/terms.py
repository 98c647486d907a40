"""Terms: what holds for one lane now, of settings, shaping and law taken together.

They are made when a lane is first asked for and again after the law, the shaping or the set of
acting actions has changed; then a grant only looks at them. An action narrows the gate that its
scope names: the source's, the provider's or the site's; where a relay has no such gate it gets one
while the action lasts. An action about campaigns leaves the gates alone: it names the campaigns.
A pause is no term at all: it is the Director's, and a person who resumes the campaign overrules it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from math import ceil

from manta.delivery.lanes import Lane, Limits
from manta.delivery.reputation.actions import Action, ActionKind
from manta.delivery.throttle.gates import BOUNDLESS, PACE, Gate, GateKey, keys_of, narrowed
from manta.delivery.throttle.gcra import Bucket

SOURCE, PROVIDER, SITE = range(3)  # the places of ``keys_of``
GateOf = Callable[[GateKey, Limits, bool], Gate]  # key, limits, whether it is there in quiet times


@dataclass(frozen=True, slots=True)
class CampaignLimit:
    """A campaign that may be leased only in turns: all permits of a grant that may hold it count
    against its bucket."""

    campaign_id: int
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Terms:
    """``causes`` of narrower limits, for people. ``slowed_at``: the widest gate at which an action
    suspends or lowers the rate (its place in ``keys_of``), None where there is none.
    ``suspended_until``: the end of the last suspension, None where there is none."""

    gates: tuple[Gate, ...]
    tls: str
    messages_per_connection: int
    without: tuple[int, ...]
    bounces: tuple[tuple[int, str], ...]
    campaign_limits: tuple[CampaignLimit, ...]
    causes: tuple[str, ...]
    slowed_at: int | None
    suspended_until: datetime | None

    @property
    def bounces_all(self) -> bool:
        return any(campaign_id == 0 for campaign_id, _ in self.bounces)


class ActiveActions:
    """The actions that act now, found by lane without looking at all of them."""

    def __init__(self, actions: Iterable[Action]) -> None:
        self._by_place: dict[tuple[str, str], list[Action]] = {}
        self._count = 0
        self.first_end = datetime.max
        for action in actions:
            scope = action.scope
            place = ("", scope.site) if scope.site else (scope.provider, "")
            self._by_place.setdefault(place, []).append(action)
            self._count += 1
            self.first_end = min(self.first_end, action.until)

    def __len__(self) -> int:
        return self._count

    def covering(self, lane: Lane) -> list[Action]:
        """Those that concern the lane or some campaigns in it, the oldest first."""
        places = (("", ""), (lane.provider, ""), ("", lane.site))
        found = [a for place in dict.fromkeys(places) for a in self._by_place.get(place, ())]
        return sorted((a for a in found if a.scope.covers(lane)), key=lambda action: action.id)


def terms_of(
    lane: Lane,
    usual: tuple[Limits, Limits | None, Limits | None],
    tls: str,
    actions: Iterable[Action],
    gate_of: GateOf,
    bucket_of: Callable[[Action, int], Bucket],
) -> Terms:
    """``usual``: the limits of the source, of the provider and of the site; None: no gate.
    ``actions``: those that cover the lane and are active."""
    acting = list(actions)
    whole = [a for a in acting if not is_about_campaigns(a)]
    slowing = [a for a in whole if a.kind in (ActionKind.SUSPEND, ActionKind.LIMIT)]
    gates = []
    for place, (key, limits) in enumerate(zip(keys_of(lane), usual, strict=True)):
        narrowing = [a for a in slowing if _place(a) == place]
        if limits is not None or narrowing:
            bounds = narrowed(limits or BOUNDLESS, narrowing)
            gates.append(gate_of(key, bounds, limits is not None))
    suspensions = [a.until for a in slowing if _suspends(a)]
    slowed_at = [_place(a) for a in slowing if a.limits.rate_per_s is not None or _suspends(a)]
    about = [(a, c) for a in acting if is_about_campaigns(a) for c in campaigns_of(a)]
    suspended = {c for a, c in about if _suspends(a)}
    bouncing = [(0, a.cause) for a in whole if a.kind is ActionKind.BOUNCE]
    bouncing += [(c, a.cause) for a, c in about if a.kind is ActionKind.BOUNCE]
    bounced = dict(reversed(bouncing))  # of several causes the first
    limited = [
        CampaignLimit(c, bucket_of(a, c))
        for a, c in about
        if a.kind is ActionKind.LIMIT and a.limits.rate_per_s is not None and c not in suspended
    ]
    return Terms(
        tuple(gates),
        tls,
        min(gate.limits.messages_per_connection for gate in gates),
        tuple(sorted(suspended - bounced.keys())),
        tuple(sorted(bounced.items())),
        tuple(limited),
        tuple(dict.fromkeys(a.cause for a in acting)),
        min(slowed_at, default=None),
        max(suspensions, default=None),
    )


def is_suspended(covering: Iterable[Action]) -> bool:
    """Whether one of the active actions that cover a lane stops it as a whole."""
    return any(_suspends(action) and not is_about_campaigns(action) for action in covering)


def is_about_campaigns(action: Action) -> bool:
    return bool(action.scope.campaign_id or action.scope.sending_domain)


def campaigns_of(action: Action) -> set[int]:
    own = {action.scope.campaign_id} if action.scope.campaign_id else set()
    return own | set(action.campaigns)


def campaign_bucket(action: Action, now_s: float) -> Bucket:
    """It begins empty: nobody knows what the campaign has just sent."""
    rate_per_s = max(0.0, min(action.limits.rate_per_s or 0.0, BOUNDLESS.rate_per_s))
    return Bucket.empty(rate_per_s * PACE, max(1, ceil(rate_per_s)), now_s)


def _suspends(action: Action) -> bool:
    return action.kind is ActionKind.SUSPEND


def _place(action: Action) -> int:
    """Which gate of ``keys_of`` an action narrows."""
    return SITE if action.scope.site else PROVIDER if action.scope.provider else SOURCE
