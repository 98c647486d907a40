"""What may leave in any window of time, whoever granted it; counted where the mail goes out.

A permit lives for ``PERMIT_VALID_S``, so what goes out within t seconds was granted within t and
that time; and a bucket grants ``PACE`` of its limit, and its burst. That holds over all Throttles
together, since a new one begins with empty buckets when the former's time is over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from manta.delivery.lanes import Lane, Limits
from manta.delivery.throttle.gates import PACE, PERMIT_VALID_S, GateKey, keys_of
from manta.delivery.throttle.warmup import Plan
from tests.sim.auditor import Violation

_ROUNDING = 1e-6


@dataclass(eq=False)
class Handed:
    """Permits of one grant: when, and how many of them have not come back."""

    at_s: float
    permits: int


class Pacing:
    """``limits_of``: the limits of a lane's gates, as ``keys_of`` has them (None: no such gate).
    ``cold``: the sources that are being warmed up, all on their first day."""

    def __init__(
        self,
        limits_of: Callable[[Lane], tuple[Limits | None, ...]],
        cold: frozenset[str],
        plan: Plan,
        start: datetime,
    ) -> None:
        self._limits_of = limits_of
        self._cold = cold
        self._plan = plan
        self._start = start
        self._sent: dict[GateKey, list[float]] = defaultdict(list)
        self._granted: dict[GateKey, list[Handed]] = defaultdict(list)
        self._of_quota: dict[tuple[str, str, datetime, int], list[Handed]] = defaultdict(list)

    def granted(self, lane: Lane, handed: Handed) -> None:
        """Some Throttle hands out permits that count. What came back unused does not."""
        for key, limits in zip(keys_of(lane), self._limits_of(lane), strict=True):
            if limits is None:
                continue
            every = self._granted[key]
            every.append(handed)
            total = 0
            for earlier in reversed(every):
                total += earlier.permits
                span_s = handed.at_s - earlier.at_s
                allowed = limits.rate_per_s * PACE * span_s + limits.burst + _ROUNDING
                if total > allowed:
                    raise Violation(
                        f"{total} permits in {span_s:.1f} s for {_name(key)}: {allowed:.1f} may be"
                    )

        if lane.source in self._cold:
            self._count(lane, handed)

    def sent(self, lane: Lane, now_s: float) -> None:
        """A message goes out."""
        for key, limits in zip(keys_of(lane), self._limits_of(lane), strict=True):
            if limits is not None:
                self._sent[key].append(now_s)
                self._check(key, limits)

    def _check(self, key: GateKey, limits: Limits) -> None:
        sent = self._sent[key]
        for place, first_s in enumerate(sent):
            span_s = sent[-1] - first_s + PERMIT_VALID_S
            allowed = limits.rate_per_s * PACE * span_s + limits.burst + _ROUNDING
            if len(sent) - place > allowed:
                raise Violation(
                    f"{len(sent) - place} messages in {sent[-1] - first_s:.1f} s pass"
                    f" {_name(key)}: {allowed:.1f} may"
                )

    def _count(self, lane: Lane, handed: Handed) -> None:
        at = self._start + timedelta(seconds=handed.at_s)
        group = self._plan.group_of(lane.provider)
        schedule = self._plan.schedule_of(group)
        hour = at.replace(minute=0, second=0, microsecond=0)
        for since, quota in (
            (hour, schedule.of_hour(0)),
            (hour.replace(hour=0), schedule.of_day(0)),
        ):
            every = self._of_quota[lane.source, group, since, quota]
            every.append(handed)
            total = sum(earlier.permits for earlier in every)
            if total > quota:
                raise Violation(
                    f"{total} permits of {lane.source}'s quota of {quota} since {since}"
                )


def _name(key: GateKey) -> str:
    return "/".join(part for part in key if part)


def gates_of(
    sources: Mapping[str, Limits], direct: frozenset[str], shaping: object
) -> Callable[[Lane], tuple[Limits | None, ...]]:
    """What holds in quiet times: a relay has its own gate alone."""

    def limits_of(lane: Lane) -> tuple[Limits | None, ...]:
        own = sources[lane.source]
        if lane.source not in direct:
            return own, None, None
        shaped = shaping.of(lane.provider, lane.site, lane.source)  # type: ignore[attr-defined]
        return own, shaped.limits_of_provider, shaped.limits_of_site

    return limits_of
