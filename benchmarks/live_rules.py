"""A hundred live segments of mixed kinds, for people as ``benchmarks.data`` makes them."""

from __future__ import annotations

from typing import Any

from benchmarks.data import CITIES, PLANS, TAGS

Rule = dict[str, Any]

TYPES = {
    "city": "string",
    "plan": "string",
    "age": "number",
    "active": "boolean",
    "birthday": "date",
    "tags": "list",
}
PROBE, PROBE_IN_TIME = 1, 2  # segments that every probe enters; that it leaves by time alone
LIST = 101
SEGMENTS = 100


def attribute(name: str, operator: str, value: Any = None) -> Rule:
    test = {"operator": operator} if value is None else {"operator": operator, "value": value}
    return {"attribute": {"name": name, **test}}


def did(type_: str, item: str | None = None, **more: Any) -> Rule:
    where = [{"property": "item", "operator": "equals", "value": item}] if item else []
    return {"event": {"type": type_, **({"where": where} if where else {}), **more}}


def last(**span: int) -> Rule:
    return {"last": span}


def at_least(value: float) -> Rule:
    return {"operator": "at_least", "value": value}


def rules() -> dict[int, Rule]:
    """Segment → its rule."""
    found = [
        did("probe", within=last(hours=2)),
        did("probe_in_time", within=last(minutes=1)),
        *_of_people(),
        *_of_events(),
        *_of_messages(),
        *_of_order(),
    ]
    assert len(found) == SEGMENTS, len(found)
    return dict(enumerate(found, 1))


def _of_people() -> list[Rule]:
    """34: attributes, dates, consents, lists, chance."""
    news = {"consent": {"channel": "email", "topic": "news", "status": "subscribed"}}
    pairs = [(CITIES[n % len(CITIES)], PLANS[n % len(PLANS)]) for n in range(10)]
    tags = [(TAGS[n], TAGS[n + 1]) for n in range(4)]
    return [
        *(
            {"all": [attribute("city", "equals", c), attribute("plan", "equals", p)]}
            for c, p in pairs
        ),
        *(
            {
                "all": [
                    attribute("age", "between", [low, low + 2]),
                    attribute("active", "equals", True),
                ]
            }
            for low in (20, 40, 60, 80)
        ),
        *(attribute("tags", "contains_all", list(pair)) for pair in tags),
        attribute("birthday", "anniversary_today"),
        attribute("birthday", "anniversary_in_the_next", {"days": 7}),
        attribute("created_at", "in_the_last", {"days": 30}),
        attribute("created_at", "in_the_last", {"hours": 72}),
        {"all": [attribute("created_at", "at_least_ago", {"days": 1_050}), news]},
        *(
            {"all": [attribute("city", "equals", city), attribute("age", "at_least", 80), news]}
            for city in CITIES[:3]
        ),
        {
            "all": [
                attribute("plan", "equals", "business"),
                attribute("age", "not_set"),
                {"not": news},
            ]
        },
        *({"bucket": {"salt": f"test-{n}", "from": 0, "to": 2}} for n in range(4)),
        {"member": {"segment": LIST}},
        {"all": [{"member": {"segment": LIST}}, did("purchased", within=last(days=30))]},
        {"all": [{"suppressed": {"channel": "email"}}, news]},
    ]


def _of_events() -> list[Rule]:
    """38: windows, counts, sums, and who did not."""
    return [
        *(did("purchased", f"sku-{n}", within=last(days=30 + n)) for n in range(8)),
        *(did("page_viewed", f"sku-{n}", within=last(days=7)) for n in range(8)),
        *(did("purchased", within=last(days=90), count=at_least(k)) for k in (3, 4, 5)),
        *(
            did("purchased", within=last(days=60), sum={"property": "amount", **at_least(amount)})
            for amount in (150, 250, 500)
        ),
        *(did("page_viewed", within=last(hours=h), count=at_least(2)) for h in (1, 6, 24)),
        *(did("page_viewed", within=last(days=d), count=at_least(3)) for d in (3, 7)),
        *(did("clicked", within=last(days=d)) for d in (1, 5)),
        *(
            {
                "all": [
                    did("clicked", within=last(days=60)),
                    {"not": did("purchased", within=last(days=d))},
                ]
            }
            for d in (30, 90, 180)
        ),
        *(
            {
                "all": [
                    attribute("city", "equals", city),
                    did("page_viewed", within=last(days=14)),
                    {"not": did("opened", within=last(days=30))},
                ]
            }
            for city in CITIES[:4]
        ),
        {
            "exactly_one": [
                did("purchased", within=last(days=7)),
                did("clicked", within=last(days=7)),
            ]
        },
        {
            "all": [
                did(
                    "purchased",
                    where=[{"property": "amount", **at_least(150)}],
                    within=last(days=120),
                ),
                attribute("plan", "not_equals", "free"),
            ]
        },
    ]


def _of_messages() -> list[Rule]:
    """10: what became of the last mails."""

    def of_last(number: int, which: Any, were: str) -> Rule:
        return {"last_messages": {"number": number, "which": which, "were": were}}

    return [
        *(
            {"all": [attribute("city", "equals", city), of_last(3, "none", "opened")]}
            for city in CITIES[:3]
        ),
        *(
            {"all": [attribute("plan", "equals", plan), of_last(3, at_least(2), "opened")]}
            for plan in PLANS[:3]
        ),
        of_last(2, "all", "clicked"),
        of_last(5, at_least(3), "clicked"),
        {"all": [of_last(3, "all", "ignored"), did("purchased", within=last(days=30))]},
        {
            "all": [
                of_last(5, "none", "opened"),
                attribute("active", "equals", False),
                attribute("age", "at_least", 70),
            ]
        },
    ]


def _of_order() -> list[Rule]:
    """16: sequences, values held for a time, keyed events."""

    def then(first: str, second: str, item: str | None = None, **more: Any) -> Rule:
        where = [{"property": "item", "operator": "equals", "value": item}] if item else []
        steps = [{"type": first, "where": where}, {"type": second, **more}]
        return {"sequence": {"steps": steps, "within": last(days=7)}}

    def held(plan: str, days: int) -> Rule:
        test = {"name": "plan", "operator": "equals", "value": plan}
        return {"has_been": {"attribute": test, "for": {"days": days}}}

    return [
        *(then("page_viewed", "purchased", f"sku-{n}", within={"days": 1}) for n in range(4)),
        then("clicked", "purchased", within={"hours": 12}),
        then("opened", "clicked", within={"minutes": 10}),
        *(
            then("page_viewed", "purchased", f"sku-{n}", within={"hours": 1}, absent=True)
            for n in range(2)
        ),
        *({"all": [held(plan, 30), attribute("age", "at_least", 85)]} for plan in PLANS),
        *(
            {
                "keyed": {
                    "by": "item",
                    "rule": {
                        "all": [
                            did("page_viewed", within=last(days=d), count=at_least(2)),
                            {"not": did("purchased", within=last(days=d))},
                        ]
                    },
                }
            }
            for d in (2, 10)
        ),
        *(
            {
                "keyed": {
                    "by": "item",
                    "rule": {
                        "all": [
                            did("page_viewed", within=last(days=d)),
                            did("purchased", within=last(days=d)),
                        ]
                    },
                }
            }
            for d in (5, 20)
        ),
    ]
