"""Reading mail from outside: mails a second on one core, and microseconds a reply to classify.

The mails are the samples of the tests and, where it is at hand, the public set of real bounces, so
that each is told apart, its recipients found and their reasons classified. Replies are the examples
of the rules, each with two words of another one put in, anew in each round, so that no wording was
seen before, and classified without the cache. The baseline only parses the same mails with
Python's own `email`. Processor time, median over rounds.

    python -m benchmarks.bounces [--rounds 9]
"""

from __future__ import annotations

import argparse
import email
import json
import random
import statistics
import time
from pathlib import Path

from manta.delivery.returns.arrivals import read
from manta.delivery.returns.classification import normal, rules

AIM_PER_S = 305.0  # what Sisimai 5, the best known decoder, publishes for one core
AIM_REPLY_US = 50.0
_ROOT = Path(__file__).parents[1]
_SOURCES = (
    _ROOT / "tests" / "unit" / "samples" / "arrivals",
    _ROOT.parent / "shared" / "data" / "bounces" / "flufl",
    _ROOT.parent / "shared" / "data" / "bounces" / "reports",
)


def mails() -> list[bytes]:
    paths = [path for folder in _SOURCES for path in sorted(folder.glob("*"))]
    return [path.read_bytes() for path in paths if path.suffix in (".eml", ".txt")]


def reworded(replies: list[str], draws: random.Random) -> list[str]:
    words = [word for reply in replies for word in reply.split()]
    unseen = []
    for reply in replies:
        mine = reply.split()
        for _ in range(2):
            mine.insert(draws.randrange(len(mine) + 1), draws.choice(words))
        unseen.append(" ".join(mine))
    return unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    raws = mails()
    examples = [example for rule in rules().rules for example in rule.examples]
    draws = random.Random(17)
    for raw in raws:  # the automata are built by the first mails, once in a process
        read(raw)
    per_s: list[float] = []
    plain_per_s: list[float] = []
    reply_us: list[float] = []
    for _ in range(options.rounds):
        replies = reworded(examples, draws)
        begin = time.process_time()
        for raw in raws:
            read(raw)
        between = time.process_time()
        for reply in replies:
            rules().classify(0, *normal(reply))
        per_s.append(len(raws) / (between - begin))
        after = time.process_time()
        for raw in raws:
            email.message_from_bytes(raw)
        reply_us.append((after - between) / len(replies) * 1e6)
        plain_per_s.append(len(raws) / (time.process_time() - after))
    figure, reply = statistics.median(per_s), statistics.median(reply_us)
    plain = statistics.median(plain_per_s)
    size = sum(map(len, raws)) // len(raws)
    print(f"{len(raws)} mails of {size:,} bytes on average, {len(replies)} replies")
    print(
        json.dumps(
            {
                "name": "bounces",
                "mails_per_s": round(figure),
                "unit": "mails read and classified a second of processor time",
                "aim": AIM_PER_S,
                "pass": figure >= AIM_PER_S and reply <= AIM_REPLY_US,
                "reply_us": round(reply, 1),
                "aim_reply_us": AIM_REPLY_US,
                "baseline": {"email_parser_mails_per_s": round(plain)},
            }
        )
    )


if __name__ == "__main__":
    main()
