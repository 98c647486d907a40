"""What is wrong, or likely wrong, with a template: found before launch and not by a recipient.

An ``error`` forbids a launch, a ``warning`` is advice. Everything is found in one pass where that
is possible, with the line in the part as its author wrote it. Lint costs as much as the template
makes it cost: run it through ``manta.store.sandboxed``, in a process of its own with limits.
"""

from __future__ import annotations

import difflib
import html as entities
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from jinja2 import nodes

from manta.content.language import (
    GLOBALS,
    TemplateError,
    names_used,
    parse_unchecked,
    problems,
    symbols,
)
from manta.content.links import LINKING_ELEMENTS, clean_url, is_kept
from manta.content.markup import (
    OPTIONAL_END,
    VOID_ELEMENTS,
    Kind,
    Piece,
    Protected,
    attributes,
    scan,
)
from manta.content.templates import CompiledMail, MailTemplate, clean_text, preview
from manta.errors import InvalidRequest

CLIP_BYTES = 102 * 1024  # Gmail shows no more of a message and hides the rest behind a link
SUBJECT_CHARACTERS_GOOD = 150
FINDINGS_MAX = 100

_PARTS = ("subject", "preheader", "html", "text", "from_name")
_HTML_PARTS = ("html", "preheader")


class Finding(NamedTuple):
    """One remark. ``line`` is 1-based in the part, 0 where it concerns the whole."""

    level: str  # error | warning
    code: str
    part: str
    line: int
    message: str


