"""``manta template``: a template is a folder with ``subject.txt``, ``html.html`` and, if wanted,
``text.txt``, ``preheader.txt``, ``from_name.txt``, ``from_email.txt``, ``reply_to.txt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manta.cli.common import door, facts, say, table
from manta.definitions import TEMPLATE_FIELDS
from manta.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="A folder with subject.txt, html.html, …")]
Sender = Annotated[str, typer.Option("--from", help="The address that the mail is from.")]
SenderName = Annotated[str, typer.Option("--from-name", help="The name beside it.")]
Person = Annotated[str, typer.Option("--email", help="For whom: a subscriber's address.")]


@app.command("list", help="All templates.")
def list_templates(context: typer.Context) -> None:
    with door(context).client() as client:
        rows = [(str(t["id"]), t["name"], str(t["version"])) for t in client.templates()]
    table("", ("id", "name", "version"), rows)


@app.command(help="Find what is wrong before anybody gets it.")
def lint(
    context: typer.Context, folder: Folder, sender: Sender = "", sender_name: SenderName = ""
) -> None:
    with door(context).client() as client:
        findings = client.lint(**content_of(folder, sender, sender_name))
    if not findings:
        say("Nothing to say against it.")
        return
    names = ("level", "part", "line", "message")
    table("", names, [[str(finding.get(name) or "") for name in names] for finding in findings])
    if any(finding["level"] == "error" for finding in findings):
        raise typer.Exit(1)


@app.command(help="Save a folder as a template.")
def create(
    context: typer.Context,
    name: str,
    folder: Folder,
    sender: Sender = "",
    sender_name: SenderName = "",
) -> None:
    with door(context).client() as client:
        made = client.create_template(name, **content_of(folder, sender, sender_name))
    say(f"template {made['template_id']}")


@app.command(help="The mail that a real person would get.")
def preview(
    context: typer.Context,
    template: int,
    email: Person,
    html: Annotated[Path | None, typer.Option(help="Write the HTML to this file.")] = None,
) -> None:
    with door(context).client() as client:
        mail = client.preview(template, email=email)
    if html is not None:
        html.write_text(str(mail["html"]), encoding="utf-8")
        say(f"The HTML is in {html}")
    facts({"subject": mail["subject"]})
    for line in str(mail.get("text", "")).splitlines():
        say(line)


@app.command(help="Send it to an address of your own.")
def test(
    context: typer.Context,
    template: int,
    to: Annotated[str, typer.Option(help="The address that gets it.")],
    email: Annotated[
        str | None, typer.Option(help="The subscriber whose attributes fill it.")
    ] = None,
) -> None:
    options = {} if email is None else {"email": email}
    with door(context).client() as client:
        client.test_send(template, to, **options)
    say(f"On its way to {to}")


def content_of(folder: Path, sender: str = "", sender_name: str = "") -> dict[str, str]:
    """The fields that the folder's files and the options give."""
    if not folder.is_dir():
        raise InvalidRequest(
            f"no folder {folder}", path=str(folder), expected="subject.txt and html.html in it"
        )
    content = {}
    for field in TEMPLATE_FIELDS:
        path = folder / f"{field}.{'html' if field == 'html' else 'txt'}"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            content[field] = text if field in ("html", "text") else text.strip()
    given = {"from_email": sender, "from_name": sender_name}
    content |= {field: text for field, text in given.items() if text}
    for field, expected in (
        ("subject", "subject.txt"),
        ("html", "html.html"),
        ("from_email", "--from, or from_email.txt"),
    ):
        if not content.get(field):
            where = str(folder)
            raise InvalidRequest(f"the template has no {field}", path=where, expected=expected)
    return content
