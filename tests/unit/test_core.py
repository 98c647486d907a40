"""Ids, clocks, errors and settings: what everything else stands on."""

from __future__ import annotations

import pickle
from datetime import datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta import errors, ids, settings
from manta.clock import ManualClock, as_text, parse_instant


@given(st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1))
def test_an_id_survives_its_text(number: int) -> None:
    text = ids.encode_id(number)
    assert len(text) == 13 and text == text.lower()
    assert ids.decode_id(text) == number


@pytest.mark.parametrize("text", ["", "0", "z" * 13, "o" * 13, "0" * 12, "0" * 14, "٠" * 13])
def test_what_is_not_an_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        ids.decode_id(text)


@given(st.integers(0, ids.BUCKETS - 1), st.integers(1, 1024))
def test_a_minted_id_leads_to_its_bucket_and_one_shard(bucket: int, shards: int) -> None:
    subscriber_id = ids.mint_subscriber_id(bucket, Random(1))
    assert 0 <= subscriber_id < 1 << 63
    assert ids.bucket_of_subscriber(subscriber_id) == bucket
    table = ids.even_ranges(shards)
    shard = ids.shard_of_bucket(bucket, table)
    following = table[shard + 1] if shard + 1 < shards else ids.BUCKETS
    assert table[shard] <= bucket < following


def test_hash_parts_have_boundaries_and_stay_what_they_were() -> None:
    assert ids.hash64("ab", "c") != ids.hash64("a", "bc")
    assert ids.hash64("1") == ids.hash64(1)
    # Stored in every lake: this value may never change.
    assert ids.campaign_message_key(1) == ids.hash64("campaign", 1, 0) == 3990373778893977341


def test_every_error_survives_pickling_with_its_details() -> None:
    def leaves(kind: type) -> list[type]:
        return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]

    for kind in leaves(errors.MantaError):
        before = kind("what was wrong", path="where", expected="what is right", object="journal/7")
        after = pickle.loads(pickle.dumps(before))
        assert type(after) is kind
        assert (after.message, after.details) == (before.message, before.details)


def test_instants_are_utc_in_text_and_back() -> None:
    noon = datetime(2026, 3, 29, 12, 0, 0, 5)
    assert as_text(noon) == "2026-03-29T12:00:00.000005Z"
    assert parse_instant(as_text(noon)) == noon
    assert parse_instant("2026-03-29T14:00:00.000005+02:00") == noon
    assert parse_instant("2026-03-29") == datetime(2026, 3, 29)


def test_a_manual_clock_only_goes_forward() -> None:
    clock = ManualClock()
    before = clock.now()
    clock.advance(1.5)
    assert (clock.now() - before).total_seconds() == clock.monotonic() == 1.5
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_settings_are_read_with_defaults(tmp_path: Path) -> None:
    file = tmp_path / "manta.toml"
    file.write_text(
        'workspace = "acme"\nshards = 4\nflush_seconds = 5\n[http]\nport = 9000\n'
        '[[egress]]\nname = "ses"\nhost = "smtp.example"\nport = 587\ntls = "required"\n'
    )
    found = settings.load(file)
    assert (found.workspace, found.shards, found.http.port) == ("acme", 4, 9000)
    assert found.flush_seconds == 5.0
    assert found.egress[0].host == "smtp.example"
    assert found.public_url == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("shard = 4", "shard"),
        ("shards = 0", "shards"),
        ('shards = "4"', "shards"),
        ("shards = true", "shards"),
        ('workspace = "A/../b"', "workspace"),
        ("[http]\nprot = 1", "http.prot"),
        ("http = 1", "http"),
        ('[[egress]]\nname = "a"\nhosts = "b"', "egress[0].hosts"),
        ("egress = []", "egress"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, path: str) -> None:
    file = tmp_path / "manta.toml"
    file.write_text(text)
    with pytest.raises(errors.InvalidRequest) as caught:
        settings.load(file)
    assert caught.value.path == path
    assert caught.value.expected


def test_a_missing_or_broken_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="no settings file"):
        settings.load(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("shards = ")
    with pytest.raises(errors.InvalidRequest, match="not TOML"):
        settings.load(tmp_path / "broken.toml")
