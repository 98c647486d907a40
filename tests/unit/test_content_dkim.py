"""DKIM: verified by another implementation, and byte for byte against RFC 8463's example."""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from pathlib import Path

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.content import dkim
from manta.content.dkim import DkimSigner
from manta.content.mime import fields_text
from manta.errors import InvalidRequest

RFC_EXAMPLE = Path(__file__).parents[3] / "shared/data/dkim/rfc8463_dual_signed.txt"
RSA = DkimSigner("news.example.com", "r1", dkim.load_private_key(dkim.generate_private_key()))
ED = DkimSigner(
    "news.example.com", "e1", dkim.load_private_key(dkim.generate_private_key("ed25519"))
)
FIELDS = [
    ("From", "Harbour <hello@news.example.com>"),
    ("To", "bob@example.org"),
    ("Subject", "=?utf-8?b?w6nDqQ==?=\r\n =?utf-8?b?w6nDqQ==?="),
    ("Date", "Fri, 02 Jan 2026 03:04:05 +0000"),
    ("Message-ID", "<a@news.example.com>"),
    ("List-Unsubscribe", "<https://t.example.com/u/x>"),
    ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
    ("MIME-Version", "1.0"),
]


def record(name: bytes, timeout: int = 5) -> bytes:
    signer = RSA if name.startswith(b"r1.") else ED
    return dkim.dns_record(signer.key).encode()


def signed(body: bytes) -> bytes:
    signatures = dkim.sign(FIELDS, body, (RSA, ED), 1_767_323_045)
    return fields_text([*signatures, *FIELDS]) + b"\r\n" + body


def verified(message: bytes) -> list[bool]:
    def one(index: int) -> bool:
        try:
            return bool(dkimpy.DKIM(message).verify(index, dnsfunc=record))
        except dkimpy.DKIMException:
            return False

    return [one(0), one(1)]


lines = st.lists(st.text("ab \t.=-", max_size=12).map(lambda line: line.encode()), max_size=8).map(
    lambda parts: b"\r\n".join(parts)
)


@given(lines)
@settings(max_examples=60, deadline=None)
def test_another_implementation_verifies_both(body: bytes) -> None:
    assert verified(signed(body + b"\r\n")) == [True, True]


@given(lines)
def test_the_fast_body_form_is_the_plain_one(body: bytes) -> None:
    text = re.sub(rb"[ \t]+", b" ", body)
    text = re.sub(rb" (?=\r\n|\Z)", b"", text)
    text = re.sub(rb"(\r\n)*\Z", b"", text)
    assert dkim.relaxed_body(body) == (text + b"\r\n" if text else b"")


@pytest.mark.parametrize(
    "change",
    [
        (b"Subject: ", b"Subject: x"),
        (b"/u/x>", b"/u/y>"),
        (b"One-Click", b"Two-Click"),
        (b"Hello", b"Hallo"),
        (b"From: ", b"From: Eve <eve@example.net>\r\nFrom: "),
        (b"MIME-Version", b"Subject: second\r\nMIME-Version"),
        (b"MIME-Version", b"List-Unsubscribe: <https://evil.example/>\r\nMIME-Version"),
    ],
)
def test_what_is_signed_cannot_be_changed_or_doubled(change: tuple[bytes, bytes]) -> None:
    message = signed(b"Hello\r\n")
    assert verified(message) == [True, True]
    assert verified(message.replace(*change)) == [False, False]


def test_signatures_repeat_exactly_and_have_short_lines() -> None:
    message = signed(b"Hello\r\n")
    assert message == signed(b"Hello\r\n")
    assert max(map(len, message.split(b"\r\n"))) <= 80


# -- RFC 8463, appendix A. The keys are the RFC's own, printed there for tests ---------------------

