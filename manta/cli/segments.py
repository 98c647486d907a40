"""``manta segment``: an audience is the id of a segment, or a JSON file with a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manta.cli.common import audience_of, door, rule_in, say, table

app = typer.Typer(no_args_is_help=True)
Audience = Annotated[str, typer.Argument(help="A segment's id, or a JSON file with a rule.")]
SAMPLE_COLUMNS = ("id", "email", "attributes")


@app.command("list", help="All segments.")
def list_segments(context: typer.Context) -> None:
    with door(context).client() as client:
        rows = [(str(s["id"]), s["name"], str(s["version"])) for s in client.segments()]
    table("", ("id", "name", "version"), rows)


@app.command(help="Save a rule under a name.")
def create(
    context: typer.Context,
    name: str,
    rule: Annotated[Path, typer.Argument(help="A JSON file with a rule.")],
) -> None:
    with door(context).client() as client:
        say(f"segment {client.create_segment(name, rule_in(rule))['id']}")


@app.command(help="How many people are in it now.")
def count(context: typer.Context, audience: Audience) -> None:
    with door(context).client() as client:
        say(str(client.segment_count(audience_of(audience))))


@app.command(help="Some of the people in it.")
def sample(
    context: typer.Context, audience: Audience, size: Annotated[int, typer.Option()] = 10
) -> None:
    with door(context).client() as client:
        people = client.segment_sample(audience_of(audience), size)
    table("", SAMPLE_COLUMNS, [[person[name] for name in SAMPLE_COLUMNS] for person in people])


@app.command(help="What it means, in English.")
def explain(context: typer.Context, audience: Audience) -> None:
    with door(context).client() as client:
        for line in client.segment_explain(audience_of(audience)).splitlines():
            say(line)
