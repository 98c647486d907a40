"""HTML as a sequence of pieces, and template tags protected inside it.

``scan`` follows the HTML tokeniser closely enough to tell text, tags, comments and raw text apart,
keeps every character (joined, the pieces are the input) and is linear in the input's length.

``Protected`` stands one plain word for each template tag, so that HTML tools (CSS inlining, the
text maker, the link finder) can work on a template as if it were a page; ``restore`` puts the tags
back and knows from which line of the author's source each came.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from manta.content.language import TemplateError, symbols

_OPEN_TAG = re.compile(r"""<([a-zA-Z][^\s/>]*+)(?:[^>"']|"[^"]*"|'[^']*')*+>""")
_CLOSE_TAG = re.compile(r"</([a-zA-Z][^\s/>]*+)[^>]*+>")
_RAW_ELEMENTS = frozenset({"style", "script", "title", "textarea", "xmp", "iframe", "noembed"})
_ATTRIBUTE = re.compile(r"""([^\s=>"'/][^\s=>/]*)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s"'>][^\s>]*))?""")
_BLOCK_BEGINS = ("{{", "{%", "{#")
VOID_ELEMENTS = frozenset(
    [
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
    ]
)
# Elements whose end tag HTML lets the author leave out.
OPTIONAL_END = frozenset(
    [
        "html",
        "head",
        "body",
        "p",
        "li",
        "dt",
        "dd",
        "tr",
        "td",
        "th",
        "thead",
        "tbody",
        "tfoot",
        "option",
        "optgroup",
        "colgroup",
    ]
)


class Kind(Enum):
    TEXT = "text"
    OPEN = "open"
    CLOSE = "close"
    COMMENT = "comment"
    RAW = "raw"  # the content of style, script, title, textarea
    DECLARATION = "declaration"  # <!doctype …>, <![if …]>, <?xml …>


class Piece(NamedTuple):
    kind: Kind
    text: str
    start: int
    name: str = ""  # of a tag, or of the element around raw text; lower case


class Attribute(NamedTuple):
    name: str  # lower case
    value: str | None  # without quotes, entities not decoded
    start: int  # of the attribute within the tag
    end: int
    value_start: int
    value_end: int  # of the value without its quotes


def scan(html: str) -> list[Piece]:
    pieces: list[Piece] = []
    text_from = position = 0
    length = len(html)

    def text_until(end: int) -> None:
        if end > text_from:
            pieces.append(Piece(Kind.TEXT, html[text_from:end], text_from))

    while (start := html.find("<", position)) >= 0:
        piece = _markup_at(html, start)
        if piece is None:
            position = start + 1
            continue
        if piece.kind is Kind.TEXT:  # a tag that never ends: the rest is text
            break
        text_until(start)
        pieces.append(piece)
        text_from = position = start + len(piece.text)
        if piece.kind is Kind.OPEN and piece.name in _RAW_ELEMENTS:
            end = _end_of_raw(html, position, piece.name)
            if end > position:
                pieces.append(Piece(Kind.RAW, html[position:end], position, piece.name))
            text_from = position = end
    text_until(length)
    return pieces


def _markup_at(html: str, start: int) -> Piece | None:
    following = html[start + 1 : start + 2]
    closes = following == "/"
    letter = html[start + 2 : start + 3] if closes else following
    if letter.isascii() and letter.isalpha():
        found = (_CLOSE_TAG if closes else _OPEN_TAG).match(html, start)
        if found is None:
            return Piece(Kind.TEXT, html[start:], start)
        return Piece(Kind.CLOSE if closes else Kind.OPEN, found[0], start, found[1].lower())
    if html.startswith("<!--", start):
        end = html.find("-->", start + 2)
        end = len(html) if end < 0 else end + 3
        return Piece(Kind.COMMENT, html[start:end], start)
    if following in ("!", "?"):
        end = html.find(">", start)
        end = len(html) if end < 0 else end + 1
        return Piece(Kind.DECLARATION, html[start:end], start)
    return None


def _end_of_raw(html: str, position: int, name: str) -> int:
    found = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(html, position)
    return found.start() if found else len(html)


def attributes(tag: str) -> list[Attribute]:
    """The attributes of an open tag's text, with their places in it."""
    name = re.match(r"<[^\s/>]*", tag)
    found = []
    for match in _ATTRIBUTE.finditer(tag, name.end() if name else 1):
        value = match[2]
        start, end = match.span(2) if value is not None else (match.end(), match.end())
        if value is not None and value[0] in "\"'":
            value, start, end = value[1:-1], start + 1, end - 1
        found.append(Attribute(match[1].lower(), value, match.start(), match.end(), start, end))
    return found


class Protected:
    """A template's source with a word for each template tag."""

    def __init__(self, source: str, path: str) -> None:
        self._prefix = "zqj"
        while self._prefix in source.lower():
            self._prefix += "q"
        self.word = re.compile(rf"{self._prefix}(\d+)x")
        self._anywhere = re.compile(rf"<!--{self._prefix}(\d+)x-->|{self._prefix}(\d+)x(?:=\"\")?")
        self._tags: list[tuple[str, int]] = []  # (text, line in the author's source)
        self.text = self.protect(source, path)

    def protect(self, source: str, path: str) -> str:
        """``source`` with its tags replaced by words of this protection."""
        pieces: list[str] = []
        tag: list[str] = []
        tag_line = 0
        for line, kind, text in symbols(source, path):
            if kind in ("variable_begin", "block_begin", "comment_begin", "raw_begin"):
                tag, tag_line = [text], line
            elif kind in ("variable_end", "block_end", "comment_end", "raw_end"):
                tag.append(text)
                pieces.append(self.add("".join(tag), tag_line))
                tag = []
            elif tag:
                tag.append(text)
            else:
                pieces.append(text)
        if tag:
            raise TemplateError("a template tag is not closed", path=path, line=tag_line)
        return "".join(pieces)

    def add(self, tag: str, line: int = 0) -> str:
        """A word that ``restore`` turns into ``tag``."""
        self._tags.append((tag, line))
        return f"{self._prefix}{len(self._tags) - 1}x"

    def tag(self, number: int | str) -> str:
        return self._tags[int(number)][0]

    def line(self, number: int | str) -> int:
        return self._tags[int(number)][1]

    def blocks_in(self, text: str) -> list[int]:
        """The numbers of the ``{% … %}`` tags in a protected text, in order."""
        numbers = (int(found[1]) for found in self.word.finditer(text))
        return [number for number in numbers if self.tag(number).startswith("{%")]

    def expand(self, text: str) -> str:
        """A protected text as the author wrote it (for a value that is looked at on its own)."""
        while found := self._anywhere.search(text):
            text = text[: found.start()] + self.tag(found[1] or found[2]) + text[found.end() :]
        return text

    def escape_literals(self, text: str) -> str:
        """The text with what would read as a template tag, but is none, made literal.

        HTML tools decode ``&#123;``: without this, page text could turn into template code.
        """
        if "{" not in text:
            return text
        for begin in _BLOCK_BEGINS:
            if begin in text:
                text = text.replace(begin, self.add("{{ '{' }}") + begin[1])
        return text

    def source_line(self, position: int) -> int:
        """The author's line of a place in the protected text as it was first made."""
        before = self.text[:position]
        inside = sum(self.tag(found[1]).count("\n") for found in self.word.finditer(before))
        return 1 + before.count("\n") + inside

    def restore(self, text: str) -> tuple[str, Callable[[int], int]]:
        """The template source, and the author's line for a line of it."""
        pieces: list[str] = []
        starts: list[int] = [1]
        origins: list[int] = [1]
        position, line = 0, 1
        for found in self._anywhere.finditer(text):
            before = text[position : found.start()]
            tag, origin = self._tags[int(found[1] or found[2])]
            if self.word.search(tag):  # a tag of ours around protected text
                tag = self.restore(tag)[0]
            line += before.count("\n")
            if origin:
                starts.append(line)
                origins.append(origin)
            line += tag.count("\n")
            pieces += (before, tag)
            position = found.end()
        pieces.append(text[position:])

        def line_of(compiled: int) -> int:
            at = bisect_right(starts, compiled) - 1
            return origins[at] + compiled - starts[at]

        return "".join(pieces), line_of
