"""``manta domain``: DKIM keys, and whether receivers can tell that our mail is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import door, say, table
from manta.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True)
Domain = Annotated[str, typer.Argument(help="As in the From address: shop.example.")]


@app.command("list", help="The domains that campaigns may be sent from.")
def list_domains(context: typer.Context) -> None:
    with door(context).client() as client:
        rows = [
            (d["id"], ", ".join(k["selector"] for k in d["keys"]) or "the relay's", _state(d))
            for d in client.domains()
        ]
    table("", ("domain", "keys (the first signs)", "check"), rows)


@app.command(help="Add a domain: makes two DKIM keys and says what to publish.")
def add(
    context: typer.Context,
    domain: Domain,
    private_key: Annotated[
        Path | None, typer.Option(help="A DKIM key of your own, PEM, instead of a new one.")
    ] = None,
    selector: Annotated[str, typer.Option(help="Where the record of that key is.")] = "",
    signed_by_relay: Annotated[
        bool, typer.Option("--signed-by-relay", help="The relay signs as this domain.")
    ] = False,
) -> None:
    pem = _read(private_key) if private_key else None
    with door(context).client() as client:
        client.add_domain(domain, pem, selector, signed_by_relay)
        _show(client.check_domain(domain))


@app.command(help="Compare the DNS with what it should have. Exit code 1 where something is wrong.")
def check(context: typer.Context, domain: Domain) -> None:
    with door(context).client() as client:
        document = client.check_domain(domain)
    _show(document)
    if not document["check"]["passing"]:
        raise typer.Exit(1)


@app.command(help="Let the next DKIM key sign, and make another.")
def rotate(context: typer.Context, domain: Domain) -> None:
    with door(context).client() as client:
        document = client.rotate_domain(domain)
        signs, following = (key["selector"] for key in document["keys"][:2])
        say(f"{signs} signs now. Keep the record of {document['retired'][-1]['selector']} a week.")
        say(f"Publish {following}._domainkey.{document['id']} TXT {document['keys'][1]['record']}")


@app.command(help="Remove a domain and forget its keys.")
def remove(context: typer.Context, domain: Domain) -> None:
    with door(context).client() as client:
        client.remove_domain(domain)


def _show(document: dict[str, Any]) -> None:
    table(
        f"What the DNS has for {document['id']}",
        ("", "", "found", "would be right"),
        [(f["subject"], f["verdict"], f["says"], f["expected"]) for f in _found(document)],
    )
    say("\nPublish these records:\n")
    for record in document["records"]:
        say(f"; {record['why']}")
        say(f"{record['name']}.  {record['type']}  {_value(record)}\n")


def _found(document: dict[str, Any]) -> list[dict[str, Any]]:
    order = ("wrong", "unknown", "warning", "ok")
    return sorted(document["check"]["findings"], key=lambda f: order.index(f["verdict"]))


def _value(record: dict[str, Any]) -> str:
    """As a zone file has it: a TXT record in strings of at most 255 characters (RFC 1035)."""
    if record["type"] != "TXT":
        return str(record["value"])
    text = record["value"]
    return " ".join(f'"{text[i : i + 255]}"' for i in range(0, len(text), 255))


def _state(document: dict[str, Any]) -> str:
    check = document["check"]
    if check is None:
        return "never checked"
    return f"{'passing' if check['passing'] else 'failing'} since {check['at']}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{path} is not a PEM file", path=str(path), expected="-----BEGIN PRIVATE KEY-----"
        ) from None
