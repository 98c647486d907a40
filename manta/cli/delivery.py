"""``manta delivery``: how the sender stands with each provider, what is done about it, its undo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from manta.cli.common import door, facts, say, shown, table
from manta.errors import NotFound

app = typer.Typer(no_args_is_help=True)
LANES_SHOWN = 50
SCOPE_NAMES = ("source", "provider", "site", "sending_domain", "campaign_id")
Id = Annotated[int, typer.Argument(metavar="ACTION", help="The number of an action.")]


@app.command(help="Rates per sending domain, source and provider; lanes, and warm-ups.")
def show(context: typer.Context) -> None:
    with door(context).client() as client:
        found = client.delivery()
    reputation, throttle = found["reputation"], found["throttle"]
    for name, part in (("reputation", reputation), ("throttle", throttle)):
        if not part.get("ready"):
            say(f"{name} does not answer: {part.get('reason', 'it is recovering')}")
    windows = reputation.get("windows", [])
    names = list(reputation.get("limits", {}).get("measures", {}))
    table(
        "How the sender stands",
        ("source", "provider", "domain", "accepted a day", *names),
        [_window_row(window, names) for window in windows[:LANES_SHOWN]],
    )
    _show_lanes(throttle.get("lanes", []))
    _show_warmup(throttle.get("warmup", []))
    say(f"{reputation.get('active', 0)} actions hold: manta delivery actions")


@app.command(help="What is done to protect the sender, and why.")
def actions(
    context: typer.Context,
    over: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
) -> None:
    with door(context).client() as client:
        found = client.actions(over)
    columns = ("id", "what", "where", "until (UTC)", "cause")
    rows = [(str(a["id"]), _what(a), _where(a["scope"]), _until(a), a["cause"]) for a in found]
    table("", columns, rows)


@app.command(help="An action in full: the figures behind it, and its steps.")
def action(context: typer.Context, id: Id) -> None:
    with door(context).client() as client:
        found = next((a for a in client.actions(True) if a["id"] == id), None)
    if found is None:
        raise NotFound(f"no action {id}", path="ACTION", expected="one that `actions --all` lists")
    figures = dict(found["figures"])
    steps = figures.pop("steps", [])
    facts(
        {
            "what": _what(found),
            "where": _where(found["scope"]),
            "cause": found["cause"],
            "from": found["began_at"],
            "until": _until(found),
            "campaigns": ", ".join(map(str, found["campaigns"])) or "all",
            **figures,
        }
    )
    if steps:
        rows = [(step["at"], step["rate_per_s"], step["why"]) for step in steps]
        table("Steps", ("at", "messages/s", "why"), rows)


@app.command(help="Hold something back, or slow it with --rate.")
def suspend(
    context: typer.Context,
    cause: Annotated[str, typer.Argument(help="Why, for who reads it later.")],
    source: Annotated[str, typer.Option(help="A way out.")] = "",
    provider: Annotated[str, typer.Option(help="A mailbox provider.")] = "",
    domain: Annotated[str, typer.Option(help="A sending domain.")] = "",
    campaign: Annotated[int, typer.Option(help="The id of a campaign.")] = 0,
    hours: Annotated[float, typer.Option(help="For how long.")] = 1.0,
    rate: Annotated[float | None, typer.Option(help="Messages per second that may go.")] = None,
) -> None:
    with door(context).client() as client:
        made = client.suspend(
            cause,
            source=source,
            provider=provider,
            sending_domain=domain,
            campaign_id=campaign,
            duration_s=hours * 3_600,
            rate_per_s=rate,
        )
    say(f"action {made['id']}: {_what(made)} {_where(made['scope'])} until {made['until']}")


@app.command(help="End an action now; what led to it is not used again.")
def undo(context: typer.Context, id: Id) -> None:
    with door(context).client() as client:
        client.undo(id)
    say(f"action {id} is undone")


# -- printing --------------------------------------------------------------------------------------


def _window_row(window: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    return (
        window["source"],
        window["provider"],
        window["sending_domain"] or "all",
        shown(window["counts"]["day"].get("accepted", 0)),
        *(_rate(window["rates"].get(name)) for name in names),
    )


def _rate(rate: Mapping[str, Any] | None) -> str:
    if not rate or not rate["messages"]:
        return "–"
    level = "" if rate["level"] == "clean" else f" {rate['level'].upper()}"
    return f"{rate['rate'] * 100:.3g} % ({rate['bad']:,}){level}"


def _show_lanes(lanes: list[dict[str, Any]]) -> None:
    if not lanes:
        return
    columns = ("pool", "source", "site", "messages/s", "connections", "held by")
    rows = [
        (
            lane["pool"],
            lane["source"],
            lane["site"],
            shown(lane.get("rate_per_s")),
            f"{lane.get('connections', 0)}/{lane.get('connections_max', 0)}",
            "; ".join(lane.get("causes", [])) or "–",
        )
        for lane in lanes[:LANES_SHOWN]
    ]
    table("Lanes", columns, rows)


def _show_warmup(quotas: list[dict[str, Any]]) -> None:
    if not quotas:
        return
    columns = ("source", "to", "day", "sent today", "may today", "warm about")
    rows = [
        (
            quota["source"],
            quota["group"],
            f"{quota['day']} of {quota['days']}",
            shown(quota["used_day"]),
            shown(quota["quota_day"]),
            "warm" if quota["is_warm"] else quota["finished_about"],
        )
        for quota in quotas
    ]
    table("Warm-up", columns, rows)


def _what(action: Mapping[str, Any]) -> str:
    rate = action["limits"].get("rate_per_s")
    return action["kind"] if rate is None else f"{action['kind']} {rate:.3g}/s"


def _where(scope: Mapping[str, Any]) -> str:
    parts = [f"{name.split('_')[0]} {scope[name]}" for name in SCOPE_NAMES if scope[name]]
    return ", ".join(parts) or "everything"


def _until(action: Mapping[str, Any]) -> str:
    if action["undone_at"]:
        return f"undone by {action['undone_by']}"
    return str(action["until"])[:19].replace("T", " ") + ("" if action["is_active"] else ", over")
