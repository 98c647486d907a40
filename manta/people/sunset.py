"""Sunset: whoever has not reacted for long is left in peace, until they come back by themselves.

A policy names a live segment, for one topic or for all. Whoever enters it gets a suppression
``sunset`` in the same group that stores the membership: it stops marketing, on the whole channel or
for the topic (``suppressions.topic_channel``), and never transactional mail. Consent stays as it
is. A policy that comes later catches those who are in the segment already.

It is lifted in the group that stores an act of their own: a click by a human, a purchase, a
consent. Leaving the segment alone lifts nothing: somebody who gets no mail ignores none. Deleting a
policy lifts nothing either; an act does, or an operator.

A sunset is about the person's behaviour, so it lies in the person's shard alone, where it is looked
at; the shard of the address does not know of it. Another address of the person starts anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Op
from manta.definitions import Document, Reader, checked_name
from manta.errors import InvalidRequest
from manta.people.consents import SUBSCRIBED_TO, among, check_text
from manta.people.definitions import SUNSET as KIND
from manta.people.history import compact_json, recorded, rows_of
from manta.people.identities import EMAIL, compared
from manta.people.suppressions import SUNSET, Stop, Wanted, suppressing, topic_channel

COLLECTION = "sunset"
MESSAGES = 10
DAYS = 180
MESSAGES_MAX = 100
DAYS_MAX = 390  # less than the events that shards keep
# What people do by themselves, besides reading mail.
ACTS = (
    "clicked",
    "purchased",
    "ordered",
    "checkout_started",
    "cart_updated",
    "viewed",
    "signed_up",
)
LIFTING = ("clicked", "purchased")
HUMAN_AT_LEAST = 0.5
_FIELDS = ("id", "name", "topic", "segment_id")
_LISTED_MAX = 1_000  # people whose profiles are looked up by the index


# -- the collection --------------------------------------------------------------------------------


def checked(fields: Mapping[str, Any], reader: Reader) -> Document:
    """The fields of a policy. Raises ``InvalidRequest`` that names the one that is wrong."""
    unknown = sorted(set(fields) - set(_FIELDS))
    if unknown:
        raise InvalidRequest(
            f"a sunset policy has no field {unknown[0]:.60}",
            path=unknown[0],
            expected=", ".join(_FIELDS[1:]),
        )
    topic = fields.get("topic")
    if topic is not None:
        check_text(str(topic), "topic")
    check_topic(topic, [d for d in reader.list(COLLECTION) if d["id"] != fields.get("id")])
    segment = reader.get("segments", str(fields.get("segment_id")))
    if segment is None or not segment.get("live"):
        raise InvalidRequest(
            f"segment {fields.get('segment_id')!r:.40} is none, or not live",
            path="segment_id",
            expected="the id of a live segment",
        )
    return {"name": checked_name(fields), "topic": topic, "segment_id": segment["id"]}


def check_topic(topic: str | None, policies: Sequence[Document]) -> None:
    """Raises ``InvalidRequest`` where one of the policies is for this topic already."""
    if any(policy["topic"] == topic for policy in policies):
        raise InvalidRequest(
            f"there is a sunset policy for {topic or 'all topics'!r:.80} already",
            path="topic",
            expected="one policy for each topic, and one for all",
        )


def shard_body(document: Document, reader: Reader) -> Document:
    return {name: document[name] for name in ("name", "topic", "segment_id")}


def default_rule(messages: int = MESSAGES, days: int = DAYS, topic: str | None = None) -> Document:
    """Whoever ignored all of the last ``messages`` settled mails and did nothing for ``days``."""
    for value, most, name in ((messages, MESSAGES_MAX, "messages"), (days, DAYS_MAX, "days")):
        if not 1 <= value <= most:
            raise InvalidRequest(f"{name} is {value}", path=name, expected=f"1 to {most}")
    acted = [{"event": {"type": act, "within": {"last": {"days": days}}}} for act in ACTS]
    rules: list[Document] = [
        {"last_messages": {"number": messages, "which": "all", "were": "ignored"}},
        {"not": {"any": acted}},
    ]
    if topic is not None:
        consent = {"channel": EMAIL, "topic": topic, "status": SUBSCRIBED_TO}
        rules.append({"consent": consent})
    return {"all": rules}


# -- in the shard ----------------------------------------------------------------------------------


class _Policy(NamedTuple):
    id: str
    name: str
    segment: int
    channel: str


class SunsetDeriver:
    """What follows from a group of changes for sunsets (``manta.store.shard.Deriver``)."""

    def derive(
        self, changes: Sequence[Change], database: Database, context: Context
    ) -> Sequence[Change]:
        known = database.rows("SELECT id, body FROM definitions WHERE kind = ?", [KIND])
        if not known:
            return ()
        policies = [_policy(id, body) for id, body in known if body is not None]
        acted = _acted(changes)
        derived = list(_lifted(acted, database, context))
        for policy in policies:
            people = _entered(changes, policy, database)
            people = people[~np.isin(people, acted)]
            if len(people):
                derived += _suppressed(people, policy, database, context)
        return derived


def _policy(id: str, body: str) -> _Policy:
    held = json.loads(body)
    channel = topic_channel(EMAIL, held["topic"]) if held["topic"] is not None else EMAIL
    return _Policy(id, held["name"], int(held["segment_id"]), channel)


_Ids = np.ndarray[Any, np.dtype[np.int64]]
_NOBODY = np.zeros(0, np.int64)


def _entered(changes: Sequence[Change], policy: _Policy, database: Database) -> _Ids:
    """Who has entered the policy's segment in this group, or is in it as the policy comes."""
    found = [_NOBODY]
    for change in changes:
        if change.table == "events":
            found.append(_moved_in(change.rows, policy.segment))
        elif change.table == "definitions" and change.op is Op.UPSERT:
            kinds, ids = change.rows["kind"].to_pylist(), change.rows["id"].to_pylist()
            if (KIND, policy.id) in zip(kinds, ids, strict=True):
                members = database.rows(
                    "SELECT subscriber_id FROM memberships WHERE list_contains(segments, ?)",
                    [policy.segment],
                )
                found.append(np.array([person for (person,) in members], np.int64))
    return np.unique(np.concatenate(found))


