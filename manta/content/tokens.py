"""Signed tokens: what a link in a mail, and its return path, say about the message.

A token carries everything that its endpoint needs, so a hit costs no look-up, and a click token
carries the target URL inside the signature, so the redirect is never open. Layout, big-endian:

    kind (1) · key id (4) · subscriber id (8) · message key (8) · campaign id (4) · link (2)
    · tag (12) · URL (the rest, clicks only)

in base64url without padding. The tag is keyed BLAKE2b (RFC 7693) of the kind's own
personalisation, cut to 96 bits: a token of one kind never verifies as another. Head and tag
are 39 bytes, a multiple of three, so the base64 of a static URL is worked out once per template.

A VERP local part (the return path) is the key id, the message reference and a 64-bit tag in 45
base32 characters: it survives systems that change the case of local parts. The address of an
unsubscribe by mail (RFC 2369) is the same behind ``u-``, under a personalisation of its own.

Keys have 32-bit ids and belong to one workspace; a retired key still verifies for 400 days, which
is longer than people keep mail they act on. Nothing here reads a clock: ``now`` is passed in.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from hashlib import blake2b
from typing import Any, NamedTuple

from manta.clock import parse_instant
from manta.errors import InvalidRequest
from manta.ids import MessageRef

VERIFY_AFTER_RETIREMENT = timedelta(days=400)
URL_BYTES_MAX = 4_096
TAG_BYTES = 12
VERP_CHARACTERS = 45

_HEAD = struct.Struct(">BIqqiH")
_PREFIX_BYTES = _HEAD.size + TAG_BYTES  # 39
_TOKEN_CHARACTERS_MAX = (_PREFIX_BYTES + URL_BYTES_MAX) * 4 // 3 + 4
_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_TOKEN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_VERP = struct.Struct(">Iqq")
_VERP_TAG_BYTES = 8
_BASE32 = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = [first + second for first in _BASE32 for second in _BASE32]
_PAIRS_AT = range(210, -1, -10)
_VERP_TEXT = re.compile(r"[0-9a-v]{45}", re.ASCII)


class TokenKind(IntEnum):
    """What a token allows its holder to do. The numbers stand in mails: never reuse one."""

    OPEN = 1
    CLICK = 2
    UNSUBSCRIBE = 3
    VIEW = 4
    PREFERENCES = 5
    CONFIRM = 6
    VISIT = 7  # stands in no mail: a click takes it along to the site (manta.ingestion.visits)


# The first path segment of a token's URL: <base>/<segment>/<token>.
PATHS = {
    TokenKind.OPEN: "o",
    TokenKind.CLICK: "c",
    TokenKind.UNSUBSCRIBE: "u",
    TokenKind.VIEW: "v",
    TokenKind.PREFERENCES: "p",
    TokenKind.CONFIRM: "s",
}
# 16 bytes at most (RFC 7693): of a longer name the beginning, which tells the kinds apart.
_PERSONS = {kind: f"manta.{kind.name.lower()}".encode()[:16] for kind in TokenKind}
_VERP_PERSON = b"manta.verp"
_MAILTO_PERSON = b"manta.mailto"
MAILTO_PREFIX = "u-"


class Payload(NamedTuple):
    """A verified token. ``link`` and ``url`` mean something for clicks only."""

    kind: TokenKind
    workspace: str
    subscriber_id: int
    message_key: int
    campaign_id: int
    link: int
    url: str

    @property
    def ref(self) -> MessageRef:
        return MessageRef(self.subscriber_id, self.message_key)


@dataclass(frozen=True)
class SigningKey:
    """One key. ``retired_at`` is when the last token was signed with it; ``None``: in use."""

    key_id: int
    workspace: str
    secret: bytes
    retired_at: datetime | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.key_id < 1 << 32:
            raise InvalidRequest("a key id has 32 bits", path="key_id", expected="0 to 4294967295")
        if len(self.secret) != 32:
            raise InvalidRequest("a signing key has 32 bytes", path="secret", expected="32 bytes")

    def __repr__(self) -> str:  # a key never reaches a log
        return f"SigningKey(key_id={self.key_id}, workspace={self.workspace!r})"


class Keyring:
    """The keys of all workspaces that a process verifies, and the one it signs with."""

    def __init__(self, keys: Iterable[SigningKey], current: int) -> None:
        self._keys = {key.key_id: key for key in keys}
        if current not in self._keys:
            raise InvalidRequest(f"the current key {current} is not in the keyring", path="current")
        self.current = self._keys[current]
        if self.current.retired_at is not None:
            raise InvalidRequest(f"the current key {current} is retired", path="current")

    # -- signing ----------------------------------------------------------------------------------

    def sign(
        self, kind: TokenKind, ref: MessageRef, campaign_id: int, link: int = 0, url: str = ""
    ) -> str:
        """A token. ``url`` is ASCII (see ``manta.content.links.clean_url``)."""
        raw = url.encode("ascii")
        if len(raw) > URL_BYTES_MAX:
            raise InvalidRequest(
                f"the URL has {len(raw)} bytes", path="url", expected=f"at most {URL_BYTES_MAX}"
            )
        return self.sign_prepared(kind, ref, campaign_id, link, raw, encode_piece(raw))

    def sign_prepared(
        self,
        kind: TokenKind,
        ref: MessageRef,
        campaign_id: int,
        link: int,
        raw_url: bytes,
        encoded_url: str,
    ) -> str:
        """``sign`` with the URL's base64 (``encode_piece``) worked out before: the hot path."""
        key = self.current
        head = _HEAD.pack(kind, key.key_id, ref[0], ref[1], campaign_id, link)
        tag = _tag(key.secret, head + raw_url, _PERSONS[kind], TAG_BYTES)
        return encode_piece(head + tag) + encoded_url

    def verp_local_part(self, ref: MessageRef) -> str:
        """The local part of the message's return path: 45 characters of base32 (RFC 4648)."""
        return self._local_part(ref, _VERP_PERSON)

    def unsubscribe_local_part(self, ref: MessageRef) -> str:
        """The local part of the address that unsubscribes whom the message went to."""
        return MAILTO_PREFIX + self._local_part(ref, _MAILTO_PERSON)

    def _local_part(self, ref: MessageRef, person: bytes) -> str:
        head = _VERP.pack(self.current.key_id, *ref)
        tag = _tag(self.current.secret, head, person, _VERP_TAG_BYTES)
        return _base32(head + tag)

    def boundary(self, ref: MessageRef) -> str:
        """24 characters for a MIME boundary: the same for the same message, and not guessable."""
        head = _VERP.pack(self.current.key_id, *ref)
        return _tag(self.current.secret, head, b"manta.boundary", TAG_BYTES).hex()

    # -- verifying --------------------------------------------------------------------------------

    def verify(self, token: str, now: datetime, kind: TokenKind | None = None) -> Payload:
        """What the token says. Raises ``InvalidRequest`` for one that is not ours, or not of
        ``kind``; the message does not say which check failed, since its reader may be a forger.
        """
        if not isinstance(token, str) or len(token) > _TOKEN_CHARACTERS_MAX:
            raise _forged()
        if not _TOKEN.fullmatch(token):
            raise _forged()
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except binascii.Error:
            raise _forged() from None
        # One text per token: spare bits of the last character must be zero.
        if len(raw) < _PREFIX_BYTES or encode_piece(raw) != token:
            raise _forged()
        number, key_id, subscriber_id, message_key, campaign_id, link = _HEAD.unpack_from(raw)
        key = self._key(key_id, now)
        head, tag, url = raw[: _HEAD.size], raw[_HEAD.size : _PREFIX_BYTES], raw[_PREFIX_BYTES:]
        if number not in _PERSONS or (kind is not None and number != kind):
            raise _forged()
        expected = _tag(key.secret, head + url, _PERSONS[TokenKind(number)], TAG_BYTES)
        if not hmac.compare_digest(tag, expected):
            raise _forged()
        return Payload(
            TokenKind(number),
            key.workspace,
            subscriber_id,
            message_key,
            campaign_id,
            link,
            url.decode("ascii"),
        )

    def read_verp(self, local_part: str, now: datetime) -> tuple[str, MessageRef]:
        """(workspace, message) of a return path's local part, in any case.

        Raises ``InvalidRequest`` for a local part that is not ours.
        """
        return self._read_local_part(local_part.lower(), _VERP_PERSON, now)

    def read_unsubscribe(self, local_part: str, now: datetime) -> tuple[str, MessageRef]:
        """The same of an unsubscribe address's local part. Raises ``InvalidRequest``."""
        text = local_part.lower()
        if not text.startswith(MAILTO_PREFIX):
            raise _forged()
        return self._read_local_part(text.removeprefix(MAILTO_PREFIX), _MAILTO_PERSON, now)

    def _read_local_part(self, text: str, person: bytes, now: datetime) -> tuple[str, MessageRef]:
        if not _VERP_TEXT.fullmatch(text):
            raise _forged()
        raw = base64.b32hexdecode(text.upper() + "===")
        if _base32(raw) != text:
            raise _forged()
        key_id, subscriber_id, message_key = _VERP.unpack_from(raw)
        key = self._key(key_id, now)
        expected = _tag(key.secret, raw[: _VERP.size], person, _VERP_TAG_BYTES)
        if not hmac.compare_digest(raw[_VERP.size :], expected):
            raise _forged()
        return key.workspace, MessageRef(subscriber_id, message_key)

    def _key(self, key_id: int, now: datetime) -> SigningKey:
        key = self._keys.get(key_id)
        if key is None or (
            key.retired_at is not None and now > key.retired_at + VERIFY_AFTER_RETIREMENT
        ):
            raise _forged()
        return key


