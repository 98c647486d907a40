"""Rehearsal of a campaign: when it would end, what providers would say, and what we would do.

Owns the way from what is known before a launch (how many people at which domains, the settings, the
present state of Throttle and Reputation) to a ``Forecast``. The campaign itself is gone through by
``rehearsal.trial``, several times with different seeds, as many as fit into the time given.
Pure: facts, seed and the measure of time are arguments; nothing is sent or changed.

(``reputation.replay`` is another thing: it holds *recorded outcomes* against other rules.)

What is recorded of a provider changes its model: a share is taken between the model's, which weighs
as much as ``PRIOR_MESSAGES``, and what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any

from manta.delivery.lanes import OTHERS, Site
from manta.delivery.rehearsal.behaviour import ORDINARY, Model, behaviours, model_of
from manta.delivery.rehearsal.forecast import (
    Forecast,
    Ran,
    actions_of,
    expected_of,
    warmups_of,
)
from manta.delivery.rehearsal.trial import Destination, Facts, Pace, TooLong, Trial, reserve_of
from manta.delivery.reputation.courses import Course
from manta.delivery.reputation.law import Law
from manta.delivery.reputation.norms import Norms
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.retry import RetryPolicy
from manta.delivery.shaping.shaping import Shaping, builtin, parse
from manta.delivery.throttle import warmup
from manta.delivery.throttle.ways import Ways, limits_of
from manta.errors import InvalidRequest, Overloaded
from manta.settings import Settings

RUNS_MAX = 20
BUDGET_S = 10.0  # no further run begins that would not fit
GIVE_UP_S = 18.0  # of the first run
DOMAINS_MAX = 500  # that are known by name; the rest is together
DESTINATIONS_MAX = 40
PRIOR_MESSAGES = 2_000
REST = "all-other-sites"  # the site of all small ones together
RATE_MAX_PER_S, CONNECTIONS_MAX = 100_000, 10_000
PER_SENDER_PER_S = 1_200.0


@dataclass(frozen=True)
class Audience:
    """``domains``: (domain, messages, of them engaged), the most first; of all others the same
    three numbers: how many domains, messages, engaged. ``left_out``: who may not be mailed."""

    domains: tuple[tuple[str, int, int], ...]
    rest: tuple[int, int, int] = (0, 0, 0)
    left_out: int = 0

    @property
    def messages(self) -> int:
        return sum(n for _, n, _ in self.domains) + self.rest[1]

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, Any]]) -> Audience:
        """What the shards answered (``manta.delivery.rehearsal.audiences``), added up."""
        counts: dict[str, tuple[int, int]] = {}
        rest, left_out = (0, 0, 0), 0
        for part in parts:
            for domain, messages, engaged in part["domains"]:
                before = counts.get(domain, (0, 0))
                counts[domain] = (before[0] + messages, before[1] + engaged)
            domains, messages, engaged = part["rest"]
            # The same small domains turn up in every shard: the largest number is theirs.
            rest = (max(rest[0], domains), rest[1] + messages, rest[2] + engaged)
            left_out += part["left_out"]
        ordered = sorted(((d, n, e) for d, (n, e) in counts.items()), key=lambda r: (-r[1], r[0]))
        for _, messages, engaged in ordered[DOMAINS_MAX:]:
            rest = (rest[0] + 1, rest[1] + messages, rest[2] + engaged)
        return cls(tuple(ordered[:DOMAINS_MAX]), rest, left_out)


@dataclass(frozen=True)
class State:
    """How Throttle and Reputation stand: what they answer to ``law``, ``status`` and the shards to
    ``observed``. ``courses`` and ``quotas`` are documents."""

    law: Law = field(default_factory=Law)
    courses: tuple[Mapping[str, Any], ...] = ()
    quotas: tuple[Mapping[str, Any], ...] = ()
    observed: tuple[Observed, ...] = ()


@dataclass(frozen=True)
class Campaign:
    """What is rehearsed. ``source``: the way out, by name."""

    id: int
    source: str
    sending_domain: str
    starts_at: datetime
    expires_at: datetime | None = None


def facts_of(
    campaign: Campaign,
    settings: Settings,
    audience: Audience,
    sites: Mapping[str, Site | None],
    state: State,
    norms: Norms,
) -> Facts:
    """``sites`` of domains where direct sources bring mail; none where only relays take it.

    Raises ``InvalidRequest`` where nobody would get anything, or there is no such way out.
    """
    if campaign.source not in settings.ways_out:
        raise InvalidRequest(
            f"there is no way out named {campaign.source!r:.60}",
            path="source",
            expected=f"one of {', '.join(settings.ways_out)}",
        )
    if not audience.messages:
        raise InvalidRequest(
            "nobody would get this campaign",
            path="audience",
            expected="people who consented to its topic and are not suppressed",
        )
    ways, shaping = Ways.of(settings), _shaping(state.law.shaping_text)
    destinations = destinations_of(audience, shaping, sites)
    rest = next((d for d in destinations if d.site == REST), None)
    law = state.law if rest is None else _with_rest(state.law, shaping, rest.sites)
    shaping = _shaping(law.shaping_text)
    members = [member.source for member in settings.ways_out[campaign.source]]
    observed = tuple(o for o in state.observed if o.source in members)
    quotas = [q for q in state.quotas if q["source"] in ways.cold_since]
    too_old = campaign.starts_at + timedelta(hours=settings.message_age_max_h)
    return Facts(
        campaign.id,
        campaign.sending_domain,
        campaign.source,
        campaign.starts_at,
        min(campaign.expires_at or too_old, too_old),
        destinations,
        limits_of(settings),
        ways,
        shaping,
        law,
        norms,
        models_of(destinations, observed),
        known_of(destinations, members, ways.cold_since, quotas, observed),
        tuple(Course.from_document(document) for document in state.courses),
        merged(observed, campaign.starts_at),
        tuple(reserve_of(q, ways.cold_since[q["source"]], campaign.starts_at) for q in quotas),
        Pace(per_s=PER_SENDER_PER_S * settings.senders),
        RetryPolicy(first_wait_s=settings.retry_first_wait_s),
    )


def rehearse(
    facts: Facts,
    made_at: datetime,
    elapsed_s: Callable[[], float],
    seed: int = 1,
    runs_max: int = RUNS_MAX,
    budget_s: float = BUDGET_S,
) -> Forecast:
    """As many runs as fit; ``elapsed_s`` since this was called. Run *n* has the seed *seed* + *n*,
    so that more time gives more runs and the same ones first.

    Raises ``Overloaded`` where not even one run comes to an end in time.
    """
    ran: list[Ran] = []
    while len(ran) < runs_max:
        so_far_s = elapsed_s()
        if ran and so_far_s * (len(ran) + 1) / len(ran) > budget_s:
            break
        try:
            ran.append(Trial(facts, seed + len(ran)).run(lambda: elapsed_s() > GIVE_UP_S))
        except TooLong:
            if not ran:
                raise Overloaded(
                    "this campaign is too long to be rehearsed", limit_s=GIVE_UP_S
                ) from None
            break
    return _forecast(facts, ran, made_at, seed)


def _forecast(facts: Facts, ran: Sequence[Ran], made_at: datetime, seed: int) -> Forecast:
    total = expected_of("", ran[0].total.messages, [run.total for run in ran])
    providers = [
        expected_of(name, counted.messages, [run.providers[name] for run in ran])
        for name, counted in ran[0].providers.items()
    ]
    providers.sort(key=lambda each: (-each.messages, each.provider))
    return Forecast(
        made_at,
        facts.starts_at,
        facts.expires_at,
        facts.pool,
        len(ran),
        seed,
        ran[0].total.messages,
        sum(each.engaged for each in facts.destinations),
        total,
        tuple(providers),
        warmups_of(ran),
        actions_of(ran),
        round(sum(run.paused_s is not None for run in ran) / len(ran), 3),
        _assumptions(facts),
    )


def _assumptions(facts: Facts) -> tuple[str, ...]:
    members = facts.ways.pools[facts.pool]
    relays = sorted(name for name in members if name not in facts.ways.direct)
    warm = sorted(
        name for name in members if name in facts.ways.direct and name not in facts.ways.cold_since
    )
    said = ["nothing else is sent meanwhile", "providers behave as their models do"]
    if relays:
        said.append(f"the relay takes all at its rate: {', '.join(relays)}")
    if warm:
        said.append(f"providers know the source, and what it usually brings: {', '.join(warm)}")
    if any(each.site == REST for each in facts.destinations):
        sites = next(each.sites for each in facts.destinations if each.site == REST)
        said.append(f"{sites:,} small domains are taken together as ordinary hosts")
    return tuple(said)


# -- destinations ----------------------------------------------------------------------------------


def destinations_of(
    audience: Audience, shaping: Shaping, sites: Mapping[str, Site | None]
) -> tuple[Destination, ...]:
    """Domains by site, the largest first; those that are small, or of which nobody knows the
    site, are together."""
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    for domain, messages, engaged in audience.domains:
        key = _place_of(domain, shaping, sites)
        before = found.get(key, (0, 0, 0))
        found[key] = (before[0] + messages, before[1] + engaged, before[2] + 1)
    ordered = sorted(found.items(), key=lambda item: (item[0][1] == REST, -item[1][0], item[0]))
    named = [item for item in ordered if item[0][1] != REST][: DESTINATIONS_MAX - 1]
    kept = dict(named)
    domains, messages, engaged = audience.rest
    for key, (more, more_engaged, of) in ordered:
        if key not in kept:
            domains, messages, engaged = domains + of, messages + more, engaged + more_engaged
    made = [Destination(*key, n, e) for key, (n, e, _) in kept.items()]
    if messages:
        made.append(Destination(OTHERS, REST, messages, engaged, max(1, domains)))
    return tuple(made)


def _place_of(domain: str, shaping: Shaping, sites: Mapping[str, Site | None]) -> tuple[str, str]:
    site = sites.get(domain)
    if site is not None and not site.refusal:
        return site.provider, site.name
    provider = shaping.provider_of(domain)
    return (provider, provider) if provider is not None else (OTHERS, REST)


def _shaping(text: str) -> Shaping:
    """A text that cannot be read is not used, as the Throttle does not use it."""
    try:
        return parse(text, builtin()) if text else builtin()
    except InvalidRequest:
        return builtin()


def _with_rest(law: Law, shaping: Shaping, sites: int) -> Law:
    """The law with the limits of many small sites together: theirs, added up."""
    one = shaping.of(OTHERS).limits_of_site
    rate = min(max(1, int(one.rate_per_s * sites)), RATE_MAX_PER_S)
    connections = min(one.connections_max * sites, CONNECTIONS_MAX)
    section = f'\n[site."{REST}"]\nrate = "{rate}/s"\nconnections_max = {connections}\n'
    text = law.shaping_text
    try:
        parse(text, builtin())
    except InvalidRequest:
        text = ""
    return replace(law, shaping_text=text + section)


# -- what is known of providers --------------------------------------------------------------------


def models_of(
    destinations: Iterable[Destination], observed: Iterable[Observed]
) -> dict[str, Model]:
    """The model of each destination's provider, changed by what is on record."""
    taken: dict[str, list[int]] = {}
    for each in observed:
        counts = taken.setdefault(each.provider, [0, 0, 0])
        if each.seen is Seen.ACCEPTED:
            counts[0] += each.messages
        elif each.seen in (Seen.FAILED, Seen.BOUNCED) and each.bounce_class is BounceClass.HARD:
            counts[1] += each.messages
        elif each.seen is Seen.COMPLAINED:
            counts[2] += each.messages
    found = {}
    for destination in destinations:
        is_rest = destination.site == REST
        model = behaviours()[ORDINARY] if is_rest else model_of(destination.provider)
        accepted, hard, complained = taken.get(destination.provider, (0, 0, 0))
        learnt = replace(model, unknown_share=_learnt(model.unknown_share, hard, accepted + hard))
        if model.has_feedback_loop:
            share = _learnt(model.complaint_share, complained, accepted)
            learnt = replace(learnt, complaint_share=share)
        found[destination.provider] = learnt
    return found


