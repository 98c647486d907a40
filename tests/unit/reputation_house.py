"""A Reputation in virtual time: mail goes out lane by lane at the pace that its actions allow."""

from __future__ import annotations

from dataclasses import dataclass, field

from manta.clock import ManualClock
from manta.delivery.reputation.actions import Action, ActionKind
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.norms import Norms, builtin
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.reputation.reputation import Reputation, Trigger
from manta.delivery.reputation.rulings import Ruling
from manta.delivery.reputation.windows import Unit

DOMAIN = "news.example"
SHAPED_PER_S = 50.0


class NoRules:
    def observe(self, observed: Observed) -> list[Trigger]:
        return []


@dataclass
class ScriptedRules:
    """Fires a trigger for every observation of one text."""

    text: str
    trigger: Trigger

    def observe(self, observed: Observed) -> list[Trigger]:
        return [self.trigger] if observed.text == self.text else []


@dataclass
class Flow:
    """A campaign's mail in one lane, each part of it as exact as counting can make it."""

    provider: str
    campaign_id: int = 7
    source: str = "a"
    domain: str = DOMAIN
    complaints: float = 0.0  # parts of what was accepted
    hard: float = 0.0
    blocks: float = 0.0
    deferrals: float = 0.0
    pace_per_s: float = SHAPED_PER_S
    sent: int = 0
    _owed: dict[str, float] = field(default_factory=dict)

    def owed(self, what: str, amount: float) -> int:
        total = self._owed.get(what, 0.0) + amount
        whole = int(total + 1e-9)
        self._owed[what] = total - whole
        return whole


class ReputationHouse:
    def __init__(self, rules: object | None = None, norms: Norms | None = None) -> None:
        self.clock = ManualClock()
        self.rules = rules or NoRules()
        self.norms = norms or builtin()
        self.reputation = self.fresh()
        self.rulings: list[Ruling] = []

    def fresh(self) -> Reputation:
        return Reputation(self.norms, self.rules, lambda lane: SHAPED_PER_S)  # type: ignore[arg-type]

    # -- seeing and deciding -----------------------------------------------------------------------

    def see(self, seen: Seen, messages: int = 1, **fields: object) -> None:
        values: dict[str, object] = {
            "sending_domain": DOMAIN,
            "source": "a",
            "provider": "google",
            "site": "google",
            "campaign_id": 7,
        } | fields
        observed = Observed(self.clock.now(), seen, messages=messages, **values)  # type: ignore[arg-type]
        self.reputation.observe([observed], self.clock.now())

    def decide(self) -> Ruling:
        ruling = self.reputation.decide(self.clock.now())
        self.apply(ruling)
        return ruling

    def apply(self, ruling: Ruling) -> None:
        self.reputation.apply(ruling)
        if not ruling.is_empty:
            self.rulings.append(ruling)

    def run(self, seconds: float, *flows: Flow, step_s: float = 0.5) -> None:
        """Let time pass while the flows send as fast as they may."""
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            for flow in flows:
                self._send(flow, step_s)
            self.decide()

    def _send(self, flow: Flow, step_s: float) -> None:
        sent = flow.owed("mail", self.allowed(flow) * step_s)
        flow.sent += sent
        bad = {
            (Seen.FAILED, BounceClass.HARD): flow.owed("hard", sent * flow.hard),
            (Seen.FAILED, BounceClass.BLOCK): flow.owed("block", sent * flow.blocks),
            (Seen.DEFERRED, BounceClass.SOFT): flow.owed("deferred", sent * flow.deferrals),
        }
        accepted = max(0, sent - sum(bad.values()))
        seen = {(Seen.ACCEPTED, BounceClass.NONE): accepted} | bad
        seen[Seen.COMPLAINED, BounceClass.NONE] = flow.owed("spam", accepted * flow.complaints)
        for (kind, bounce_class), count in seen.items():
            if count:
                self.see(
                    kind,
                    count,
                    source=flow.source,
                    provider=flow.provider,
                    site=flow.provider,
                    campaign_id=flow.campaign_id,
                    sending_domain=flow.domain,
                    bounce_class=bounce_class,
                )

    # -- what holds --------------------------------------------------------------------------------

    def allowed(self, flow: Flow) -> float:
        """The pace that the law leaves to a flow, as a Throttle would read it."""
        pace = flow.pace_per_s
        for action in self.law.active(self.clock.now()):
            scope = action.scope
            if not (
                scope.source in ("", flow.source)
                and scope.provider in ("", flow.provider)
                and (not action.campaigns or flow.campaign_id in action.campaigns)
            ):
                continue
            if action.kind is ActionKind.LIMIT:
                assert action.limits.rate_per_s is not None
                pace = min(pace, action.limits.rate_per_s)
            else:
                return 0.0
        return pace

    @property
    def law(self) -> Law:
        return self.reputation.law(self.clock.now())

    def active(self, kind: ActionKind | None = None) -> list[Action]:
        found = self.law.active(self.clock.now())
        return [action for action in found if kind in (None, action.kind)]

    def restart(self) -> None:
        """Another process, from what was journaled."""
        old, self.reputation = self.reputation, self.fresh()
        self.reputation.restore(old.head, old.actions.values(), old.courses.values())


def lane(provider: str = "google", source: str = "a") -> Unit:
    return Unit(source, provider)
