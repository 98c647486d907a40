"""Pages: scanning, protected tags, inlined styles, links, and text made from HTML."""

from __future__ import annotations

import html as entities
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.content.css import collapse_blanks, inline_css
from manta.content.language import TemplateError
from manta.content.links import clean_url, rewrite_links
from manta.content.markup import Kind, Protected, attributes, scan
from manta.content.templates import CompiledMail, MailTemplate, preview
from manta.content.text import text_from_html

TEMPLATES = Path(__file__).parents[3] / "shared/data/templates"
REAL = sorted(TEMPLATES.glob("*/*.html"))
needs_templates = pytest.mark.skipif(not REAL, reason="shared data is absent")


def real_page(path: Path) -> str:
    """The template with its Mustache loops made Jinja loops."""
    text = path.read_text()
    text = re.sub(r"\{\{#each ([a-z_]+)\s*\}\}", r"{% for item in \1 %}", text)
    text = re.sub(r"\{\{#each \. \}\}", "{% for part in item %}", text)
    text = re.sub(r"\{\{#([a-z_]+)\}\}", r"{% if \1 %}", text)
    return text.replace("{{/each}}", "{% endfor %}").replace(
        "{{/attachment_details}}", "{% endif %}"
    )


def inlined(page: str) -> str:
    protected = Protected(page, "html")
    return protected.restore(inline_css(protected.text, protected))[0]


def rewritten(page: str) -> tuple[str, list[str]]:
    protected = Protected(page, "html")
    text, links = rewrite_links(protected.text, protected)
    return protected.restore(text)[0], [link.url for link in links]


# -- scanning --------------------------------------------------------------------------------------


@given(st.text("<>!-/?abstyle =\"'\n[]if", max_size=80))
@settings(max_examples=500)
def test_scanning_keeps_every_character(page: str) -> None:
    pieces = scan(page)
    assert "".join(piece.text for piece in pieces) == page
    for piece in pieces:
        assert page.startswith(piece.text, piece.start)


@pytest.mark.parametrize(
    "page", ["<a" * 200_000, "<!--" * 100_000, "<a b='" * 60_000, "<" * 400_000]
)
def test_scanning_is_linear(page: str) -> None:
    assert "".join(piece.text for piece in scan(page)) == page


def test_scanning_tells_kinds_apart() -> None:
    page = (
        '<!doctype html><a title=">" href=x>t</a><!-- <a> --><style>a>b{}</style>'
        "<script>if(a</b>c)</script><![if mso]>1 < 2<br/>"
    )
    assert [(piece.kind, piece.text) for piece in scan(page)] == [
        (Kind.DECLARATION, "<!doctype html>"),
        (Kind.OPEN, '<a title=">" href=x>'),
        (Kind.TEXT, "t"),
        (Kind.CLOSE, "</a>"),
        (Kind.COMMENT, "<!-- <a> -->"),
        (Kind.OPEN, "<style>"),
        (Kind.RAW, "a>b{}"),
        (Kind.CLOSE, "</style>"),
        (Kind.OPEN, "<script>"),
        (Kind.RAW, "if(a</b>c)"),
        (Kind.CLOSE, "</script>"),
        (Kind.DECLARATION, "<![if mso]>"),
        (Kind.TEXT, "1 < 2"),
        (Kind.OPEN, "<br/>"),
    ]


class _Hrefs(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if tag == "a" and name == "href"]


@needs_templates
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_another_parser_finds_the_same_links(path: Path) -> None:
    page = path.read_text()
    parser = _Hrefs()
    parser.feed(page)
    ours = [
        entities.unescape(place.value or "")
        for piece in scan(page)
        if piece.kind is Kind.OPEN and piece.name == "a"
        for place in attributes(piece.text)
        if place.name == "href"
    ]
    assert ours == parser.found


@given(st.text("ab{}%#-\n'\" ", max_size=60))
def test_protection_round_trips(source: str) -> None:
    try:
        protected = Protected(source, "html")
    except TemplateError:
        return
    restored, line_of = protected.restore(protected.text)
    assert re.sub(r"\s", "", restored) == re.sub(r"\s", "", source)
    assert line_of(1) >= 1


def test_words_of_the_author_are_no_words_of_ours() -> None:
    source = "zqj0x {{ a }} zqjq1x ZQJQQ"
    protected = Protected(source, "html")
    assert protected.restore(protected.text)[0] == source


# -- styles ----------------------------------------------------------------------------------------


