"""``manta source``: where data comes in from, and trying a mapping before it goes live."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import door, facts, say, shown, table
from manta.errors import InvalidRequest
from manta.ingestion import mapping as mappings
from manta.ingestion.mapping_form import plan_of
from manta.ingestion.normalised import Unfit

app = typer.Typer(no_args_is_help=True)
Source = Annotated[int, typer.Argument(metavar="SOURCE", help="The number of a source.")]
SecretEnv = Annotated[
    str | None,
    typer.Option(
        "--secret-env",
        help="The environment variable with the secret that Shopify or Stripe gave; for other"
        " kinds one is made.",
    ),
]
MappingFile = Annotated[
    Path | None, typer.Option("--mapping", help="Of kind mapping: the file with it.")
]


@app.command("list", help="The sources.")
def list_(context: typer.Context) -> None:
    with door(context).client() as client:
        rows = [(e["id"], e["name"], e["kind"], e.get("webhook_url", "")) for e in client.sources()]
    table("", ("id", "name", "kind", "webhook"), rows)


@app.command(help="Add a source. A secret that is made is shown now and never again.")
def create(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="shopify, woocommerce, stripe, mapping or segment.")],
    name: Annotated[str, typer.Argument(help="For people, and for `manta quarantine`.")],
    mapping: MappingFile = None,
    secret_env: SecretEnv = None,
    consent_topic: Annotated[
        str | None, typer.Option(help="What marketing consent in the shop stands for here.")
    ] = None,
    key_id: Annotated[str | None, typer.Option(help="Of kind segment: the key's id.")] = None,
    declare: Annotated[bool, typer.Option(help="Unknown traits become attributes.")] = True,
) -> None:
    fields: dict[str, Any] = {"consent_topic": consent_topic, "key_id": key_id, "declare": declare}
    fields |= {"mapping": None if mapping is None else _checked(mapping)}
    fields |= {"secret": _secret(secret_env)}
    given = {name: value for name, value in fields.items() if value is not None}
    with door(context).client() as client:
        made = client.create_source(kind, name, **given)
    say(f"source {made['id']}")
    if "webhook_url" in made:
        say(f"webhooks go to {made['webhook_url']}")
        if secret_env is None and "secret" in made:
            say(f"their secret, shown this once: {made['secret']}")
        elif "secret" not in made:
            say(f"none is taken before `manta source rotate {made['id']} --secret-env …`")


@app.command(help="One source, and what became of its webhooks.")
def show(context: typer.Context, source: Source) -> None:
    with door(context).client() as client:
        facts(client.source(source))


@app.command(help="Change a source; what waits in quarantine can be replayed by a new mapping.")
def change(
    context: typer.Context,
    source: Source,
    name: Annotated[str | None, typer.Option()] = None,
    mapping: MappingFile = None,
    consent_topic: Annotated[str | None, typer.Option()] = None,
) -> None:
    fields: dict[str, Any] = {"name": name, "consent_topic": consent_topic}
    fields["mapping"] = None if mapping is None else _checked(mapping)
    given = {name: value for name, value in fields.items() if value is not None}
    with door(context).client() as client:
        made = client.change_source(source, **given)
    say(f"source {source} is at version {made['version']}")


@app.command(help="Set or replace the secret; the one before is good for a while.")
def rotate(
    context: typer.Context,
    source: Source,
    secret_env: SecretEnv = None,
    hours: Annotated[float, typer.Option(min=0, help="How long the old one is good.")] = 24,
) -> None:
    with door(context).client() as client:
        made = client.rotate_source(source, _secret(secret_env), hours)
    if secret_env is None:
        say(f"the new secret, shown this once: {made['secret']}")
    else:
        say(f"source {source} has a new secret")


@app.command(help="Delete a source. What came from it stays.")
def delete(context: typer.Context, source: Source) -> None:
    with door(context).client() as client:
        client.delete_source(source)
    say(f"source {source} is gone")


@app.command("try", help="What samples would become by a mapping. Exit code 1 where one is unfit.")
def try_(
    mapping: Annotated[Path, typer.Argument(help="A JSON file with a mapping.")],
    samples: Annotated[list[Path], typer.Argument(help="JSON files as the system sends them.")],
) -> None:
    """On this machine alone: nothing is sent anywhere."""
    source = {"id": 0, "name": mapping.stem, "kind": mappings.KIND, "mapping": _checked(mapping)}
    unfit = 0
    for path in samples:
        bodies = mappings.bodies(source, _json(path))
        for n, body in enumerate(bodies, 1):
            where = f"{path.name}, record {n}" if len(bodies) > 1 else path.name
            found = mappings.normalise(source, body, datetime.now(UTC).replace(tzinfo=None))
            if isinstance(found, Unfit):
                unfit += 1
                typer.secho(shown(f"{where}: unfit at {found.path}: {found.problem}"), fg="red")
                continue
            if not found:
                say(f"{where}: means nothing")
            for said in mappings.described(found):
                say(f"{where}:")
                for line in json.dumps(said, indent=2, ensure_ascii=False).splitlines():
                    typer.echo(_line(line))
    if unfit:
        raise typer.Exit(1)


def _line(line: str) -> str:
    """A line as it is, but for what could rule a terminal."""
    return "".join(c if c.isprintable() else "�" for c in line)


def _checked(path: Path) -> dict[str, Any]:
    """The mapping in a file. Raises ``InvalidRequest`` that says where in it the mistake is."""
    found = _json(path)
    try:
        plan_of(found)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{path}: {error.message}", path=error.path, expected=error.expected
        ) from None
    return dict(found)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not JSON: {error}", path=str(path)) from None


def _secret(variable: str | None) -> str | None:
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise InvalidRequest(f"the variable {variable} is not set", path="--secret-env")
    return secret
