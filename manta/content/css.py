"""Styles moved into the elements, once per template, since many mail clients drop ``<style>``.

The work is css-inline's, with everything remote or local off: it sees no ``<link>`` and may load
nothing. Media queries and other at-rules stay in a ``<style>``. Template tags pass through as
protected words; conditional comments, downlevel-revealed conditions and the doctype come out as
they went in.
"""

from __future__ import annotations

import re

import css_inline

from manta.content.language import OUTPUT_CHARACTERS_MAX, TemplateError
from manta.content.markup import (
    OPTIONAL_END,
    VOID_ELEMENTS,
    Attribute,
    Kind,
    Piece,
    Protected,
    attributes,
    scan,
)

LINE_CHARACTERS_GOOD = 500
ELEMENTS_MAX = 20_000
# What inlining costs, and may put into the page: it is native code that nobody can stop.
MATCHES_MAX = 5_000_000
DECLARATIONS_MAX = 3_000_000
COPIED_CHARACTERS_MAX = 100_000_000
SIBLINGS_MAX = 10_000_000
ELEMENT_DEPTH_MAX = 200  # the HTML tree builder recurses in native code
_DEEP_OPTIONAL = OPTIONAL_END - {"p", "li", "tr", "td", "th", "dt", "dd", "option"}
_LEADING = re.compile(r" ?\n[ \n]*")
_BLANKS = re.compile(r"[ \t]{2,}|\t")
_INLINER = css_inline.CSSInliner(
    load_remote_stylesheets=False, keep_at_rules=True, keep_style_tags=False
)


def inline_css(html: str, protected: Protected, path: str = "html") -> str:
    """The protected page with its styles inlined; unchanged when it has none.

    Raises ``TemplateError`` where template tags and styles cannot be combined.
    """
    pieces = scan(html)
    if not any(piece.kind is Kind.OPEN and piece.name == "style" for piece in pieces):
        return html
    check_size(pieces, html, path)
    doctype, page = _hidden(_explicit_bodies(pieces), protected, path)
    if "<style" not in page.lower():
        return html
    try:
        inlined = _INLINER.inline(page)
    except (css_inline.InlineError, ValueError) as error:
        raise TemplateError(f"the styles cannot be inlined: {error}", path=path) from None
    if len(inlined) > OUTPUT_CHARACTERS_MAX:
        raise TemplateError(
            f"with its styles inlined the page has {len(inlined):,} characters",
            path=path,
            expected=f"at most {OUTPUT_CHARACTERS_MAX:,}",
        )
    inlined = protected.escape_literals(re.sub(r"(?i)^\s*<!doctype[^>]*>", "", inlined))
    _check_same_blocks(html, inlined, protected, path)
    return doctype + inlined


def collapse_blanks(html: str) -> str:
    """The page without indentation: it means the same, and is smaller and faster to sign."""
    lowered = html.lower()
    if "<pre" in lowered or "<textarea" in lowered or re.search(r"white-space\s*:\s*pre", lowered):
        return html
    lines = _LEADING.sub("\n", _BLANKS.sub(" ", html)).split("\n")
    return "\n".join(_short(line) if len(line) > LINE_CHARACTERS_GOOD else line for line in lines)


def _short(line: str) -> str:
    """The line with blanks made line ends, which mean the same: it needs no transfer encoding."""
    pieces = []
    start = 0
    while len(line) - start > LINE_CHARACTERS_GOOD:
        cut = line.rfind(" ", start, start + LINE_CHARACTERS_GOOD)
        cut = line.find(" ", start) if cut < 0 else cut
        if cut < 0:
            break
        pieces.append(line[start:cut])
        start = cut + 1
    return "\n".join([*pieces, line[start:]])


def check_size(pieces: list[Piece], html: str, path: str) -> None:
    """Raises ``TemplateError`` for a page that would cost the inliner too much, or its stack."""
    elements = sum(piece.kind is Kind.OPEN for piece in pieces)
    css = "".join(piece.text for piece in pieces if piece.name == "style")
    for what, cost, most in (
        ("elements", elements, ELEMENTS_MAX),
        ("elements times style rules", elements * (css.count("{") + css.count(",")), MATCHES_MAX),
        ("elements times declarations", elements * css.count(":"), DECLARATIONS_MAX),
        ("elements times characters of style", elements * len(css), COPIED_CHARACTERS_MAX),
        ("elements squared times ~ in selectors", elements**2 * css.count("~"), SIBLINGS_MAX),
    ):
        if cost > most:
            raise TemplateError(
                f"the page has {cost:,} {what}", path=path, expected=f"at most {most:,}"
            )
    depth = 0
    for piece in pieces:
        if piece.name in VOID_ELEMENTS or piece.name in OPTIONAL_END - _DEEP_OPTIONAL:
            continue
        if piece.kind is Kind.OPEN and not piece.text.endswith("/>"):
            depth += 1
        elif piece.kind is Kind.CLOSE:
            depth = max(0, depth - 1)
        if depth > ELEMENT_DEPTH_MAX:
            raise TemplateError(
                "the page's elements nest too deep, or many are never closed",
                path=path,
                line=html.count("\n", 0, piece.start) + 1,
                expected=f"at most {ELEMENT_DEPTH_MAX} levels",
            )


