"""Addresses: the quick way equals the library, and nothing that breaks a header gets in."""

import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manta.ids import bucket_of_identity
from manta.people.addresses import Refused, judged, normalised, normalised_each
from manta.people.identities import buckets_of_rows, compared, compared_each, route

CASES = Path(__file__).parents[3] / "shared" / "data" / "addresses" / "isemail-tests.xml"

LETTERS = st.sampled_from("abzAZ019_+'!-.@ \t\r\n\x00\"(äßΣ")
LABELS = st.sampled_from(
    ["a", "x-y", "mail", "B2", "com", "test", "local", "xn--bcher-kva", "1", ""]
)
ADDRESSES = st.builds(
    lambda local, labels: f"{local}@{'.'.join(labels)}",
    st.text(LETTERS, max_size=8),
    st.lists(LABELS, max_size=4),
)


@settings(deadline=None)
@given(st.one_of(ADDRESSES, st.text(LETTERS, max_size=20)))
@example("a@b.c")
@example("a@b.c\n")
@example("A.b@x-y.Com")
@example("a@b.c-d")
@example("a@sub.localhost")
@example(f"{'a' * 40}@{'b' * 30}.com")
@example("a@ab--c.com")
def test_the_quick_way_answers_like_the_library(text):
    assert normalised(text) == judged(text.strip(" "))


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), ADDRESSES), max_size=6))
def test_a_column_answers_like_its_texts(texts):
    column, reasons = normalised_each(pa.array(texts, pa.string()))
    answers = [None if text is None else normalised(text) for text in texts]
    assert column.to_pylist() == [None if isinstance(a, Refused) else a for a in answers]
    assert reasons == {n: a.reason for n, a in enumerate(answers) if isinstance(a, Refused)}


@settings(deadline=None)
@given(st.text(max_size=30))
def test_no_control_character_or_space_is_ever_kept(text):
    for candidate in (text, f"{text}@example.com", f"a@{text}.com"):
        answer = normalised(candidate)
        if isinstance(answer, str):
            assert not any(c.isspace() or unicodedata.category(c) == "Cc" for c in answer)
            domain = answer.rpartition("@")[2]
            assert domain.isascii() and domain == domain.lower()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (" Ann.Lee@Example.COM ", "Ann.Lee@example.com"),
        ("ann@bücher.de", "ann@xn--bcher-kva.de"),
        ("ju\u0308rgen@example.com", "jürgen@example.com"),
        ("o'neil+news@mail.example.co.uk", "o'neil+news@mail.example.co.uk"),
        ("someone@shop.test", "someone@shop.test"),
    ],
)
def test_the_kept_form(text, kept):
    assert normalised(text) == kept


@pytest.mark.parametrize(
    "text",
    ["", "ann", "ann@", "@x.com", "a@b", "a b@x.com", "a@x.com\r\nBcc: b@x.com", "a\x00@x.com",
     '"a b"@x.com', "a@[127.0.0.1]", "Ann <a@x.com>", "a..b@x.com", "a@x..com", "a" * 65 + "@x.com",
     "x" * 100_000],
)  # fmt: skip
def test_what_is_no_address_gets_a_reason(text):
    answer = normalised(text)
    assert isinstance(answer, Refused)
    assert answer.reason


def isemail_cases():
    for case in ElementTree.parse(CASES).getroot().iter("test"):  # noqa: S314 - our own fixture
        text = case.findtext("address") or ""
        # The file shows control characters by their symbols, U+2400 and on.
        text = "".join(chr(ord(c) - 0x2400) if 0x2400 <= ord(c) < 0x2420 else c for c in text)
        yield int(case.get("id")), text, case.findtext("category"), case.findtext("diagnosis")


@pytest.mark.skipif(not CASES.exists(), reason="the public address cases are not here")
def test_agreement_with_isemail():
    """Everything isemail calls an error is refused, everything it calls deliverable is kept, but
    for addresses at a top-level domain itself (ICANN has forbidden those since 2013)."""
    kept_errors, refused_valid = [], []
    for number, text, category, diagnosis in isemail_cases():
        kept = isinstance(normalised(text), str)
        if category == "ISEMAIL_ERR" and kept:
            kept_errors.append((number, text, diagnosis))
        elif category in ("ISEMAIL_VALID_CATEGORY", "ISEMAIL_DNSWARN") and not kept:
            refused_valid.append((number, text, diagnosis))
    assert kept_errors == []
    assert [text for _, text, _ in refused_valid] == ["test@io"]


# -- the compared form -----------------------------------------------------------------------------


def test_the_compared_form_is_lower_in_sql_over_all_of_unicode():
    letters = [chr(n) for n in range(1, 0x110000) if not 0xD800 <= n <= 0xDFFF]
    texts = pa.table({"text": letters})
    connection = duckdb.connect()
    connection.register("texts", texts)
    lower = [row[0] for row in connection.execute("SELECT lower(text) FROM texts").fetchall()]
    assert [compared("email", letter) for letter in letters] == lower


@settings(deadline=None)
@given(st.sampled_from(["email", "external_id"]), st.lists(st.one_of(st.none(), st.text())))
def test_columns_of_compared_forms(kind, texts):
    forms = compared_each(kind, pa.array(texts, pa.string())).to_pylist()
    assert forms == [None if text is None else compared(kind, text) for text in texts]


def test_rows_are_routed_by_address_else_by_external_id():
    rows = pa.table({"email": ["Ann@x.com", None, "ann@x.com"], "external_id": ["1", "2", None]})
    expected = [
        bucket_of_identity("email", "ann@x.com"),
        bucket_of_identity("external_id", "2"),
        bucket_of_identity("email", "ann@x.com"),
    ]
    assert buckets_of_rows(rows).tolist() == expected
    parts = route(rows, [0, expected[0] + 1])
    assert parts[0].num_rows >= 2
    assert sum(part.num_rows for part in parts.values()) == 3
    with pytest.raises(ValueError, match="no shard"):
        buckets_of_rows(pa.table({"email": pa.array([None], pa.string())}))
