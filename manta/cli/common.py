"""What all commands share: settings, where the API is and with which key, and how to print.

The credentials file lies beside the data (``<root>/credentials.toml``, mode 0600), one table for
each workspace; ``MANTA_URL`` and ``MANTA_API_KEY`` come before it. Whatever is printed may have
come from strangers, so control characters, with which a text could rule a terminal, are shown as
``�``.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manta.errors import InvalidRequest, MantaError
from manta.settings import Settings, load

if TYPE_CHECKING:
    from manta.client import Client

CREDENTIALS = "credentials.toml"
REMOTE_FOLDER = ".manta"  # for what belongs to this machine when the root is elsewhere


@dataclass(frozen=True)
class Door:
    """The options that come before every command."""

    settings_file: Path | None

    @cached_property
    def settings(self) -> Settings:
        return Settings() if self.settings_file is None else load(self.settings_file)

    @property
    def folder(self) -> Path:
        """Where this machine's own files lie."""
        root = self.settings.root.removeprefix("file://")
        return Path(REMOTE_FOLDER if "://" in root else root)

    def client(self) -> Client:
        """A client with the credentials of the environment or the file."""
        from manta.client import Client

        kept = read_credentials(self.folder, self.settings.workspace)
        url = os.environ.get("MANTA_URL") or kept.get("url") or self.settings.public_url
        key = os.environ.get("MANTA_API_KEY") or kept.get("api_key")
        if not key:
            raise InvalidRequest(
                "no API key is known",
                path=str(self.folder / CREDENTIALS),
                expected="`manta up` makes one, or set MANTA_API_KEY",
            )
        return Client(url, key)


def read_credentials(folder: Path, workspace: str) -> dict[str, str]:
    path = folder / CREDENTIALS
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is not TOML: {error}", path=str(path)) from None
    kept = document.get(workspace, {})
    return {str(name): str(value) for name, value in kept.items()} if kept else {}


def write_credentials(folder: Path, workspace: str, url: str, api_key: str) -> Path:
    """Keep them for later commands; only the owner may read the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CREDENTIALS
    document = tomllib.loads(path.read_text()) if path.exists() else {}
    document[workspace] = {"url": url, "api_key": api_key}
    lines = ["# Written by `manta up`. Whoever has a key may do what it may.\n"]
    for name, values in document.items():
        lines.append(f"\n[{json.dumps(name)}]\n")
        lines += [f"{key} = {json.dumps(str(value))}\n" for key, value in values.items()]
    part = path.with_name(f"{CREDENTIALS}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(lines)
    part.replace(path)
    return path


# -- printing --------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as one line of text that does nothing to a terminal."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split("\n")))


def say(text: str) -> None:
    typer.echo(shown(text))


def complain(error: MantaError | OSError) -> None:
    """One red line: what was wrong, where, and what would be right."""
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        text = f"{error.strerror or error}{where}"
    else:
        text = error.message
        path, expected = (str(error.details.get(name, "")) for name in ("path", "expected"))
        if path and path not in text:
            text += f" (at {path})"
        if expected and expected not in text:
            text += f"; expected: {expected}"
    typer.secho(shown(f"error: {text}"), fg=typer.colors.RED, err=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", title_style="bold")
    given = [list(row) for row in rows]
    for place, name in enumerate(columns):
        numbers = all(isinstance(row[place], int | float) for row in given) and bool(given)
        made.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in given:
        made.add_row(*(Text(shown(cell)) for cell in row))
    Console().print(made)


def facts(pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        say(f"{name:<{width}}  {shown(value)}")


def audience_of(text: str) -> int | dict[str, Any]:
    """A segment's id, or the rule in a JSON file."""
    if text.isdecimal():
        return int(text)
    return rule_in(Path(text))


def rule_in(path: Path) -> dict[str, Any]:
    try:
        rule = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidRequest(
            f"no file {path}", path=str(path), expected="the id of a segment, or a file with a rule"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not JSON: {error}", path=str(path)) from None
    if not isinstance(rule, dict):
        raise InvalidRequest(f"{path} holds no rule", path=str(path), expected='{"all": […]}')
    return rule


def door(context: typer.Context) -> Door:
    found = context.obj
    assert isinstance(found, Door)
    return found
