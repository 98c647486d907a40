"""The people behind the mailboxes: what each does with a mail, decided by one seed.

Pure. A person has a temper that follows from the seed and the address alone; what becomes of one
mail follows from those and the mail. Acting on it, through the real links, is ``sandbox.town``.
"""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from random import Random

from manta.ids import hash64


@dataclass(frozen=True)
class Temper:
    """Chances, each given that the step before happened."""

    opens: float
    clicks: float
    buys: float
    unsubscribes: float
    pause_s: float  # mean time before the first act


TEMPERS = {
    "eager": Temper(opens=0.85, clicks=0.45, buys=0.35, unsubscribes=0.002, pause_s=1.0),
    "casual": Temper(opens=0.45, clicks=0.18, buys=0.12, unsubscribes=0.01, pause_s=3.0),
    "dormant": Temper(opens=0.06, clicks=0.05, buys=0.05, unsubscribes=0.02, pause_s=6.0),
    "annoyed": Temper(opens=0.50, clicks=0.02, buys=0.0, unsubscribes=0.35, pause_s=2.0),
}
SHARES = (("eager", 0.25), ("casual", 0.45), ("dormant", 0.25), ("annoyed", 0.05))


@dataclass(frozen=True)
class Act:
    """``kind`` is open, click, buy or unsubscribe; ``after_s`` counts from the mail's arrival."""

    kind: str
    after_s: float
    url: str = ""
    amount: float = 0.0


def temper_of(seed: int, address: str) -> str:
    share = (hash64("temper", seed, address) & 0xFFFF) / 0x10000
    for name, part in SHARES:
        if share < part:
            return name
        share -= part
    return SHARES[-1][0]


def acts_on(seed: int, address: str, html: str, unsubscribe_url: str) -> list[Act]:
    """What the person does with a mail, in order of time."""
    random = Random(hash64("acts", seed, address, html[:200]))
    temper = TEMPERS[temper_of(seed, address)]
    seen = _Seen()
    seen.feed(html)
    at = random.expovariate(1 / temper.pause_s)
    acts: list[Act] = []
    if random.random() < temper.unsubscribes and unsubscribe_url:
        return [Act("unsubscribe", at, unsubscribe_url)]
    if random.random() >= temper.opens:
        return acts
    acts += [Act("open", at, url) for url in seen.pixels]
    if seen.links and random.random() < temper.clicks:
        at += random.expovariate(1 / 2.0)
        acts.append(Act("click", at, random.choice(seen.links)))
        if random.random() < temper.buys:
            at += random.expovariate(1 / 3.0)
            acts.append(Act("buy", at, amount=round(random.lognormvariate(3.2, 0.6), 2)))
    return acts


class _Seen(HTMLParser):
    """Links that a person may click (the decoy is none), and the images that opening loads."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pixels: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and "aria-hidden" not in values and "/c/" in (values.get("href") or ""):
            self.links.append(str(values["href"]))
        if tag == "img" and "/o/" in (values.get("src") or ""):
            self.pixels.append(str(values["src"]))