def test_styles_move_into_elements_and_tags_survive() -> None:
    page = (
        "<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\" 'x'>\n<html><head><style>"
        "td { color: {{ colour }}; padding: 1px } @media (max-width: 9px) { td { padding: 0 } }"
        "</style><title>{{ t }}</title></head><body><!--[if mso]><i>{{ m }}</i><![endif]-->"
        "<![if !mso]><b>x</b><![endif]>"
        '{% if a > 1 %}<table>{% for x in xs %}<tr><td class="{{ c }}"'
        ' {{ y }}>{{ x|default(">") }}</td></tr>{% endfor %}</table>{% endif %}</body></html>'
    )
    done = inlined(page)
    assert done.startswith("<!DOCTYPE html PUBLIC")
    assert 'style="color: {{ colour }};padding: 1px;"' in done
    assert "@media (max-width: 9px)" in done and "<title>{{ t }}</title>" in done
    assert "<!--[if mso]><i>{{ m }}</i><![endif]-->" in done
    assert "<![if !mso]><b>x</b><![endif]>" in done
    assert "{% if a > 1 %}<table><tbody>{% for x in xs %}<tr>" in done
    assert '{{ x|default(">") }}</td></tr>{% endfor %}</tbody></table>{% endif %}' in done
    assert "{{ y }}" in done and 'class="{{ c }}"' in done and "zqj" not in done


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.css"
    sheet.write_text("p { color: red }")
    for href in (str(sheet), sheet.as_uri(), "http://127.0.0.1:1/x.css"):
        page = f'<link rel="stylesheet" href="{href}"><style>b {{ top: 0 }}</style><p>x</p>'
        assert "red" not in inlined(page) and href in inlined(page)


def test_a_page_without_style_stays_as_it_is() -> None:
    page = "<p>{{ a }}<table><tr><td>x"
    assert inlined(page) == page


def test_conditions_that_inlining_would_break_are_refused() -> None:
    style = "<style>p { top: 0 }</style>"
    for bad in (
        "<p {% if a %}class=x{% endif %}>y</p>",
        '<p style="{% if a %}color:red{% endif %}">y</p>',
    ):
        with pytest.raises(TemplateError) as caught:
            inlined(style + "\n" + bad)
        assert caught.value.line == 2
    assert "{% if a %}x{% endif %}" in inlined(style + '<p class="{% if a %}x{% endif %}">y</p>')


def test_a_style_with_conditions_stays_a_style() -> None:
    page = "<style>{% if a %}p{top:0}{% endif %}</style><style>b{left:0}</style><b>x</b>"
    done = inlined(page)
    assert "<style>{% if a %}p{top:0}{% endif %}</style>" in done
    assert '<b style="left: 0;">' in done


@pytest.mark.parametrize(
    "css",
    [
        ".a b c, .d e f {top:0}" * 1_000,
        "p{" + "a:0;" * 2_000 + "}",
        ":not(p)~*~*~*{top:0}",
        "p{a:" + "x" * 60_000 + "}",
    ],
)
def test_styles_that_cost_too_much_are_refused(css: str) -> None:
    with pytest.raises(TemplateError, match="the page has"):
        inlined(f"<style>{css}</style>" + "<p>x</p>" * 5_000)


@pytest.mark.parametrize(
    "page", ["<a>" * 60_000, "<!--[if " * 40_000 + "-->", "<!--[if x]>" * 9_000, "<body" * 90_000]
)
def test_odd_pages_compile_or_are_refused_soon(page: str) -> None:
    begin = time.process_time()
    try:
        CompiledMail(MailTemplate("s", page, "a@b.example", preheader="p"))
    except TemplateError as error:
        assert "too large" in error.message
    assert time.process_time() - begin < 3.0


@pytest.mark.parametrize("page", ["<div>" * 100_000, "<b><i>" * 10_000, "<table><tr><td>" * 5_000])
def test_deep_pages_do_not_reach_the_native_parser(page: str) -> None:
    with pytest.raises(TemplateError, match=r"deep|elements"):
        inlined("<style>b{top:0}</style>" + page)


def test_page_text_does_not_become_template_code() -> None:
    done = inlined("<style>b{top:0}</style><b title='&#123;% x'>&#123;&#123; secret }}</b>")
    template = MailTemplate(
        "s", "<style>b{top:0}</style><b>&#123;&#123; secret }}</b>", "a@b.example"
    )
    shown = preview(template, {"secret": "leaked"})
    assert "leaked" not in shown.html + shown.text
    assert "{{ secret }}" in shown.html and "{{ secret }}" in shown.text
    assert CompiledMail(template).attributes == ()
    assert "{{ secret" not in done