def _moved_in(rows: pa.Table, segment: int) -> _Ids:
    moved = pc.equal(rows["type"], "membership_changed")
    if not pc.any(moved).as_py():
        return _NOBODY
    rows = rows.filter(moved)
    texts = rows["properties"].combine_chunks().dictionary_encode()
    said = [json.loads(text) for text in texts.dictionary.to_pylist()]
    into = [each["member"] and each["segment"] == segment for each in said]
    chosen = np.array(into, bool)[texts.indices.to_numpy(zero_copy_only=False)]
    ids: _Ids = rows["subscriber_id"].to_numpy()[chosen]
    return ids


def _acted(changes: Sequence[Change]) -> _Ids:
    """Who has done something of their own that says they are there."""
    found = [_NOBODY]
    for change in changes:
        rows = change.rows
        if change.table == "events":
            own = pc.is_in(rows["type"], value_set=pa.array(LIFTING))
            if "human" in rows.column_names:
                by_people = pc.fill_null(pc.greater_equal(rows["human"], HUMAN_AT_LEAST), True)
                own = pc.and_(own, by_people)
        elif change.table == "consents" and change.op is Op.UPSERT:
            if "status" not in rows.column_names:
                continue
            own = pc.equal(rows["status"], SUBSCRIBED_TO)
        else:
            continue
        found.append(rows.filter(pc.fill_null(own, False))["subscriber_id"].to_numpy())
    return np.unique(np.concatenate(found))


def _suppressed(
    people: _Ids, policy: _Policy, database: Database, context: Context
) -> Sequence[Change]:
    wanted = [
        Wanted(compared(EMAIL, email), person, Stop(SUNSET), f"sunset:{policy.id}", policy.name)
        for person, email in _addresses(people, database)
    ]
    return suppressing(database, context, wanted, policy.channel).changes


def _lifted(people: _Ids, database: Database, context: Context) -> Sequence[Change]:
    if len(people) == 0:
        return ()
    standing = database.rows("SELECT 1 FROM suppressions WHERE reason = ? LIMIT 1", [SUNSET])
    if not standing:
        return ()
    whose = {compared(EMAIL, mail): who for who, mail in _addresses(people, database)}
    if not whose:
        return ()
    rows = database.rows(
        "SELECT channel, address FROM suppressions WHERE reason = ?"
        " AND address IN (SELECT unnest(?::VARCHAR[])) ORDER BY ALL",
        [SUNSET, sorted(whose)],
    )
    if not rows:
        return ()
    said = [
        compact_json(
            {
                "channel": channel,
                "address": address,
                "old": SUNSET,
                "new": None,
                "source": "own act",
            }
        )
        for channel, address in rows
    ]
    gone = rows_of(
        "suppressions",
        len(rows),
        channel=pa.array([channel for channel, _ in rows]),
        address=pa.array([address for _, address in rows]),
    )
    return (
        Change("suppressions", Op.DELETE, gone),
        recorded(
            "suppression_changed",
            pa.array([whose[address] for _, address in rows], pa.int64()),
            pa.array(said),
            context.now,
            context.random,
        ),
    )


def _addresses(people: _Ids, database: Database) -> list[tuple[int, str]]:
    """Those of the people who have an address, with it."""
    sql = "SELECT subscriber_id, email FROM profiles"
    if len(people) <= _LISTED_MAX:
        found = database.rows(f"{sql} WHERE {among(people.tolist())}")
    else:
        asked = pa.table({"subscriber_id": pa.array(people)})
        found = database.rows(f"{sql} SEMI JOIN _people USING (subscriber_id)", _people=asked)
    return [(person, email) for person, email in found if email]
