"""What the steps of ``benchmarks.send`` take by themselves, in one process without Ray.

The same code on the same data, one part after the other: the composer step by step over bursts, a
shard's store with leases and settles of a Sender's size over a ledger of 20,000 rows, and pipelined
SMTP to the sink. Microseconds of processor time per message, medians of rounds. What a process of
the timed run takes beyond its steps is Ray's calls, the event loop and waiting at locks.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import pyarrow as pa
import uvloop

from actors.lanes import LaneSettings
from benchmarks.shards import Write, scratch_root
from benchmarks.smtp import pipelined
from manta.clock import SystemClock
from manta.command import Change, Op
from manta.content.composer import Composer, Draft, MailSettings
from manta.content.dkim import DkimSigner, load_private_key
from manta.content.templates import MailTemplate
from manta.content.tokens import Keyring, SigningKey
from manta.delivery.attempts import Attempt, Entry, encode_entry
from manta.delivery.campaign import CampaignPlan, CampaignState, Kind
from manta.delivery.hooks import delivery_hooks
from manta.delivery.leasing import Lease
from manta.delivery.outcomes import Outcome, OutcomeKind, outcomes_table
from manta.delivery.planning import PlanCampaign, SetCampaign
from manta.delivery.settling import Settle
from manta.delivery.transaction import Envelope
from manta.ids import MessageRef
from manta.store.journal import Journal
from manta.store.objects import open_objects
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore

FROM_EMAIL = "news@shop.example"
SUBJECT = "{{ first_name }}, the news of this week"
LEDGER_ROWS = 20_000
ROUNDS = 12
BURST = LaneSettings().burst_messages
LEASE_ROWS = LaneSettings().lease_rows_max


def measure(port: int, key_pem: bytes, html: str, people: pa.Table) -> dict[str, float]:
    """Step → microseconds per message."""
    rows = [
        {name.removeprefix("attr_"): value for name, value in row.items()}
        for row in people.to_pylist()
    ]
    composed, envelopes = _composing(key_pem, html, rows)
    return {**composed, "smtp": _smtp(port, envelopes), **_attempts(), **_shard(people)}


def _composing(
    key_pem: bytes, html: str, rows: list[dict[str, Any]]
) -> tuple[dict[str, float], list[Envelope]]:
    """The composer's steps; signing is all but the RSA of ``rsa_us``."""
    template = MailTemplate(subject=SUBJECT, html=html, from_email=FROM_EMAIL)
    keyring = Keyring([SigningKey(1, "benchmark", b"k" * 32)], 1)
    signers = [DkimSigner("shop.example", "s", load_private_key(key_pem))]
    settings = MailSettings(1, "https://t.shop.example", "bounces.shop.example")
    composer = Composer(template, settings, keyring, signers)
    now = SystemClock().now()
    drafts = [Draft(row, MessageRef(n * 7_919 << 20, 77)) for n, row in enumerate(rows)]
    spent: dict[str, list[float]] = {name: [] for name in composer.steps}
    for start in range(0, len(drafts) - BURST, BURST):
        burst = drafts[start : start + BURST]
        for name, step in composer.steps.items():
            began_s = time.process_time()
            for draft in burst:
                step(draft, now)
            spent[name].append((time.process_time() - began_s) / BURST)
    mails = [draft.composed for draft in drafts if draft.composed.data]
    envelopes = [Envelope(mail.mail_from, mail.rcpt_to, mail.data) for mail in mails]
    return _medians_us(spent), envelopes


def _smtp(port: int, envelopes: list[Envelope]) -> float:
    seen = []
    for _ in range(3):
        began_s = time.process_time()
        uvloop.run(pipelined(port, envelopes))
        seen.append((time.process_time() - began_s) / len(envelopes) * 1e6)
    return statistics.median(seen)


def _shard(people: pa.Table) -> dict[str, float]:
    """Leases and settles on one shard's store; what each spends on its journal is told apart."""
    clock = SystemClock()
    with scratch_root() as root:
        never = ShardSettings(flush_after_s=1e9, flush_bytes=1 << 40)
        hooks = delivery_hooks(clock)
        store = ShardStore(
            open_objects(root), "steps", 0, os.urandom(16), clock, Random(1), never, hooks
        )
        store.recover()
        _plan(store, people, clock)
        spent: dict[str, list[float]] = {"lease": [], "settle": [], "journal": []}
        journal: list[float] = []
        _timed(store.journal, "append", journal)
        for n in range(ROUNDS):
            for name, us in _cycle(store, n, clock).items():
                spent[name].append(us)
            spent["journal"].append(sum(journal) / LEASE_ROWS)
            journal.clear()
        store.close()
    medians = _medians_us(spent)
    # The two appends stand by themselves.
    medians["lease"] -= medians["journal"] / 2
    medians["settle"] -= medians["journal"] / 2
    return medians


