"""The composer: from a template and a person to a signed mail that others can read and verify."""

from __future__ import annotations

import email
import email.policy
import html as entities
import re
from dataclasses import replace
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.content import dkim
from manta.content.composer import Composer, MailSettings
from manta.content.dkim import DkimSigner
from manta.content.language import TemplateError
from manta.content.links import DECOY_LINK
from manta.content.templates import MailTemplate
from manta.content.tokens import Keyring, Payload, SigningKey, TokenKind
from manta.content.unsubscribe import is_one_click, unsubscribe_headers
from manta.errors import InvalidRequest
from manta.ids import NOBODY, MessageRef, decode_id

NOW = datetime(2026, 4, 5, 6, 7, 8)
REF = MessageRef(3 << 47 | 99, -12_345)
RING = Keyring([SigningKey(9, "default", b"q" * 32)], 9)
SETTINGS = MailSettings(42, "https://t.example.com/track/", "bounces.example.com")
SIGNERS = (
    DkimSigner("news.example.com", "r", dkim.load_private_key(dkim.generate_private_key())),
    DkimSigner(
        "news.example.com", "e", dkim.load_private_key(dkim.generate_private_key("ed25519"))
    ),
)
TEMPLATE = MailTemplate(
    subject="Hi {{ first_name|default('friend') }}",
    preheader="For {{ city }} & <you>",
    html=(
        '<html><body><p>Hi {{ first_name }}</p><a href="https://shop.example/?a=1&amp;b=2">Shop</a>'
        '{% for p in picks %}<a href="{{ p }}">pick</a>{% endfor %}'
        '<a href="{{ site }}">Site</a><a href="https://x.example/{{ city|urlencode }}">City</a>'
        '<a href="mailto:a@b.example">Write</a><a href="{{ unsubscribe_url }}">Stop</a>'
        '<a href="{{ view_url }}">View</a></body></html>'
    ),
    from_email="hello@news.example.com",
    from_name="{{ agent|default('Harbour & Moor') }}",
    reply_to="help@news.example.com",
)
ROW: dict[str, Any] = {
    "email": "bob@example.org",
    "first_name": "Zoë",
    "city": "Bath",
    "site": "https://zoe.example/?q=1&r=2",
    "picks": ["https://p.example/1", "https://p.example/2"],
}
COMPOSER = Composer(TEMPLATE, SETTINGS, RING, SIGNERS)


def compose(row: dict[str, Any] | None = None, composer: Composer = COMPOSER) -> EmailMessage:
    message = email.message_from_bytes(
        composer.compose(ROW if row is None else row, REF, NOW).data, policy=email.policy.default
    )
    assert isinstance(message, EmailMessage) and not message.defects
    return message


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert isinstance(body, EmailMessage)
    return str(body.get_content())


def links(message: EmailMessage) -> list[str]:
    return [entities.unescape(url) for url in re.findall(r'href="([^"]*)"', part(message, "html"))]


def payload(url: str, kind: TokenKind) -> Payload:
    return RING.verify(url.rsplit("/", 1)[1], NOW, kind)


def test_a_mail_is_what_was_written() -> None:
    message = compose()
    assert message["subject"] == "Hi Zoë"
    assert str(message["from"]) == '"Harbour & Moor" <hello@news.example.com>' or (
        message["from"].addresses[0].display_name == "Harbour & Moor"
    )
    assert message["to"] == "bob@example.org" and message["reply-to"] == "help@news.example.com"
    assert message["date"].datetime.replace(tzinfo=None) == NOW
    assert "For Bath &amp; &lt;you&gt;" in part(message, "html")
    text = part(message, "plain")
    assert "Hi Zoë" in text and "Shop (https://shop.example/?a=1&b=2)" in text
    assert COMPOSER.attributes == ("agent", "city", "first_name", "picks", "site")