def lint(
    template: MailTemplate,
    known: Collection[str],
    kind: str = "marketing",
    sample: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """The findings, errors first. ``known`` are the workspace's attribute names.

    ``sample`` is a person's row: the template is rendered for it, and for a person of whom nothing
    is known.
    """
    found: list[Finding] = []
    for part in _PARTS:
        found += _lint_part(part, clean_text(getattr(template, part)), known)
    if not any(finding.level == "error" for finding in found):
        found += _lint_whole(template, kind, sample)
    found.sort(key=lambda finding: (finding.level, _PARTS_ORDER.get(finding.part, 9), finding.line))
    return found[:FINDINGS_MAX]


_PARTS_ORDER = {part: index for index, part in enumerate(_PARTS)}


def _lint_part(part: str, source: str, known: Collection[str]) -> Iterator[Finding]:
    try:
        symbols(source, part)
        tree = parse_unchecked(source, part, part in _HTML_PARTS)
    except TemplateError as error:
        yield Finding("error", "syntax", part, error.line, error.message)
        return
    for line, problem in problems(tree):
        yield Finding("error", "language", part, line, problem)
    for name, line in names_used(tree).items():
        if name not in known and name not in GLOBALS and name != "email":
            yield Finding("error", "unknown_name", part, line, _unknown_name(name, known))
    yield from _lint_fallbacks(part, tree, known)


def _unknown_name(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:63], [*known, *GLOBALS, "email"], 1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"no attribute is called {name[:63]!r}{hint}"


def _lint_fallbacks(part: str, tree: nodes.Template, known: Collection[str]) -> Iterator[Finding]:
    """Attributes printed bare: people who lack them read a gap."""
    seen: set[str] = set()
    stack: list[tuple[nodes.Node, bool]] = [(tree, False)]
    while stack:
        node, conditional = stack.pop()
        conditional = conditional or isinstance(node, nodes.If | nodes.CondExpr | nodes.For)
        if isinstance(node, nodes.Output) and not conditional:
            for child in node.nodes:
                if isinstance(child, nodes.Name) and child.name in known and child.name not in seen:
                    seen.add(child.name)
                    yield Finding(
                        "warning",
                        "no_fallback",
                        part,
                        child.lineno,
                        f"people without {child.name} read nothing here: "
                        f'{{{{ {child.name}|default("…") }}}} gives them a text',
                    )
        stack.extend((child, conditional) for child in node.iter_child_nodes())


# -- the whole mail --------------------------------------------------------------------------------


def _lint_whole(
    template: MailTemplate, kind: str, sample: Mapping[str, Any] | None
) -> Iterator[Finding]:
    try:
        mail = CompiledMail(template)
    except TemplateError as error:
        yield Finding("error", "limit", error.path, error.line, error.message)
        return
    except InvalidRequest as error:
        yield Finding("error", "address", error.path, 0, error.message)
        return
    yield from _lint_subject(template)
    yield from _lint_renders(mail, sample)
    if mail.page_bytes > CLIP_BYTES:
        yield Finding(
            "warning",
            "clipped",
            "html",
            0,
            f"about {mail.page_bytes // 1024} kB: Gmail hides what is beyond 102 kB",
        )
    page = _Page(clean_text(template.html))
    if kind != "transactional" and "unsubscribe_url" not in page.linked_names():
        yield Finding(
            "error",
            "no_unsubscribe",
            "html",
            0,
            'no link leads to unsubscribe_url: add <a href="{{ unsubscribe_url }}">',
        )
    for findings in (page.links(), page.images(), page.balance()):
        yield from islice(findings, FINDINGS_MAX)


def _lint_subject(template: MailTemplate) -> Iterator[Finding]:
    subject = clean_text(template.subject)
    if "\n" in subject.strip():
        line = subject.index("\n") + 1 if subject.startswith("\n") else 1
        yield Finding("error", "subject_lines", "subject", line, "the subject has to be one line")
    if not subject.strip():
        yield Finding("error", "no_subject", "subject", 0, "the subject is empty")


def _lint_renders(mail: CompiledMail, sample: Mapping[str, Any] | None) -> Iterator[Finding]:
    for row in ({},) if sample is None else ({}, sample):
        who = "the sample person" if row else "a person of whom nothing is known"
        try:
            shown = preview(mail, row)
        except TemplateError as error:
            yield Finding(
                "error", "render", error.path, error.line, f"fails for {who}: {error.message}"
            )
            continue
        if not shown.subject:
            yield Finding("error", "no_subject", "subject", 0, f"the subject is empty for {who}")
        elif len(shown.subject) > SUBJECT_CHARACTERS_GOOD:
            yield Finding(
                "warning",
                "long_subject",
                "subject",
                0,
                f"{len(shown.subject)} characters for {who}: most clients show 40 to 70",
            )


class _Page:
    """The HTML as written, template tags protected."""

    def __init__(self, source: str) -> None:
        self._protected = Protected(source, "html")
        self._pieces = scan(self._protected.text)

    def linked_names(self) -> set[str]:
        """The globals that some link's address holds."""
        hrefs = " ".join(self._protected.expand(href) for _, href in self._hrefs())
        return {name for name in GLOBALS if name in hrefs}

    def links(self) -> Iterator[Finding]:
        for piece, href in self._hrefs():
            url = entities.unescape(href).strip()
            if self._protected.word.match(url) or is_kept(url) or clean_url(url):
                continue
            if url.lower().startswith(("http:", "https:")):
                problem = "names no host, or is too long"
            else:
                problem = "leads nowhere in a mail: write https:// and the host"
            shown = self._protected.expand(url)[:80]
            yield self._finding("error", "bad_link", piece, f"the link {shown!r} {problem}")

    def images(self) -> Iterator[Finding]:
        for piece in self._pieces:
            if piece.kind is not Kind.OPEN or piece.name != "img":
                continue
            if "alt" not in {place.name for place in attributes(piece.text)}:
                yield self._finding(
                    "warning",
                    "no_alt",
                    piece,
                    'an image lacks alt (alt="" if it is decoration)',
                )

    def balance(self) -> Iterator[Finding]:
        """Elements that are not closed, or closed without having been opened."""
        open_pieces: list[Piece] = []
        for piece in self._pieces:
            name = piece.name
            if name in VOID_ELEMENTS or name in OPTIONAL_END or ":" in name:
                continue
            if piece.kind is Kind.OPEN and not piece.text.endswith("/>"):
                open_pieces.append(piece)
            elif piece.kind is Kind.CLOSE:
                if open_pieces and open_pieces[-1].name == name:
                    open_pieces.pop()
                elif any(opened.name == name for opened in open_pieces[-50:]):
                    while open_pieces[-1].name != name:
                        yield self._unclosed(open_pieces.pop())
                    open_pieces.pop()
                else:
                    yield self._finding(
                        "warning", "unbalanced", piece, f"</{name[:40]}> closes nothing"
                    )
        for piece in open_pieces:
            yield self._unclosed(piece)

    def _unclosed(self, piece: Piece) -> Finding:
        return self._finding("warning", "unbalanced", piece, f"<{piece.name[:40]}> is not closed")

    def _hrefs(self) -> Iterator[tuple[Piece, str]]:
        for piece in self._pieces:
            if piece.kind is Kind.OPEN and piece.name in LINKING_ELEMENTS:
                for place in attributes(piece.text):
                    if place.name == "href" and place.value is not None:
                        yield piece, place.value

    def _finding(self, level: str, code: str, piece: Piece, message: str) -> Finding:
        return Finding(level, code, "html", self._protected.source_line(piece.start), message)
