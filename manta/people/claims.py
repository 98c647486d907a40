"""Further identities: an address, phone or number that a person who exists already gets.

An identity belongs to the shard of its own hash, a person to the shard of their first identity, so
this takes three commands, each repeatable:

    ClaimIdentities   in the identity's shard   absent → pending, with the person as owner
    TakeIdentities    in the person's shard     the person has it now (a copy of the row; an
                                                address becomes the one that mails go to)
    SettleClaims      in the identity's shard   pending → confirmed, or gone

Two people never share an identity: the claim is refused while another holds or claims it. Whoever
drives this may die between the steps; the claim then stays pending, and after ``CLAIM_LIFE`` the
next claimant is told whom to ask (``HasIdentity`` in the owner's shard) and settles it. An old
address stays with its person as a confirmed identity until it is released on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op, Push
from manta.errors import Conflict, InvalidRequest
from manta.people.consents import revocations
from manta.people.history import compact_json, recorded, rows_of, upserted
from manta.people.identities import CONFIRMED, EMAIL, KINDS, PENDING, VALUE_LENGTH_MAX, compared

CLAIM_LIFE = timedelta(seconds=30)

CLAIMED = "claimed"  # pending for this person now: go on with TakeIdentities
OWN = "own"  # confirmed for this person: nothing to do
TAKEN = "taken"  # another person has it
CONTESTED = "contested"  # another person has claimed it within CLAIM_LIFE: try again
STALE = "stale"  # another's claim is older: ask HasIdentity there, SettleClaims, try again


@dataclass(frozen=True)
class Claimed:
    """For each row of the claims, in order: what became of it and who owns the identity.

    ``suppressions`` are those of claimed addresses, for the person's shard to know.
    """

    statuses: tuple[str, ...]
    owners: tuple[int, ...]
    suppressions: pa.Table | None = None


@dataclass(frozen=True)
class ClaimIdentities:
    """Ask for identities for people. ``claims``: kind, value, subscriber_id; see the module."""

    key: str | None
    claims: pa.Table

    def decide(self, database: Database, context: Context) -> Decision:
        claims = _checked(self.claims)
        found = database.table(
            "SELECT c.n, c.kind, c.value, c.subscriber_id, d.subscriber_id AS owner, d.state,"
            " d.claimed_at FROM claims c LEFT JOIN identities d ON d.kind = c.kind"
            " AND d.value = c.value ORDER BY c.n",
            claims=claims,
        ).to_pylist()
        statuses, owners = [], []
        won: dict[tuple[str, str], int] = {}
        for row in found:
            name = (row["kind"], row["value"])
            person, owner = row["subscriber_id"], won.get(name, row["owner"])
            if owner is None:
                won[name] = person
                status, owner = CLAIMED, person
            elif owner == person:
                status = OWN if row["state"] == CONFIRMED else CLAIMED
            elif name in won or row["state"] == PENDING:
                late = name not in won and context.now - row["claimed_at"] > CLAIM_LIFE
                status = STALE if late else CONTESTED
            else:
                status = TAKEN
            statuses.append(status)
            owners.append(owner)
        changes: tuple[Change, ...] = ()
        if won:
            changes = (
                upserted(
                    "identities",
                    len(won),
                    kind=pa.array([kind for kind, _ in won]),
                    value=pa.array([value for _, value in won]),
                    subscriber_id=pa.array(won.values()),
                    state=PENDING,
                    claimed_at=context.now,
                ),
            )
        suppressions = self._suppressions(claims, statuses, database, context)
        return Decision(Claimed(tuple(statuses), tuple(owners), suppressions), changes)

    def _suppressions(
        self, claims: pa.Table, statuses: list[str], database: Database, context: Context
    ) -> pa.Table | None:
        won = claims.filter(pa.array([status in (CLAIMED, OWN) for status in statuses]))
        known = database.table(
            "SELECT s.* FROM suppressions s SEMI JOIN won ON s.address = won.value"
            " WHERE s.expires_at IS NULL OR s.expires_at > ?",
            [context.now],
            won=won,
        )
        return known if known.num_rows else None


@dataclass(frozen=True)
class TakeIdentities:
    """The person's shard takes what was claimed. ``claims`` as before; ``email`` in it holds the
    address as written, for claims that shall become the address that mails go to (else null).

    Answers the subscriber ids that exist here, in order of the claims (null: nobody has the id).
    """

    key: str | None
    claims: pa.Table
    source: str
    suppressions: pa.Table | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        claims = _checked(self.claims)
        here = database.table(
            "SELECT p.subscriber_id FROM claims c LEFT JOIN profiles p"
            " ON p.subscriber_id = c.subscriber_id ORDER BY c.n",
            claims=claims,
        )["subscriber_id"].combine_chunks()
        held = claims.filter(here.is_valid())
        changes: list[Change] = []
        if held.num_rows:
            held = database.table(
                "SELECT c.* FROM held c ANTI JOIN identities d ON d.kind = c.kind AND"
                " d.value = c.value AND d.subscriber_id = c.subscriber_id"
                f" AND d.state = '{CONFIRMED}' ORDER BY c.n",
                held=held,
            )
        if held.num_rows:
            changes.append(
                upserted(
                    "identities",
                    held.num_rows,
                    kind=held["kind"],
                    value=held["value"],
                    subscriber_id=held["subscriber_id"],
                    state=CONFIRMED,
                    claimed_at=context.now,
                )
            )
        if self.suppressions is not None:
            changes.append(Change("suppressions", Op.UPSERT, self.suppressions))
        moved, pushes = self._addresses(claims.filter(here.is_valid()), database, context)
        return Decision(here, (*changes, *moved), pushes)

    def _addresses(
        self, claims: pa.Table, database: Database, context: Context
    ) -> tuple[list[Change], tuple[Push, ...]]:
        """Change the address of those whose claim says so, each person once: the last claim."""
        if EMAIL not in claims.column_names:
            return [], ()
        changed = database.table(
            "SELECT c.subscriber_id, arg_max(c.email, c.n) AS email, any_value(p.email) AS old"
            " FROM claims c JOIN profiles p ON p.subscriber_id = c.subscriber_id"
            " WHERE c.email IS NOT NULL GROUP BY c.subscriber_id"
            " HAVING arg_max(c.email, c.n) IS DISTINCT FROM any_value(p.email) ORDER BY 1",
            claims=claims,
        )
        if changed.num_rows == 0:
            return [], ()
        people = changed["subscriber_id"].combine_chunks()
        properties = [
            compact_json(
                {"source": self.source, "old": {EMAIL: row["old"]}, "new": {EMAIL: row["email"]}}
            )
            for row in changed.to_pylist()
        ]
        changes = [
            upserted(
                "profiles",
                len(people),
                subscriber_id=people,
                email=changed["email"],
                updated_at=context.now,
            ),
            upserted(
                "attribute_times",
                len(people),
                subscriber_id=people,
                name=EMAIL,
                changed_at=context.now,
            ),
            recorded(
                "profile_changed",
                people,
                pa.array(properties, pa.string()),
                context.now,
                context.random,
            ),
        ]
        # A leased message still carries the old address; it goes back and is leased anew.
        pushes = revocations(database, people.to_pylist(), EMAIL, marketing_only=False)
        return changes, pushes


@dataclass(frozen=True)
class SettleClaims:
    """End pending claims: ``taken`` says for each whether the person has it now.

    A claim that is no longer pending for this person is left as it is.
    """

    key: str | None
    claims: pa.Table
    taken: tuple[bool, ...]

    def decide(self, database: Database, context: Context) -> Decision:
        claims = _checked(self.claims)
        if len(self.taken) != claims.num_rows:
            raise InvalidRequest(
                "not as many verdicts as claims", path="taken", expected=str(claims.num_rows)
            )
        pending = database.table(
            "SELECT c.kind, c.value, d.subscriber_id, c.taken FROM claims c JOIN identities d"
            " ON d.kind = c.kind AND d.value = c.value AND d.subscriber_id = c.subscriber_id"
            f" WHERE d.state = '{PENDING}' ORDER BY c.n",
            claims=claims.append_column("taken", pa.array(self.taken, pa.bool_())),
        )
        changes = []
        held = pending.filter(pending["taken"]).drop_columns(["taken"])
        if held.num_rows:
            state = pa.repeat(CONFIRMED, held.num_rows)
            changes.append(Change("identities", Op.UPSERT, held.append_column("state", state)))
        gone = pending.filter(pc.invert(pending["taken"])).select(["kind", "value"])
        if gone.num_rows:
            changes.append(Change("identities", Op.DELETE, gone))
        return Decision(pending.num_rows, tuple(changes))


@dataclass(frozen=True)
class HasIdentity:
    """Whether the person has the identity, asked in the person's shard to settle a stale claim.

    It goes through the writer, so that no TakeIdentities is on its way unseen.
    """

    key: str | None
    subscriber_id: int
    kind: str
    value: str

    def decide(self, database: Database, context: Context) -> Decision:
        found = database.rows(
            "SELECT 1 FROM identities WHERE kind = ? AND value = ? AND subscriber_id = ?"
            f" AND state = '{CONFIRMED}'",
            [self.kind, compared(self.kind, self.value), self.subscriber_id],
        )
        return Decision(bool(found))


@dataclass(frozen=True)
class ReleaseIdentity:
    """The person gives up an identity; in both shards. The present address stays theirs."""

    key: str | None
    subscriber_id: int
    kind: str
    value: str

    def decide(self, database: Database, context: Context) -> Decision:
        value = compared(self.kind, self.value)
        person = database.rows(
            "SELECT p.subscriber_id FROM profiles p WHERE p.subscriber_id = ?"
            " AND ? = 'email' AND lower(p.email) = ?",
            [self.subscriber_id, self.kind, value],
        )
        if person:
            raise Conflict(
                "mails to this person go to that address",
                path="value",
                expected="an earlier address; change the address first",
            )
        found = database.rows(
            "SELECT 1 FROM identities WHERE kind = ? AND value = ? AND subscriber_id = ?",
            [self.kind, value, self.subscriber_id],
        )
        if not found:
            return Decision(False)
        gone = rows_of("identities", 1, kind=self.kind, value=value)
        return Decision(True, (Change("identities", Op.DELETE, gone),))


def change_of_address(subscriber_id: int, email: str) -> pa.Table:
    """The claim with which a person gets another address (as normalised)."""
    return further_identity(subscriber_id, EMAIL, email).append_column("email", pa.array([email]))


def further_identity(subscriber_id: int, kind: str, value: str) -> pa.Table:
    """The claim of one more identity for one person."""
    return pa.table(
        {
            "kind": pa.array([kind], pa.string()),
            "value": pa.array([compared(kind, value)], pa.string()),
            "subscriber_id": pa.array([subscriber_id], pa.int64()),
        }
    )


def _checked(claims: pa.Table) -> pa.Table:
    """Claims in their compared form, numbered."""
    kinds = pc.unique(claims["kind"]).to_pylist()
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong:
        raise InvalidRequest(
            f"{wrong[0]!r:.40} is not a kind of identity",
            path="claims.kind",
            expected=", ".join(KINDS),
        )
    values: list[Any] = []
    for kind, value in zip(claims["kind"].to_pylist(), claims["value"].to_pylist(), strict=True):
        text = compared(kind, value or "")
        if not text or len(text) > VALUE_LENGTH_MAX or not text.isprintable():
            raise InvalidRequest(
                f"{text!r:.80} cannot be an identity",
                path="claims.value",
                expected=f"1 to {VALUE_LENGTH_MAX} printable characters",
            )
        values.append(text)
    columns = {
        "n": pa.array(range(claims.num_rows), pa.int64()),
        "kind": claims["kind"].cast(pa.string()),
        "value": pa.array(values, pa.string()),
        "subscriber_id": claims["subscriber_id"].cast(pa.int64()),
    }
    if EMAIL in claims.column_names:
        for value, email in zip(values, claims[EMAIL].to_pylist(), strict=True):
            if email is not None and compared(EMAIL, email) != value:
                raise InvalidRequest(
                    f"{email!r:.80} is not the address that is claimed",
                    path="claims.email",
                    expected=f"{value}, in any case",
                )
        columns[EMAIL] = claims[EMAIL].cast(pa.string())
    return pa.table(columns)
