"""``manta suppression``: addresses to which nothing is sent."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from manta.cli.common import door, facts, say, table

app = typer.Typer(no_args_is_help=True)
SHOWN = 100
REJECTS_SHOWN = 20
Address = Annotated[str, typer.Argument(help="An e-mail address.")]
Reason = Annotated[
    str | None,
    typer.Option(help="hard_bounce, soft_bounces, complaint, manual, unsubscribed, …"),
]


@app.command("list", help="Suppressions that hold.")
def list_(
    context: typer.Context,
    reason: Reason = None,
    contains: Annotated[str | None, typer.Option(help="A part of the address.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = SHOWN,
) -> None:
    with door(context).client() as client:
        found = client.suppressions(reason=reason, contains=contains)
        rows = list(islice(found, limit + 1))
    columns = ("address", "channel", "reason", "source", "since (UTC)", "until (UTC)")
    names = ("address", "channel", "reason", "source", "created_at", "expires_at")
    table("", columns, [[row[name] or "" for name in names] for row in rows[:limit]])
    if len(rows) > limit:
        say("… and more: --limit, or manta suppression export")


@app.command(help="Why nothing is sent to an address.")
def show(context: typer.Context, address: Address) -> None:
    with door(context).client() as client:
        facts(client.suppression(address))


@app.command(help="Send nothing to an address any more.")
def add(
    context: typer.Context,
    address: Address,
    reason: Annotated[str, typer.Option(help="Why.")] = "manual",
    expires_at: Annotated[
        str | None, typer.Option("--until", help="RFC 3339; never if absent.")
    ] = None,
) -> None:
    with door(context).client() as client:
        changed = client.suppress(address, reason=reason, expires_at=expires_at)
    say(f"{address} is suppressed" if changed else f"{address} was suppressed before")


@app.command(help="Let mail to an address pass again.")
def lift(
    context: typer.Context,
    address: Address,
    why: Annotated[str, typer.Argument(help="Stays in the history.")],
) -> None:
    with door(context).client() as client:
        changed = client.lift_suppression(address, why)
    say(f"{address} may get mail again" if changed else f"{address} was not suppressed")


@app.command("import", help="Suppress the addresses of a CSV file.")
def import_(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="Columns: address, reason, source, evidence, expires_at.")
    ],
    reason: Annotated[str, typer.Option(help="Where a row has none.")] = "manual",
    source: Annotated[str, typer.Option(help="Where a row has none.")] = "import",
) -> None:
    with door(context).client() as client:
        summary = client.import_suppressions(file, reason, source)
    counts = {name: value for name, value in vars(summary).items() if name != "rejects"}
    facts(counts)
    for line, why in summary.rejects[:REJECTS_SHOWN]:
        say(f"line {line}: {why}")
    if len(summary.rejects) > REJECTS_SHOWN:
        say(f"… and {len(summary.rejects) - REJECTS_SHOWN:,} more")


@app.command(help="Write all suppressions to a CSV file.")
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Written complete or not at all.")],
    reason: Reason = None,
) -> None:
    with door(context).client() as client:
        rows = client.export_suppressions(file, reason=reason)
    say(f"{rows:,} suppressions in {file}")
