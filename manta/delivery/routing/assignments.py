"""From what the shards report as due to lanes for Senders. Pure.

A campaign asks for a way out (a pool, or a source alone); each source that belongs to it gets a
lane to every site with due rows, and the Throttle decides how much goes through which. A relay's
lanes follow from the lists of domains that providers have; where a direct source brings mail is
known once the Resolver has answered (``None``: cannot be told now), and until then its domains
wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from manta.delivery.hooks import Work
from manta.delivery.lanes import OTHERS, Lane, Site

ProviderOf = Callable[[str], str | None]
Due = dict[str | None, dict[int, int]]  # domain (None: several) → shard → rows
# A lane with fewer due rows than this is one Sender's; a longer one is shared by all.
SHARE_FROM_ROWS = 400


class Assignment(NamedTuple):
    """Work on a lane. ``domains`` None: every one but ``except_domains``. ``due``: shard → rows."""

    lane: Lane
    site: Site
    domains: tuple[str, ...] | None
    except_domains: tuple[str, ...]
    due: Mapping[int, int]

    @property
    def rows(self) -> int:
        return sum(self.due.values())


def due_by_pool(reports: Mapping[int, Iterable[Work]]) -> dict[str, Due]:
    """What is due for each way out; the reports are by shard."""
    pools: dict[str, Due] = {}
    for shard, report in reports.items():
        for work in report:
            if work.due:
                rows = pools.setdefault(work.source, {}).setdefault(work.domain, {})
                rows[shard] = rows.get(shard, 0) + work.due
    return pools


def relay_assignments(
    pool: str, source: str, due: Due, provider_of: ProviderOf
) -> list[Assignment]:
    """A lane for each provider that lists due domains, and one for all the others."""
    providers: dict[str, list[str]] = {}
    others: list[dict[int, int]] = []
    for domain, rows in due.items():
        provider = provider_of(domain) if domain is not None else None
        if domain is None or provider is None:
            others.append(rows)
        else:
            providers.setdefault(provider, []).append(domain)
    made = [
        Assignment(
            Lane(pool, source, provider, provider),
            Site(provider, provider),
            tuple(domains),
            (),
            _added(due[domain] for domain in domains),
        )
        for provider, domains in providers.items()
    ]
    if others:
        apart = tuple(domain for domains in providers.values() for domain in domains)
        lane = Lane(pool, source, OTHERS, OTHERS)
        made.append(Assignment(lane, Site(OTHERS, OTHERS), None, apart, _added(others)))
    return made


def direct_assignments(
    pool: str, source: str, due: Due, sites: Mapping[str, Site | None]
) -> list[Assignment]:
    """A lane for each site of which due domains are known; a domain that can never get mail has
    one too, so that a Sender says so."""
    found: dict[Lane, tuple[Site, list[str]]] = {}
    for domain in due:
        site = sites.get(domain) if domain is not None else None
        if domain is not None and site is not None:
            lane = Lane(pool, source, site.name, site.provider)
            found.setdefault(lane, (site, []))[1].append(domain)
    return [
        Assignment(lane, site, tuple(domains), (), _added(due[domain] for domain in domains))
        for lane, (site, domains) in found.items()
    ]


def choose_senders(lane: Lane, due_rows: int, senders: Sequence[str]) -> list[str]:
    """The Senders of a lane in the order of preference: all for a long queue, else by turn."""
    if not senders:
        return []
    first = crc32("|".join(lane).encode()) % len(senders)
    ordered = [*senders[first:], *senders[:first]]
    return ordered if due_rows >= SHARE_FROM_ROWS else ordered[:1]


def _added(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for part in parts:
        for shard, rows in part.items():
            total[shard] = total.get(shard, 0) + rows
    return total
