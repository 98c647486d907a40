"""``manta privacy``: erasing people, receipts of it, and copies of what is known of somebody."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import door, facts, say
from manta.errors import InvalidRequest, OutcomeUnknown
from manta.ids import decode_id
from manta.privacy.receipts import verify as verify_receipt

app = typer.Typer(no_args_is_help=True)
WAIT_S = 600.0
LOOK_S = 1.0
Person = Annotated[str, typer.Argument(help="An e-mail address, or the id of a subscriber.")]


@app.command(help="Erase a person: unreadable and unmailable at once, gone from files in 72 h.")
def erase(
    context: typer.Context,
    person: Person,
    external_id: Annotated[bool, typer.Option(help="PERSON is an external id.")] = False,
    now: Annotated[
        bool,
        typer.Option("--now", help="Rewrite files now and wait; readers of the lake may notice."),
    ] = False,
    receipt: Annotated[Path | None, typer.Option(help="Where the receipt goes.")] = None,
) -> None:
    named = {"external_id": person} if external_id else _named(person)
    with door(context).client() as client:
        begun = client.erase(**named, now=now)
        say(f"{person} is erased. Request {begun['id']}.")
        if now or receipt:
            done = _waited(client, begun["id"])
            _kept(done, receipt)


@app.command(help="How a request of erasure stands, and its receipt.")
def show(
    context: typer.Context,
    request: Annotated[str, typer.Argument(help="The request's id.")],
    receipt: Annotated[Path | None, typer.Option(help="Where the receipt goes.")] = None,
) -> None:
    with door(context).client() as client:
        found = client.erasure(request)
    facts({name: value for name, value in found.items() if name != "receipt"})
    if found["receipt"] is not None:
        _kept(found, receipt)


@app.command(help="Rewrite files now, for all requests that wait.")
def run(context: typer.Context) -> None:
    with door(context).client() as client:
        client.run_erasures()
    say("begun; `manta privacy show REQUEST` says when it is done")


@app.command(help="Check a receipt.")
def verify(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The receipt, JSON.")],
    public_key: Annotated[
        str | None, typer.Option(help="In base64; asked from the API if absent.")
    ] = None,
) -> None:
    document = _json(file)
    if public_key is None:
        with door(context).client() as client:
            public_key = client.receipt_key()
    facts(verify_receipt(document, public_key))
    say("The signature is right.")


@app.command(help="Write everything about one person to a zip file.")
def export(
    context: typer.Context,
    person: Person,
    file: Annotated[Path, typer.Argument(help="Where it goes.")],
) -> None:
    with door(context).client() as client:
        id = _named(person).get("subscriber_id") or client.subscriber(email=person)["id"]
        size = client.export_person(id, file)
    say(f"{size:,} bytes in {file}")


@app.command(help="Write the hashes of erased addresses to a file, to be kept apart from backups.")
def hashes(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="Where they go.")]
) -> None:
    with door(context).client() as client:
        found = client.erased_hashes()
    file.write_text(json.dumps({"hashes": found}, indent=1) + "\n", encoding="utf-8")
    say(f"{len(found):,} hashes in {file}")


@app.command(
    "apply-erasures", help="After a backup was restored: erase again who was erased since."
)
def apply_erasures(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="Of `manta privacy hashes`; else what is stored.")
    ] = None,
) -> None:
    kept = _json(file)["hashes"] if file is not None else []
    with door(context).client() as client:
        again = client.apply_erasures(kept)
    say(f"{len(again):,} people erased again")
    for request in again:
        say(request)


def _named(person: str) -> dict[str, str]:
    if "@" in person:
        return {"email": person}
    try:
        decode_id(person)
    except ValueError:
        raise InvalidRequest(
            f"{person!r:.80} is neither an address nor an id",
            path="PERSON",
            expected="ann@shop.example, or 13 characters of an earlier answer",
        ) from None
    return {"subscriber_id": person}


def _waited(client: Any, request: str) -> dict[str, Any]:
    until = time.monotonic() + WAIT_S
    while True:
        found: dict[str, Any] = client.erasure(request)
        if found["state"] == "done":
            return found
        if time.monotonic() > until:
            raise OutcomeUnknown(
                f"the request is not done after {WAIT_S:g} s; {'; '.join(found['waits_for'])}",
                expected=f"manta privacy show {request}",
            )
        time.sleep(LOOK_S)


def _kept(done: dict[str, Any], file: Path | None) -> None:
    text = json.dumps(done["receipt"], indent=2, ensure_ascii=False)
    if file is None:
        facts(done["receipt"]["receipt"])
        return
    file.write_text(text + "\n", encoding="utf-8")
    say(f"The receipt is in {file}")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file} is not JSON: {error}", path=str(file)) from None
