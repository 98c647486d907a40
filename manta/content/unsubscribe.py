"""One-click unsubscribe: the two header fields of RFC 8058.

``List-Unsubscribe`` (RFC 2369) holds one https URI whose token names the recipient and the list,
and, where mail comes in, a mailto URI for programs that know nothing else;
``List-Unsubscribe-Post`` promises that a POST of its value to that URI unsubscribes at once,
without cookie, login or redirect. Both have to be covered by the DKIM signature (RFC 8058 §4),
which ``manta.content.dkim`` does. A GET only shows a page: link scanners fetch everything.
"""

from __future__ import annotations

LIST_UNSUBSCRIBE = "List-Unsubscribe"
LIST_UNSUBSCRIBE_POST = "List-Unsubscribe-Post"
ONE_CLICK = "List-Unsubscribe=One-Click"


def unsubscribe_headers(url: str, address: str = "") -> tuple[tuple[str, str], tuple[str, str]]:
    """The two fields for a message whose unsubscribe URL is ``url`` (ASCII, no ``>``), and whose
    unsubscribe address, if any, is ``address``."""
    value = f"<{url}>, <mailto:{address}?subject=unsubscribe>" if address else f"<{url}>"
    return ((LIST_UNSUBSCRIBE, value), (LIST_UNSUBSCRIBE_POST, ONE_CLICK))


def is_one_click(body: bytes) -> bool:
    """Whether a POST body is the one-click request, form or multipart (RFC 8058 §3.2)."""
    if body.strip() == ONE_CLICK.encode():
        return True
    head, _, value = body.partition(b'name="List-Unsubscribe"')
    return bool(head) and b"\r\n\r\nOne-Click\r\n" in value[:200]
