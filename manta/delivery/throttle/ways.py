"""Ways out as the Throttle sees them: limits of sources, pools, and who is new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from manta.delivery.lanes import Limits
from manta.errors import InvalidRequest
from manta.settings import Settings


@dataclass(frozen=True)
class Ways:
    """What is set up besides the sources' limits. ``direct``: the sources that bring mail to the
    exchangers themselves. ``pools``: the weights of each pool's sources. ``cold_since``: by source,
    the day on which its warm-up began."""

    direct: frozenset[str] = frozenset()
    pools: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    cold_since: Mapping[str, date] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Ways:
        """Raises ``InvalidRequest`` for a ``cold_since`` that is no day."""
        return cls(
            frozenset(source.name for source in settings.egress if source.kind == "direct"),
            {
                name: {member.source: member.weight for member in members}
                for name, members in settings.ways_out.items()
            },
            {
                source.name: _day(source.cold_since, source.name)
                for source in settings.egress
                if source.cold_since
            },
        )


def limits_of(settings: Settings) -> dict[str, Limits]:
    """The limits of each source."""
    return {
        source.name: Limits(
            source.rate_per_s,
            source.burst,
            source.connections_max,
            source.messages_per_connection,
        )
        for source in settings.egress
    }


def _day(text: str, source: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"egress source {source}: cold_since is {text!r:.40}",
            path="egress.cold_since",
            expected="a day, such as 2026-11-24",
        ) from None
