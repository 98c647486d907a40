"""An import, as far as it is pure: what each column of a file means, and rows made clean.

A plan says for every column where it goes: to the address, the external id, time zone, locale, or
an attribute with its type. It is guessed from headers and the first values, may be overridden
column by column, and is fixed before the first row is taken, so that all rows are read alike.
``cleaned`` then turns columns of text (or of a Parquet file's types) into rows for
``UpsertPeople``; a row with anything wrong in it is refused whole, with its line and the reason,
so that it can be mended and imported again.

Where the file says who has unsubscribed (``manta.people.platform_exports``), each row carries its
outcome in the column ``STATUS``, which the import's driver takes off again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from zoneinfo import available_timezones

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.errors import InvalidRequest
from manta.ids import hash64
from manta.people.addresses import normalised, normalised_each
from manta.people.attributes import (
    ARROW_TYPES,
    attribute_name,
    attribute_names,
    inferred_type,
    values_of,
)
from manta.people.delimited import Reject
from manta.people.identities import VALUE_LENGTH_MAX
from manta.people.platform_exports import SUPPRESSING, StatusPlan, recognise
from manta.schema import ATTRIBUTE_NAME, ATTRIBUTE_PREFIX, ATTRIBUTES_MAX, AttributeType

SKIP = "skip"
STATUS = "consent_status"
FIXED = ("email", "external_id", "time_zone", "locale")
# Headers, as attribute names, by which a fixed column is known; the first in the file gets it.
KNOWN_HEADERS = {
    "email": ("email", "e_mail", "email_address", "e_mail_address", "emailaddress", "mail",
              "e_mail_adresse", "email_adresse", "emailadresse", "correo", "correo_electronico",
              "adresse_e_mail", "subscriber_email", "contact_email"),
    "external_id": ("external_id", "externalid", "customer_id", "customerid", "user_id", "userid",
                    "customer_number", "kundennummer"),
    "time_zone": ("time_zone", "timezone", "tz"),
    "locale": ("locale",),
}  # fmt: skip
# A file with the first of these was exported from here: ids and times of its own mean nothing new.
EXPORTED = ("subscriber_id", "created_at", "updated_at")
# What people write where they have no value; read as empty, except in texts.
NOTHING = ("n/a", "na", "null", "none", "nil", "-", "#n/a")
_LOCALE = r"^[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8}){0,3}$"
# A cell that a spreadsheet would take for a formula is written with an apostrophe before it.
GUARDED = r"^'*[=+\-@\t\r]"
_GUARD_TO_TAKE_OFF = r"^'('*[=+\-@\t\r])"


@dataclass(frozen=True)
class PlannedColumn:
    """``header`` as in the file, its place from 0, and ``target``: one of ``FIXED``, ``skip``, or
    ``attr_<name>``."""

    header: str
    place: int
    target: str
    type: AttributeType = AttributeType.STRING


@dataclass(frozen=True)
class ImportPlan:
    """What the columns of a file mean. ``has_header``: the first row names the columns;
    ``statuses``: what it says of consent."""

    columns: tuple[PlannedColumn, ...]
    has_header: bool = True
    statuses: StatusPlan | None = None

    @property
    def attributes(self) -> dict[str, AttributeType]:
        """The attributes that rows of this file may carry, to be declared before the import."""
        return {
            column.target.removeprefix(ATTRIBUTE_PREFIX): column.type
            for column in self.columns
            if column.target.startswith(ATTRIBUTE_PREFIX)
        }

    def key(self, checksum: str) -> str:
        """The root of the command keys of an import: this file, read in this way."""
        return f"{checksum}-{hash64(repr(self)) & 0xFFFF_FFFF:08x}"


@dataclass(frozen=True)
class Cleaned:
    """Rows for ``UpsertPeople`` with the line of each, and the rows refused."""

    rows: pa.Table
    lines: list[int]
    rejects: list[Reject]


def planned(
    headers: Sequence[str],
    samples: Sequence[Sequence[str | None]],
    declared: Mapping[str, AttributeType],
    overrides: Mapping[str, str] | None = None,
    has_header: bool = True,
    own_types: Sequence[AttributeType | None] | None = None,
    file_name: str = "",
    words: Mapping[str, str] | None = None,
) -> ImportPlan:
    """The plan for columns with these headers and first values. ``file_name`` and ``words`` as in
    ``platform_exports.recognise``.

    ``overrides``: header → ``email``, ``external_id``, ``time_zone``, ``locale``, ``skip``, or the
    name of an attribute, if wanted with ``:type``. A declared attribute keeps its type; else the
    override's, the file's own (``own_types``), or the one guessed is taken. Raises
    ``InvalidRequest`` for an unknown header or type, a target given twice, no column that names
    people, and more than ``ATTRIBUTES_MAX`` attributes.
    """
    overrides = dict(overrides or {})
    for header in overrides:
        if header not in headers:
            raise InvalidRequest(
                f"the file has no column {header!r:.80}",
                path=f"mapping.{header:.80}",
                expected=", ".join(repr(h) for h in headers)[:500],
            )
    statuses = None
    if EXPORTED[0] not in headers:  # what was exported from here says nothing about consent
        statuses, theirs = recognise(headers, samples, file_name, words, overrides)
        wanted = {_wanted_target(target) for target in overrides.values()}
        for header, target in theirs.items():
            if target == SKIP or target not in wanted:
                overrides.setdefault(header, target)
    targets = _targets(headers, samples, overrides)
    columns = []
    for place, (header, target) in enumerate(zip(headers, targets, strict=True)):
        kind = AttributeType.STRING
        name, _, typed = target.partition(":")
        if name.startswith(ATTRIBUTE_PREFIX):
            typed = typed or (own_types[place] if own_types else None) or ""
            kind = _type(name.removeprefix(ATTRIBUTE_PREFIX), typed, declared, samples[place])
        columns.append(PlannedColumn(header, place, name, kind))
    plan = ImportPlan(tuple(columns), has_header, statuses)
    _check_plan(plan)
    return plan


def _targets(
    headers: Sequence[str], samples: Sequence[Sequence[str | None]], overrides: dict[str, str]
) -> list[str]:
    exported = EXPORTED[0] in headers
    own = [header.removeprefix(ATTRIBUTE_PREFIX) if exported else header for header in headers]
    names = attribute_names(own)
    targets: list[str | None] = [
        SKIP if exported and header in EXPORTED else None for header in headers
    ]
    for place, header in enumerate(headers):
        wanted = overrides.pop(header, None)  # of headers that repeat, the first is meant
        if wanted is not None:
            targets[place] = _wanted_target(wanted)
    taken = {target for target in targets if target}
    for fixed, known in KNOWN_HEADERS.items():
        if fixed not in taken:
            for place, name in enumerate(names):
                if targets[place] is None and name in known:
                    targets[place] = fixed
                    break
    if "email" not in targets:
        by_content = [
            (_address_count(samples[place]), -place)
            for place in range(len(headers))
            if targets[place] is None
        ]
        count, before_all = max(by_content, default=(0, 0))
        if count > 0:
            targets[-before_all] = "email"
    return [
        target or f"{ATTRIBUTE_PREFIX}{name}" for target, name in zip(targets, names, strict=True)
    ]


def _wanted_target(wanted: str) -> str:
    if wanted in (*FIXED, SKIP):
        return wanted
    name, colon, kind = wanted.removeprefix(ATTRIBUTE_PREFIX).partition(":")
    if not ATTRIBUTE_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r:.80} cannot be an attribute's name",
            path="mapping",
            expected=f"{', '.join(FIXED)}, {SKIP}, or a name like {attribute_name(name)!r}",
        )
    return f"{ATTRIBUTE_PREFIX}{name}{colon}{kind}"


def _address_count(values: Sequence[str | None]) -> int:
    return sum(isinstance(normalised(value), str) for value in values if value and "@" in value)


def _type(
    name: str,
    typed: str,
    declared: Mapping[str, AttributeType],
    samples: Sequence[str | None],
) -> AttributeType:
    if typed and typed not in set(AttributeType):
        raise InvalidRequest(
            f"{typed!r:.40} is not a type",
            path=f"mapping.{name}",
            expected=", ".join(AttributeType),
        )
    if name in declared:
        return declared[name]
    if typed:
        return AttributeType(typed)
    return inferred_type([v for v in samples if v and v.strip().lower() not in NOTHING])


def _check_plan(plan: ImportPlan) -> None:
    seen: dict[str, str] = {}
    for column in plan.columns:
        if column.target == SKIP:
            continue
        if column.target in seen:
            raise InvalidRequest(
                f"the columns {seen[column.target]!r:.80} and {column.header!r:.80} both go to "
                f"{column.target}",
                path=f"mapping.{column.header:.80}",
                expected="another target, or skip",
            )
        seen[column.target] = column.header
    if not {"email", "external_id"} & set(seen):
        raise InvalidRequest(
            "no column holds e-mail addresses or external ids",
            path="mapping",
            expected="map one of " + ", ".join(repr(c.header) for c in plan.columns)[:500],
        )
    if len(plan.attributes) > ATTRIBUTES_MAX:
        raise InvalidRequest(
            f"{len(plan.attributes)} columns become attributes",
            path="mapping",
            expected=f"at most {ATTRIBUTES_MAX}; skip some",
        )


def looks_headless(row: Sequence[str]) -> bool:
    """Whether a first row holds people and no headers: an address is not the name of a column."""
    return any("@" in cell and isinstance(normalised(cell), str) for cell in row)


def cleaned(plan: ImportPlan, columns: Sequence[pa.Array], lines: Sequence[int]) -> Cleaned:
    """The rows of these columns (in file order) that are good, and the others with a reason.

    Texts are trimmed; empty cells are null, which keeps what is stored. A row that says not to mail
    its address is not lost to a mistake elsewhere in it: the wrong cell is left out.
    """
    reasons: dict[int, str] = {}
    made: dict[str, pa.Array] = {}
    outcomes = plan.statuses.outcomes(columns, len(lines)) if plan.statuses else None
    refusing = _refusing(outcomes)
    for column in plan.columns:
        if column.target == SKIP:
            continue
        values, wrong = _column(column, columns[column.place])
        if column.target != "email" and (spared := refusing & wrong.keys()):
            values = _without(values, spared)
            wrong = {place: reason for place, reason in wrong.items() if place not in spared}
        made[column.target] = values
        for place, reason in wrong.items():
            reasons.setdefault(place, f"{column.header}: {reason}")
    _check_named(made, reasons, len(lines))
    if outcomes is not None:
        made[STATUS] = outcomes
    rows = pa.table(made)
    if not reasons:
        return Cleaned(rows, list(lines), [])
    keep = np.ones(len(lines), bool)
    keep[list(reasons)] = False
    rejects = [
        Reject(lines[place], reasons[place], raw_row(columns, place)) for place in sorted(reasons)
    ]
    kept = np.asarray(lines)[keep].tolist()
    return Cleaned(rows.filter(pa.array(keep)), kept, rejects)


def _refusing(outcomes: pa.Array | None) -> set[int]:
    """The places of rows that say not to mail their address."""
    if outcomes is None:
        return set()
    mask = pc.is_in(outcomes, value_set=pa.array(list(SUPPRESSING)))
    return set(np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist())


def _without(values: pa.Array, places: set[int]) -> pa.Array:
    mask = np.zeros(len(values), bool)
    mask[list(places)] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, values.type), values)


def raw_row(columns: Sequence[pa.Array], place: int) -> str:
    """A refused row as CSV text, for rows whose own text is gone."""
    cells = [column[place].as_py() for column in columns]
    texts = ["" if cell is None else str(cell) for cell in cells]
    return ",".join(f'"{t.replace(chr(34), chr(34) * 2)}"' if _must_quote(t) else t for t in texts)


def _must_quote(text: str) -> bool:
    return any(char in text for char in ',"\r\n')


def _check_named(made: dict[str, pa.Array], reasons: dict[int, str], count: int) -> None:
    named = np.zeros(count, bool)
    for target in ("email", "external_id"):
        if target in made:
            named |= made[target].is_valid().to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(~named).tolist():
        reasons.setdefault(place, "no address" if "email" in made else "no external id")


def _column(column: PlannedColumn, values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    kind = ARROW_TYPES[column.type]
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if column.target.startswith(ATTRIBUTE_PREFIX) and not _is_text(values.type):
        return _typed(values, kind)
    texts = _texts(values)
    if column.target == "email":
        return normalised_each(texts)
    if column.target == "external_id":
        long = pc.fill_null(pc.greater(pc.utf8_length(texts), VALUE_LENGTH_MAX), False)
        return texts, _where(long, f"longer than {VALUE_LENGTH_MAX} characters")
    if column.target == "time_zone":
        known = pc.is_in(texts, value_set=_zones())
        return texts, _where(pc.and_(pc.invert(known), texts.is_valid()), "not an IANA time zone")
    if column.target == "locale":
        fits = pc.fill_null(pc.match_substring_regex(texts, _LOCALE), True)
        return pc.replace_substring(texts, "_", "-"), _where(pc.invert(fits), "not a locale")
    if column.type is AttributeType.STRING:
        guarded = pc.any(pc.starts_with(texts, "'")).as_py()
        if guarded:
            texts = pc.replace_substring_regex(texts, _GUARD_TO_TAKE_OFF, r"\1")
    else:
        nothing = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(NOTHING))
        texts = pc.if_else(nothing, pa.scalar(None, pa.string()), texts)
    return values_of(texts, column.type)


def _texts(values: pa.Array) -> pa.Array:
    """Trimmed texts; null for empty ones."""
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _typed(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """A column of a file that has types of its own; one by one where a whole cast fails."""
    if pa.types.is_timestamp(values.type) and values.type.tz is not None:
        values = values.cast(pa.timestamp("us", values.type.tz)).cast(pa.timestamp("us"))
    try:
        column = values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        column = None
    if column is not None and pa.types.is_floating(kind):
        wrong = pc.invert(pc.fill_null(pc.is_finite(column), True))
        return column, _where(wrong, "not a finite number")
    if column is not None:
        return column, {}
    every = np.ones(len(values), bool)
    reason = f"{values.type} is no {kind}"
    wrong = pc.and_(pa.array(every), values.is_valid())
    return pa.nulls(len(values), kind), _where(wrong, reason)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _where(mask: pa.Array, reason: str) -> dict[int, str]:
    places = np.flatnonzero(mask.to_numpy(zero_copy_only=False).astype(bool)).tolist()
    return dict.fromkeys(places, reason)


@cache
def _zones() -> pa.Array:
    return pa.array(sorted(available_timezones()))


def typed_attribute(kind: pa.DataType) -> AttributeType:
    """The attribute type for a column of a file that has types of its own."""
    if pa.types.is_boolean(kind):
        return AttributeType.BOOLEAN
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return AttributeType.NUMBER
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return AttributeType.DATE
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return AttributeType.LIST
    return AttributeType.STRING
