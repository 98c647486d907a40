"""Reports of shards become lanes."""

from __future__ import annotations

from manta.delivery.hooks import Work
from manta.delivery.lanes import Lane, Site
from manta.delivery.routing.assignments import (
    Assignment,
    choose_senders,
    direct_assignments,
    due_by_pool,
    relay_assignments,
)

REPORTS = {
    0: [
        Work("main", "a.example", 1, 3, None),
        Work("main", "a.example", 2, 4, None),
        Work("main", "b.example", 1, 0, None, 9),
        Work("relay", "c.example", 3, 1, None),
    ],
    1: [Work("main", "a.example", 1, 5, None), Work("main", None, 1, 2, None)],
}


def provider_of(domain: str) -> str | None:
    return {"a.example": "alpha", "aa.example": "alpha"}.get(domain)


def test_what_is_due_adds_up_over_campaigns() -> None:
    assert due_by_pool(REPORTS) == {
        "main": {"a.example": {0: 7, 1: 5}, None: {1: 2}},
        "relay": {"c.example": {0: 1}},
    }


def test_a_relay_has_a_lane_for_each_provider_and_one_for_the_others() -> None:
    due = due_by_pool(REPORTS)["main"] | {"aa.example": {0: 1}, "z.example": {0: 2}}
    alpha, others = relay_assignments("main", "relay", due, provider_of)
    assert alpha == Assignment(
        Lane("main", "relay", "alpha", "alpha"),
        Site("alpha", "alpha"),
        ("a.example", "aa.example"),
        (),
        {0: 8, 1: 5},
    )
    assert others.lane == Lane("main", "relay", "others", "others") and others.domains is None
    assert others.except_domains == alpha.domains and others.due == {1: 2, 0: 2}
    (alone,) = relay_assignments("main", "relay", {"z.example": {0: 2}}, provider_of)
    assert (alone.domains, alone.except_domains) == (None, ())


def test_domains_with_the_same_exchangers_share_a_lane_and_unknown_ones_wait() -> None:
    shared = Site("mx.alpha.example", "alpha", (("mx.alpha.example",),))
    dead = Site("no.example", "no.example", (), "no such domain")
    sites = {"a.example": shared, "b.example": shared._replace(exchangers=(("mx", "my"),))}
    due = {d: {0: 1} for d in ("a.example", "b.example", "no.example", "later.example", None)}
    found = direct_assignments("main", "mx-a", due, sites | {"no.example": dead})
    assert [(a.lane.site, a.domains, a.due) for a in found] == [
        ("mx.alpha.example", ("a.example", "b.example"), {0: 2}),
        ("no.example", ("no.example",), {0: 1}),
    ]
    assert found[1].site.refusal == "no such domain"


def test_a_long_lane_is_shared_and_a_short_one_is_not() -> None:
    lane, senders = Lane("main", "relay", "others", "others"), ["s-0", "s-1", "s-2"]
    assert len(choose_senders(lane, 10, senders)) == 1
    assert sorted(choose_senders(lane, 10_000, senders)) == senders
    assert choose_senders(lane, 10, []) == []
    first = {choose_senders(lane._replace(site=f"mx{n}"), 1, senders)[0] for n in range(50)}
    assert first == set(senders)
