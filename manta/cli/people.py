"""``manta import`` and ``manta export``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import door, facts, rule_in, say
from manta.errors import InvalidRequest


def import_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV (any dialect, also .gz) or Parquet.")],
    map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=TARGET",
            help="email, external_id, time_zone, locale, skip, or an attribute[:type]. Repeatable.",
        ),
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="Where refused rows go. [default: FILE.rejects.csv]")
    ] = None,
    consent: Annotated[
        str, typer.Option(metavar="CHANNEL:TOPIC:STATUS", help="For every row; or none.")
    ] = "email:newsletter:subscribed",
    word: Annotated[
        list[str] | None,
        typer.Option(
            "--word",
            metavar="WORD=OUTCOME",
            help="What a word of the file means: subscribed, none, pending, unsubscribed, "
            "suppressed, hard_bounce, complaint. Empty: where the file says nothing. Repeatable.",
        ),
    ] = None,
    look: Annotated[
        bool, typer.Option("--look", help="Say what is recognised, and write nothing.")
    ] = False,
) -> None:
    """People of a file. What it says of consent is told before anything is written."""
    words = _words(word or [])
    if look:
        from manta.people.platform_exports import described
        from manta.store.importing import plan_import

        plan = plan_import(file, {}, _mapping(map or []), words)
        for column in plan.columns:
            say(f"{column.header} → {column.target}")
        _tell(described(plan.statuses))
        return
    given = None if consent == "none" else _consent(consent)
    refused = rejects or file.with_name(f"{file.name}.rejects.csv")
    with door(context).client() as client, _bar(f"Importing {file.name}") as bar:
        summary = client.import_people(file, _mapping(map or []), given, refused, bar, words, _tell)
    facts(vars(summary))
    if summary.rejected and refused.exists():
        say(f"Refused rows, with line and reason: {refused}")


def export_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Written as CSV, or as Parquet by its name.")],
    segment: Annotated[int | None, typer.Option(help="The id of a segment.")] = None,
    rule: Annotated[Path | None, typer.Option(help="A JSON file with a rule.")] = None,
) -> None:
    if segment is not None and rule is not None:
        raise InvalidRequest("an audience is a segment or a rule", expected="one of the two")
    audience = segment if rule is None else rule_in(rule)
    rows = 0

    def count(now: int) -> None:
        nonlocal rows
        rows = now
        bar(now, 0.0)

    with door(context).client() as client, _bar(f"Exporting to {file.name}") as bar:
        client.export(audience, file, progress=count)
        bar(rows, 1.0)
    say(f"{rows:,} people in {file}")


app = typer.Typer(no_args_is_help=True)


@app.command("merge", help="Let one person live on as another.")
def merge(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="Who is merged: a subscriber's id.")],
    into: Annotated[str, typer.Argument(help="Who stays.")],
    cause: Annotated[str, typer.Option(help="For the history of both.")] = "command line",
) -> None:
    with door(context).client() as client:
        done = client.merge(id, into, cause)
    say(f"{done['merged_from']} lives on as {done['id']}. undo-merge {id} takes it back.")


@app.command("undo-merge", help="Give a merged person back what is theirs.")
def undo_merge(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="The merged person's own id.")],
) -> None:
    with door(context).client() as client:
        done = client.undo_merge(id)
    say(f"{done['id']} and {done['was_merged_into']} are two people again.")


def _consent(text: str) -> tuple[str, str, str]:
    channel, _, rest = text.partition(":")
    topic, _, status = rest.rpartition(":")
    if not topic:
        raise InvalidRequest(
            f"{text!r:.80} is not a consent",
            path="--consent",
            expected="channel:topic:status, or none",
        )
    return channel, topic, status


def _tell(sentences: list[str]) -> None:
    for sentence in sentences:
        say(sentence)


def _words(texts: list[str]) -> dict[str, str]:
    words = {}
    for text in texts:
        word, equals, outcome = text.rpartition("=")
        if not equals or not outcome:
            raise InvalidRequest(
                f"{text!r:.80} says nothing", path="--word", expected="WORD=OUTCOME"
            )
        words[word] = outcome
    return words


def _mapping(texts: list[str]) -> dict[str, str]:
    mapping = {}
    for text in texts:
        column, equals, target = text.rpartition("=")
        if not equals or not column or not target:
            raise InvalidRequest(
                f"{text!r:.80} says nothing", path="--map", expected="COLUMN=TARGET"
            )
        mapping[column] = target
    return mapping


@contextmanager
def _bar(title: str) -> Iterator[Any]:
    """A progress bar on the error stream: call it with rows and the part that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[speed]:,.0f}/s"),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(title, total=1.0, rows=0, speed=0.0)

    def advance(rows: int, part: float) -> None:
        progress.start()  # only now: what was wrong at once is said without a bar
        elapsed_s = progress.tasks[0].elapsed or 0.0
        speed = rows / elapsed_s if elapsed_s else 0.0
        progress.update(task, completed=part, rows=rows, speed=speed)

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()
