"""``manta segment``: an audience is the id of a segment, or a JSON file with a rule."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import audience_of, door, rule_in, say, table

app = typer.Typer(no_args_is_help=True)
Audience = Annotated[str, typer.Argument(help="A segment's id, or a JSON file with a rule.")]
SAMPLE_COLUMNS = ("id", "email", "attributes")


@app.command("list", help="All segments.")
def list_segments(context: typer.Context) -> None:
    with door(context).client() as client:
        rows = [
            (str(s["id"]), s["name"], s["type"], "yes" if s["live"] else "", str(s["version"]))
            for s in client.segments()
        ]
    table("", ("id", "name", "type", "live", "version"), rows)


@app.command(help="Save a rule under a name.")
def create(
    context: typer.Context,
    name: str,
    rule: Annotated[Path, typer.Argument(help="A JSON file with a rule.")],
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Keep whom it holds for now, for good.")
    ] = False,
) -> None:
    with door(context).client() as client:
        kind = "snapshot" if snapshot else "rule"
        made = client.create_segment(name, rule_in(rule), kind)
    say(f"segment {made['id']}")
    if made.get("why_not_live"):
        say(f"not live: {made['why_not_live']}")


@app.command("create-list", help="A segment whose members are put on it by hand.")
def create_list(context: typer.Context, name: str) -> None:
    with door(context).client() as client:
        say(f"segment {client.create_list(name)['id']}")


@app.command(help="Put people on a list: addresses or ids, or - to read them line by line.")
def add(context: typer.Context, segment: int, people: list[str]) -> None:
    with door(context).client() as client:
        _say_edited(client.edit_list(segment, add=_names(people)))


@app.command(help="Take people off a list.")
def remove(context: typer.Context, segment: int, people: list[str]) -> None:
    with door(context).client() as client:
        _say_edited(client.edit_list(segment, remove=_names(people)))


def _names(people: list[str]) -> list[str]:
    if people != ["-"]:
        return people
    return [line.strip() for line in typer.get_text_stream("stdin") if line.strip()]


def _say_edited(answer: dict[str, Any]) -> None:
    say(f"{answer['entered']} entered, {answer['left']} left")
    for name in answer["unknown"]:
        say(f"unknown: {name}")


@app.command(help="Who is in it: of live segments, lists and snapshots.")
def members(
    context: typer.Context, segment: int, limit: Annotated[int, typer.Option(min=1)] = 100
) -> None:
    with door(context).client() as client:
        rows = [(each["id"], each["email"]) for each in islice(client.members(segment), limit)]
    table("", ("id", "email"), rows)


@app.command(help="How it grew, day by day.")
def growth(
    context: typer.Context, segment: int, days: Annotated[int, typer.Option(min=1)] = 30
) -> None:
    with door(context).client() as client:
        found = client.growth(segment, days)
    columns = ("day", "entered", "left", "members")
    table("", columns, [[str(day[name]) for name in columns] for day in found])


@app.command(help="How many people are in both of two segments.")
def overlap(context: typer.Context, segments: list[int]) -> None:
    with door(context).client() as client:
        pairs = client.overlap(*segments)
    rows = [[str(pair[name]) for name in ("a", "b", "people")] for pair in pairs]
    table("", ("a", "b", "people"), rows)


@app.command(help="Delete a segment that no other one refers to.")
def delete(context: typer.Context, segment: int) -> None:
    with door(context).client() as client:
        client.delete_segment(segment)
    say(f"segment {segment} is deleted")


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