def test_indentation_goes_except_where_it_counts() -> None:
    assert collapse_blanks("<p>\n\t  a   b\n\n  c</p>") == "<p>\na b\nc</p>"
    kept = "<pre>\n   a\n</pre>"
    assert collapse_blanks(kept) == kept
    long = collapse_blanks("<p>" + "word " * 1_000)
    assert max(map(len, long.split("\n"))) < 700


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "expected", "urls"),
    [
        ('<a href="https://a.example/">', '<a href="{{ _c0 }}">', ["https://a.example/"]),
        (
            "<A HREF='http://a.example/?a=1&amp;b=2'>",
            "<A HREF='{{ _c0 }}'>",
            ["http://a.example/?a=1&b=2"],
        ),
        ("<a href=https://a.example/>", '<a href="{{ _c0 }}">', ["https://a.example/"]),
        ('<a href="mailto:a@b.example">', None, []),
        ('<a href="tel:+123">', None, []),
        ('<a href="#top">', None, []),
        ('<a href="{{ unsubscribe_url }}">', None, []),
        ('<a href="{{- view_url -}}">', None, []),
        ('<a href="mailto:{{ agent }}">', None, []),
        ('<a name="x">', None, []),
        ('<img src="https://a.example/x.png">', None, []),
        ('<link href="https://a.example/x.css">', None, []),
        (
            '<a data-manta-track="off" href="https://a.example/">',
            '<a  href="https://a.example/">',
            [],
        ),
        (
            '<a href="https://a.example/{{ id }}">',
            '<a href="{% filter _link(0) %}https://a.example/{{ id }}{% endfilter %}">',
            [""],
        ),
        (
            '<a data-manta-track="off" href="{{ u }}">',
            '<a  href="{% filter _link(-1) %}{{ u }}{% endfilter %}">',
            [],
        ),
        (
            '<!--[if mso]><v:roundrect href="https://a.example/"><![endif]-->',
            '<!--[if mso]><v:roundrect href="{{ _c0 }}"><![endif]-->',
            ["https://a.example/"],
        ),
        ('<!-- <a href="https://a.example/"> -->', None, []),
        ('<script><a href="https://a.example/"></script>', None, []),
        (
            '<area href="https://a.example/é ü">',
            '<area href="{{ _c0 }}">',
            ["https://a.example/%C3%A9%20%C3%BC"],
        ),
    ],
)
def test_links_are_rewritten(tag: str, expected: str | None, urls: list[str]) -> None:
    assert rewritten(tag) == (tag if expected is None else expected, urls)


def test_clean_urls() -> None:
    assert clean_url(" https://a.example/x%20y?z=1#f ") == "https://a.example/x%20y?z=1#f"
    assert clean_url("HTTPS://A.example") == "HTTPS://A.example"
    for bad in ("", "x", "javascript:alert(1)", "http:///x", "https://", "data:x", "//a.example"):
        assert clean_url(bad) == ""
    assert clean_url("https://a.example/" + "x" * 5_000) == ""
    assert clean_url("https://a.example/\ud800") == ""
    assert "\n" not in clean_url("https://a.example/\r\nSet-Cookie: x")


# -- text ------------------------------------------------------------------------------------------


def test_text_from_html() -> None:
    page = (
        "<head><title>no</title><style>no</style></head><body><div class='preheader'>no</div>"
        "<div style='display: none'>no<div>no</div></div><h1>Title</h1><p>One  &amp;\n two<br>"
        "three</p><ul><li>a</li><li>b <b>bold</b></li></ul><table><tr><td>c</td><td>d</td></tr>"
        "<tr><td>e</td></tr></table><a href='https://x.example/?a=1&amp;b=2'>Go</a> "
        "<a href='https://y.example'>https://y.example</a>"
        "<a href='#x'>up</a><img alt='A cat' src=x><hr>&zwnj;&nbsp;end<!-- no -->"
    )
    assert text_from_html(page) == (
        "Title\n\nOne & two\nthree\n\n- a\n- b bold\n\nc d\ne\n\n"
        "Go (https://x.example/?a=1&b=2) https://y.exampleupA cat\n----\nend\n"
    )


@given(st.text("<>/abp tdrlih='\"&#;\n", max_size=100))
def test_text_of_anything(page: str) -> None:
    text = text_from_html(page)
    assert text.endswith("\n") and "\n\n\n" not in text


# -- real templates --------------------------------------------------------------------------------


@needs_templates
@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_real_templates_compile_and_render(path: Path) -> None:
    page = real_page(path)
    mail = CompiledMail(MailTemplate("Hello {{ name }}", page, "a@b.example"))
    row = {name: f"https://{name}.example/?a=1&b=2" for name in mail.attributes}
    lists = {"receipt_details", "invoice_details"}
    row |= {name: [["pot"]] for name in lists & set(mail.attributes)}
    row |= {"item": ["pot"]} if "item" in row else {}
    shown = preview(mail, row)
    assert shown.html.count("<a") == page.count("<a") and shown.html.count("<td") == page.count(
        "<td"
    )
    assert shown.html.count("<!--[if") == page.count("<!--[if")
    assert "zqj" not in shown.html + shown.text and "{{" not in shown.html + shown.text
    assert len(shown.text) > 100 and "<td" not in shown.text
    if "<style" in page:
        assert shown.html.count("style=") >= page.count("style=")
    assert preview(mail, {}).html