def _learnt(share: float, bad: int, of: int) -> float:
    return (share * PRIOR_MESSAGES + bad) / (PRIOR_MESSAGES + max(bad, of))


def known_of(
    destinations: Iterable[Destination],
    sources: Iterable[str],
    cold_since: Mapping[str, date],
    quotas: Iterable[Mapping[str, Any]],
    observed: Iterable[Observed],
) -> dict[tuple[str, str], int]:
    """What each provider knows each source to bring on a day: the best day on record; of a warm
    source at least what a warm-up ends with, of a cold one what it has come to."""
    plan = warmup.builtin()
    best: dict[tuple[str, str, date], int] = {}
    for each in observed:
        if each.seen is Seen.ACCEPTED:
            key = (each.source, each.provider, each.occurred_at.date())
            best[key] = best.get(key, 0) + each.messages
    counted = {
        (q["source"], q["group"]): (int(q["days"]) if q["is_warm"] else int(q["day"]) - 1)
        for q in quotas
    }
    known: dict[tuple[str, str], int] = {}
    for source in sources:
        for provider in {destination.provider for destination in destinations}:
            group = plan.group_of(provider)
            schedule = plan.schedule_of(group)
            days = len(schedule.days)
            if source in cold_since:
                days = counted.get((source, group), 0)
            usual = schedule.of_day(days - 1) if days else 0
            seen = [n for (s, p, _), n in best.items() if (s, p) == (source, provider)]
            known[source, provider] = max([usual, *seen])
    return known


def merged(observed: Iterable[Observed], now: datetime) -> tuple[Observed, ...]:
    """What the windows need of the record: campaigns and words are left out, so that it is small.
    Of the last hour by the minute, of the last day by the half hour, else by the hour."""
    counts: dict[Observed, int] = {}
    for each in observed:
        age = now - each.occurred_at
        step_s = 60 if age < timedelta(hours=1) else 1_800 if age < timedelta(days=1) else 3_600
        at = datetime.min + (each.occurred_at - datetime.min) // timedelta(seconds=step_s) * (
            timedelta(seconds=step_s)
        )
        same = each._replace(
            occurred_at=at, site=each.provider, campaign_id=0, code=0, text="", messages=1
        )
        counts[same] = counts.get(same, 0) + each.messages
    return tuple(each._replace(messages=n) for each, n in sorted(counts.items()))
