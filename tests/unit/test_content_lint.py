"""Lint, and the child process that runs it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime

import pytest

from manta.content.language import TemplateError
from manta.content.lint import FINDINGS_MAX, lint
from manta.content.templates import MailTemplate
from manta.errors import InvalidRequest
from manta.store.sandboxed import ChildLimits, lint_template, preview_template

GOOD = MailTemplate(
    subject="Hello {{ first_name|default('friend') }}",
    html='<p>Hi</p>\n<a href="https://x.example/">x</a> <a href="{{ unsubscribe_url }}">stop</a>',
    from_email="a@b.example",
)
KNOWN = {"first_name", "city", "picks"}


def codes(kind: str = "marketing", **parts: str) -> list[tuple[str, str, int]]:
    found = lint(replace(GOOD, **parts), KNOWN, kind)  # type: ignore[arg-type]
    return [(finding.code, finding.part, finding.line) for finding in found]


def test_a_good_template_has_no_findings() -> None:
    assert codes() == []


@pytest.mark.parametrize(
    ("add", "code", "line"),
    [
        ("\n{{ frist_name }}", "unknown_name", 3),
        ("\n{{ city|uper }}", "language", 3),
        ("\n{{ city }}", "no_fallback", 3),
        ("\n\n{% if city %}", "syntax", 4),
        ("\n{{ city.x() }}", "language", 3),
        ("\n{{ '1' + 1 }}", "render", 3),
        ("\n<a href='http:///x'>y</a>", "bad_link", 3),
        ("\n<a href='www.x.example'>y</a>", "bad_link", 3),
        ("\n<a href='/path'>y</a>", "bad_link", 3),
        ("\n{# \n\n #}<a href='/path'>y</a>", "bad_link", 5),
        ("\n<a href='javascript:x'>y</a>", "bad_link", 3),
        ("\n<img src='x'>", "no_alt", 3),
        ("\n<table><tr><td>x", "unbalanced", 3),
        ("\n</div>", "unbalanced", 3),
        ("\n<div>\n<b>x</div>", "unbalanced", 4),
        ("x" * 110_000, "clipped", 0),
    ],
)
def test_findings_say_where(add: str, code: str, line: int) -> None:
    assert codes(html=GOOD.html + add) == [(code, "html", line)]


@pytest.mark.parametrize(
    ("parts", "code", "part"),
    [
        ({"subject": "a\nb"}, "subject_lines", "subject"),
        ({"subject": "{{ city }}"}, "no_subject", "subject"),
        ({"subject": "x" * 151}, "long_subject", "subject"),
        ({"html": "<p>x</p>"}, "no_unsubscribe", "html"),
        ({"html": "<p>{{ unsubscribe_url }}</p>"}, "no_unsubscribe", "html"),
        ({"from_email": "x"}, "address", "from_email"),
        ({"reply_to": "x"}, "address", "reply_to"),
        ({"preheader": "{{ nope }}"}, "unknown_name", "preheader"),
    ],
)
def test_findings_of_other_parts(parts: dict[str, str], code: str, part: str) -> None:
    assert (code, part) in [found[:2] for found in codes(**parts)]


def test_a_transactional_mail_needs_no_unsubscribe_link() -> None:
    assert codes("transactional", html="<p>x</p>") == []


def test_a_near_miss_is_named_and_findings_are_limited() -> None:
    finding = lint(replace(GOOD, subject="{{ frist_name }}"), KNOWN)[0]
    assert finding.level == "error" and "did you mean first_name?" in finding.message
    many = "".join(f"{{{{ n{i} }}}}" for i in range(500))
    assert len(lint(replace(GOOD, html=many), KNOWN)) == FINDINGS_MAX


def test_the_sample_person_is_tried() -> None:
    template = replace(GOOD, html=GOOD.html + "{% for p in picks %}{{ p / 0 }}{% endfor %}")
    assert lint(template, KNOWN) == []
    assert [f.code for f in lint(template, KNOWN, sample={"picks": [1]})] == ["render"]


# -- in a child ------------------------------------------------------------------------------------


def test_the_child_gives_the_same_findings() -> None:
    template = replace(GOOD, html="<p>{{ frist_name }}", text="{{ picks|join }}")
    sample = {"picks": ("a", 1.5, date(2026, 1, 2), datetime(2026, 1, 2, 3))}
    assert lint_template(template, KNOWN, sample=sample) == lint(template, KNOWN, sample=sample)


def test_the_child_previews() -> None:
    template = replace(GOOD, text="{{ joined|date }} {{ at|date('%H:%M') }} {{ n|number(1) }}")
    row = {
        "joined": date(2026, 1, 2),
        "at": datetime(2026, 1, 2, 3, 4),
        "n": 5,
        "first_name": "Zoë",
    }
    shown = preview_template(template, row)
    assert (shown.subject, shown.text) == ("Hello Zoë", "2 January 2026 03:04 5.0\n")
    with pytest.raises(TemplateError) as caught:
        preview_template(replace(GOOD, subject="\n{{ 1 / 0 }}"), {})
    assert (caught.value.line, caught.value.path) == (2, "subject")
    with pytest.raises(InvalidRequest):
        preview_template(replace(GOOD, from_email="x"), {})


def test_a_template_that_breaks_the_child_is_an_error() -> None:
    heavy = replace(GOOD, html="<b>" * 30_000 + GOOD.html)
    for limits in (
        ChildLimits(memory_bytes=30_000_000),
        ChildLimits(wall_s=0.01),
    ):
        found = lint_template(heavy, KNOWN, limits=limits)
        assert [finding.code for finding in found] == ["limit"]
        with pytest.raises(TemplateError):
            preview_template(heavy, {}, limits=limits)
