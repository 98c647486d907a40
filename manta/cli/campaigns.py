"""``manta campaign``: from the draft to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import door, facts, rule_in, say, shown, table
from manta.errors import Conflict, NotFound

app = typer.Typer(no_args_is_help=True)
Id = Annotated[int, typer.Argument(metavar="CAMPAIGN", help="The id of a campaign.")]
LIST_COLUMNS = ("id", "name", "state", "created_at")
SUMS = ("planned_total", "pending", "adds_up")


@app.command("list", help="All campaigns.")
def list_campaigns(context: typer.Context) -> None:
    with door(context).client() as client:
        found = client.campaigns()
    table("", LIST_COLUMNS, [[str(c.get(name, "")) for name in LIST_COLUMNS] for c in found])


@app.command(help="A draft: one template to one audience.")
def create(
    context: typer.Context,
    name: str,
    template: Annotated[int, typer.Option(help="The id of a template.")],
    segment: Annotated[int | None, typer.Option(help="The id of a segment.")] = None,
    rule: Annotated[Path | None, typer.Option(help="A JSON file with a rule.")] = None,
    topic: Annotated[str, typer.Option(help="People need a consent for it.")] = "newsletter",
    kind: Annotated[str, typer.Option(help="marketing or transactional")] = "marketing",
    source: Annotated[str | None, typer.Option(help="The way out, by its name.")] = None,
) -> None:
    fields: dict[str, Any] = {"topic": topic, "kind": kind}
    if segment is not None:
        fields["segment_id"] = segment
    if rule is not None:
        fields["rule"] = rule_in(rule)
    if source is not None:
        fields["source"] = source
    with door(context).client() as client:
        say(f"campaign {client.create_campaign(name, template, **fields)['id']}")


@app.command(help="Send it, now or at a time.")
def launch(
    context: typer.Context,
    campaign: Id,
    at: Annotated[str | None, typer.Option(help="RFC 3339, 2027-01-31T09:00:00Z")] = None,
) -> None:
    with door(context).client() as client:
        _tell(client.launch(campaign, at))


@app.command(help="Go through it in virtual time before its start; nothing is sent.")
def rehearse(
    context: typer.Context,
    campaign: Id,
    at: Annotated[str | None, typer.Option(help="The start, RFC 3339; now if absent.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed meets the same chances.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare", help="After the end: what was foreseen, and what came.")
    ] = False,
) -> None:
    from manta.cli.forecasts import show_comparison, show_forecast

    with door(context).client() as client:
        if not compare:
            show_forecast(client.rehearse(campaign, at, seed))
            return
        found = client.forecast(campaign)
    if found["forecast"] is None:
        raise NotFound(f"campaign {campaign} was not rehearsed before its start", path="campaign")
    if found["comparison"] is None:
        raise Conflict(
            f"campaign {campaign} has not ended", path="state", expected="an ended campaign"
        )
    show_comparison(found["comparison"])


@app.command(help="Nothing more is sent until it is resumed.")
def pause(context: typer.Context, campaign: Id) -> None:
    with door(context).client() as client:
        _tell(client.pause(campaign))


@app.command(help="Go on with a paused campaign.")
def resume(context: typer.Context, campaign: Id) -> None:
    with door(context).client() as client:
        _tell(client.resume(campaign))


@app.command(help="What was not sent yet will not be.")
def cancel(context: typer.Context, campaign: Id) -> None:
    with door(context).client() as client:
        _tell(client.cancel(campaign))


@app.command(help="Every recipient accounted for, and what people did.")
def report(
    context: typer.Context,
    campaign: Id,
    recipients: Annotated[
        Path | None, typer.Option(help="Write every recipient to this CSV or Parquet file.")
    ] = None,
) -> None:
    with door(context).client() as client:
        show_report(client.report(campaign))
        if recipients is not None:
            import pyarrow as pa

            from manta.store.importing import write_people

            frame = pa.Table.from_pandas(client.recipients(campaign), preserve_index=False)
            say(f"{write_people(recipients, [frame]):,} recipients in {recipients}")


@app.command(help="See it run until it has ended, then the report.")
def watch(context: typer.Context, campaign: Id) -> None:
    from rich.console import Console
    from rich.live import Live

    last: dict[str, Any] = {}
    with (
        door(context).client() as client,
        Live(console=Console(), auto_refresh=False, transient=True) as live,
    ):
        for now in client.watch(campaign):
            last = now["report"]
            live.update(_progress(now), refresh=True)
    show_report(last)


def _tell(campaign: dict[str, Any]) -> None:
    say(f"campaign {campaign['id']} is {campaign['state']}")


def _progress(now: dict[str, Any]) -> Any:
    """A bar of the messages that are settled, and the counts."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    counts = now["report"]["accounting"]
    total = max(int(counts["planned_total"]), 1)
    states = [f"{n} {shown(c)}" for n, c in counts.items() if n not in SUMS and c]
    return Group(
        Text(f"{shown(now.get('name', ''))}: {now['state']}", style="bold"),
        ProgressBar(total=total, completed=total - int(counts["pending"]), width=60),
        Text(" · ".join(states) or "planning"),
    )


def show_report(report: dict[str, Any]) -> None:
    counts = report["accounting"]
    table("Recipients", ("state", "messages"), [(n, c) for n, c in counts.items() if n not in SUMS])
    facts(
        {
            "planned": counts["planned_total"],
            "still to come": counts["pending"],
            "adds up": counts["adds_up"],
        }
    )
    events = [
        (name, *(found[figure] for figure in ("unique", "by_people", "unique_all", "total")))
        for name, found in report["events"].items()
    ]
    table(
        "What people did",
        ("event", "messages", "times", "messages with machines", "times with machines"),
        events,
    )
    if report["failures"]:
        names = ("state", "reason", "reply_code", "messages", "example")
        rows = [[failure.get(name) for name in names] for failure in report["failures"][:20]]
        table("Failures", names, rows)
