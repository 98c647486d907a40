"""The states of a message: every legal move, no other, and sums that agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.delivery.campaign import CAMPAIGN_MOVES, CampaignPlan, CampaignState, move_campaign
from manta.delivery.ledger import (
    FINAL,
    MOVES,
    PENDING,
    Accounting,
    IllegalMove,
    Policy,
    State,
    is_legal,
    move,
)
from manta.errors import Conflict, InvalidRequest
from tests.unit.delivery_shard import plan

ARROWS = """
planned leased; planned suppressed; planned cancelled; planned expired
leased planned; leased accepted; leased failed; leased expired; leased uncertain; leased orphaned
orphaned planned; orphaned accepted; orphaned failed; orphaned expired; orphaned uncertain
uncertain accepted; uncertain failed
"""
LEGAL = {tuple(arrow.split()) for arrow in ARROWS.replace("\n", ";").split(";") if arrow.strip()}


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_the_table_has_exactly_the_legal_moves(old: State, new: State) -> None:
    if (old, new) in LEGAL:
        assert move(old, new) is new
    else:
        with pytest.raises(IllegalMove) as caught:
            move(old, new)
        assert str(old) in caught.value.expected


def test_only_resend_plans_an_uncertain_message_again() -> None:
    assert not is_legal(State.UNCERTAIN, State.PLANNED, Policy.HOLD)
    assert move(State.UNCERTAIN, State.PLANNED, Policy.RESEND) is State.PLANNED


def test_states_are_pending_or_final() -> None:
    assert set(PENDING) | set(FINAL) == set(State)
    assert not set(PENDING) & set(FINAL)
    assert set(MOVES) == set(State)


@given(st.lists(st.tuples(st.sampled_from(State), st.integers(0, 1_000))))
def test_the_identity_holds_for_any_counts(pairs: list[tuple[State, int]]) -> None:
    counts = Accounting.of(pairs)
    total = sum(count for _, count in pairs)
    assert counts.holds_for(total) and not counts.holds_for(total + 1)
    doubled = (counts + counts).as_dict()
    assert doubled["planned_total"] == 2 * total
    assert doubled["pending"] == doubled["planned"] + doubled["leased"] + doubled["orphaned"]


def test_a_campaign_moves_by_its_table() -> None:
    for old in CampaignState:
        for new in CampaignState:
            if new is old or new in CAMPAIGN_MOVES[old]:
                assert move_campaign(old, new) is new
            else:
                with pytest.raises(Conflict):
                    move_campaign(old, new)


def test_a_plan_survives_its_json() -> None:
    first = plan(
        audience='{"attribute": {"name": "ä"}}',
        attribute_types=(("city", "string"), ("age", "number")),
        attributes=("city",),
    )
    assert CampaignPlan.from_json(first.to_json()) == first


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"campaign_id": 1, "surprise": 2}', plan().to_json()[:-9]]
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        CampaignPlan.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [{"priority": 256}, {"attributes": ("a b",)}, {"expires_at": plan().due_at}],
    ids=["priority", "attributes", "expires_at"],
)
def test_a_wrong_plan_names_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan(**wrong)
    assert caught.value.path in wrong
