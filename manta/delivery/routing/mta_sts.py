"""MTA Strict Transport Security (RFC 8461): which hosts may take a domain's mail, and how.

A domain announces a policy by a TXT record at ``_mta-sts`` and serves it by HTTPS. Enforced, it
says that mail goes only to exchangers that it names and only over TLS with a certificate that is
valid for their name. ``testing`` and ``none`` do not change where mail goes.

Everything parsed here comes from strangers: it is bounded, and what is malformed is no policy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

POLICY_PATH = "/.well-known/mta-sts.txt"
POLICY_BYTES_MAX = 65_536  # RFC 8461 §3.3 suggests 64 kB
PATTERNS_MAX = 100
MAX_AGE_MAX_S = 31_557_600  # RFC 8461 §3.2
REFRESH_S = 86_400.0  # §3.3: a policy is fetched again long before it ends
RETRY_S = 300.0  # §3.3: a policy that could not be fetched is not asked for sooner

_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_PATTERN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


class Mode(StrEnum):
    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True)
class Policy:
    """``patterns``: host names, or ``*.`` and a domain, which stands for one more label."""

    mode: Mode
    max_age_s: int
    patterns: tuple[str, ...] = ()

    @property
    def is_enforced(self) -> bool:
        return self.mode is Mode.ENFORCE

    def allows(self, host: str) -> bool:
        """Whether the exchanger is one of the policy's (RFC 8461 §4.1)."""
        host = host.rstrip(".").lower()
        parent = "*." + host.partition(".")[2]
        return host in self.patterns or parent in self.patterns


def record_name(domain: str) -> str:
    return f"_mta-sts.{domain}"


def policy_host(domain: str) -> str:
    return f"mta-sts.{domain}"


def parse_records(texts: Sequence[str]) -> str | None:
    """The policy's id of the TXT records at ``_mta-sts``; None: the domain has no policy.

    Only records that begin with ``v=STSv1`` count, and there has to be exactly one (§3.1).
    """
    records = [text for text in texts if re.match(r"v=STSv1\s*(;|$)", text)]
    if len(records) != 1:
        return None
    for field in records[0].split(";")[1:]:
        key, _, value = field.strip().partition("=")
        if key.strip() == "id":
            value = value.strip()
            return value if _ID.fullmatch(value) else None
    return None


def parse_policy(content: bytes) -> Policy | None:
    """The policy in a file (§3.2), or None where it is not one."""
    if len(content) > POLICY_BYTES_MAX:
        return None
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return None
    values: dict[str, str] = {}
    patterns: list[str] = []
    for line in lines:
        key, separator, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not separator:
            continue
        if key == "mx":
            patterns.append(value.rstrip(".").lower())
        else:
            values.setdefault(key, value)  # of a key given twice the first one counts
    return _policy(values, patterns)


def _policy(values: dict[str, str], patterns: list[str]) -> Policy | None:
    max_age = values.get("max_age", "")
    if values.get("version") != "STSv1" or values.get("mode") not in tuple(Mode):
        return None
    if not (max_age.isascii() and max_age.isdigit() and len(max_age) <= 10):
        return None
    mode = Mode(values["mode"])
    if len(patterns) > PATTERNS_MAX or not all(map(_PATTERN.fullmatch, patterns)):
        return None
    if mode is not Mode.NONE and not patterns:
        return None
    return Policy(mode, min(int(max_age), MAX_AGE_MAX_S), tuple(patterns))
