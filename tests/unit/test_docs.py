"""What the documents say can be done as it stands there: settings parse, links lead somewhere."""

from __future__ import annotations

import re
import tomllib

import pytest

from manta.settings import parse
from tests.conftest import REPOSITORY

DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
SETTINGS = re.compile(
    r"^(return_path_domain|\[\[egress\]\]|\[inbox\]|\[\[webhooks\]\])", re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def blocks() -> list[tuple[str, str]]:
    found = []
    for path in [REPOSITORY / "README.md", *DOCS]:
        for text in re.findall(r"```toml\n(.*?)```", path.read_text(), re.DOTALL):
            if SETTINGS.search(text):
                found.append((path.name, text))
    return found


@pytest.mark.parametrize(("name", "text"), blocks())
def test_settings_in_the_documents_are_settings(name: str, text: str) -> None:
    parse(tomllib.loads(text))


def test_there_are_some() -> None:
    assert {name for name, _ in blocks()} >= {"delivery.md", "returns.md"}


@pytest.mark.parametrize("path", [REPOSITORY / "README.md", *DOCS], ids=lambda path: path.name)
def test_links_lead_somewhere(path) -> None:
    dead = [
        link for link in LINK.findall(path.read_text()) if not (path.parent / link.strip()).exists()
    ]
    assert dead == []
