"""How the sender stands: windows, rates and courses of lanes, as documents for people to read."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from manta.clock import as_text
from manta.delivery.reputation.norms import Norms
from manta.delivery.reputation.reputation import Reputation
from manta.delivery.reputation.verdicts import Figures, proven_level
from manta.delivery.reputation.windows import DOMAIN_SPANS, Unit, Window, seconds, wilson_bounds

WINDOWS_SHOWN = 500


def standing(reputation: Reputation, norms: Norms, now: datetime) -> dict[str, Any]:
    """``windows``: per sending domain, source and provider, the busiest first; a row without a
    sending domain is of the lane as a whole. ``courses``: the lanes that are not free."""
    now_s = seconds(now)
    rows = [
        (sum(window.total("day", now_s)), unit, window)
        for unit, window in reputation.windows.units()
        if not unit.campaign_id
    ]
    rows.sort(key=lambda row: (-row[0], row[1]))
    return {
        "at": as_text(now),
        "law_version": reputation.head.version,
        "windows": [
            _window(unit, window, norms, now_s) for _, unit, window in rows[:WINDOWS_SHOWN]
        ],
        "windows_total": len(rows),
        "courses": [
            course.to_document()
            for _, course in sorted(reputation.courses.items())
            if course.action_id
        ],
        "limits": limits(norms),
        "triggers_dropped": reputation.triggers_dropped,
    }


def limits(norms: Norms) -> dict[str, Any]:
    """What is acted upon, as it is read by people."""
    return {
        "dated": norms.dated.isoformat(),
        "confidence": norms.confidence,
        "measures": {
            name: {
                "warn": measure.warn,
                "act": measure.act,
                "stop": measure.stop,
                "window": measure.span,
                "messages_min": measure.messages_min,
                "events_min": measure.events_min,
            }
            for name, measure in norms.measures.items()
        },
    }


def _window(unit: Unit, window: Window, norms: Norms, now_s: float) -> dict[str, Any]:
    return {
        "source": unit.source,
        "provider": unit.provider,
        "sending_domain": unit.sending_domain,
        "pace_per_s": round(window.pace_per_s(now_s), 3) if unit == unit.lane else None,
        "counts": {span: window.shown(span, now_s) for span in DOMAIN_SPANS},
        "rates": {
            name: _rate(Figures.of(window, measure, now_s), name, norms)
            for name, measure in norms.measures.items()
            if measure.span in window.spans
        },
    }


def _rate(figures: Figures, name: str, norms: Norms) -> dict[str, Any]:
    measure = norms.measures[name]
    lower, upper = wilson_bounds(figures.bad, figures.base, norms.z)
    return {
        "bad": figures.bad,
        "messages": figures.base,
        "rate": round(figures.rate, 6),
        "lower_bound": round(lower, 6),
        "upper_bound": round(upper, 6),
        "level": proven_level(figures, measure, norms.z).name.lower(),
    }
