"""The mail view: what it shows, and that a mail can do nothing in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sandbox.mailboxes import Mailboxes
from sandbox.mailview import CONTENT_SECURITY_POLICY, PAGE_MAILS, create_mail_view
from tests.unit.serve_fakes import client

AT = "2026-03-01T12:00:00.000000Z"
HOSTILE = (
    b'From: "<script>x()</script>" <a@shop.example>\r\nTo: b@x.example\r\n'
    b"Subject: =?utf-8?q?=3Cb=3Ehi=3C/b=3E?=\r\nX-Odd: <i>odd</i>\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    b'<p style="color:red">Hello</p>"><script>parent.document.title="gone"</script>'
    b'<img src="http://shop.example/o/1"></iframe><form action="/"><button>go</button></form>'
)


@pytest.fixture
def boxes(tmp_path: Path) -> Any:
    opened = Mailboxes(tmp_path / "mail.sqlite")
    yield opened
    opened.close()


@pytest.fixture
async def http(boxes: Mailboxes, tmp_path: Path) -> Any:
    app = create_mail_view(tmp_path / "mail.sqlite")
    async with client(app, "/sandbox") as opened:
        yield opened


def plain(subject: str, text: str = "hello") -> bytes:
    return f"From: a@shop.example\r\nSubject: {subject}\r\n\r\n{text}\r\n".encode()


class Seen(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


async def test_the_list_searches_and_pages(boxes, http):
    assert "No mail has come yet" in (await http.get("/sandbox/")).text
    for n in range(PAGE_MAILS + 2):
        boxes.deliver(AT, "r@m.example", f"p{n}@x.example", plain(f"News {n}"))
    boxes.note(PAGE_MAILS + 2, "open", AT)
    boxes.note(PAGE_MAILS + 2, "open", AT)
    first = await http.get("/sandbox/")
    assert first.text.count("/sandbox/mails/") == PAGE_MAILS
    assert first.text.count(">opened<") == 1
    assert "before=3" in first.text
    second = await http.get("/sandbox/", params={"before": "3"})
    assert second.text.count("/sandbox/mails/") == 2
    found = await http.get("/sandbox/", params={"q": "p7@"})
    assert found.text.count("/sandbox/mails/") == 1
    for odd in ("%", "_", "'; DROP TABLE mails", '"><script>', "\x00", "x" * 9999):
        answer = await http.get("/sandbox/", params={"q": odd, "before": "-1x"})
        assert answer.status_code == 200
        assert "<script" not in answer.text
    assert (await http.get("/sandbox", follow_redirects=True)).status_code == 200


async def test_a_mail_can_do_nothing(boxes, http):
    id = boxes.deliver(AT, "r@m.example", "b@x.example", HOSTILE)
    answer = await http.get(f"/sandbox/mails/{id}")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "script-src" not in CONTENT_SECURITY_POLICY
    seen = Seen(answer.text)
    (frame,) = seen.named("iframe")
    assert frame["sandbox"] == ""
    assert "parent.document" in str(frame["srcdoc"])
    assert not seen.named("script")
    assert not seen.named("img")
    assert [form["action"] for form in seen.named("form")] == ["/sandbox/"]
    assert "&lt;b&gt;hi&lt;/b&gt;" in answer.text
    assert "X-Odd: &lt;i&gt;odd" in answer.text
    source = await http.get(f"/sandbox/mails/{id}/source")
    assert source.headers["content-type"].startswith("text/plain")
    assert source.headers["x-content-type-options"] == "nosniff"
    assert source.content == HOSTILE


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\xfe",
        b"Content-Type: text/html; charset=no-such\r\n\r\n<p>\xff",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n",
        b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!",
        b"Subject: =?utf-8?b?////?=\r\nFrom: \xff\xff\r\n\r\nhi",
        b"Content-Type: ;;;=\r\n\r\nhi",
    ],
)
async def test_broken_mails_are_shown_all_the_same(boxes, http, raw):
    id = boxes.deliver(AT, "", "b@x.example", raw)
    assert (await http.get(f"/sandbox/mails/{id}")).status_code == 200
    assert (await http.get("/sandbox/")).status_code == 200


async def test_what_is_not_there(http):
    for path in ("/sandbox/mails/9", f"/sandbox/mails/{10**30}", "/sandbox/x", "/sandbox/mails/-1"):
        answer = await http.get(path)
        assert answer.status_code == 404
        assert "no such mail" in answer.text
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
