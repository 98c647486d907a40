"""How much one key may send: a token bucket for each, in the replica that takes it.

A bucket holds ``burst`` messages and gains ``per_s`` each second. A batch is taken whole while
anything is in the bucket, which may then owe: so a batch larger than the burst is not locked out,
and the mean rate holds all the same. The limits are those of one replica.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from manta.clock import Clock
from serve_apps.problems import TooMany

KEYS_MAX = 10_000


@dataclass(frozen=True)
class Rate:
    per_s: float  # messages
    burst: float


SERVER = Rate(per_s=20_000, burst=60_000)  # of a secret key
PUBLIC = Rate(per_s=200, burst=2_000)  # of a key that stands in web pages
CLIENT = Rate(per_s=2, burst=200)  # of one network that sends with such a key


def network(address: str) -> str:
    """Whom an address counts for: itself, or of IPv6 the 64 bits that one household has."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, 64), strict=False))
    return address


class Buckets:
    """The buckets of one rate."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, as of when

    def take(self, key: str, messages: int) -> None:
        """Raises ``TooMany`` with the seconds to wait."""
        now = self._clock.monotonic()
        level, then = self._kept.get(key, (self._rate.burst, now))
        level = min(self._rate.burst, level + (now - then) * self._rate.per_s)
        if level <= 0:
            wait_s = max(1, math.ceil((1 - level) / self._rate.per_s))
            raise TooMany(f"more than {self._rate.per_s:g} messages a second", retry_after_s=wait_s)
        self._kept[key] = (level - messages, now)
        self._kept.move_to_end(key)
        while len(self._kept) > KEYS_MAX:
            self._kept.popitem(last=False)
