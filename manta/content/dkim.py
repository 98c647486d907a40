"""DKIM signatures (RFC 6376): relaxed/relaxed, RSA-SHA256 and Ed25519-SHA256 (RFC 8463).

Only signing: keys are parsed once, the body hash is shared by all signatures of a message, and
the canonical forms take a fast path where there is nothing to fold. From, Subject, To, Date,
Reply-To and List-Unsubscribe are signed once more often than they occur ("oversigned", RFC 6376
§8.15), so that a second one added on the way breaks the signature.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from manta.errors import InvalidRequest

# RFC 6376 §5.4.1, and RFC 8058 §4 for the unsubscribe fields.
SIGNED_FIELDS = (
    "from",
    "to",
    "subject",
    "date",
    "message-id",
    "reply-to",
    "mime-version",
    "content-type",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "feedback-id",
)
OVERSIGNED_FIELDS = ("from", "subject", "to", "date", "reply-to", "list-unsubscribe")
RSA_BITS = 2_048

_PADDING = padding.PKCS1v15()
_SHA256 = hashes.SHA256()
_DOMAIN = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_SPACES = re.compile(rb"[ \t]+")
_TRAILING = re.compile(rb"[ \t]+(?=\r\n)")
# Searched for by their first octet, which is several times faster than ``in``.
_TWO_SPACES = re.compile(rb"  ")
_SPACE_CR = re.compile(rb"\r(?<= \r)")
_FOLDS = re.compile(r"[ \t\r\n]+")

PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class DkimSigner:
    """A domain's selector and its parsed private key (``load_private_key``)."""

    domain: str
    selector: str
    key: PrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        for path, value in (("domain", self.domain), ("selector", self.selector)):
            if not _DOMAIN.fullmatch(value):
                raise InvalidRequest(
                    f"not a DKIM {path}: {value!r:.80}",
                    path=path,
                    expected="lower-case labels of letters, digits and hyphens",
                )

    @property
    def algorithm(self) -> str:
        return "rsa-sha256" if isinstance(self.key, rsa.RSAPrivateKey) else "ed25519-sha256"

    def sign(self, message: bytes) -> bytes:
        """The signature of the canonical header text. RFC 8463 §3 signs the digest of it."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(message, _PADDING, _SHA256)
        return self.key.sign(hashlib.sha256(message).digest())


def sign(
    fields: Sequence[tuple[str, str]],
    body: bytes,
    signers: Sequence[DkimSigner],
    timestamp: int,
) -> list[tuple[str, str]]:
    """The ``DKIM-Signature`` fields, one per signer, to be put before ``fields``.

    ``fields`` are (name, value) with values as they stand in the message (folds included, ASCII);
    ``body`` has CRLF line ends; ``timestamp`` is in seconds since 1970.
    """
    return [each.signed() for each in unsigned(fields, body, signers, timestamp)]


class Unsigned(NamedTuple):
    """A ``DKIM-Signature`` field but for the signature itself, which takes far the longest."""

    signer: DkimSigner
    value: str
    canonical: bytes

    def signed(self) -> tuple[str, str]:
        raw = self.signer.sign(self.canonical)
        return "DKIM-Signature", self.value + _folded(base64.b64encode(raw).decode())


def unsigned(
    fields: Sequence[tuple[str, str]],
    body: bytes,
    signers: Sequence[DkimSigner],
    timestamp: int,
) -> list[Unsigned]:
    """What ``sign`` signs, one for each signer."""
    if not signers:
        return []
    order, listed = _order(tuple([name for name, _ in fields]))
    lines = "".join([f"{name}:{fields[at][1]}\r\n" for at, name in order])
    if not _is_relaxed(lines, len(order)):
        lines = "".join([f"{relaxed_field(name, fields[at][1])}\r\n" for at, name in order])
    body_hash = base64.b64encode(hashlib.sha256(relaxed_body(body)).digest()).decode()
    found = []
    for signer in signers:
        value = (
            f"v=1; a={signer.algorithm}; c=relaxed/relaxed; d={signer.domain};\r\n"
            f" s={signer.selector}; t={timestamp};\r\n h={listed};\r\n"
            f" bh={body_hash};\r\n b="
        )
        canonical = lines + relaxed_field("dkim-signature", value)
        found.append(Unsigned(signer, value, canonical.encode("ascii")))
    return found


@lru_cache(maxsize=256)
def _order(names: tuple[str, ...]) -> tuple[tuple[tuple[int, str], ...], str]:
    """Which of the fields get signed, as (place, name) in order, and the text of ``h=``.

    Fields are taken from the bottom up for each name (RFC 6376 §5.4.2); an oversigned name
    that has no further field stands for the empty text.
    """
    places: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        places.setdefault(name.lower(), []).append(at)
    order = tuple((at, name) for name in SIGNED_FIELDS for at in reversed(places.get(name, ())))
    return order, _folded_names([*(name for _, name in order), *OVERSIGNED_FIELDS])


def _is_relaxed(lines: str, count: int) -> bool:
    """Whether so many header lines (names in lower case) are certainly in their relaxed form."""
    return (
        lines.count("\r") == count  # none is folded
        and ": " not in lines  # nor begins with a blank, for all that can be seen from here
        and " \r" not in lines
        and "  " not in lines
        and "\t" not in lines
    )


def relaxed_field(name: str, value: str) -> str:
    """RFC 6376 §3.4.2, without the final CRLF."""
    if "\r\n" in value or "  " in value or "\t" in value:
        value = _FOLDS.sub(" ", value)
    return f"{name.lower()}:{value.strip(' ')}"


def relaxed_body(body: bytes) -> bytes:
    """RFC 6376 §3.4.4. Our own bodies hold no runs of blanks, so the patterns rarely run."""
    if b"\t" in body or _TWO_SPACES.search(body):
        body = _SPACES.sub(b" ", body)
    if _SPACE_CR.search(body):
        body = _TRAILING.sub(b"", body)
    if body.endswith((b" ", b"\t")):  # a last line without a line end
        body = body.rstrip(b" \t")
    end = len(body)
    while body.endswith(b"\r\n", 0, end):
        end -= 2
    if not end:
        return b""
    return body if end == len(body) - 2 else body[:end] + b"\r\n"


# -- keys ------------------------------------------------------------------------------------------


def generate_private_key(algorithm: str = "rsa") -> bytes:
    """A new key as PKCS #8 PEM: ``rsa`` (2,048 bits) or ``ed25519``.

    Called when a domain is set up; the key material comes from the operating system.
    """
    key: PrivateKey
    if algorithm == "rsa":
        key = rsa.generate_private_key(public_exponent=65_537, key_size=RSA_BITS)
    elif algorithm == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    else:
        raise InvalidRequest(
            f"no DKIM algorithm {algorithm!r:.40}", path="algorithm", expected="rsa or ed25519"
        )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_private_key(pem: bytes) -> PrivateKey:
    """The key of PEM text (PKCS #1 or #8). Raises ``InvalidRequest`` for anything else."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidRequest(
            "not a DKIM private key", path="private_key", expected="an unencrypted PEM key"
        ) from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 1_024:  # RFC 8301 §3.2
        return key
    raise InvalidRequest(
        "not a DKIM private key",
        path="private_key",
        expected="RSA of 1,024 bits or more, or Ed25519",
    )


def dns_record(key: PrivateKey) -> str:
    """The TXT record's text for ``<selector>._domainkey.<domain>`` (RFC 6376 §3.6.1)."""
    if isinstance(key, rsa.RSAPrivateKey):
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"
    public = key.public_key().public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )
    return f"v=DKIM1; k=ed25519; p={base64.b64encode(public).decode()}"


def _folded(text: str) -> str:
    return "\r\n ".join(text[i : i + 72] for i in range(0, len(text), 72))


def _folded_names(names: Sequence[str]) -> str:
    """The ``h=`` list in lines of at most five names."""
    lines = (":".join(names[i : i + 5]) for i in range(0, len(names), 5))
    return ":\r\n  ".join(lines)
