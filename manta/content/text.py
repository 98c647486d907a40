"""Plain text from HTML: what a reader of the text part gets when the author wrote none.

Blocks become lines, list items get a dash, table cells are set apart, links keep their address
in brackets, images their ``alt``. Works on a protected template: the text is itself a template.
"""

from __future__ import annotations

import html as entities
import re

from manta.content.markup import Kind, Piece, attributes, scan

_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "center",
        "dd",
        "div",
        "dl",
        "dt",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "tbody",
        "thead",
        "tfoot",
        "tr",
        "ul",
        "li",
        "hr",
    ]
)
_PARAGRAPHS = frozenset(
    ["p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "table", "pre"]
)
_SKIPPED = frozenset({"style", "script", "title", "head", "template", "noscript"})
_HIDDEN = re.compile(r"display\s*:\s*none|mso-hide\s*:\s*all", re.IGNORECASE)
_INVISIBLE = re.compile("[\u00ad\u034f\u200b-\u200d\u2060\ufeff]")
_BLANKS = re.compile(r"[ \t\r\f\v\n\u00a0]+")


def text_from_html(html: str) -> str:
    """Readable text of a page or fragment, at most one empty line between paragraphs."""
    out = _Writer()
    skipping: list[str] = []  # elements that are open since a hidden one began
    for piece in scan(html):
        if skipping:
            if piece.kind is Kind.OPEN and piece.name == skipping[0]:
                skipping.append(piece.name)
            elif piece.kind is Kind.CLOSE and piece.name == skipping[0]:
                skipping.pop()
            continue
        if piece.kind is Kind.TEXT:
            out.words(entities.unescape(piece.text))
        elif piece.kind is Kind.OPEN:
            if _hides(piece):
                skipping.append(piece.name)
            else:
                out.open(piece)
        elif piece.kind is Kind.CLOSE:
            out.close(piece.name)
    return tidy(out.text())


def tidy(text: str) -> str:
    """No blanks at line ends, at most one empty line, one line end at the end."""
    if not text.isascii() or " \n" in text or "\n " in text or "\t" in text or text[:1] == " ":
        text = "\n".join([line.strip() for line in text.split("\n")])
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n") + "\n"


def _hides(piece: Piece) -> bool:
    if piece.name in _SKIPPED:
        return True
    if piece.text.endswith("/>") or piece.name in ("img", "br", "hr", "input", "meta", "link"):
        return False
    found = {place.name: place.value or "" for place in attributes(piece.text)}
    return bool(_HIDDEN.search(found.get("style", ""))) or "preheader" in found.get("class", "")


class _Writer:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []  # pieces of the line being written
        self._link: tuple[str, int, int] | None = None  # (href, line, piece where its text began)

    def words(self, text: str) -> None:
        text = _BLANKS.sub(" ", _INVISIBLE.sub("", text))
        if not self._line or self._line[-1].endswith(" "):
            text = text.lstrip(" ")
        if text:
            self._line.append(text)

    def end_line(self) -> None:
        self._lines.append("".join(self._line))
        self._line = []

    def line(self) -> None:
        if any(map(str.strip, self._line)):
            self.end_line()

    def paragraph(self) -> None:
        self.line()
        if self._lines and self._lines[-1].strip():
            self._lines.append("")

    def open(self, piece: Piece) -> None:
        name = piece.name
        if name == "br":
            self.end_line()
        elif name in _PARAGRAPHS:
            self.paragraph()
        elif name in _BLOCKS:
            self.line()
        if name == "li":
            self.words("- ")
        elif name == "hr":
            self.words("----")
            self.line()
        elif name in ("td", "th"):
            self.words(" ")
        elif name == "img":
            self.words(_attribute(piece, "alt"))
        elif name == "a":
            self._link = (_attribute(piece, "href").strip(), len(self._lines), len(self._line))

    def close(self, name: str) -> None:
        if name == "a" and self._link:
            self._close_link(*self._link)
            self._link = None
        elif name in _PARAGRAPHS:
            self.paragraph()
        elif name in _BLOCKS:
            self.line()

    def _close_link(self, href: str, line: int, piece: int) -> None:
        if line == len(self._lines):
            label = "".join(self._line[piece:]).strip()
        else:
            label = " ".join([*self._lines[line:], "".join(self._line)]).strip()
        if href and not href.startswith("#") and href not in (label, f"mailto:{label}"):
            self.words(f" ({href})" if label else href)

    def text(self) -> str:
        return "\n".join([*self._lines, "".join(self._line)])


def _attribute(piece: Piece, name: str) -> str:
    found = (place.value for place in attributes(piece.text) if place.name == name)
    return entities.unescape(next(found, None) or "")