def _plan(store: ShardStore, people: pa.Table, clock: SystemClock) -> None:
    """A ledger of ``LEDGER_ROWS`` planned rows, of so many people with these columns."""
    copies = pa.concat_tables([people] * -(-LEDGER_ROWS // people.num_rows)).slice(0, LEDGER_ROWS)
    ids = pa.array(range(1, LEDGER_ROWS + 1), pa.int64())
    consents = {
        "subscriber_id": ids,
        "channel": pa.repeat("email", LEDGER_ROWS),
        "topic": pa.repeat("newsletter", LEDGER_ROWS),
        "status": pa.repeat("subscribed", LEDGER_ROWS),
    }
    profiles = copies.append_column("subscriber_id", ids)
    _execute(
        store,
        Write(
            (
                Change("profiles", Op.UPSERT, profiles),
                Change("consents", Op.UPSERT, pa.table(consents)),
            )
        ),
    )
    now = clock.now()
    names = [n.removeprefix("attr_") for n in people.column_names if n.startswith("attr_")]
    plan = CampaignPlan(
        1,
        Kind.MARKETING,
        "email",
        "newsletter",
        "1",
        1,
        "relay",
        now - timedelta(seconds=1),
        '{"all": []}',
        attributes=tuple(names),
        expires_at=now + timedelta(days=2),
    )
    _execute(store, SetCampaign(None, 1, CampaignState.RUNNING, plan.to_json()))
    _execute(store, PlanCampaign(1, limit=LEDGER_ROWS))


def _cycle(store: ShardStore, n: int, clock: SystemClock) -> dict[str, float]:
    """One lease and its settle, in seconds of processor time per message."""
    lease = Lease(n, "sender-00", 1, n + 1, "relay", "others", None, LEASE_ROWS, ("relay",))
    began_s = time.process_time()
    grant = _execute(store, lease)
    leased_s = time.process_time()
    columns = (grant.rows.column(name).to_pylist() for name in ("subscriber_id", "message_key"))
    at = clock.now()
    outcomes = [
        Outcome(*ref, OutcomeKind.ACCEPTED, at, "", 250, "2.0.0 Ok", "relay")
        for ref in zip(*columns, strict=True)
    ]
    settle = Settle(n, "sender-00", 1, outcomes_table(outcomes), n + 1)
    asked_s = time.process_time()
    answer = _execute(store, settle)
    settled_s = time.process_time()
    assert answer["settled"] == LEASE_ROWS, answer
    return {
        "lease": (leased_s - began_s) / LEASE_ROWS,
        "settle": (settled_s - asked_s) / LEASE_ROWS,
    }


def _attempts() -> dict[str, float]:
    """The Sender's own journal: an entry with a burst's attempts and another's outcomes."""
    clock = SystemClock()
    at = clock.now()
    attempts = tuple(Attempt(1, n, 77) for n in range(BURST))
    outcomes = tuple(
        (1, Outcome(n, 77, OutcomeKind.ACCEPTED, at, "", 250, "2.0.0 Ok", "relay"))
        for n in range(BURST)
    )
    with scratch_root() as root:
        objects = open_objects(root)
        journal = Journal(objects, "steps/journal/sender=00", "steps", os.urandom(16), clock)
        journal.take_over()
        seen = []
        for _ in range(100):
            began_s = time.process_time()
            journal.append(encode_entry(Entry(1, (), attempts, outcomes)))
            seen.append((time.process_time() - began_s) / BURST * 1e6)
    return {"attempts": statistics.median(seen)}


def _timed(owner: Any, name: str, seen: list[float]) -> None:
    """From now on each call of the method notes what it took."""
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        began_s = time.process_time()
        try:
            return method(*arguments)
        finally:
            seen.append(time.process_time() - began_s)

    setattr(owner, name, timed)


def _execute(store: ShardStore, command: Any) -> Any:
    (outcome,) = store.execute([command])
    if outcome.failed:
        raise outcome.answer
    return outcome.answer


def _medians_us(spent: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) * 1e6 for name, seconds in spent.items()}