def _explicit_bodies(pieces: list[Piece]) -> list[Piece]:
    """Tables whose rows stand in no ``tbody`` get one around all of them.

    An HTML parser puts one in anyway, and would put it inside a loop over rows.
    """
    result: list[Piece] = []
    open_tables: list[bool] = []
    following = _next_tags(pieces)
    for piece, first in zip(pieces, following, strict=True):
        if piece.kind is Kind.CLOSE and piece.name == "table" and open_tables and open_tables.pop():
            result.append(Piece(Kind.CLOSE, "</tbody>", piece.start, "tbody"))
        result.append(piece)
        if piece.kind is Kind.OPEN and piece.name == "table":
            open_tables.append(first == "tr")
            if first == "tr":
                result.append(Piece(Kind.OPEN, "<tbody>", piece.start, "tbody"))
    return result


def _next_tags(pieces: list[Piece]) -> list[str]:
    """For each piece, the name of the next tag after it."""
    names: list[str] = []
    name = ""
    for piece in reversed(pieces):
        names.append(name)
        if piece.kind in (Kind.OPEN, Kind.CLOSE):
            name = piece.name
    return names[::-1]


def _hidden(pieces: list[Piece], protected: Protected, path: str) -> tuple[str, str]:
    """(doctype, page) with all that the inliner must not touch or see behind words."""
    doctype = ""
    page: list[str] = []
    for index, piece in enumerate(pieces):
        text = piece.text
        if piece.kind is Kind.TEXT:
            text = protected.word.sub(r"<!--\g<0>-->", text)
        elif piece.kind is Kind.DECLARATION:
            if text.lower().startswith("<!doctype"):
                doctype, text = text, ""
            else:
                text = f"<!--{protected.add(text)}-->"
        elif piece.kind is Kind.OPEN and piece.name == "link":
            text = f"<!--{protected.add(text)}-->"
        elif piece.kind is Kind.OPEN:
            _check_tag(piece, protected, path)
        elif piece.kind is Kind.RAW and piece.name == "style" and protected.blocks_in(text):
            # Conditions in a stylesheet cannot be moved into elements: it stays as it is.
            whole = page.pop() + text + "</style>"
            page.append(f"<!--{protected.add(whole)}-->")
            text = ""
            if index + 1 < len(pieces):
                pieces[index + 1] = pieces[index + 1]._replace(text="", kind=Kind.TEXT)
        page.append(text)
    return doctype, "".join(page)


def _check_tag(piece: Piece, protected: Protected, path: str) -> None:
    """The inliner reorders attributes: a condition may stand in a value, not between them."""
    if not protected.blocks_in(piece.text):
        return
    outside = piece.text
    places: list[Attribute] = attributes(piece.text)
    for place in reversed(places):
        if place.value is not None and not (
            place.name == "style" and protected.blocks_in(place.value)
        ):
            outside = outside[: place.value_start] + outside[place.value_end :]
    blocks = protected.blocks_in(outside)
    if blocks:
        raise TemplateError(
            "a {% … %} stands between the attributes or in the style of a tag, in a page whose "
            "<style> gets inlined",
            path=path,
            line=protected.line(blocks[0]),
            expected="conditions around the element, or in another attribute's value",
        )


def _check_same_blocks(before: str, after: str, protected: Protected, path: str) -> None:
    kept = protected.blocks_in(protected_words(after, protected))
    if kept != protected.blocks_in(protected_words(before, protected)):
        lost = set(protected.blocks_in(before)) - set(kept)
        raise TemplateError(
            "inlining the styles moved a {% … %} tag: it stands where HTML allows no text",
            path=path,
            line=protected.line(min(lost)) if lost else 0,
            expected="tags between whole elements, or in an attribute's value",
        )


def protected_words(html: str, protected: Protected) -> str:
    """The page with words that stand for whole pieces opened, so all tags inside are seen."""
    return protected.word.sub(
        lambda found: (
            protected_words(protected.tag(found[1]), protected)
            if protected.word.search(protected.tag(found[1]))
            else found[0]
        ),
        html,
    )
