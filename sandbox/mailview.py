"""The sandbox's mailboxes in a browser: what came, to whom, and what the person did with it.

A mail is a stranger's content, so it can do nothing here. Its HTML stands in a frame with an empty
``sandbox`` (no scripts, no forms, an origin of its own), and the page's policy, which the frame
inherits, lets nothing be loaded from anywhere: looking at a mail here is not an "open". Everything
else of a mail is shown as text.

There is no sign-in: the sandbox belongs to one machine and holds made-up people only.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from sandbox.mailboxes import Mail, Mailboxes
from serve_apps.limits import FORM_BYTES_MAX, App, Guard

PAGE_MAILS = 50
QUERY_MAX = 200
SHOWN_CHARACTERS_MAX = 500_000
# Mails carry styles of their own; nothing that strangers wrote stands outside the frame unescaped.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_ACTS = {
    "open": "opened",
    "click": "clicked",
    "buy": "bought",
    "unsubscribe": "unsubscribed",
    "complain": "complained",
}
_STYLE = """
:root{color-scheme:light dark;--ground:#f4f6f8;--card:#fff;--ink:#17202c;--mute:#5a6779;
--line:#e1e6ec;--accent:#0b7a75;--focus:#2f7fe0;--open:#2f6fd6;--click:#a85510;--buy:#0f7a55;
--unsubscribe:#a3346f;--complain:#b3261e}
@media(prefers-color-scheme:dark){:root{--ground:#0e131a;--card:#171e28;--ink:#e7ecf3;
--mute:#94a1b5;--line:#27313f;--accent:#3fc2b6;--focus:#7fb2ff;--open:#74a8ff;--click:#f3a35a;
--buy:#4fd39c;--unsubscribe:#e58bbb;--complain:#ff8a80}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;font-variant-numeric:tabular-nums}
a{color:var(--accent)}:focus-visible{outline:2px solid var(--focus);outline-offset:2px}
.top{display:flex;align-items:center;gap:.5rem 1.5rem;flex-wrap:wrap;background:var(--card);
padding:.6rem max(1rem,calc((100vw - 76rem)/2));border-bottom:1px solid var(--line)}
.brand{font-weight:700;font-size:1.05rem;color:inherit;text-decoration:none}
.top nav a{color:var(--mute);text-decoration:none;padding:.35rem .75rem;font-weight:500}
.top form{margin-left:auto;display:flex;gap:.5rem}
main{max-width:76rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.4rem;margin:0 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:1.75rem 0 .75rem}.mute{color:var(--mute)}
input,button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);
border-radius:8px;padding:.35rem .85rem}button{cursor:pointer}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:auto}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.5rem .9rem;
border-top:1px solid var(--line);vertical-align:top}thead th{border:0;color:var(--mute);
font-weight:500}td:nth-child(3){width:40%;overflow-wrap:anywhere}td:first-child{white-space:nowrap}
.act{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 .6rem;
font-size:.85rem;margin:0 .3rem .2rem 0}.open{color:var(--open)}.click{color:var(--click)}
.buy{color:var(--buy)}.unsubscribe{color:var(--unsubscribe)}.complain{color:var(--complain)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem;margin:0;padding:1rem}
dt{color:var(--mute)}dd{margin:0;overflow-wrap:anywhere}
iframe{width:100%;height:38rem;border:0;background:#fff;display:block}
pre{margin:0;padding:1rem;white-space:pre-wrap;overflow-wrap:anywhere;
font:.85rem/1.5 ui-monospace,"SF Mono",Menlo,monospace}
details{margin-top:.75rem}summary{cursor:pointer;padding:.7rem 1rem;font-weight:500}
.empty{padding:3rem 1rem;text-align:center;color:var(--mute)}
@media(max-width:40rem){table,tbody,tr,td{display:block;width:auto!important}thead{display:none}
td{border:0;padding:.15rem .9rem}tr{border-top:1px solid var(--line);padding:.5rem 0;display:block}}
"""


def create_mail_view(mail_file: str | Path) -> App:
    """The mail view over the sandbox's file."""
    view = MailView(Mailboxes(mail_file))
    routes = [
        Route("/", view.listed),
        Route("/mails/{id:int}", view.one),
        Route("/mails/{id:int}/source", view.source),
    ]
    return Guard(
        Starlette(routes=routes, exception_handlers={404: _not_found}),
        body_bytes_max=FORM_BYTES_MAX,
    )


class MailView:
    """The pages. SQLite is read in a thread, one read at a time."""

    def __init__(self, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes
        self._free = asyncio.Lock()

    async def listed(self, request: Request) -> Response:
        query = request.query_params.get("q", "")[:QUERY_MAX]
        before = request.query_params.get("before", "")
        known = before.isascii() and before.isdecimal() and len(before) <= 15
        start = int(before) if known else None
        found, total = await self._read(
            lambda boxes: (boxes.page(query, start, PAGE_MAILS + 1), boxes.count())
        )
        return _page(request, "Mailboxes", _list(request, query, found, total), query)

    async def one(self, request: Request) -> Response:
        mail, acts = await self._mail(request)
        if mail is None:
            return await _not_found(request, None)
        body = await asyncio.to_thread(_mail, request, mail, acts)
        return _page(request, mail.subject or "(no subject)", body)

    async def source(self, request: Request) -> Response:
        mail, _ = await self._mail(request)
        if mail is None:
            return await _not_found(request, None)
        return PlainTextResponse(mail.raw, headers=_SAFE)

    async def _mail(self, request: Request) -> tuple[Mail | None, list[str]]:
        id = min(request.path_params["id"], (1 << 62))
        found: tuple[Mail | None, list[str]] = await self._read(
            lambda boxes: (boxes.get(id), boxes.acts(id))
        )
        return found

    async def _read(self, read: Callable[[Mailboxes], Any]) -> Any:
        async with self._free:
            return await asyncio.to_thread(read, self._mailboxes)


async def _not_found(request: Request, _: Any) -> Response:
    return _page(request, "No such mail", '<p class="empty">There is no such mail.</p>', status=404)


def _page(
    request: Request, title: str, body: str, query: str = "", status: int = 200
) -> HTMLResponse:
    home = escape(_home(request), quote=True)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>"
        f'<header class="top"><a class="brand" href="/console">Manta</a><nav aria-label="Sections">'
        f'<a href="{home}/">Mailboxes</a></nav><form action="{home}/" role="search">'
        '<input type="search" name="q" aria-label="Recipient or subject" '
        f'placeholder="Recipient or subject" value="{escape(query, quote=True)}">'
        f"<button>Search</button></form></header><main><h1>{escape(title)}</h1>{body}</main>"
        "</body></html>",
        status_code=status,
        headers=_SAFE,
    )


def _home(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")


def _list(request: Request, query: str, found: Sequence[tuple[Mail, list[str]]], total: int) -> str:
    if not found:
        text = "Nothing matches." if query else "No mail has come yet."
        return f'<p class="empty">{text}</p>'
    home = _home(request)
    rows = "".join(
        f"<tr><td><time>{escape(_time(mail.received_at))}</time></td><td>{escape(mail.rcpt_to)}"
        f'</td><td><a href="{escape(home, quote=True)}/mails/{mail.id}">'
        f"{escape(mail.subject or '(no subject)')}</a></td><td>{_badges(acts)}</td></tr>"
        for mail, acts in found[:PAGE_MAILS]
    )
    more = ""
    if len(found) > PAGE_MAILS:
        older = urlencode({"q": query, "before": found[PAGE_MAILS - 1][0].id})
        more = f'<p><a href="{escape(home, quote=True)}/?{escape(older, quote=True)}">Older</a></p>'
    return (
        f'<p class="mute">{total:,} mails kept. Sent to made-up people on this machine.</p>'
        '<div class="card"><table><thead><tr><th>Came</th><th>Recipient</th><th>Subject</th>'
        f"<th>The person has</th></tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _mail(request: Request, mail: Mail, acts: list[str]) -> str:
    headers = _headers(mail.raw)
    html, text = _body(mail, "html"), _body(mail, "plain")
    facts = {
        "From": _first(headers, "from"),
        "To": mail.rcpt_to,
        "Return path": mail.mail_from or "(empty)",
        "Came": _time(mail.received_at),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    rows += f"<dt>The person has</dt><dd>{_badges(acts) or 'done nothing so far'}</dd>"
    parts = [f'<div class="card"><dl>{rows}</dl></div>']
    if html:
        parts.append(
            '<h2>As HTML</h2><div class="card"><iframe sandbox="" referrerpolicy="no-referrer" '
            f'title="The mail" srcdoc="{escape(html, quote=True)}"></iframe></div>'
        )
    parts.append(_folded("As text", text or "(no text part)", opened=not html))
    parts.append(_folded("Headers", "\n".join(f"{n}: {v}" for n, v in headers)))
    parts.append(_folded("Source", mail.raw[:SHOWN_CHARACTERS_MAX].decode("utf-8", "replace")))
    link = f"{_home(request)}/mails/{mail.id}/source"
    parts.append(f'<p><a href="{escape(link, quote=True)}">The whole source alone</a></p>')
    return "".join(parts)


def _folded(title: str, text: str, opened: bool = False) -> str:
    return (
        f'<details class="card"{" open" if opened else ""}><summary>{title}</summary>'
        f"<pre>{escape(text[:SHOWN_CHARACTERS_MAX])}</pre></details>"
    )


def _badges(acts: Sequence[str]) -> str:
    return "".join(
        f'<span class="act {act}">{_ACTS[act]}</span>'
        for act in dict.fromkeys(acts)
        if act in _ACTS
    )


def _time(received_at: str) -> str:
    """RFC 3339 text without the fraction."""
    return received_at.partition(".")[0].replace("T", " ").removesuffix("Z") + " UTC"


def _headers(raw: bytes) -> list[tuple[str, str]]:
    """Names and values as they came: parsing them is a mail program's matter."""
    message = email.message_from_bytes(raw, policy=email.policy.compat32)
    return [(name, str(value)) for name, value in message.items()]


def _first(headers: Sequence[tuple[str, str]], name: str) -> str:
    return next((value for n, value in headers if n.lower() == name), "")


def _body(mail: Mail, kind: str) -> str:
    """A part's text; what cannot be decoded is nothing to show here, the source has it."""
    try:
        return mail.body(kind)[:SHOWN_CHARACTERS_MAX]
    except (LookupError, ValueError, TypeError, AttributeError):
        return ""
