"""``manta webhook``: endpoints that are told what happens, and what was delivered to them."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from manta.cli.common import door, facts, say, table

app = typer.Typer(no_args_is_help=True)
SHOWN = 50
Endpoint = Annotated[int, typer.Argument(metavar="ENDPOINT", help="The number of an endpoint.")]
Types = Annotated[
    list[str],
    typer.Option(
        "--type", help="What is told: event.purchased, segment.*, message.bounced, …, or *."
    ),
]
Since = Annotated[str | None, typer.Option(help="RFC 3339.")]
Until = Annotated[str | None, typer.Option(help="RFC 3339.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="A webhook-id; else all of the time.")]


@app.command("list", help="The endpoints.")
def list_(context: typer.Context) -> None:
    with door(context).client() as client:
        rows = [(e["id"], e["url"], ", ".join(e["types"]), _state(e)) for e in client.webhooks()]
    table("", ("id", "url", "types", "state"), rows)


@app.command(help="Tell an endpoint what happens. Its secret is shown now and never again.")
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="https://…")],
    types: Types,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    ordered: Annotated[
        bool, typer.Option("--ordered", help="One at a time, in order of commit in each shard.")
    ] = False,
) -> None:
    with door(context).client() as client:
        made = client.create_webhook(url, types, description=description, ordered=ordered)
    say(f"endpoint {made['id']}; its secret, shown this once: {made['secret']}")


@app.command(help="One endpoint, and how many deliveries are in each state.")
def show(context: typer.Context, endpoint: Endpoint) -> None:
    with door(context).client() as client:
        facts(client.webhook(endpoint))


@app.command(help="Send nothing to it any more; what waits fails and can be replayed.")
def disable(context: typer.Context, endpoint: Endpoint) -> None:
    with door(context).client() as client:
        client.change_webhook(endpoint, enabled=False)
    say(f"endpoint {endpoint} is disabled")


@app.command(help="Send to it again, from now on.")
def enable(context: typer.Context, endpoint: Endpoint) -> None:
    with door(context).client() as client:
        client.change_webhook(endpoint, enabled=True)
    say(f"endpoint {endpoint} is enabled; manta webhook replay {endpoint} sends what failed")


@app.command(help="Replace the secret. The new one is shown now and never again.")
def rotate(
    context: typer.Context,
    endpoint: Endpoint,
    hours: Annotated[float, typer.Option(min=0, help="How long the old one signs as well.")] = 24,
) -> None:
    with door(context).client() as client:
        made = client.rotate_webhook(endpoint, hours)
    say(f"the new secret, shown this once: {made['secret']}")


@app.command(help="Delete an endpoint with its log.")
def remove(context: typer.Context, endpoint: Endpoint) -> None:
    with door(context).client() as client:
        client.delete_webhook(endpoint)
    say(f"endpoint {endpoint} is gone")


@app.command(help="Send a test now. Exit code 1 where it is not delivered.")
def test(context: typer.Context, endpoint: Endpoint) -> None:
    with door(context).client() as client:
        answer = client.test_webhook(endpoint)
    facts(answer)
    if not answer["delivered"]:
        raise typer.Exit(1)


@app.command(help="What was delivered, the newest first.")
def log(
    context: typer.Context,
    endpoint: Endpoint,
    state: Annotated[
        str | None, typer.Option(help="waiting, delivered, failed or discarded.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = SHOWN,
) -> None:
    with door(context).client() as client:
        rows = list(islice(client.webhook_deliveries(endpoint, state=state), limit))
    names = ("webhook_id", "type", "state", "attempts", "status", "answer", "created_at", "due_at")
    table("", names, [["" if row[name] is None else row[name] for name in names] for row in rows])


@app.command(help="Send again what failed or was discarded, under the same ids.")
def replay(
    context: typer.Context,
    endpoint: Endpoint,
    id: Ids = None,
    since: Since = None,
    until: Until = None,
    delivered: Annotated[
        bool, typer.Option("--delivered", help="What was delivered, too.")
    ] = False,
) -> None:
    with door(context).client() as client:
        count = client.replay_webhooks(
            endpoint, id or (), since=since, until=until, delivered=delivered
        )
    say(f"{count:,} deliveries are sent again")


@app.command(help="Do not send what waits.")
def discard(
    context: typer.Context,
    endpoint: Endpoint,
    why: Annotated[str, typer.Argument(help="Stays in the log.")],
    id: Ids = None,
    since: Since = None,
    until: Until = None,
) -> None:
    with door(context).client() as client:
        count = client.discard_webhooks(endpoint, id or (), since=since, until=until, why=why)
    say(f"{count:,} deliveries are discarded")


def _state(endpoint: dict[str, Any]) -> str:
    if endpoint["enabled"]:
        return "ordered" if endpoint["ordered"] else "enabled"
    disabled = endpoint["disabled"]
    return f"disabled: {disabled['cause']}" if disabled else "disabled by hand"
