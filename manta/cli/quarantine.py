"""``manta quarantine``: what came in and fits no shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import door, facts, say, table
from manta.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True)
SHOWN = 50
Id = Annotated[str, typer.Argument(help="From `manta quarantine list`.")]
Source = Annotated[str | None, typer.Option(help="Only of this source.")]
Problem = Annotated[str | None, typer.Option(help="Only with exactly this problem.")]


@app.command("list", help="What waits, or has been settled.")
def list_(
    context: typer.Context,
    source: Source = None,
    problem: Problem = None,
    state: Annotated[str, typer.Option(help="waiting, replayed or discarded.")] = "waiting",
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many to show.")] = SHOWN,
) -> None:
    with door(context).client() as client:
        found = client.quarantine(state=state, source=source, problem=problem, limit=limit)
    columns = ("id", "received (UTC)", "source", "at", "problem")
    names = ("id", "received_at", "source", "path", "problem")
    table("", columns, [[row[name] for name in names] for row in found["items"]])
    if found["next"]:
        say("… and more: --limit")


@app.command(help="One message, whole.")
def show(context: typer.Context, id: Id) -> None:
    with door(context).client() as client:
        row = client.quarantined(id)
    body = row.pop("body")
    facts(row)
    for line in json.dumps(body, indent=2, ensure_ascii=False).splitlines():
        say(line)


@app.command(help="Take a message in once more, mended perhaps; or all that wait.")
def replay(
    context: typer.Context,
    id: Annotated[str | None, typer.Argument(help="One of them; without: many.")] = None,
    body: Annotated[Path | None, typer.Option(help="A file with the mended message.")] = None,
    source: Source = None,
    problem: Problem = None,
) -> None:
    if body is not None and id is None:
        raise InvalidRequest("a mended message is of one id", path="--body", expected="an id")
    with door(context).client() as client:
        if id is not None:
            client.replay_quarantined(id, None if body is None else _message(body))
            say(f"{id} is stored")
            return
        done = client.replay_quarantine(source=source, problem=problem)
    facts({name: value for name, value in done.items() if name != "errors"})
    for error in done["errors"]:
        say(f"{error['id']}: {error['path']} {error['problem']}")


@app.command(help="Throw a message away.")
def discard(context: typer.Context, id: Id) -> None:
    with door(context).client() as client:
        client.discard_quarantined(id)
    say(f"{id} is discarded")


def _message(path: Path) -> dict[str, Any]:
    try:
        message = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not JSON: {error}", path=str(path)) from None
    if not isinstance(message, dict):
        raise InvalidRequest(f"{path} holds no message", path=str(path), expected="an object")
    return message
