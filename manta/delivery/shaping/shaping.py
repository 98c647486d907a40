"""Shaping: whose the mail of a domain is, what they take from us, and how to react to their words.

One frozen value, made of the file that comes with Manta (``providers.toml``) and the
operator's own laid over it. It decides nothing by itself: Throttle asks it for limits, Resolver for
providers and TLS, ``automation`` for rules. Whoever has the same two texts has the same value
(``version``), so actors exchange the operator's text and never the value.

Layers, each over the one before: the default, the source's default, the provider, the site, and the
source's bounds for the provider.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from difflib import get_close_matches
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.resources import files
from typing import TypeVar

from manta.delivery.lanes import Limits
from manta.delivery.shaping.file import File, read, refusal
from manta.delivery.shaping.places import Path
from manta.delivery.shaping.values import (
    Bounds,
    Provider,
    Rate,
    Rule,
    Section,
    SourceBounds,
)

_T = TypeVar("_T")
_MEMO_MAX = 10_000

NamedRules = tuple[tuple[str, Rule], ...]


@dataclass(frozen=True)
class SiteShaping:
    """For one source: what one site takes, and all sites of its provider together.

    ``limits_of_provider`` is None where no provider is known: the site's limits are all there is.
    ``connections_per_s`` is how often a new connection may be opened, with a burst. ``tls``:
    ``none``; ``opportunistic``: if offered, with any certificate; ``required``: never without, with
    any certificate; ``verified``: with a certificate that names the host.
    """

    limits_of_provider: Limits | None
    limits_of_site: Limits
    tls: str
    recipients_max: int  # of one message's envelope
    connections_per_s: float
    connections_burst: int


@dataclass(frozen=True)
class Shaping:
    """See the module. Made by ``builtin`` and ``parse`` alone."""

    dated: date
    default: Section
    providers: Mapping[str, Provider]
    sites: Mapping[str, Section] = field(default_factory=dict)
    sources: Mapping[str, SourceBounds] = field(default_factory=dict)

    @cached_property
    def version(self) -> str:
        """16 hexadecimal digits that tell any two shapings apart."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return sha256(text.encode()).hexdigest()[:16]

    # -- providers ---------------------------------------------------------------------------------

    def provider_of(self, domain: str, exchangers: Iterable[str] = ()) -> str | None:
        """Whose the mail of a domain is: by the exchanger that is tried first (``exchangers`` are
        in that order, as mail goes there), else by the domains that providers list."""
        for host in exchangers:
            found = self._provider_of_host(host.lower().rstrip("."))
            if found is not None:
                return found
            break
        return self._by_domain.get(domain.lower().rstrip("."))

    def _provider_of_host(self, host: str) -> str | None:
        found = self._by_exchanger.get(host)
        dot = host.find(".")
        while found is None and dot >= 0:  # the longest end that is known
            found = self._by_exchanger.get(host[dot:])
            dot = host.find(".", dot + 1)
        return found

    def domains_of(self, provider: str) -> tuple[str, ...]:
        """The domains that a provider lists; none for a provider that is not known."""
        known = self.providers.get(provider)
        return (known.domains or ()) if known else ()

    @cached_property
    def _by_domain(self) -> dict[str, str]:
        return {d: name for name, p in self.providers.items() for d in p.domains or ()}

    @cached_property
    def _by_exchanger(self) -> dict[str, str]:
        return {e: name for name, p in self.providers.items() for e in p.exchangers or ()}

    # -- limits ------------------------------------------------------------------------------------

    def of(self, provider: str, site: str = "", source: str = "") -> SiteShaping:
        """What ``source`` may do at a site. Unknown names mean the default."""
        key = (provider, site, source)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= _MEMO_MAX:
                self._memo.clear()
            found = self._memo[key] = self._of(*key)
        return found

    @cached_property
    def _memo(self) -> dict[tuple[str, str, str], SiteShaping]:
        return {}

    def _of(self, provider: str, site: str, source: str) -> SiteShaping:
        own = self.sources.get(source, SourceBounds())
        known = self.providers.get(provider)
        bounds = own.default.over(self.default.bounds)
        if known is not None:
            bounds = known.section.bounds.over(bounds)
        if site in self.sites:
            bounds = self.sites[site].bounds.over(bounds)
        if provider in own.providers:
            bounds = own.providers[provider].over(bounds)
        return _shaped(bounds, known is not None)

    # -- rules -------------------------------------------------------------------------------------

    def rules_of(self, provider: str, site: str = "") -> tuple[Rule, ...]:
        """All that can match there: the site's and the provider's own, then the default's."""
        own, default = self.tiers_of(provider, site)
        return tuple(rule for _, rule in (*own, *default))

    def tiers_of(self, provider: str, site: str = "") -> tuple[NamedRules, NamedRules]:
        """(own rules, default rules), each with its name in full (``yahoo/complaints``).

        The default's are for replies that no own rule matches, and one that is named like an own
        rule is replaced by it."""
        known = self.providers.get(provider)
        sections = ((site, self.sites.get(site)), (provider, known.section if known else None))
        gone: set[str] = set()
        own: list[tuple[str, Rule]] = []
        for owner, section in sections:
            if section is not None:
                own += [(f"{owner}/{r.name}", r) for r in section.rules if r.name not in gone]
                gone |= {rule.name for rule in section.rules} | set(section.rules_remove)
        default = [(f"default/{r.name}", r) for r in self.default.rules if r.name not in gone]
        return tuple(own), tuple(default)