def test_links_carry_their_target_and_only_that() -> None:
    found = links(compose())
    clicks = [payload(url, TokenKind.CLICK) for url in found if "/c/" in url]
    assert [(click.link, click.url) for click in clicks] == [
        (0, "https://shop.example/?a=1&b=2"),
        (1, "https://p.example/1"),
        (1, "https://p.example/2"),
        (2, "https://zoe.example/?q=1&r=2"),
        (3, "https://x.example/Bath"),
        (DECOY_LINK, ""),
    ]
    assert {(click.ref, click.campaign_id, click.workspace) for click in clicks} == {
        (REF, 42, "default")
    }
    assert found[5] == "mailto:a@b.example"
    assert payload(found[6], TokenKind.UNSUBSCRIBE).ref == REF
    assert payload(found[7], TokenKind.VIEW).ref == REF
    assert all(url.startswith("https://t.example.com/track/") for url in found[:5])
    pixel = re.search(r'<img src="([^"]*)"', part(compose(), "html"))
    assert pixel and payload(pixel[1], TokenKind.OPEN).ref == REF


def test_the_envelope_and_message_id_name_the_message() -> None:
    mail = COMPOSER.compose(ROW, REF, NOW)
    local, _, domain = mail.mail_from.partition("@")
    assert (RING.read_verp(local, NOW), domain) == (("default", REF), "bounces.example.com")
    assert mail.rcpt_to == "bob@example.org"
    left = str(compose()["message-id"]).strip("<>").partition("@")[0]
    assert tuple(map(decode_id, left.split("."))) == REF
    assert mail == COMPOSER.compose(ROW, REF, NOW)
    assert mail.data != COMPOSER.compose(ROW, MessageRef(1, 2), NOW).data


def test_unsubscribing_is_one_click_and_signed() -> None:
    message = compose()
    url = str(message["list-unsubscribe"]).strip("<>")
    assert payload(url, TokenKind.UNSUBSCRIBE).campaign_id == 42
    assert message["list-unsubscribe-post"] == "List-Unsubscribe=One-Click"
    for signature in message.get_all("dkim-signature"):
        signed = re.sub(r"\s", "", re.search(r"h=([^;]*)", str(signature))[1]).split(":")  # type: ignore[index]
        assert {"list-unsubscribe", "list-unsubscribe-post", "feedback-id"} <= set(signed)
        assert signed.count("from") == 2 and signed.count("subject") == 2
    transactional = Composer(TEMPLATE, replace(SETTINGS, kind="transactional"), RING, SIGNERS)
    assert "list-unsubscribe" not in compose(composer=transactional)


@pytest.mark.parametrize(("kind", "who"), [("marketing", REF), ("test", MessageRef(0, REF[1]))])
def test_where_mail_comes_in_one_may_unsubscribe_by_mail(kind: str, who: MessageRef) -> None:
    settings = replace(SETTINGS, has_inbox=True, kind=kind)
    field = compose(composer=Composer(COMPOSER.mail, settings, RING))["List-Unsubscribe"]
    _, _, mailto = field.partition(">, <mailto:")
    local, _, rest = mailto.partition("@")
    assert rest == "bounces.example.com?subject=unsubscribe>"
    assert RING.read_unsubscribe(local, NOW) == ("default", who)


def test_both_signatures_verify() -> None:
    data = COMPOSER.compose(ROW, REF, NOW).data

    def record(name: bytes, timeout: int = 5) -> bytes:
        return dkim.dns_record(SIGNERS[0 if name.startswith(b"r.") else 1].key).encode()

    assert [dkimpy.DKIM(data).verify(index, dnsfunc=record) for index in (0, 1)] == [True, True]


def test_tracking_can_be_off() -> None:
    quiet = replace(SETTINGS, track_opens=False, track_clicks=False)
    message = compose(composer=Composer(TEMPLATE, quiet, RING))
    assert links(message)[:5] == [
        "https://shop.example/?a=1&b=2",
        "https://p.example/1",
        "https://p.example/2",
        "https://zoe.example/?q=1&r=2",
        "https://x.example/Bath",
    ]
    assert "<img" not in part(message, "html")


def test_a_person_of_whom_only_the_address_is_known() -> None:
    message = compose({"email": "bob@example.org"})
    assert message["subject"] == "Hi friend"
    assert "Hi </p>" in part(message, "html")