def keyring_of(documents: Sequence[Mapping[str, Any]], workspace: str) -> Keyring:
    """The keyring of a workspace's stored keys (``manta.definitions.token_keys``), newest last:
    that one signs, and each of the others was retired when its successor came."""
    born = [parse_instant(document["created_at"]) for document in documents]
    keys = [
        SigningKey(document["id"], workspace, base64.b64decode(document["key"]), retired_at)
        for document, retired_at in zip(documents, [*born[1:], None], strict=True)
    ]
    return Keyring(keys, documents[-1]["id"])


def encode_piece(raw: bytes) -> str:
    """base64url without padding; texts of pieces whose lengths divide by three may be joined."""
    text = binascii.b2a_base64(raw, newline=False).translate(_TO_URL_SAFE)
    return text.rstrip(b"=").decode("ascii")


def _base32(raw: bytes) -> str:
    """The 28 octets of a local part in RFC 4648's base32hex, small letters, no padding."""
    number = int.from_bytes(raw, "big") << 1  # 225 bits: 45 characters
    return _BASE32[number >> 220] + "".join([_PAIRS[number >> at & 1023] for at in _PAIRS_AT])


def _tag(secret: bytes, message: bytes, person: bytes, size: int) -> bytes:
    return blake2b(message, digest_size=size, key=secret, person=person).digest()


def _forged() -> InvalidRequest:
    return InvalidRequest(
        "the token is not valid", path="token", expected="an unaltered token from a mail of ours"
    )
