"""Attributes: names, guessed types and parsed values."""

from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.people.attributes import (
    ARROW_TYPES,
    Unfit,
    attribute_name,
    attribute_names,
    inferred_type,
    value_of,
    values_of,
)
from manta.schema import ATTRIBUTE_NAME, AttributeType


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("First Name", "first_name"),
        ("lastName", "last_name"),
        ("Straße", "strasse"),
        ("Größe (cm)", "grosse_cm"),
        ("2023 sales", "a_2023_sales"),
        ("__x__", "x"),
        ("城市", "column"),
        ("", "column"),
        ("a" * 80, "a" * 63),
        ("DROP TABLE; --", "drop_table"),
    ],
)
def test_names_from_headers(header, name):
    assert attribute_name(header) == name


@settings(deadline=None)
@given(st.lists(st.text(max_size=70), max_size=12))
def test_every_header_gets_a_name_of_its_own(headers):
    names = attribute_names(headers)
    assert len(set(names)) == len(headers)
    assert all(ATTRIBUTE_NAME.fullmatch(name) for name in names)


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (["1", "2.5", "", None, "-3", "1e5"], "number"),
        (["0", "1"], "number"),
        (["yes", "No", "TRUE"], "boolean"),
        (["2026-03-01", "2026-03-01T10:00:00Z", "1.2.2026"], "date"),
        (['["a", "b"]', "[]"], "list"),
        (["01234", "5"], "string"),
        (["+49 30 1234"], "string"),
        (["12345678901234567"], "string"),
        (["03/04/2026"], "string"),
        (["2026-02-30"], "string"),
        (["1", "x"], "string"),
        ([], "string"),
        (["", None], "string"),
    ],
)
def test_types_from_samples(samples, kind):
    assert inferred_type(samples) == kind


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        (" x ", "string", "x"),
        ("", "number", None),
        ("+1.50", "number", 1.5),
        ("1", "boolean", True),
        ("Off", "boolean", False),
        ("2026-03-01", "date", datetime(2026, 3, 1)),
        ("2026-03-01 10:00", "date", datetime(2026, 3, 1, 10)),
        ("2026-03-01T10:00:00.5+02:00", "date", datetime(2026, 3, 1, 8, 0, 0, 500000)),
        ("31.12.1999", "date", datetime(1999, 12, 31)),
        ("a| b ;c", "list", ["a", "b", "c"]),
        ('["a;b"]', "list", ["a;b"]),
    ],
)
def test_values_from_text(text, kind, value):
    assert value_of(text, AttributeType(kind)) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("abc", "number"),
        ("nan", "number"),
        ("1e999", "number"),
        ("1,5", "number"),
        ("maybe", "boolean"),
        ("2026-13-01", "date"),
        ("0001-01-01T00:00:00+14:00", "date"),
        ("tomorrow", "date"),
        ("[1]", "list"),
        ("[", "list"),
        ("x" * 10_001, "string"),
    ],
)
def test_unfit_texts_say_why(text, kind):
    answer = value_of(text, AttributeType(kind))
    assert isinstance(answer, Unfit)
    assert len(answer) < 120


TEXTS = st.one_of(
    st.none(),
    st.sampled_from(
        ["", " ", "1", "-2.5", "1e400", "yes", "N", "x", "2026-02-28", "2026-02-30", "[]", "a|b",
         "2026-02-28T10:00:00Z", "2026-02-28 10:00", "9999-12-31T23:00:00-05:00", "1.2.2026"]
    ),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=4), st.sampled_from(list(AttributeType)))
def test_a_column_is_parsed_like_its_texts(texts, kind):
    column, reasons = values_of(pa.array(texts, pa.string()), kind)
    assert column.type == ARROW_TYPES[kind]
    answers = [None if text is None else value_of(text, kind) for text in texts]
    assert column.to_pylist() == [None if isinstance(a, Unfit) else a for a in answers]
    assert reasons == {n: str(a) for n, a in enumerate(answers) if isinstance(a, Unfit)}
