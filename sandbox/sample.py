"""The demo's people: a few thousand, with a past, all from one seed.

``people_csv`` is the file that the demo imports; ``history`` are the events of the year before:
purchases, earlier mails, and what became of them. Domains are reserved ones (RFC 2606), whose
mail the sandbox's providers take, defer or refuse.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pyarrow as pa

from manta.ids import hash64

PRODUCT = "sku-7"
PRODUCTS = [f"sku-{n}" for n in range(1, 25)]
EARLIER_MAILS = 4
_FIRST = [
    "Ada",
    "Alan",
    "Amara",
    "Anna",
    "Björn",
    "Chen",
    "Chidi",
    "Clara",
    "Daniel",
    "Emil",
    "Eva",
    "Fatima",
    "Finn",
    "Grace",
    "Hana",
    "Ines",
    "Ivan",
    "Jamal",
    "João",
    "Jonas",
    "Kofi",
    "Lea",
    "Leila",
    "Lin",
    "Linus",
    "Lucía",
    "Maja",
    "Marek",
    "Mei",
    "Mila",
    "Nadia",
    "Noah",
    "Nora",
    "Olga",
    "Omar",
    "Paula",
    "Priya",
    "Rosa",
    "Samir",
    "Sofia",
    "Tomás",
    "Ursula",
    "Viktor",
    "Wen",
    "Yara",
    "Yusuf",
    "Zoë",
]
_LAST = [
    "Abebe",
    "Andersson",
    "Bauer",
    "Berg",
    "Costa",
    "Cruz",
    "Diallo",
    "Fischer",
    "García",
    "Hansen",
    "Ito",
    "Jensen",
    "Kaya",
    "Kim",
    "Kowalski",
    "Larsen",
    "Li",
    "Mbeki",
    "Meyer",
    "Moreau",
    "Nakamura",
    "Novak",
    "Okafor",
    "Olsen",
    "Patel",
    "Rossi",
    "Sato",
    "Silva",
    "Singh",
    "Tanaka",
    "Weber",
    "Yilmaz",
    "Zhang",
]
_CITIES = (
    ("Oslo", "Europe/Oslo"),
    ("Lisbon", "Europe/Lisbon"),
    ("Nairobi", "Africa/Nairobi"),
    ("Osaka", "Asia/Tokyo"),
    ("Toronto", "America/Toronto"),
    ("Recife", "America/Recife"),
)
_DOMAINS = (  # as `sandbox.network` knows them
    ("gmail.example", 0.455),
    ("yahoo.example", 0.16),
    ("outlook.example", 0.16),
    ("careful.example", 0.06),
    ("mail.example", 0.12),
    ("full.example", 0.03),
    ("gone.example", 0.015),
)
COLUMNS = (
    "email",
    "first_name",
    "last_name",
    "city",
    "time_zone",
    "birthday",
    "orders",
    "spent",
    "vip",
    "last_product",
    "interests",
)


def people(count: int, seed: int) -> list[dict[str, Any]]:
    """One dictionary of ``COLUMNS`` a person; addresses are distinct."""
    random = Random(hash64("sample people", seed))
    names, weights = zip(*_DOMAINS, strict=True)
    found = []
    for n in range(count):
        first, last = random.choice(_FIRST), random.choice(_LAST)
        city, zone = random.choice(_CITIES)
        orders = min(int(random.expovariate(0.5)), 40)
        domain = random.choices(names, weights)[0]
        found.append(
            {
                "email": f"{_ascii(first)}.{_ascii(last)}.{n}@{domain}",
                "first_name": first if random.random() < 0.95 else "",
                "last_name": last,
                "city": city,
                "time_zone": zone,
                "birthday": f"{random.randint(1950, 2005)}-{random.randint(1, 12):02d}"
                f"-{random.randint(1, 28):02d}",
                "orders": orders,
                "spent": round(orders * random.lognormvariate(3.2, 0.5), 2),
                "vip": "true" if orders > 8 else "false",
                "last_product": random.choice(PRODUCTS) if orders else "",
                "interests": ";".join(random.sample(["garden", "kitchen", "books", "toys"], 2)),
            }
        )
    return found


def people_csv(count: int, seed: int) -> str:
    """The people as a CSV file with header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(people(count, seed))
    return file.getvalue()


def history(subscriber_ids: Sequence[int], seed: int, now: datetime) -> pa.Table:
    """The events of the past year, in the columns of the event table.

    Everybody got the same ``EARLIER_MAILS`` mails, the last one three days ago; some bought
    ``PRODUCT`` in the last month, so that the demo's segment has people in it.
    """
    rows: list[tuple[Any, ...]] = []
    mails = [
        (hash64("earlier mail", seed, n), now - timedelta(days=3 + 14 * n))
        for n in range(EARLIER_MAILS)
    ]
    for subscriber_id in subscriber_ids:
        random = Random(hash64("sample history", seed, subscriber_id))
        eagerness = random.random()
        for message_key, sent_at in mails:
            rows.append((subscriber_id, sent_at, "sent", message_key, "marketing", None))
            if random.random() < eagerness * 0.7:
                opened_at = sent_at + timedelta(minutes=random.randint(1, 2000))
                rows.append((subscriber_id, opened_at, "opened", message_key, None, None))
                if random.random() < 0.3:
                    clicked_at = opened_at + timedelta(minutes=1)
                    url = "https://shop.example/offers"
                    rows.append((subscriber_id, clicked_at, "clicked", message_key, url, None))
        for _ in range(random.choice((0, 0, 1, 2, 5))):
            bought_at = now - timedelta(minutes=random.randint(60, 365 * 24 * 60))
            price = round(random.lognormvariate(3.2, 0.5), 2)
            product = random.choice(PRODUCTS)
            rows.append((subscriber_id, bought_at, "purchased", None, product, price))
        if random.random() < 0.45:
            bought_at = now - timedelta(minutes=random.randint(60, 29 * 24 * 60))
            rows.append((subscriber_id, bought_at, "purchased", None, PRODUCT, 24.5))
    names = ("subscriber_id", "occurred_at", "type", "message_key", "item", "amount")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    ids = [f"sample-{seed}-{n}" for n in range(table.num_rows)]
    return table.append_column("id", pa.array(ids))


def _ascii(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return plain.lower()
