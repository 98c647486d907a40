"""How a forecast, and its comparison with what came, are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manta.cli.common import say, table

PROVIDERS_SHOWN = 25
ACTIONS_SHOWN = 20
_COUNTS = ("accepted", "deferred", "failed", "expired", "bounced", "complained")
_COMPARED = ("messages", "accepted", "deferred", "failed", "expired", "done_s")


def show_forecast(forecast: Mapping[str, Any]) -> None:
    """When it would end, a row for each provider, the warm-up, and actions."""
    total = forecast["total"]
    say(
        f"{forecast['messages']:,} messages by {forecast['source']} from {forecast['starts_at']},"
        f" {forecast['runs']} runs; ranges hold eight runs of ten"
    )
    say(f"95 % settled after  {span(total['mostly_s'])}")
    say(f"all settled after   {span(total['done_s'])}")
    if forecast["paused_share"]:
        say(f"paused before its end in {forecast['paused_share']:.0%} of the runs")
    shown = forecast["providers"][:PROVIDERS_SHOWN]
    rows = [[each["provider"], each["messages"], *_cells(each)] for each in shown]
    if len(forecast["providers"]) > 1:
        rows.append(["all", total["messages"], *_cells(total)])
    table("Providers", ("provider", "messages", *_COUNTS, "95 % after", "all after"), rows)
    if forecast["warmups"]:
        table(
            "Warm-up",
            ("source", "provider", "sent", "spilled to others", "held back"),
            [
                (w["source"], w["provider"], *(counts(w[n]) for n in ("sent", "spilled", "held")))
                for w in forecast["warmups"]
            ],
        )
    actions = forecast["actions"][:ACTIONS_SHOWN]
    if actions:
        table(
            "What would be done",
            ("runs", "first after", "times", "kind", "what", "cause"),
            [
                (
                    f"{a['share']:.0%}",
                    span(a["began_s"]),
                    counts(a["times"]),
                    a["kind"],
                    a["scope"],
                    a["cause"],
                )
                for a in actions
            ],
        )
    for text in forecast["assumptions"]:
        say(f"assumed: {text}")


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """What was foreseen, what came; ✗ where it lay outside."""
    rows = []
    for row in (*comparison["providers"], comparison["total"]):
        for name in _COMPARED:
            figure = row["figures"][name]
            is_time = name.endswith("_s")
            rows.append(
                (
                    row["provider"] or "all",
                    "all after" if is_time else name,
                    span(figure["foreseen"]) if is_time else counts(figure["foreseen"]),
                    _time(figure["came"]) if is_time else f"{figure['came']:,.0f}",
                    "yes" if figure["is_met"] else "✗",
                )
            )
    table("Foreseen and come", ("provider", "what", "foreseen", "came", "within"), rows)
    say(f"{comparison['met_share']:.0%} of the figures lay within what was foreseen")


def _cells(expected: Mapping[str, Any]) -> list[str]:
    cells = [counts(expected[name]) for name in _COUNTS]
    return [*cells, span(expected["mostly_s"]), span(expected["done_s"])]


def counts(interval: Sequence[float | None]) -> str:
    """The median, and in brackets the range where there is one."""
    low, median, high = (None if v is None else f"{v:,.0f}" for v in interval)
    return f"{median}" if low == high else f"{median} ({low}–{high})"


def span(interval: Sequence[float | None]) -> str:
    low, median, high = (_time(value) for value in interval)
    return median if low == high else f"{median} ({low} – {high})"


def _time(seconds: float | None) -> str:
    """Two units at most; None is never."""
    if seconds is None:
        return "never"
    left = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= length and len(parts) < 2:
            parts.append(f"{left // length} {unit}")
            left %= length
        elif parts:
            break
    return " ".join(parts) or "0 s"
