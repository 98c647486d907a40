"""The links of a page: found once per template, rewritten to signed click links per message.

A link whose address is fixed becomes a variable (``_c3``) whose token is signed per message from
parts worked out before. A link whose address holds template tags is wrapped, so that it is signed
after rendering. ``mailto:``, ``tel:``, ``sms:`` and ``#…`` stay, the unsubscribe and view links
stay, and so does a link whose tag says ``data-manta-track="off"``. Links in conditional comments
(buttons for Outlook) count as well. An address that came from a person or an event and is not one
of these schemes is replaced by ``#``: it could be ``javascript:``.
"""

from __future__ import annotations

import html as entities
import re
from typing import NamedTuple
from urllib.parse import quote

from manta.content.language import GLOBALS, TemplateError
from manta.content.markup import Kind, Protected, attributes, scan
from manta.content.tokens import URL_BYTES_MAX

LINKS_MAX = 1_000
DECOY_LINK = 0xFFFF  # the number of the link that no person sees (docs/traffic.md)
OPT_OUT = "data-manta-track"
LINKING_ELEMENTS = frozenset({"a", "area", "v:roundrect", "v:rect", "v:shape", "v:oval"})
_WEB = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)
_KEPT = re.compile(r"(?:mailto:|tel:|sms:|#)", re.IGNORECASE)
_OWN_LINK = re.compile(rf"\{{\{{-?\s*(?:{'|'.join(GLOBALS)})\s*-?\}}\}}")
# What may stand in a URL as it is; everything else is percent-encoded as UTF-8 (RFC 3987 §3.1).
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~-._"


class Link(NamedTuple):
    """One link: its place in the page from 0; its address, empty where it varies by person."""

    position: int
    url: str
    line: int


def clean_url(url: str) -> str:
    """The http(s) URL in ASCII; empty where it is none, names no host, or is too long."""
    url = url.strip()
    if not _WEB.match(url):
        return ""
    if not (url.isascii() and url.isprintable()) or " " in url or '"' in url:
        try:
            url = quote(url, safe=_URL_SAFE)
        except UnicodeEncodeError:
            return ""
    return url if len(url) <= URL_BYTES_MAX else ""


def is_kept(url: str) -> bool:
    """Whether an address stays as it is: mail, telephone, a place in the page, nothing."""
    return not url.strip() or _KEPT.match(url.strip()) is not None


def rewrite_links(html: str, protected: Protected, path: str = "html") -> tuple[str, list[Link]]:
    """The protected page with its links replaced, and the links in order."""
    links: list[Link] = []
    return _rewrite(html, protected, links, path), links


def _rewrite(
    html: str, protected: Protected, links: list[Link], path: str, in_comment: bool = False
) -> str:
    out: list[str] = []
    for piece in scan(html):
        if piece.kind is Kind.OPEN and piece.name in LINKING_ELEMENTS:
            out.append(_rewrite_tag(piece.text, protected, links, path))
        elif piece.kind is Kind.COMMENT and piece.text.startswith("<!--[") and not in_comment:
            inside = piece.text[4:-3] if piece.text.endswith("-->") else piece.text[4:]
            # A comment holds no other: what looks like one inside is part of it.
            inner = _rewrite(inside, protected, links, path, in_comment=True)
            out.append(f"<!--{inner}{piece.text[4 + len(inside) :]}")
        else:
            out.append(piece.text)
    return "".join(out)


def _rewrite_tag(tag: str, protected: Protected, links: list[Link], path: str) -> str:
    places = attributes(tag)
    href = next((place for place in places if place.name == "href" and place.value), None)
    opt_out = next((place for place in places if place.name == OPT_OUT), None)
    replaced: list[tuple[int, int, str]] = []
    if opt_out is not None:
        replaced.append((opt_out.start, opt_out.end, ""))
    if href is not None and href.value is not None:
        tracked = opt_out is None or (opt_out.value or "").lower() != "off"
        value = _new_value(href.value, tracked, protected, links, path)
        if value != href.value:
            quoted = tag[href.value_start - 1] in "\"'"
            replaced.append((href.value_start, href.value_end, value if quoted else f'"{value}"'))
    for start, end, value in sorted(replaced, reverse=True):
        tag = tag[:start] + value + tag[end:]
    return tag


def _new_value(
    value: str, tracked: bool, protected: Protected, links: list[Link], path: str
) -> str:
    words = list(protected.word.finditer(value))
    if not words:
        url = clean_url(entities.unescape(value))
        if not tracked or not url:
            return value
        position = _next(links, url, 0, path)
        return protected.add(f"{{{{ _c{position} }}}}")
    written = protected.expand(value).strip()
    if _OWN_LINK.fullmatch(written) or _KEPT.match(written):
        return value
    line = protected.line(words[0][1])
    position = _next(links, "", line, path) if tracked else -1
    return protected.add(f"{{% filter _link({position}) %}}{value}{{% endfilter %}}", line)


def _next(links: list[Link], url: str, line: int, path: str) -> int:
    if len(links) >= LINKS_MAX:
        raise TemplateError(
            "the page has too many links", path=path, line=line, expected=f"at most {LINKS_MAX}"
        )
    links.append(Link(len(links), url, line))
    return len(links) - 1