@pytest.mark.parametrize(
    "site",
    [
        "javascript:alert(1)",
        "JavaScript:x",
        "data:text/html,x",
        "vbscript:x",
        "/x",
        " x",
        "\x01javascript:x",
    ],
)
def test_addresses_from_people_are_made_harmless(site: str) -> None:
    for settings_ in (SETTINGS, replace(SETTINGS, track_clicks=False)):
        found = links(compose({**ROW, "site": site}, Composer(TEMPLATE, settings_, RING)))
        assert found[3] == "#"


HOSTILE = [
    "Zoë\r\nBcc: eve@example.net\r\n\r\nbody",
    "\n.\r\nQUIT\r\n",
    "\x00\x01\x1b\x7f\x85",
    "\ud800\udfff\ufeff",
    "{{ 7 * 7 }}{% raw %}{# x #}",
    '"><script>alert(1)</script>',
    "\u202eevil\u202c\u2028\u2029",
    "--=_boundary--\r\n",
    "=?utf-8?q?=0D=0ABcc:_x?=",
    "%s%n{0.__class__}",
    "x" * 5_000,
    "ﷺ" * 3_000,
    "\r" * 1_000,
    "From the start\nFrom again",
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("field", ["first_name", "city", "site", "agent", "picks"])
def test_values_stay_in_their_place(field: str, value: str) -> None:
    row = {**ROW, field: [value] if field == "picks" else value}
    data = COMPOSER.compose(row, REF, NOW).data
    message = compose(row)
    expected = compose({"email": "bob@example.org"})
    assert message.keys() == expected.keys()
    assert [p.get_content_type() for p in message.iter_parts()] == ["text/plain", "text/html"]
    assert "<script" not in part(message, "html") and "49" not in str(message["subject"])
    assert data.isascii() and b"\x00" not in data
    assert b"\r" not in data.replace(b"\r\n", b"") and b"\n" not in data.replace(b"\r\n", b"")
    assert max(map(len, data.split(b"\r\n"))) <= 998


@given(st.dictionaries(st.sampled_from(["first_name", "city", "agent", "site"]), st.text()))
@settings(max_examples=60, deadline=None)
def test_any_values_make_a_mail(values: dict[str, str]) -> None:
    message = compose({**ROW, **values})
    assert message.keys() == compose().keys()
    assert len(links(message)) == 9


def test_the_decoy_is_out_of_peoples_way() -> None:
    page = part(compose(), "html")
    (tag,) = (tag for tag in re.findall(r"<a [^>]*>[^<]*</a>", page) if "aria-hidden" in tag)
    assert 'tabindex="-1"' in tag and "display:none" in tag and tag.endswith("></a>")
    assert len(tag) < 200
    decoy = links(compose())[-1]
    assert payload(decoy, TokenKind.CLICK)[5:] == (DECOY_LINK, "")
    assert decoy not in part(compose(), "plain")
    for change in ({"kind": "transactional"}, {"track_clicks": False}):
        other = Composer(TEMPLATE, replace(SETTINGS, **change), RING, SIGNERS)
        assert "aria-hidden" not in part(compose(composer=other), "html")


@pytest.mark.parametrize("address", [None, "", "bob", "bob@x\r\nRCPT TO:<eve@x>", "b b@x.org", 7])
def test_bad_addresses_fail_their_message_only(address: object) -> None:
    with pytest.raises(InvalidRequest):
        COMPOSER.compose({**ROW, "email": address}, REF, NOW)


@pytest.mark.parametrize(
    "value", [object(), b"x", "x" * 70_000, [[[[[[[[1]]]]]]]], list(range(20_000)), {"a": object()}]
)
def test_values_that_are_not_plain_or_too_large(value: object) -> None:
    with pytest.raises(TemplateError) as caught:
        COMPOSER.compose({**ROW, "picks": value}, REF, NOW)
    assert caught.value.path == "picks"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_url", "https://t.example.com/<x>"),
        ("base_url", "javascript:x"),
        ("base_url", "https://t.example.com/\r\n"),
        ("base_url", "//t.example.com"),
        ("kind", "spam"),
        ("return_path_domain", "a b"),
        ("return_path_domain", "x>\r\n"),
    ],
)
def test_settings_are_checked(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        replace(SETTINGS, **{name: value})  # type: ignore[arg-type]
    assert caught.value.path == name


@pytest.mark.parametrize("name", ["from_email", "reply_to"])
def test_header_addresses_are_checked(name: str) -> None:
    for bad in ("x", "a@b\r\nBcc: c@d", "{{ email }}", "a@b.c, d@e.f"):
        with pytest.raises(InvalidRequest):
            Composer(replace(TEMPLATE, **{name: bad}), SETTINGS, RING)


def test_templates_travel_as_json() -> None:
    assert MailTemplate.from_json(TEMPLATE.to_json()) == TEMPLATE
    for bad in ({}, {**TEMPLATE.to_json(), "x": ""}, {**TEMPLATE.to_json(), "html": 5}):
        with pytest.raises(InvalidRequest):
            MailTemplate.from_json(bad)


def test_one_click_bodies() -> None:
    assert is_one_click(b"List-Unsubscribe=One-Click") and is_one_click(
        b"List-Unsubscribe=One-Click\r\n"
    )
    form = b'--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n'
    assert is_one_click(form)
    for other in (b"", b"List-Unsubscribe=Two", b"x=List-Unsubscribe=One-Click&y", form[:40]):
        assert not is_one_click(other)
    assert unsubscribe_headers("https://a.example/u/x")[0] == (
        "List-Unsubscribe",
        "<https://a.example/u/x>",
    )


def test_the_sample_newsletter_is_clean() -> None:
    from manta.content.lint import lint

    folder = Path(__file__).parents[2] / "examples/templates/newsletter"
    template = MailTemplate(
        subject=(folder / "subject.txt").read_text().strip(),
        preheader=(folder / "preheader.txt").read_text().strip(),
        html=(folder / "html.html").read_text(),
        from_email="hello@shop.example.com",
        from_name="Harbour & Moor",
    )
    row = {"first_name": "Zoë", "city": "Bath", "last_product": "Tea pot"}
    assert lint(template, row.keys(), sample=row) == []
    message = compose(
        {**row, "email": "bob@example.org"}, Composer(template, SETTINGS, RING, SIGNERS)
    )
    assert message["subject"] == "Zoë, this week's finds near Bath"


def test_a_test_goes_where_it_is_sent_and_its_reader_acts_for_nobody() -> None:
    composer = Composer(TEMPLATE, replace(SETTINGS, kind="test"), RING, SIGNERS)
    composed = composer.compose(ROW | {"_send_to": "me@agency.example"}, REF, NOW)
    assert composed.rcpt_to == "me@agency.example"
    message = email.message_from_bytes(composed.data, policy=email.policy.default)
    assert message["To"] == "me@agency.example"
    assert str(message["Subject"]).startswith("[Test] Hi Zoë")
    named = {}
    for url in [*links(message), message["List-Unsubscribe"].strip("<>")]:
        if url.startswith(SETTINGS.base_url):
            payload = RING.verify(url.rpartition("/")[2], NOW)
            named[payload.kind] = payload.subscriber_id
    assert named == {
        TokenKind.CLICK: NOBODY,
        TokenKind.UNSUBSCRIBE: NOBODY,
        TokenKind.VIEW: REF.subscriber_id,
    }


def test_links_of_its_own_to_preferences_and_confirmation():
    html = (
        '<p><a href="{{ preferences_url }}">Choose</a> <a href="{{ confirm_url }}">Yes</a>'
        ' <a href="{{ unsubscribe_url }}">Stop</a></p>'
    )
    for kind, person in (("transactional", REF.subscriber_id), ("test", NOBODY)):
        composer = Composer(
            replace(TEMPLATE, html=html), replace(SETTINGS, kind=kind), RING, SIGNERS
        )
        text = part(compose(composer=composer), "html")
        base = re.escape(SETTINGS.base_url)
        found = dict(re.findall(rf'href="{base}([psu])/([\w-]+)"', text))
        for letter, wanted in (("p", TokenKind.PREFERENCES), ("s", TokenKind.CONFIRM)):
            said = RING.verify(found[letter], NOW, wanted)
            assert said.ref == MessageRef(person, REF.message_key)
            with pytest.raises(InvalidRequest):
                RING.verify(found[letter], NOW, TokenKind.UNSUBSCRIBE)
