"""Who runs the campaign: brings in the people, plans, pauses, unsubscribes, and acts on lanes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from manta.delivery.campaign import CampaignState
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.delivery.reputation.actions import ActionKind
from manta.errors import Conflict, NotFound
from tests.sim.scheduler import Steps
from tests.sim.shards import Unsubscribe, Write, audience

if TYPE_CHECKING:
    from tests.sim.world import World

LONG_S = 86_400.0
SHORT_S = (5.0, 20.0, 60.0)


@dataclass
class Campaign:
    """The Director's document of it, as far as it counts here."""

    id: int
    step: int = 0
    state: CampaignState = CampaignState.RUNNING
    paused_by: int = 0
    wish: CampaignState | None = None
    is_planned: bool = False
    is_overruled: bool = False  # a person has said that it goes on whatever happens
    acts: list[int] = field(default_factory=list)

    def pause_for(self, action_id: int) -> None:
        if self.state is CampaignState.RUNNING and not self.is_overruled and self.is_planned:
            self.paused_by, self.wish = action_id, CampaignState.PAUSED

    def resume_for(self, action_id: int) -> None:
        if self.paused_by == action_id and self.state is not CampaignState.CANCELLED:
            self.paused_by, self.wish = 0, CampaignState.RUNNING


def direct(w: World) -> Steps:
    for shard, people in w.people.items():
        changes = audience(people, w.clock.now())
        yield from w.call(shard, Write(changes, f"import:{shard}"))
    yield from _set(w, CampaignState.RUNNING)
    for shard in w.people:
        yield from _plan(w, shard)
    w.campaign.is_planned = True
    while w.troubled:
        yield 2.5
        yield from _follow(w)
        yield from _do_something(w)
    w.campaign.is_overruled = True
    for action in w.campaign.acts:
        yield from _undo(w, action)
    if w.campaign.state is CampaignState.PAUSED:
        yield from _set(w, CampaignState.RUNNING)


def _plan(w: World, shard: int) -> Steps:
    after, done = -1, False
    while not done:
        limit = w.random.randint(3, 20)
        command = PlanCampaign(w.campaign.id, after, limit, f"plan:{shard}:{after}:{limit}")
        try:
            answer, _ = yield from w.call(shard, command)
        except NotFound:  # said by a replaced incarnation: the Director looks again
            yield 1.0
            continue
        after, done = answer["last_subscriber"], answer["done"]


def _follow(w: World) -> Steps:
    wish, w.campaign.wish = w.campaign.wish, None
    if wish is not None and w.campaign.state is not CampaignState.CANCELLED:
        yield from _set(w, wish)


def _do_something(w: World) -> Steps:
    draw = w.random.random()
    if draw < 0.15:
        shard = w.random.choice(sorted(w.people))
        person = w.random.choice(w.people[shard])
        yield from w.call(shard, Unsubscribe(person))
        w.unsubscribed.setdefault(person, w.clock.monotonic())
    elif draw < 0.27 and w.campaign.state is CampaignState.RUNNING:
        yield from _set(w, CampaignState.PAUSED)
        yield 2.0
        yield from _set(w, CampaignState.RUNNING)
    elif draw < 0.285:
        yield from _set(w, CampaignState.CANCELLED)
    elif draw < 0.45:
        yield from _act(w)
    elif draw < 0.5 and w.campaign.acts:
        yield from _undo(w, w.campaign.acts.pop())


def _act(w: World) -> Steps:
    """An operator holds a lane, a source, a provider or the campaign; now and then for long, and
    takes it back later."""
    source = w.random.choice(w.settings.egress).name
    provider = w.random.choice(("big", "mx.small.example", "others", ""))
    kind, scope, limits = w.random.choice(
        (
            (ActionKind.SUSPEND, {"source": source, "provider": provider}, {}),
            (ActionKind.SUSPEND, {"source": source}, {}),
            (ActionKind.SUSPEND, {"campaign_id": w.campaign.id, "provider": provider}, {}),
            (ActionKind.LIMIT, {"source": source, "provider": provider}, {"rate_per_s": 0.2}),
            (ActionKind.PAUSE, {"campaign_id": w.campaign.id}, {}),
            (ActionKind.BOUNCE, {"provider": "mx.small.example"}, {}),
        )
    )
    duration_s = w.random.choice((*SHORT_S, LONG_S))
    if kind is ActionKind.BOUNCE:
        duration_s = 5.0
    key = f"act:{w.random.getrandbits(40)}"
    cause = f"{kind} by an operator"
    answer: dict[str, Any] = yield from w.network.insist(
        "reputation", "act", str(kind), scope, cause, duration_s, limits, "operator", key
    )
    w.note(f"action {answer['id']}: {kind} {scope} for {duration_s:.0f} s")
    w.campaign.acts.append(answer["id"])


def _undo(w: World, action: int) -> Steps:
    try:
        yield from w.network.insist("reputation", "undo", action, "operator", f"undo:{action}")
        w.note(f"action {action} is undone")
    except (Conflict, NotFound):
        pass  # it is over


def _set(w: World, state: CampaignState) -> Steps:
    campaign = w.campaign
    campaign.step += 1
    campaign.state = state
    for shard in w.people:
        key = f"campaign:{campaign.step}:{shard}"
        command = SetCampaign(key, campaign.id, state, w.plan.to_json(), campaign.step)
        yield from w.call(shard, command)
