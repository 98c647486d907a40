"""Programs by their names: the public lists' own examples, mail programs, and awkward names."""

from __future__ import annotations

import gzip
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.traffic.user_agents import Agent, documents, recognise

LISTS = Path(__file__).parents[2].parent / "shared" / "data" / "user-agents"
needs_lists = pytest.mark.skipif(not LISTS.exists(), reason="the public lists are not here")
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"


def lines(name: str) -> list[str]:
    """The entries of a list of lists, which is all the YAML that these files use."""
    text = (LISTS / name).read_text(encoding="utf-8")
    found = re.findall(r"^ +- (.*)$", text, re.MULTILINE)
    return [json.loads(entry) if entry.startswith('"') else entry.strip("'") for entry in found]


def share(names: list[str], wanted: bool) -> float:
    return sum(recognise(name).is_machine is wanted for name in names) / len(names)


@needs_lists
def test_crawlers_of_the_public_lists_are_recognised() -> None:
    document = json.loads(gzip.decompress((LISTS / "crawler-user-agents.json.gz").read_bytes()))
    examples = [example for entry in document for example in entry["instances"]]
    assert len(examples) > 2_000
    assert share(examples, True) >= 0.995
    assert share(lines("crawlers.yml"), True) >= 0.99


@needs_lists
def test_people_of_the_public_list_are_people() -> None:
    # What is not: attacks, monitors and crawlers that the list keeps as people's.
    assert share(lines("browsers.yml"), False) >= 0.98


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", Agent.EMPTY),
        ("  ", Agent.EMPTY),
        ("-", Agent.EMPTY),
        ("Mozilla/5.0", Agent.BARE),
        (GMAIL, Agent.IMAGE_PROXY),
        ("YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy", Agent.IMAGE_PROXY),
        ("Mozilla/5.0 (compatible; Barracuda Sentinel (EE))", Agent.SCANNER),
        ("Mozilla/5.0 (Windows NT 10.0) Mimecast-URL-Protect/1.0", Agent.SCANNER),
        ("python-requests/2.32.3", Agent.CRAWLER),
        ("Go-http-client/2.0", Agent.CRAWLER),
        ("Some Unheard-of Tool 3", Agent.CRAWLER),
        ("Mozilla/5.0 (compatible; NewThing/1.0; +https://newthing.example/bot)", Agent.CRAWLER),
        ("Mozilla/5.0 (Linux; Android 6.0; CUBOT MAX) Chrome/72.0 Mobile", Agent.BROWSER),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605", Agent.BROWSER),
        ("Mozilla/5.0 (X11; Linux; rv:140.0) Gecko/20100101 Thunderbird/140.0", Agent.MAIL_PROGRAM),
        ("Microsoft Office/16.0 (Windows; Microsoft Outlook 16.0; Pro)", Agent.MAIL_PROGRAM),
        ("Outlook-iOS/709.2189947.prod.iphone (3.24.0)", Agent.MAIL_PROGRAM),
        ("Airmail 5.6 (Macintosh)", Agent.MAIL_PROGRAM),
        ("AquaMail/1.50 (Android 14)", Agent.MAIL_PROGRAM),
        ("eM Client/10.0", Agent.MAIL_PROGRAM),
        ("PhxBot/0.1 (phxbot@protonmail.com)", Agent.CRAWLER),
    ],
)  # fmt: skip
def test_names(name: str, kind: Agent) -> None:
    assert recognise(name) is kind


def test_the_lists_are_whole() -> None:
    own, crawlers = documents()
    assert len(crawlers) > 500
    assert {"image_proxy", "scanner", "mail_program", "machine", "tools", "innocent"} <= set(own)


@given(st.text(max_size=3_000))
def test_any_name_has_a_kind(name: str) -> None:
    assert recognise(name) in Agent


def test_no_name_is_slow() -> None:
    began = time.perf_counter()
    for n in range(50):
        recognise(f"{n} " + "bo" * 200 + "Mozilla/(((" * 20 + "@" * 50)
    assert time.perf_counter() - began < 1.0
