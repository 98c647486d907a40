"""Further identities: claimed, taken, settled; two people never share one."""

import pyarrow as pa
import pytest

from manta.command import Push
from manta.errors import Conflict, InvalidRequest
from manta.people.claims import (
    change_of_address,
    further_identity,
)
from manta.people.commands import (
    ClaimIdentities,
    HasIdentity,
    ReleaseIdentity,
    SettleClaims,
    Suppress,
    TakeIdentities,
)
from tests.unit.people_shard import Shard


def claim(shard, claims):
    return shard.answer(ClaimIdentities(None, claims))


def move(owner, home, claims, source="api"):
    """The three steps, as a caller drives them."""
    claimed = claim(owner, claims)
    if claimed.statuses[0] != "claimed":
        return claimed.statuses[0]
    here = home.answer(TakeIdentities(None, claims, source, claimed.suppressions))
    owner.answer(SettleClaims(None, claims, tuple(here.is_valid().to_pylist())))
    return "done"


def test_an_address_change_over_two_shards():
    home, owner = Shard(1), Shard(2)
    person = home.person("old@example.com")
    home.leased(person, 1)
    claims = change_of_address(person, "New@example.com")
    claimed = claim(owner, claims)
    decision = home.run(TakeIdentities(None, claims, "api", claimed.suppressions))
    assert decision.pushes == (Push("sender-00", "revoke", (None, ((person, 1),))),)
    owner.answer(SettleClaims(None, claims, (True,)))
    assert home.rows("SELECT email FROM profiles") == [("New@example.com",)]
    row = ("new@example.com", person, "confirmed")
    assert owner.rows("SELECT value, subscriber_id, state FROM identities") == [row]
    assert row in home.rows("SELECT value, subscriber_id, state FROM identities")
    assert home.kinds() == ["profile_changed"]
    assert claim(owner, claims).statuses == ("own",)
    assert home.run(TakeIdentities(None, claims, "api")).changes == ()


def test_within_one_shard_the_same_steps_do():
    shard = Shard()
    person = shard.person("old@example.com")
    assert move(shard, shard, change_of_address(person, "new@example.com")) == "done"
    assert shard.rows("SELECT value, state FROM identities ORDER BY value") == [
        ("new@example.com", "confirmed"),
        ("old@example.com", "confirmed"),
    ]


def test_two_people_never_share_an_identity():
    shard = Shard()
    ann, bob = shard.person("ann@example.com"), shard.person("bob@example.com")
    assert move(shard, shard, change_of_address(bob, "Ann@example.com")) == "taken"
    assert move(shard, shard, further_identity(ann, "external_id", "1")) == "done"
    both = pa.concat_tables(
        [further_identity(ann, "external_id", "2"), further_identity(bob, "external_id", "2")]
    )
    claimed = claim(shard, both)
    assert claimed.statuses == ("claimed", "contested")
    assert claimed.owners == (ann, ann)


def test_an_old_claim_is_settled_by_asking_its_owner():
    home, owner = Shard(1), Shard(2)
    ann, bob = home.person("ann@example.com"), home.person("bob@example.com")
    first, second = further_identity(ann, "phone", "+49 1"), further_identity(bob, "phone", "+49 1")
    claim(owner, first)
    assert claim(owner, second).statuses == ("contested",)
    owner.pass_time(seconds=31)
    claimed = claim(owner, second)
    assert (claimed.statuses, claimed.owners) == (("stale",), (ann,))
    has = home.answer(HasIdentity(None, ann, "phone", "+49 1"))
    assert has is False
    owner.answer(SettleClaims(None, first, (has,)))
    assert claim(owner, second).statuses == ("claimed",)


def test_a_claim_for_nobody_is_given_back():
    home, owner = Shard(1), Shard(2)
    assert move(owner, home, further_identity(404, "external_id", "1")) == "done"
    assert owner.rows("SELECT * FROM identities") == []
    assert home.rows("SELECT * FROM identities") == []


def test_a_suppression_follows_the_address():
    home, owner = Shard(1), Shard(2)
    owner.answer(Suppress(None, "email", "new@example.com", "hard_bounce", "dsn"))
    person = home.person("old@example.com")
    move(owner, home, change_of_address(person, "new@example.com"))
    assert home.rows("SELECT address, reason FROM suppressions") == [
        ("new@example.com", "hard_bounce")
    ]


def test_an_earlier_address_can_be_released_but_not_the_present_one():
    shard = Shard()
    person = shard.person("old@example.com")
    move(shard, shard, change_of_address(person, "new@example.com"))
    with pytest.raises(Conflict):
        shard.answer(ReleaseIdentity(None, person, "email", "new@example.com"))
    assert shard.answer(ReleaseIdentity(None, person, "email", "Old@example.com")) is True
    assert shard.answer(ReleaseIdentity(None, person, "email", "old@example.com")) is False


@pytest.mark.parametrize(("kind", "value"), [("shoe", "1"), ("phone", " "), ("phone", "1\n2")])
def test_wrong_claims_are_refused(kind, value):
    with pytest.raises(InvalidRequest):
        claim(Shard(), further_identity(1, kind, value))


def test_the_address_must_be_the_claimed_one():
    claims = change_of_address(1, "a@example.com").set_column(3, "email", pa.array(["b@x.com"]))
    with pytest.raises(InvalidRequest):
        claim(Shard(), claims)