def _shaped(bounds: Bounds, is_known: bool) -> SiteShaping:
    messages = _set(bounds.messages_per_connection)
    rate, connection_rate = _set(bounds.rate), _set(bounds.connection_rate)
    total: Limits | None = None
    if is_known:
        total = _limits(_set(bounds.total_rate), _set(bounds.total_connections_max), messages)
    return SiteShaping(
        total,
        _limits(rate, _set(bounds.connections_max), messages),
        _set(bounds.tls),
        _set(bounds.recipients_max),
        connection_rate.per_s,
        connection_rate.burst,
    )


def _limits(rate: Rate, connections_max: int, messages: int) -> Limits:
    return Limits(rate.per_s, rate.burst, connections_max, messages)


def _set(value: _T | None) -> _T:
    assert value is not None, "the default section of the file that comes with Manta says all"
    return value


# -- files -----------------------------------------------------------------------------------------

_NOTHING = Shaping(date.min, Section(), {})


@lru_cache(maxsize=1)
def builtin() -> Shaping:
    """The shaping that comes with Manta."""
    text = files("manta.delivery.shaping").joinpath("providers.toml").read_text(encoding="utf-8")
    return parse(text, _NOTHING)


def parse(text: str, base: Shaping) -> Shaping:
    """A file laid over ``base``; empty text is ``base``.

    Raises ``InvalidRequest`` whose message, ``path`` and ``details["line"]`` name the place.
    """
    found = read(text)

    def refuse(path: Path, message: str, expected: str) -> None:
        raise refusal(text, path, message, expected)

    _check_claims(found, refuse)
    default = _over(("default",), found.default, base.default, (), refuse)
    providers = _providers(found, base, default, refuse)
    everywhere = [r.name for p in providers.values() for r in p.section.rules]
    inherited = [*everywhere, *(rule.name for rule in default.rules)]
    sites = dict(base.sites)
    for name, section in found.sites.items():
        sites[name] = _over(("site", name), section, sites.get(name, Section()), inherited, refuse)
    sources = dict(base.sources)
    for name, own in found.sources.items():
        for provider in own.providers:
            if provider not in providers:
                _refuse_unknown(("source", name, "provider", provider), providers, refuse)
        sources[name] = _source_over(own, sources.get(name, SourceBounds()))
    return Shaping(found.dated or base.dated, default, providers, sites, sources)


_Refuse = Callable[[Path, str, str], None]


def _providers(
    found: File, base: Shaping, default: Section, refuse: _Refuse
) -> dict[str, Provider]:
    """What the file claims is taken from whoever had it in the base."""
    inherited = [rule.name for rule in default.rules]
    claimed = {d for p in found.providers.values() for d in p.domains or ()}
    claimed |= {e for p in found.providers.values() for e in p.exchangers or ()}
    providers = {name: _without(each, claimed) for name, each in base.providers.items()}
    for name, new in found.providers.items():
        path: Path = ("provider", name)
        old = base.providers.get(name)
        if old is None and not new.exchangers and not new.domains:
            _refuse_unknown(path, providers, refuse, 'exchangers = [".example.com"], or domains')
        old = old or Provider(name)
        providers[name] = Provider(
            name,
            new.title or old.title or name,
            providers[name].exchangers
            if new.exchangers is None and name in providers
            else new.exchangers,
            providers[name].domains if new.domains is None and name in providers else new.domains,
            _over(path, new.section, old.section, inherited, refuse),
        )
    return providers


def _without(provider: Provider, claimed: set[str]) -> Provider:
    return replace(
        provider,
        exchangers=tuple(e for e in provider.exchangers or () if e not in claimed),
        domains=tuple(d for d in provider.domains or () if d not in claimed),
    )


def _over(
    path: Path, new: Section, old: Section, inherited: Iterable[str], refuse: _Refuse
) -> Section:
    """A rule replaces the one of its name, in its place; others follow."""
    names = [rule.name for rule in old.rules]
    removable = {*names, *inherited}
    for name in new.rules_remove:
        if name not in removable:
            near = get_close_matches(name, sorted(removable), 1)
            hint = f"did you mean {near[0]}? " if near else ""
            refuse((*path, "rules_remove"), f"no rule {name!r:.80}", f"{hint}a rule's name")
    given = {rule.name: rule for rule in new.rules}
    kept = [given.get(r.name, r) for r in old.rules if r.name not in new.rules_remove]
    added = [rule for rule in new.rules if rule.name not in names]
    here = {rule.name for rule in (*kept, *added)}
    removed = dict.fromkeys((*old.rules_remove, *new.rules_remove))
    return Section(
        new.bounds.over(old.bounds),
        (*kept, *added),
        tuple(name for name in removed if name not in here),
    )


def _source_over(new: SourceBounds, old: SourceBounds) -> SourceBounds:
    providers = dict(old.providers)
    for name, bounds in new.providers.items():
        providers[name] = bounds.over(providers.get(name, Bounds()))
    return SourceBounds(new.default.over(old.default), providers)


def _check_claims(found: File, refuse: _Refuse) -> None:
    """No two providers of a file share an exchanger or a domain."""
    owners: dict[str, str] = {}
    for provider in found.providers.values():
        for key, names in (("exchangers", provider.exchangers), ("domains", provider.domains)):
            for name in names or ():
                owner = owners.setdefault(f"{key} {name}", provider.name)
                if owner != provider.name:
                    path = ("provider", provider.name, key)
                    refuse(path, f"{name} is {owner}'s already", "one provider for each")


def _refuse_unknown(
    path: Path, known: Iterable[str], refuse: _Refuse, expected: str = "a provider of the file"
) -> None:
    near = get_close_matches(str(path[-1]), list(known), 1)
    hint = f"did you mean {near[0]}? " if near else ""
    refuse(path, f"no provider {path[-1]!r:.80} is known", f"{hint}{expected}")
