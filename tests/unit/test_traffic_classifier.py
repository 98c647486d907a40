"""The additive model: what single signs decide, and what they do together."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.traffic.classifier import Signals, _weights, add, judge, reason
from manta.traffic.user_agents import Agent

SIGNS = sorted(name for name in _weights() if ":" not in name)


def human(type: str, agent: Agent, network: str = "", *signs: str) -> float:
    return judge(Signals(type, agent, network, signs)).human


def test_programs_alone() -> None:
    assert human("opened", Agent.MAIL_PROGRAM) > human("opened", Agent.BROWSER) > 0.85
    assert human("clicked", Agent.CRAWLER) == human("clicked", Agent.SCANNER) < 0.02
    assert human("opened", Agent.IMAGE_PROXY) < 0.5


def test_a_privacy_proxy_cannot_be_told_by_its_name_alone() -> None:
    assert 0.4 < human("opened", Agent.BARE) < 0.6
    assert human("opened", Agent.BARE, "privacy_proxy") < 0.1
    assert human("opened", Agent.BARE, "", "within_10s") < 0.25
    # People behind Apple's network follow links.
    assert human("clicked", Agent.BROWSER, "privacy_proxy") > 0.5


@pytest.mark.parametrize("sign", ["decoy", "beside_decoy", "all_links", "head_first"])
def test_a_perfect_disguise_is_seen_through(sign: str) -> None:
    assert human("clicked", Agent.BROWSER, "", sign) < 0.5


@pytest.mark.parametrize("sign", ["two_links", "within_60s", "within_10s", "not_yet_accepted"])
def test_a_hasty_person_stays_one(sign: str) -> None:
    assert human("opened", Agent.BROWSER, "", sign) > 0.5


def test_gmail_shows_mails_to_people() -> None:
    assert human("opened", Agent.IMAGE_PROXY, "image_proxy", "displayed") > 0.5
    assert human("opened", Agent.IMAGE_PROXY, "image_proxy", "within_2s") < 0.05
    assert human("opened", Agent.BROWSER, "image_proxy") < 0.5  # by another name: ahead


def test_a_judgement_explains_itself() -> None:
    judgement = judge(Signals("opened", Agent.BARE, "privacy_proxy", ("within_2s",)))
    assert judgement.causes == ("network:privacy_proxy", "within_2s", "agent:bare")
    assert not judgement.is_human
    for cause in judgement.causes:
        assert reason(cause) != cause
    assert "follow no links" in reason("network:privacy_proxy", "clicked")


@given(
    st.sampled_from(sorted(Agent)), st.lists(st.sampled_from(SIGNS), unique=True, max_size=4)
)  # fmt: skip
def test_adding_later_is_as_judging_at_once(agent: Agent, signs: list[str]) -> None:
    at_once = human("clicked", agent, "", *signs)
    later = add(human("clicked", agent), signs)
    assert later == pytest.approx(at_once, abs=0.05)


def test_every_weight_has_a_reason_and_every_network_a_weight() -> None:
    assert all(entry.reason and -8 <= entry.weight <= 3 for entry in _weights().values())
    kinds = ("privacy_proxy", "image_proxy", "scanner")
    assert all(f"{t}:{k}" in _weights() for t, k in product(("opened", "clicked"), kinds))