_FIELD = r"(?m)^([A-Za-z-]+):([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)"
ED_SEED = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
RSA_PEM = b"""-----BEGIN RSA PRIVATE KEY-----
MIICXQIBAAKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQi
Y/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqM
KrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB
AoGAH0cxOhFZDgzXWhDhnAJDw5s4roOXN4OhjiXa8W7Y3rhX3FJqmJSPuC8N9vQm
6SVbaLAE4SG5mLMueHlh4KXffEpuLEiNp9Ss3O4YfLiQpbRqE7Tm5SxKjvvQoZZe
zHorimOaChRL2it47iuWxzxSiRMv4c+j70GiWdxXnxe4UoECQQDzJB/0U58W7RZy
6enGVj2kWF732CoWFZWzi1FicudrBFoy63QwcowpoCazKtvZGMNlPWnC7x/6o8Gc
uSe0ga2xAkEA8C7PipPm1/1fTRQvj1o/dDmZp243044ZNyxjg+/OPN0oWCbXIGxy
WvmZbXriOWoSALJTjExEgraHEgnXssuk7QJBALl5ICsYMu6hMxO73gnfNayNgPxd
WFV6Z7ULnKyV7HSVYF0hgYOHjeYe9gaMtiJYoo0zGN+L3AAtNP9huqkWlzECQE1a
licIeVlo1e+qJ6Mgqr0Q7Aa7falZ448ccbSFYEPD6oFxiOl9Y9se9iYHZKKfIcst
o7DUw1/hz2Ck4N5JrgUCQQCyKveNvjzkkd8HjYs0SwM0fPjK16//5qDZ2UiDGnOe
uEzxBDAr518Z8VFbR41in3W4Y3yCDgQlLlcETrS+zYcL
-----END RSA PRIVATE KEY-----
"""


@pytest.mark.skipif(not RFC_EXAMPLE.exists(), reason="shared data is absent")
def test_the_rfc_example_byte_for_byte() -> None:
    text = RFC_EXAMPLE.read_bytes().decode().replace("\r\n", "\n").replace("\n", "\r\n")
    records, _, message = text.partition("\r\n\r\n")
    head, _, body = message.partition("\r\n\r\n")
    fields = [(name, value) for name, value in re.findall(_FIELD, head)]
    seed = base64.b64decode(ED_SEED)
    keys = {
        "brisbane": dkim.load_private_key(
            ed25519.Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        ),
        "test": dkim.load_private_key(RSA_PEM),
    }
    assert dkim.dns_record(keys["brisbane"]) in records
    body_hash = base64.b64encode(sha256(dkim.relaxed_body(body.encode())).digest()).decode()
    plain = [field for field in fields if field[0] != "DKIM-Signature"]
    signatures = [value for name, value in fields if name == "DKIM-Signature"]
    assert len(signatures) == 2
    canonical = "".join(
        dkim.relaxed_field(name, dict(plain)[name]) + "\r\n"
        for name in ("From", "To", "Subject", "Date", "Message-ID")
    )
    for value in signatures:
        selector = re.search(r"s=(\w+);", value)
        expected = re.sub(r"\s", "", value[value.rindex("b=") + 2 :])
        assert selector and body_hash in value
        empty = value[: value.rindex("b=") + 2]
        signing_input = canonical + dkim.relaxed_field("DKIM-Signature", empty)
        signer = DkimSigner("football.example.com", selector[1], keys[selector[1]])
        assert base64.b64encode(signer.sign(signing_input.encode())).decode() == expected


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pem", [b"", b"nonsense", RSA_PEM[:200], RSA_PEM.replace(b"MIIC", b"AAAA")]
)
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    with pytest.raises(InvalidRequest):
        dkim.load_private_key(pem)


def test_weak_keys_names_and_algorithms_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        dkim.generate_private_key("dsa")
    for domain in ("", "a b", "x\r\n", "UPPER.example", "a..b", "a;d=b"):
        with pytest.raises(InvalidRequest):
            DkimSigner(domain, "s", RSA.key)
        with pytest.raises(InvalidRequest):
            DkimSigner("example.com", domain, RSA.key)
    assert "key" not in repr(RSA)
