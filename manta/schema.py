"""The tables of a shard: one definition for the database, the journal, the lake and the rules.

State tables have a key and hold one row for it; ``events`` has none and is only ever appended to.
A profile has free attributes besides its fixed columns: attribute ``city`` is column
``attr_city``, with the type that the Catalog's registry declares for the workspace.

Instants are ``TIMESTAMP`` in UTC. States and kinds are words, not numbers, since the lake is read
by people.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class AttributeType(StrEnum):
    """The types of a free attribute, and of an event property seen by a rule."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"  # an instant; a value without time is midnight UTC
    LIST = "list"  # of strings


SQL_TYPES = {
    AttributeType.STRING: "VARCHAR",
    AttributeType.NUMBER: "DOUBLE",
    AttributeType.BOOLEAN: "BOOLEAN",
    AttributeType.DATE: "TIMESTAMP",
    AttributeType.LIST: "VARCHAR[]",
}
ATTRIBUTE_PREFIX = "attr_"
ATTRIBUTE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
ATTRIBUTES_MAX = 500


@dataclass(frozen=True)
class Table:
    """A table: columns in order as (name, DuckDB type); ``key`` empty for append-only tables.

    ``born`` is the column that every new row brings with it, where there is one: rows without it
    are most likely there already.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...] = ()
    has_attributes: bool = False
    born: str = ""

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)


PROFILES = Table(
    "profiles",
    (
        ("subscriber_id", "BIGINT"),
        ("email", "VARCHAR"),  # normalised; the address mails go to; NULL while anonymous
        ("time_zone", "VARCHAR"),  # IANA name, or NULL: the workspace's
        ("locale", "VARCHAR"),  # BCP 47, or NULL
        ("created_at", "TIMESTAMP"),
        ("updated_at", "TIMESTAMP"),
    ),
    key=("subscriber_id",),
    has_attributes=True,
)
IDENTITIES = Table(
    "identities",
    (
        ("kind", "VARCHAR"),  # email | external_id | phone | anonymous_id
        ("value", "VARCHAR"),  # compared form (manta.people.identities)
        ("subscriber_id", "BIGINT"),
        ("state", "VARCHAR"),  # confirmed | pending
        ("claimed_at", "TIMESTAMP"),
    ),
    key=("kind", "value"),
)
# A merge of two people: `from_id` lives on as `to_id`. In the shards of both; an undone one stays,
# since it hides copies of events, so a person has as many rows as they were merged, one at most of
# them not undone.
ALIASES = Table(
    "aliases",
    (
        ("from_id", "BIGINT"),
        ("to_id", "BIGINT"),
        ("merge_id", "BIGINT"),  # names this merge; copied events carry it
        ("state", "VARCHAR"),  # merging | merged | undone
        ("cause", "VARCHAR"),
        ("kept", "VARCHAR"),  # JSON: what an undo gives back (manta.people.merging)
        ("created_at", "TIMESTAMP"),
        ("changed_at", "TIMESTAMP"),
    ),
    key=("from_id", "merge_id"),
)
CONSENTS = Table(
    "consents",
    (
        ("subscriber_id", "BIGINT"),
        ("channel", "VARCHAR"),  # email | sms | push
        ("topic", "VARCHAR"),
        ("status", "VARCHAR"),  # subscribed | unsubscribed | pending
        ("source", "VARCHAR"),
        ("changed_at", "TIMESTAMP"),
        ("expires_at", "TIMESTAMP"),  # of a pending one: when its confirmation is too late
        ("proof", "VARCHAR"),  # JSON: how, where and on what wording it was given, or NULL
    ),
    key=("subscriber_id", "channel", "topic"),
)
SUPPRESSIONS = Table(
    "suppressions",
    (
        ("channel", "VARCHAR"),
        ("address", "VARCHAR"),  # compared form: lower(profiles.email)
        ("reason", "VARCHAR"),  # hard_bounce | complaint | manual | unsubscribed | ...
        ("source", "VARCHAR"),
        ("evidence", "VARCHAR"),
        ("created_at", "TIMESTAMP"),
        ("expires_at", "TIMESTAMP"),  # NULL: for ever
    ),
    key=("channel", "address"),
)
EVENTS = Table(
    "events",
    (
        ("subscriber_id", "BIGINT"),
        ("occurred_at", "TIMESTAMP"),
        ("type", "VARCHAR"),
        ("event_id", "BIGINT"),  # hash64 of the producer's event id: duplicates count once
        ("campaign_id", "INTEGER"),
        ("message_key", "BIGINT"),  # the message that this is about or came from
        ("item", "VARCHAR"),  # product, page or link acted upon; of `sent`: the message's kind
        ("amount", "DOUBLE"),  # money or quantity
        ("properties", "VARCHAR"),  # a JSON object, or NULL
        ("human", "DOUBLE"),  # of opens and clicks: p(a person did this); NULL: not judged
        ("merge_id", "BIGINT"),  # a copy made by this merge, the original is its `from_id`'s
    ),
)
# What was found out about an open or click after it was stored: it replaces the event's `human`.
TRAFFIC_CORRECTIONS = Table(
    "traffic_corrections",
    (
        ("subscriber_id", "BIGINT"),
        ("event_id", "BIGINT"),
        ("human", "DOUBLE"),
        ("cause", "VARCHAR"),
        ("changed_at", "TIMESTAMP"),
    ),
    key=("subscriber_id", "event_id"),
)
# Since when a person's attribute has its value; without a row: since the person was created.
ATTRIBUTE_TIMES = Table(
    "attribute_times",
    (
        ("subscriber_id", "BIGINT"),
        ("name", "VARCHAR"),  # without prefix; also `time_zone` and `locale`
        ("changed_at", "TIMESTAMP"),
    ),
    key=("subscriber_id", "name"),
)
PREDICTIONS = Table(
    "predictions",
    (
        ("subscriber_id", "BIGINT"),
        ("name", "VARCHAR"),  # what is predicted, such as `churn`
        ("value", "DOUBLE"),
        ("run_id", "VARCHAR"),
        ("changed_at", "TIMESTAMP"),
    ),
    key=("subscriber_id", "name"),
)
# One row per message over all channels. The states and moves are manta.delivery.ledger's.
LEDGER = Table(
    "ledger",
    (
        ("subscriber_id", "BIGINT"),
        ("message_key", "BIGINT"),
        ("campaign_id", "INTEGER"),
        ("kind", "VARCHAR"),  # marketing | transactional | test
        ("channel", "VARCHAR"),
        ("state", "VARCHAR"),
        ("reason", "VARCHAR"),  # why suppressed, failed, expired, uncertain
        ("domain", "VARCHAR"),  # of the recipient, lower case
        ("priority", "UTINYINT"),  # 0 first
        ("engaged_at", "TIMESTAMP"),  # month of the last human act when planned; engaged go first
        ("due_at", "TIMESTAMP"),  # set exactly while planned
        ("expires_at", "TIMESTAMP"),
        ("attempts", "USMALLINT"),
        ("sender", "VARCHAR"),  # of the present or last lease
        ("sender_epoch", "BIGINT"),
        ("lease_id", "BIGINT"),
        ("journal_sequence", "BIGINT"),  # last entry of its journal that the sender told us of
        ("source", "VARCHAR"),  # egress source of the last attempt
        ("provider", "VARCHAR"),  # who takes mail for the domain, at the last lease
        ("bounce_class", "VARCHAR"),  # of the last refusal or bounce: hard | soft | block | message
        ("category", "VARCHAR"),  # of the same, finer (manta.delivery.returns.classification)
        ("reply_code", "USMALLINT"),
        ("reply", "VARCHAR"),  # the last SMTP reply, as received, cut at 500 characters
        ("planned_at", "TIMESTAMP"),
        ("changed_at", "TIMESTAMP"),
        ("bounced_at", "TIMESTAMP"),  # a later DSN: a fact of its own, moves no state
        ("send_to", "VARCHAR"),  # of a test: the address that gets it in the person's place
    ),
    key=("subscriber_id", "message_key"),
    born="planned_at",
)
# Which incarnation of a Sender may still lease.
SENDERS = Table(
    "senders",
    (
        ("sender", "VARCHAR"),
        ("epoch", "BIGINT"),  # a lease under a lower epoch is refused
        ("changed_at", "TIMESTAMP"),
    ),
    key=("sender",),
)
MEMBERSHIPS = Table(
    "memberships",
    (("subscriber_id", "BIGINT"), ("segments", "INTEGER[]")),
    key=("subscriber_id",),
)
# How many people came to a segment and left it, day by day: its growth.
SEGMENT_DAYS = Table(
    "segment_days",
    (
        ("segment_id", "INTEGER"),
        ("day", "TIMESTAMP"),  # its first instant, UTC
        ("entered", "BIGINT"),
        ("departed", "BIGINT"),
    ),
    key=("segment_id", "day"),
)
# What a shard must know of the Catalog's definitions (manta.people.definitions): live segments,
# caps, topics, endpoints of webhooks.
DEFINITIONS = Table(
    "definitions",
    (
        ("kind", "VARCHAR"),
        ("id", "VARCHAR"),
        ("version", "BIGINT"),  # an older one is ignored
        ("body", "VARCHAR"),  # JSON; NULL: deleted
        ("changed_at", "TIMESTAMP"),
    ),
    key=("kind", "id"),
)
# What came in and fits no schema yet; it can be looked at, mended and replayed.
QUARANTINE = Table(
    "quarantine",
    (
        ("quarantine_id", "BIGINT"),
        ("received_at", "TIMESTAMP"),
        ("source", "VARCHAR"),
        ("problem", "VARCHAR"),
        ("path", "VARCHAR"),  # where in the body
        ("body", "VARCHAR"),  # as received, JSON or not
        ("state", "VARCHAR"),  # waiting | replayed | discarded
        ("changed_at", "TIMESTAMP"),
    ),
    key=("quarantine_id",),
)
# Outgoing webhooks that are still to be delivered or lately were (manta.webhooks).
OUTBOX = Table(
    "outbox",
    (
        ("endpoint_id", "BIGINT"),
        ("delivery_id", "BIGINT"),
        ("subscriber_id", "BIGINT"),  # whom it tells of
        ("type", "VARCHAR"),
        ("body", "VARCHAR"),  # the JSON that is sent; signed when it is
        ("state", "VARCHAR"),  # waiting | delivered | failed | discarded
        ("attempts", "USMALLINT"),
        ("due_at", "TIMESTAMP"),  # set exactly while waiting
        ("status", "USMALLINT"),  # HTTP status of the last attempt
        ("answer", "VARCHAR"),  # the beginning of its body, or why there was none
        ("sequence", "BIGINT"),  # the order of commit in this shard
        ("created_at", "TIMESTAMP"),
        ("changed_at", "TIMESTAMP"),
    ),
    key=("endpoint_id", "delivery_id"),
    born="created_at",
)
# People who are to be erased: unreadable at once, gone from every file when the row goes too.
ERASURES = Table(
    "erasures",
    (
        ("subscriber_id", "BIGINT"),
        ("request_id", "VARCHAR"),
        ("requested_at", "TIMESTAMP"),
        ("named", "VARCHAR"),  # JSON: [kind, value] of what names them, to be looked for in texts
    ),
    key=("subscriber_id",),
)
# What a shard must know of a campaign to plan, lease and count for it.
CAMPAIGNS = Table(
    "campaigns",
    (
        ("campaign_id", "INTEGER"),
        ("state", "VARCHAR"),  # running | paused | cancelled | finished
        ("planning", "VARCHAR"),  # planning | planned
        ("step", "INTEGER"),  # counts the campaign's changes of state; older news is ignored
        ("definition", "VARCHAR"),  # JSON of manta.delivery.campaign.CampaignPlan
        ("planned_rows", "BIGINT"),  # ledger rows ever written for it; NULL: none
    ),
    key=("campaign_id",),
)
# What is kept of events and ledger rows that have left memory (`manta.store.retention`); the rows
# themselves stay in the lake.
RETENTION = Table(
    "retention",
    (
        ("name", "VARCHAR"),  # events | ledger
        ("kept_since", "TIMESTAMP"),  # what is older is in the lake and not in memory
    ),
    key=("name",),
)
EVENT_MONTHS = Table(
    "event_months",
    (
        ("subscriber_id", "BIGINT"),
        ("month", "TIMESTAMP"),  # its first instant, UTC
        ("type", "VARCHAR"),
        ("first_at", "TIMESTAMP"),
        ("last_at", "TIMESTAMP"),
        ("events", "BIGINT"),
        ("amount", "DOUBLE"),  # the sum
    ),
    key=("subscriber_id", "month", "type"),
)
PURCHASED_ITEMS = Table(
    "purchased_items",
    (
        ("subscriber_id", "BIGINT"),
        ("item", "VARCHAR"),
        ("first_at", "TIMESTAMP"),
        ("last_at", "TIMESTAMP"),
        ("events", "BIGINT"),
        ("amount", "DOUBLE"),
    ),
    key=("subscriber_id", "item"),
)
LEDGER_DAYS = Table(
    "ledger_days",
    (
        ("subscriber_id", "BIGINT"),
        ("day", "TIMESTAMP"),  # of `changed_at`, its first instant, UTC
        ("kind", "VARCHAR"),
        ("channel", "VARCHAR"),
        ("accepted", "BIGINT"),  # messages
    ),
    key=("subscriber_id", "day", "kind", "channel"),
)
# So that a campaign's accounting stays whole when its rows have left memory.
LEDGER_CAMPAIGNS = Table(
    "ledger_campaigns",
    (
        ("campaign_id", "INTEGER"),
        ("state", "VARCHAR"),
        ("reason", "VARCHAR"),  # empty where the row had none
        ("messages", "BIGINT"),
    ),
    key=("campaign_id", "state", "reason"),
)

TABLES = {
    table.name: table
    for table in (
        PROFILES,
        IDENTITIES,
        ALIASES,
        CONSENTS,
        SUPPRESSIONS,
        EVENTS,
        TRAFFIC_CORRECTIONS,
        ATTRIBUTE_TIMES,
        PREDICTIONS,
        LEDGER,
        SENDERS,
        MEMBERSHIPS,
        SEGMENT_DAYS,
        DEFINITIONS,
        QUARANTINE,
        OUTBOX,
        ERASURES,
        CAMPAIGNS,
        RETENTION,
        EVENT_MONTHS,
        PURCHASED_ITEMS,
        LEDGER_DAYS,
        LEDGER_CAMPAIGNS,
    )
}

# Event types that Manta itself writes; every other type is the customer's own. The `_changed`
# events are history (old, new, source as properties): they go to the lake and not to memory.
MESSAGE_EVENTS = ("sent", "opened", "clicked", "bounced", "complained", "unsubscribed")
HISTORY_EVENTS = (
    "profile_created",
    "profile_changed",
    "consent_changed",
    "suppression_changed",
    "membership_changed",
    "people_merged",
    "received",  # the original of an event that came in another form: `item` names its source
)
