"""A mail's template, and its compiled form.

``MailTemplate`` is what an author writes: values that travel and are stored as JSON.
``CompiledMail`` is what a process renders from: made once per template version, it holds the parts
with styles inlined, the preheader put in, links replaced (``manta.content.links``) and the plain
text made where the author wrote none. What a name means, and the limits, are in
``manta.content.language``.

Rendering is a function of (compiled template, values, link signer): no clock, no randomness.
"""

from __future__ import annotations

import html as entities
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from manta.content.css import collapse_blanks, inline_css
from manta.content.environment import Budget
from manta.content.filters import TEXT_CHARACTERS_MAX
from manta.content.language import (
    GLOBALS,
    Part,
    TemplateError,
    names_used,
    parse,
)
from manta.content.links import Link, is_kept, rewrite_links
from manta.content.markup import Kind, Protected, scan
from manta.content.mime import check_address, header_text
from manta.content.text import text_from_html, tidy
from manta.errors import InvalidRequest

VALUES_MAX = 10_000  # plain values in one person's lists and groups
VALUE_DEPTH_MAX = 6
_SHORT = 100  # values of a list
TAGS_MAX = 40_000  # "<" in a page: what compiling it costs
_LINK_BYTES = 120

# Controls but line feed and tab, and surrogates: never of use in a mail, and not all of them legal.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_PREHEADER = (
    '<div style="display:none;font-size:1px;line-height:1px;max-height:0;max-width:0;opacity:0;'
    'overflow:hidden;mso-hide:all">{}{}</div>'
)
# Keeps clients from filling the preview line with the beginning of the page.
_PREHEADER_PADDING = ("&#847;&zwnj;&nbsp;" * 20 + "\n") * 2


@dataclass(frozen=True)
class MailTemplate:
    """What an author writes. ``html`` is required; ``text`` is made from it when empty.

    ``subject``, ``preheader``, ``html``, ``text`` and ``from_name`` are templates; the addresses
    are not.
    """

    subject: str
    html: str
    from_email: str
    from_name: str = ""
    reply_to: str = ""
    preheader: str = ""
    text: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MailTemplate:
        """From a decoded JSON object. Raises ``InvalidRequest`` for unknown or missing fields."""
        known = {field.name for field in fields(cls)}
        for name, content in value.items():
            if name not in known or not isinstance(content, str):
                raise InvalidRequest(
                    f"not a field of a template: {name!r:.60}",
                    path=str(name)[:60],
                    expected=f"texts named {', '.join(sorted(known))}",
                )
        for name in ("subject", "html", "from_email"):
            if not value.get(name):
                raise InvalidRequest(f"the template lacks its {name}", path=name, expected="a text")
        return cls(**value)

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class Rendered(NamedTuple):
    """The texts of one mail, before MIME."""

    subject: str
    from_name: str
    html: str
    text: str
    unsubscribe_url: str = ""


class CompiledMail:
    """A template ready to render. Raises ``TemplateError`` where it breaks the language's rules."""

    def __init__(self, template: MailTemplate) -> None:
        self.template = template
        self.from_email = check_address(template.from_email, "from_email")
        self.reply_to = check_address(template.reply_to, "reply_to") if template.reply_to else ""
        used: dict[str, int] = {}
        for path in ("subject", "preheader", "html", "text", "from_name"):
            tree = parse(clean_text(getattr(template, path)), path, path in ("html", "preheader"))
            used.update(names_used(tree))
        #: The attributes of a person that the parts use: what has to be read for each message.
        self.attributes: tuple[str, ...] = tuple(sorted(set(used) - set(GLOBALS)))
        #: The links of its own, besides ``unsubscribe_url``, that the parts use.
        self.own_links: tuple[str, ...] = tuple(sorted(set(used) & set(GLOBALS[1:])))

        self._subject = Part(clean_text(template.subject), "subject", html=False)
        self._from_name = Part(clean_text(template.from_name), "from_name", html=False)
        if template.html.count("<") > TAGS_MAX:
            raise TemplateError("the page is too large", path="html", expected=f"{TAGS_MAX:,} tags")
        protected = Protected(clean_text(template.html), "html")
        self._text = self._text_part(protected)
        page = collapse_blanks(inline_css(protected.text, protected))
        page, links = rewrite_links(page, protected)
        #: The links in the page's order; their positions are stable for this template version.
        self.links: tuple[Link, ...] = tuple(links)
        page = self._with_preheader(page, protected)
        source, line_of = protected.restore(_with_pixel(page, protected))
        #: About the octets of the HTML part: a signed link is longer than what stands for it.
        self.page_bytes = len(source.encode()) + _LINK_BYTES * (len(links) + 1)
        self._html = Part(source, "html", html=True, line_of=line_of)

    def _text_part(self, protected: Protected) -> Part:
        if self.template.text.strip():
            return Part(clean_text(self.template.text), "text", html=False)
        text = protected.escape_literals(text_from_html(protected.text))
        source, line_of = protected.restore(text)
        parse(source, "html", html=False)
        return Part(source, "text", html=False, line_of=line_of)

    def _with_preheader(self, page: str, protected: Protected) -> str:
        if not self.template.preheader.strip():
            return page
        written = protected.protect(clean_text(self.template.preheader), "preheader")
        block = _PREHEADER.format(entities.escape(written, quote=False), _PREHEADER_PADDING)
        bodies = (p for p in scan(page) if p.kind is Kind.OPEN and p.name == "body")
        at = next((p.start + len(p.text) for p in bodies), 0)
        return page[:at] + block + page[at:]

    def render(
        self,
        values: dict[str, Any],
        sign: Callable[[int, str], str],
        pixel: str = "",
        decoy: str = "",
    ) -> Rendered:
        """One person's texts.

        ``values`` holds what ``clean_values`` gave, the globals, and ``_c0``, ``_c1`` … for the
        fixed links; ``sign(position, url)`` gives the address to print for a link that was known
        only now; ``pixel`` and ``decoy`` are the addresses of the open pixel and of the decoy,
        or empty for none. ``values`` is added to. Raises ``TemplateError``.
        """
        values["_budget"] = Budget()
        values["_sign"] = sign
        values["_pixel"] = pixel
        values["_decoy"] = decoy
        return Rendered(
            self._subject.render(values),
            self._from_name.render(values),
            self._html.render(values),
            tidy(self._text.render(values)),
            values.get("unsubscribe_url", ""),
        )


