"""The pages that a recipient can see, and their one style; here those without any data:
unsubscribe, unsubscribed, and a link that is no good.

Plain HTML without scripts, images or outside requests; the one style sheet is allowed by its hash.
The texts speak to somebody who does not know what Manta is. Text and controls keep a contrast of
4.5 to 1 in light and dark (WCAG 2.2, 1.4.3), and what has the focus is marked.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape

from serve_apps.preferences.texts import texts

_STYLE = (
    ":root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1c2330;--soft:#545d6c;"
    "--line:#7d8797;--act:#1f5fd0;--on:#fff;--note:#e7f0ff}"
    "@media(prefers-color-scheme:dark){:root{--ground:#11151c;--card:#1b212b;--ink:#e7ebf2;"
    "--soft:#a9b4c4;--line:#8792a3;--act:#8ab4ff;--on:#0d1420;--note:#22314d}}"
    "*{box-sizing:border-box}"
    "body{font:17px/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;"
    "place-items:center;background:var(--ground);color:var(--ink)}"
    "main{width:min(32rem,100% - 2rem);margin:1rem;padding:clamp(1.1rem,5vw,2rem);"
    "background:var(--card);border-radius:12px;box-shadow:0 1px 4px #0002;overflow-wrap:anywhere}"
    "h1{font-size:1.4rem;line-height:1.25;margin:0 0 .6rem}p{margin:.4rem 0}"
    "button{font:inherit;margin-top:1rem;padding:.6rem 1.4rem;border:2px solid var(--act);"
    "border-radius:8px;background:var(--act);color:var(--on);cursor:pointer}"
    "button.quiet{background:none;color:var(--ink);border-color:var(--line)}"
    ":focus-visible{outline:3px solid var(--act);outline-offset:2px}"
    "fieldset{border:1px solid var(--line);border-radius:8px;margin:1.2rem 0;padding:.4rem 1rem}"
    "legend{font-weight:600;padding:0 .4rem}"
    ".choice{display:grid;grid-template-columns:auto 1fr;gap:0 .7rem;padding:.5rem 0}"
    ".choice input{width:1.4rem;height:1.4rem;margin:.1rem 0 0;accent-color:var(--act)}"
    ".choice p,.hint{color:var(--soft);font-size:.9rem;margin:0}.choice p{grid-column:2}"
    ".field{margin:1rem 0}.field label{display:block;font-weight:600}"
    "select{font:inherit;width:100%;padding:.5rem;border:1px solid var(--line);border-radius:8px;"
    "background:var(--card);color:var(--ink)}"
    ".said{background:var(--note);border-radius:8px;padding:.6rem .9rem}"
    ".away{border-top:1px solid var(--line);margin-top:1.6rem;padding-top:.4rem}"
    "ul{padding-left:1.3rem}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def page(title: str, *parts: str, language: str = "en") -> bytes:
    """A whole page; ``parts`` are HTML."""
    return (
        f'<!doctype html><html lang="{escape(language)}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="robots" content="noindex">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{''.join(parts)}</main></body></html>"
    ).encode()


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>"


@cache
def unsubscribe(language: str) -> bytes:
    """The form posts what RFC 8058 has mailbox providers post, so there is one way to do it."""
    words = texts()[language]
    return page(
        words["unsubscribe_title"],
        text(words["unsubscribe_text"]),
        '<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">'
        f'<button type="submit">{escape(words["unsubscribe_button"])}</button></form>',
        language=language,
    )


@cache
def unsubscribed(language: str) -> bytes:
    words = texts()[language]
    said = text(words["unsubscribed_text"])
    return page(words["unsubscribed_title"], said, language=language)


NOT_VALID = page(
    "This link is not valid",
    text("It may have been cut or changed on its way. Please use the link in the e-mail itself."),
)
TRY_AGAIN = page(
    "Please try again",
    text("We could not store this just now. Please load this page again in a moment."),
)
NOT_SHOWN = page(
    "This e-mail cannot be shown here",
    text("Please read it in your mail program."),
)
# For the link that only machines find: see docs/traffic.md.
DECOY = page("Nothing to read here", text("This page is not part of the e-mail. Please close it."))
NOTHING_HERE = page("There is nothing here", text("Please check the address."))
