"""Visits: how a web site learns that the person of a mail has come.

At the redirect of a click to one of the workspace's own sites, the target gets the parameter
``mt``: a signed token that names the message, good for ``GOOD_FOR``. The web snippet takes it out
of the address bar and sends it with its first events; the anonymous id of that browser then belongs
to whom the mail was sent. A token allows that and nothing else: it shows no data, and who holds it
can write no trait and no consent.

Who forwards a mail forwards its links. The browser of whoever clicks in the forwarded mail is then
taken for the recipient's, as it is with every link in a mail; nothing tells a second device of the
same person from another person. It is bounded: the page's own address carries no token (the snippet
removes it, so that a copied address names nobody), an old token ties nobody, what was tied can be
undone (a merge with its cause on record), and as soon as the other person names themselves the
browser is theirs; one in which they have done so before stays theirs. A person to whom a great many
browsers are tied gets no more.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from manta.content.tokens import Keyring, Payload, TokenKind
from manta.errors import InvalidRequest
from manta.ids import MessageRef

PARAMETER = "mt"
GOOD_FOR = timedelta(hours=24)


def visit_token(
    keyring: Keyring, ref: MessageRef, campaign_id: int, link: int, now: datetime
) -> str:
    """The token of a click that happens now. Its time stands in the place of a URL."""
    seconds = int(now.replace(tzinfo=UTC).timestamp())
    return keyring.sign(TokenKind.VISIT, ref, campaign_id, link, str(seconds))


def check_age(payload: Payload, now: datetime) -> None:
    """Raises ``InvalidRequest`` for a verified token that is too old, or not of a visit."""
    if payload.kind is TokenKind.VISIT and payload.url.isdecimal():
        signed_at = datetime.fromtimestamp(int(payload.url), UTC).replace(tzinfo=None)
        if now - signed_at <= GOOD_FOR:
            return
    hours = GOOD_FOR // timedelta(hours=1)
    raise InvalidRequest(
        f"the token is older than {hours} h", path="token", expected="that of a click just made"
    )


def is_of(url: str, hosts: Collection[str]) -> bool:
    """Whether a URL leads to one of these hosts."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return host is not None and host.lower().rstrip(".") in hosts


def tagged(url: str, token: str) -> str:
    """The URL with the token as its last parameter, before any fragment."""
    address, mark, fragment = url.partition("#")
    joint = "&" if "?" in address else "?"
    return f"{address}{joint}{PARAMETER}={token}{mark}{fragment}"