@dataclass(frozen=True)
class Preview:
    """What a person would get; links lead to where they lead, nothing is tracked."""

    subject: str
    from_name: str
    html: str
    text: str


def preview(template: MailTemplate | CompiledMail, row: Mapping[str, Any]) -> Preview:
    """The texts that a person with these values would get. Raises ``TemplateError``."""
    mail = template if isinstance(template, CompiledMail) else CompiledMail(template)
    values = clean_values(row, mail.attributes)
    values.update((name, f"#{name.removesuffix('_url')}") for name in GLOBALS)
    values.update((f"_c{link.position}", link.url) for link in mail.links if link.url)
    rendered = mail.render(values, lambda _, url: safe_address(url))
    return Preview(
        header_text(rendered.subject),
        header_text(rendered.from_name, 120),
        rendered.html,
        rendered.text,
    )


def safe_address(url: str) -> str:
    """An address that came from a person: as it is if its scheme is harmless, else ``#``."""
    lowered = url[:8].lower()
    return url if lowered.startswith(("http://", "https://")) or is_kept(url) else "#"


def _with_pixel(page: str, protected: Protected) -> str:
    """With the open pixel, and the decoy: a link without text or size, out of the way of eyes, of
    the tab key and of screen readers, that only programs that read the markup follow."""
    pixel = protected.add(
        '{% if _decoy %}<a href="{{ _decoy }}" aria-hidden="true" tabindex="-1" '
        'style="display:none"></a>{% endif %}'
        '{% if _pixel %}<img src="{{ _pixel }}" width="1" height="1" alt="" '
        'style="display:block;border:0;width:1px;height:1px">{% endif %}'
    )
    at = page.lower().rfind("</body")
    return page[:at] + pixel + page[at:] if at >= 0 else page + pixel


# -- values ----------------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    """The text with ``\\n`` line ends and without characters that have no place in a mail."""
    if text.isprintable():
        return text
    return _UNSAFE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def clean_values(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The named values of a row, plain and clean; those that are missing or None are left out.

    Raises ``TemplateError`` for a value that no template may see: too large, or not plain.
    """
    values: dict[str, Any] = {}
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        kind = type(value)
        if kind is str and len(value) <= TEXT_CHARACTERS_MAX:
            values[name] = value if value.isprintable() else clean_text(value)
        elif kind is int or kind is float or kind is bool:
            values[name] = value
        elif kind is list and len(value) <= _SHORT and all(map(_is_plain, value)):
            values[name] = list(value)
        else:
            values[name] = _clean(value, name, [VALUES_MAX], VALUE_DEPTH_MAX)
    return values


def _is_plain(value: Any) -> bool:
    """Whether a value of a list may stay as it is."""
    return type(value) is str and len(value) <= TEXT_CHARACTERS_MAX and value.isprintable()


def _clean(value: Any, path: str, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise TemplateError(
            "the value is too large for a mail",
            path=path,
            expected=f"at most {VALUES_MAX:,} values, {VALUE_DEPTH_MAX} deep",
        )
    if value is None or isinstance(value, bool | int | float | date | datetime):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, str):
        if len(value) > TEXT_CHARACTERS_MAX:
            raise TemplateError(
                f"the text has {len(value):,} characters",
                path=path,
                expected=f"at most {TEXT_CHARACTERS_MAX:,}",
            )
        return clean_text(str(value))
    if isinstance(value, list | tuple):
        return [_clean(item, path, left, depth - 1) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _clean(item, path, left, depth - 1) for key, item in value.items()}
    raise TemplateError(
        f"a value of type {type(value).__name__} cannot stand in a mail",
        path=path,
        expected="text, number, boolean, instant, list",
    )
