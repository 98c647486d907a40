"""The few pages that a recipient can see: unsubscribe, unsubscribed, and a link that is no good.

Plain HTML without scripts, images or outside requests; the one style sheet is allowed by its hash.
The texts speak to somebody who does not know what Manta is.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:17px/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;"
    "place-items:center;background:#f6f7f9;color:#1c2330}"
    "main{max-width:26rem;margin:1rem;padding:2rem;background:#fff;border-radius:12px;"
    "box-shadow:0 1px 4px #0002}h1{font-size:1.4rem;margin:0 0 .6rem}p{margin:.4rem 0}"
    "button{font:inherit;margin-top:1rem;padding:.6rem 1.4rem;border:0;border-radius:8px;"
    "background:#1f5fd0;color:#fff;cursor:pointer}button:focus-visible{outline:3px solid #8ab4ff;"
    "outline-offset:2px}"
    "@media(prefers-color-scheme:dark){body{background:#11151c;color:#e7ebf2}"
    "main{background:#1b212b}}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def _page(title: str, *parts: str) -> bytes:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="robots" content="noindex">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{''.join(parts)}</main></body></html>"
    ).encode()


def _text(text: str) -> str:
    return f"<p>{escape(text)}</p>"


# The form posts what RFC 8058 has mailbox providers post, so there is one way to unsubscribe.
UNSUBSCRIBE = _page(
    "Unsubscribe",
    _text("Press the button and we will send you no more of these e-mails."),
    '<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">'
    '<button type="submit">Unsubscribe</button></form>',
)
UNSUBSCRIBED = _page(
    "You are unsubscribed",
    _text("We will send you no more of these e-mails. One that is on its way may still arrive."),
)
NOT_VALID = _page(
    "This link is not valid",
    _text("It may have been cut or changed on its way. Please use the link in the e-mail itself."),
)
TRY_AGAIN = _page(
    "Please try again",
    _text("We could not store this just now. Please load this page again in a moment."),
)
NOT_SHOWN = _page(
    "This e-mail cannot be shown here",
    _text("Please read it in your mail program."),
)
NOTHING_HERE = _page("There is nothing here", _text("Please check the address."))
