"""Tokens and return paths: what is signed comes back, and nothing else does."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.content.tokens import (
    URL_BYTES_MAX,
    VERP_CHARACTERS,
    Keyring,
    SigningKey,
    TokenKind,
    encode_piece,
)
from manta.errors import InvalidRequest
from manta.ids import MessageRef

NOW = datetime(2026, 3, 1, 12)
OLD = SigningKey(1, "default", b"o" * 32, retired_at=datetime(2026, 1, 1))
KEY = SigningKey(0xFFFF_FFFF, "default", b"k" * 32)
RING = Keyring([OLD, KEY], KEY.key_id)
REF = MessageRef(1 << 61, -(1 << 63))

ids = st.integers(-(1 << 63), (1 << 63) - 1)
urls = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300)


@given(st.sampled_from(TokenKind), ids, ids, st.integers(0, (1 << 31) - 1), st.data())
def test_a_token_says_what_was_signed(
    kind: TokenKind, subscriber: int, message: int, campaign: int, data: st.DataObject
) -> None:
    url = data.draw(urls) if kind is TokenKind.CLICK else ""
    link = data.draw(st.integers(0, 65_535))
    token = RING.sign(kind, MessageRef(subscriber, message), campaign, link, url)
    payload = RING.verify(token, NOW, kind)
    assert payload == (kind, "default", subscriber, message, campaign, link, url)
    assert payload.ref == (subscriber, message)


@given(st.data())
def test_an_altered_token_is_refused(data: st.DataObject) -> None:
    token = RING.sign(TokenKind.CLICK, REF, 7, 3, "https://shop.example/a?b=1")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_=+/.é \n"))
    if token[at] != other:
        with pytest.raises(InvalidRequest):
            RING.verify(token[:at] + other + token[at + 1 :], NOW)


@pytest.mark.parametrize("cut", [0, 1, 3, 51, 52, 60])
def test_a_truncated_token_is_refused(cut: int) -> None:
    token = RING.sign(TokenKind.CLICK, REF, 7, 3, "https://shop.example/a?b=1")
    with pytest.raises(InvalidRequest):
        RING.verify(token[:cut], NOW)


@pytest.mark.parametrize("tail", ["=", "==", "A", "AA", "\n", " ", "."])
def test_a_padded_token_is_refused(tail: str) -> None:
    for kind in TokenKind:
        with pytest.raises(InvalidRequest):
            RING.verify(RING.sign(kind, REF, 7) + tail, NOW)


@pytest.mark.parametrize(
    "url", ["https://a.example/", "https://a.example/1", "https://a.example/12"]
)
def test_spare_bits_do_not_make_a_second_text(url: str) -> None:
    token = RING.sign(TokenKind.CLICK, REF, 7, 0, url)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    valid = []
    for last in alphabet:
        try:
            RING.verify(token[:-1] + last, NOW)
            valid.append(last)
        except InvalidRequest:
            pass
    assert valid == [token[-1]]


def test_kinds_do_not_stand_for_each_other() -> None:
    token = RING.sign(TokenKind.OPEN, REF, 7)
    with pytest.raises(InvalidRequest):
        RING.verify(token, NOW, TokenKind.UNSUBSCRIBE)
    # The kind's byte alone does not turn one into the other.
    raw = base64.urlsafe_b64decode(token)
    forged = encode_piece(bytes([TokenKind.UNSUBSCRIBE]) + raw[1:])
    with pytest.raises(InvalidRequest):
        RING.verify(forged, NOW)


def test_keys_of_others_and_unknown_keys_are_refused() -> None:
    strange = Keyring([SigningKey(2, "other", b"s" * 32)], 2)
    same_id = Keyring([SigningKey(KEY.key_id, "other", b"s" * 32)], KEY.key_id)
    for ring in (strange, same_id):
        with pytest.raises(InvalidRequest):
            RING.verify(ring.sign(TokenKind.OPEN, REF, 7), NOW)
        with pytest.raises(InvalidRequest):
            RING.read_verp(ring.verp_local_part(REF), NOW)


def test_a_retired_key_verifies_for_400_days() -> None:
    before = Keyring([SigningKey(1, "default", b"o" * 32)], 1)
    token, local = before.sign(TokenKind.OPEN, REF, 7), before.verp_local_part(REF)
    last = datetime(2026, 1, 1) + timedelta(days=400)
    assert RING.verify(token, last).campaign_id == 7
    assert RING.read_verp(local, last) == ("default", REF)
    for check in (RING.verify, RING.read_verp):
        with pytest.raises(InvalidRequest):
            check(token if check == RING.verify else local, last + timedelta(seconds=1))


def test_long_urls() -> None:
    url = "https://a.example/" + "x" * (URL_BYTES_MAX - 18)
    assert RING.verify(RING.sign(TokenKind.CLICK, REF, 7, 0, url), NOW).url == url
    with pytest.raises(InvalidRequest):
        RING.sign(TokenKind.CLICK, REF, 7, 0, url + "x")
    with pytest.raises(InvalidRequest):
        RING.verify("A" * 100_000, NOW)


def test_a_ring_signs_with_a_living_key_only() -> None:
    with pytest.raises(InvalidRequest):
        Keyring([OLD], OLD.key_id)
    with pytest.raises(InvalidRequest):
        Keyring([KEY], 5)
    with pytest.raises(InvalidRequest):
        SigningKey(1, "default", b"short")
    with pytest.raises(InvalidRequest):
        SigningKey(1 << 32, "default", b"k" * 32)
    assert "kkkk" not in repr(KEY)


@given(ids, ids)
def test_a_return_path_survives_case(subscriber: int, message: int) -> None:
    ref = MessageRef(subscriber, message)
    local = RING.verp_local_part(ref)
    assert len(local) == VERP_CHARACTERS <= 60
    assert RING.read_verp(local, NOW) == ("default", ref)
    assert RING.read_verp(local.upper(), NOW) == ("default", ref)


@given(ids, ids)
def test_an_unsubscribe_address_is_no_return_path(subscriber: int, message: int) -> None:
    ref = MessageRef(subscriber, message)
    local = RING.unsubscribe_local_part(ref)
    assert len(local) <= 64
    assert RING.read_unsubscribe(local.upper(), NOW) == ("default", ref)
    verp = RING.verp_local_part(ref)
    for wrong in (verp, "u-" + verp, local[2:], local + "0", "u-", "u-u-" + local[2:]):
        with pytest.raises(InvalidRequest):
            RING.read_unsubscribe(wrong, NOW)
    with pytest.raises(InvalidRequest):
        RING.read_verp(local[2:], NOW)


@given(st.integers(0, VERP_CHARACTERS - 1), st.sampled_from("0123456789abcdefghijklmnopqrstuv"))
def test_an_altered_return_path_is_refused(at: int, other: str) -> None:
    local = RING.verp_local_part(REF)
    if local[at] != other:
        with pytest.raises(InvalidRequest):
            RING.read_verp(local[:at] + other + local[at + 1 :], NOW)


@pytest.mark.parametrize("local", ["", "bounce", "0" * 44, "0" * 45, "0" * 46, "w" * 45, "İ" * 45])
def test_other_local_parts_are_refused(local: str) -> None:
    with pytest.raises(InvalidRequest):
        RING.read_verp(local, NOW)
