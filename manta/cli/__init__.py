"""``manta``: the command line. A door: it reads files, talks to the API, and prints.

Commands that start, stop or look at the cluster (``up``, ``down``, ``status``) and ``demo`` import
the bootstraps when they run; all others need only the API's URL and a key. What a person did wrong
is answered by one line that says what, where, and what would be right, and by the exit code 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from manta.cli import (
    campaigns,
    cluster,
    delivery,
    domains,
    people,
    privacy,
    quarantine,
    segments,
    shaping,
    sources,
    suppressions,
    templates,
    traffic,
    webhooks,
)
from manta.cli.common import Door, complain
from manta.errors import MantaError


class Commands(TyperGroup):
    """The root group: faults end here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (MantaError, OSError) as error:
            complain(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    name="manta",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Open e-mail marketing on an actor system: every recipient accounted for.",
)


@app.callback()
def options(
    context: typer.Context,
    settings: Annotated[
        Path | None,
        typer.Option(envvar="MANTA_SETTINGS", help="A TOML file; defaults hold without one."),
    ] = None,
) -> None:
    context.obj = Door(settings)


app.command("up", help="Start Manta, and Ray where none runs.")(cluster.up)
app.command("down", help="Stop Manta, and the Ray that `up` started.")(cluster.down)
app.command("status", help="What runs, and how it is.")(cluster.status)
app.command("demo", help="See it all at work, on this machine alone.")(cluster.demo)
app.command("import", help="Bring in people from a CSV or Parquet file.")(people.import_file)
app.command("export", help="Write people to a CSV or Parquet file.")(people.export_file)
app.add_typer(people.app, name="people", help="Two people who are one, and back.")
app.add_typer(privacy.app, name="privacy", help="Erasure with a receipt; copies of all data.")
app.add_typer(segments.app, name="segment", help="Audiences: rules about people.")
app.add_typer(quarantine.app, name="quarantine", help="What came in and fits no shape.")
app.add_typer(suppressions.app, name="suppression", help="Addresses to which nothing is sent.")
app.add_typer(templates.app, name="template", help="What mails say.")
app.add_typer(domains.app, name="domain", help="Sending domains: DKIM keys and DNS records.")
app.add_typer(campaigns.app, name="campaign", help="One mail to one audience.")
app.add_typer(sources.app, name="source", help="Shops and other systems that send data.")
app.add_typer(webhooks.app, name="webhook", help="Endpoints that are told what happens.")
app.add_typer(
    delivery.app, name="delivery", help="How the sender stands, what is done about it, its undo."
)
app.add_typer(traffic.app, name="traffic", help="Which opens and clicks are people's.")
app.add_typer(
    shaping.app, name="shaping", help="How providers want mail, and what to do about replies."
)


def main() -> None:
    app()
