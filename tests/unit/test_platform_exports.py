"""Exports of other platforms: whose they are, and that no file resubscribes anybody."""

from __future__ import annotations

import csv
import io
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manta.command import Context, Repeated
from manta.errors import InvalidRequest
from manta.ids import even_ranges
from manta.people.commands import Consent, SetConsent, Suppress, Unsubscribe
from manta.people.double_opt_in import RequestConsent
from manta.people.importer import STATUS, cleaned, planned
from manta.people.importing import import_people
from manta.people.platform_exports import (
    AS_GIVEN,
    OUTCOMES,
    SUPPRESSING,
    described,
    plain,
    recognise,
)
from manta.people.platform_exports import _data as data
from manta.privacy.hashes import SETTING, forget_held, keyed_hash
from manta.store.importing import plan_import, read_people
from tests.unit.people_shard import Shard

NEWS = Consent("email", "news", "subscribed")

# A file of each platform: its name, its text, and what each row comes to.
FILES: dict[str, tuple[str, str, list[str]]] = {
    "Mailchimp": (
        "subscribed_email_audience_export_3f.csv",
        "Email Address,First Name,MEMBER_RATING,OPTIN_TIME,OPTIN_IP,CONFIRM_TIME,CONFIRM_IP,"
        "TIMEZONE,CC,LAST_CHANGED,LEID,EUID,NOTES,TAGS\n"
        "a@x.example,Ann,2,,,2019-06-25 17:38:27,,America/Los_Angeles,US,2019-06-27,1,c2,,"
        '"""VIP"""\n',
        ["subscribed"],
    ),
    "Mailchimp unsubscribed": (
        "unsubscribed_email_audience_export_3f.csv",
        "Email Address,MEMBER_RATING,OPTIN_TIME,CONFIRM_TIME,UNSUB_TIME,UNSUB_CAMPAIGN_TITLE,"
        "UNSUB_REASON,LEID,EUID\n"
        "a@x.example,2,2019-01-01,2019-01-01,2020-02-02 10:00:00,May,NORMAL,1,c2\n"
        "b@x.example,2,2019-01-01,2019-01-01,,,,2,c3\n",
        ["unsubscribed", "unsubscribed"],
    ),
    "Mailchimp cleaned": (
        "cleaned_x.csv",
        "Email Address,MEMBER_RATING,OPTIN_TIME,CLEAN_TIME,LEID,EUID\n"
        "a@x.example,1,2019-01-01,2020-02-02,1,c2\n",
        ["hard_bounce"],
    ),
    "Mailchimp by another name": (
        "people.csv",
        "Email Address,Status,MEMBER_RATING,OPTIN_TIME,CONFIRM_TIME,UNSUB_TIME,LEID\n"
        "a@x.example,subscribed,1,2019-01-01,2019-01-01,,1\n"
        "b@x.example,,1,2019-01-01,2019-01-01,,1\n"
        "c@x.example,subscribed,1,2019-01-01,2019-01-01,2020-01-01,1\n"
        "d@x.example,transactional,1,,,,1\n"
        "e@x.example,cleaned,1,,,,1\n",
        ["subscribed", "none", "unsubscribed", "none", "hard_bounce"],
    ),
    "Klaviyo": (
        "list.csv",
        "Email,Klaviyo ID,First Name,Phone Number,Source,Email Marketing Consent,"
        "Email Marketing Consent Timestamp,Email Suppressions\n"
        "a@x.example,01A,Ann,,form,SUBSCRIBED,2022-01-01T00:00:00Z,[]\n"
        "b@x.example,01B,,,form,NEVER_SUBSCRIBED,,\n"
        "c@x.example,01C,,,form,UNSUBSCRIBED,2022-01-01,[]\n"
        "d@x.example,01D,,,form,SUBSCRIBED,2022-01-01,\"['HARD_BOUNCE']\"\n"
        "e@x.example,01E,,,form,SUBSCRIBED,2022-01-01,USER_SUPPRESSED\n"
        "f@x.example,01F,,,form,SUBSCRIBED,2022-01-01,SPAM_COMPLAINT\n"
        "g@x.example,01G,,,form,Yes please,2022-01-01,\n",
        ["subscribed", "none", "unsubscribed", "hard_bounce", "suppressed", "complaint", "none"],
    ),
    "HubSpot": (
        "hubspot-crm-exports-all-contacts.csv",
        "Record ID,First Name,Email,Lifecycle Stage,Marketing contact status,"
        "Unsubscribed from all email,Email hard bounce reason,Legal basis for processing contact's "
        "data\n"
        "1,Ann,a@x.example,lead,Marketing contact,,,Freely given consent from contact\n"
        "2,Bob,b@x.example,lead,Marketing contact,false,,\n"
        "3,Cem,c@x.example,lead,Marketing contact,true,,Freely given consent from contact\n"
        "4,Dan,d@x.example,lead,Non-marketing contact,No,UNKNOWN_USER,\n",
        ["subscribed", "none", "unsubscribed", "hard_bounce"],
    ),
    "Brevo": (
        "contacts.csv",
        "CONTACT ID;EMAIL;FIRSTNAME;LASTNAME;SMS;DOUBLE_OPT-IN;EMAIL_BLACKLISTED\n"
        "1;a@x.example;Ann;A;;Yes;No\n2;b@x.example;Bob;B;;Yes;Yes\n3;c@x.example;Cem;C;;;\n",
        ["subscribed", "unsubscribed", "none"],
    ),
    "ActiveCampaign": (
        "export.csv",
        "ID,Email,First Name,Last Name,Phone,IP,Date Created,Lists,Tags,Status\n"
        "1,a@x.example,A,A,,1.2.3.4,2020-01-01,L,t,Active\n"
        "2,b@x.example,A,A,,1.2.3.4,2020-01-01,L,t,Unconfirmed\n"
        "3,c@x.example,A,A,,1.2.3.4,2020-01-01,L,t,Unsubscribed\n"
        "4,d@x.example,A,A,,1.2.3.4,2020-01-01,L,t,Bounced\n"
        "5,e@x.example,A,A,,1.2.3.4,2020-01-01,L,t,Something new\n",
        ["subscribed", "pending", "unsubscribed", "hard_bounce", "none"],
    ),
    "listmonk": (
        "subscribers.csv",
        "uuid,email,name,attributes,status,created_at,updated_at\n"
        '8e,a@x.example,Ann,"{}",enabled,2020-01-01T00:00:00Z,2020-01-01T00:00:00Z\n'
        '8f,b@x.example,Bob,"{}",blocklisted,2020-01-01T00:00:00Z,2020-01-01T00:00:00Z\n',
        ["none", "suppressed"],
    ),
    "MailerLite": (
        "export.csv",
        "Email,Name,Status,Subscribed at,Signup IP,Unsubscribed at\n"
        "a@x.example,A,Active,2020-01-01,1.2.3.4,\n"
        "b@x.example,B,Unsubscribed,2020-01-01,1.2.3.4,2021-01-01\n"
        "c@x.example,C,Junk,2020-01-01,1.2.3.4,\n"
        "d@x.example,D,Unconfirmed,2020-01-01,1.2.3.4,\n",
        ["subscribed", "unsubscribed", "complaint", "pending"],
    ),
    "SendGrid suppressions": (
        "suppression_unsubscribes.csv",
        "email,created,reason,status\na@x.example,1577836800,,\n",
        ["unsubscribed"],
    ),
    "SendGrid": (
        "contacts.csv",
        "EMAIL,FIRST_NAME,ALTERNATE_EMAILS,CONTACT_ID,CREATED_AT\na@x.example,A,,7,2020-01-01\n",
        ["none"],
    ),
    "Campaign Monitor": (
        "list.csv",
        "Email Address,Name,State,Date Subscribed\na@x.example,A,Active,2020\n"
        "b@x.example,B,Deleted,2020\nc@x.example,C,Bounced,2020\n",
        ["subscribed", "unsubscribed", "hard_bounce"],
    ),
    "Kit (ConvertKit)": (
        "subscribers.csv",
        "id,first_name,email_address,state,created_at\n1,A,a@x.example,active,2020-01-01\n"
        "2,B,b@x.example,inactive,2020-01-01\n3,C,c@x.example,cancelled,2020-01-01\n"
        "4,D,d@x.example,complained,2020-01-01\n",
        ["subscribed", "pending", "unsubscribed", "complaint"],
    ),
    "Constant Contact": (
        "contacts.csv",
        "Email address,First name,Email status,Email permission status,Email update source,"
        "Confirmed Opt-Out Date,Email Lists\n"
        "a@x.example,A,Active,Express,,,General\nb@x.example,B,Active,Implicit,,,General\n"
        "c@x.example,C,Unsubscribed,Unsubscribed,,2020-01-01,\nd@x.example,D,Bounced,Express,,,\n"
        "e@x.example,E,Active,Awaiting confirmation,,,\nf@x.example,F,Active,,,,\n",
        ["subscribed", "none", "unsubscribed", "hard_bounce", "pending", "none"],
    ),
    "Mautic": (
        "contacts.csv",
        "id,firstname,lastname,email,points,doNotContact\n1,A,A,a@x.example,3,0\n"
        "2,B,B,b@x.example,3,1\n3,C,C,c@x.example,3,2\n",
        ["none", "unsubscribed", "hard_bounce"],
    ),
    "Customer.io": (
        "people.csv",
        "cio_id,id,email,unsubscribed,created_at\n1,7,a@x.example,,1577836800\n"
        "2,8,b@x.example,true,1577836800\n3,9,c@x.example,false,1577836800\n",
        ["none", "unsubscribed", "none"],
    ),
    "Substack": (
        "email_list.shop.csv",
        "email,active_subscription,expiry,plan,email_disabled,created_at,first_payment_at\n"
        "a@x.example,false,,other,false,2025-01-01,\nb@x.example,true,,monthly,true,2025-01-01,\n",
        ["subscribed", "unsubscribed"],
    ),
    "": (  # somebody's own file
        "people.csv",
        "E-Mail,Subscription Status,Opted Out,Bounced\na@x.example,Subscribed,no,0\n"
        "b@x.example,Unsubscribed,,\nc@x.example,subscribed,2020-01-01,\nd@x.example,VIP,,\n"
        "e@x.example,subscribed,,yes\nf@x.example,,,\n",
        ["subscribed", "unsubscribed", "unsubscribed", "none", "hard_bounce", "none"],
    ),
}


@pytest.mark.parametrize("which", FILES)
def test_each_platform_is_known_and_its_words_understood(tmp_path, which):
    name, text, outcomes = FILES[which]
    path = tmp_path / name
    path.write_text(text, "utf-8")
    plan = plan_import(path, {})
    assert plan.statuses is not None
    assert plan.statuses.platform == next((p for p in _platforms() if which.startswith(p)), "")
    assert [c.header for c in plan.columns if c.target == "email"] != []
    (batch,) = [b for b in read_people(path, plan) if b.rows.num_rows]
    assert batch.rejects == []
    assert batch.rows[STATUS].to_pylist() == outcomes
    assert described(plan.statuses)[0].startswith("An export")


def _platforms() -> list[str]:
    names = [platform["name"] for platform in data()["platforms"].values()]
    return sorted(names, key=len, reverse=True)


def test_every_rule_of_the_data_is_well_formed():
    assert len({"Mailchimp", "Klaviyo", "Substack"} & set(_platforms())) == 3
    for platform in data()["platforms"].values():
        assert platform["signs"] and all(platform["signs"])
        assert platform.get("otherwise", "none") in OUTCOMES
        for rule in platform["status"]:
            named = [*rule.get("words", ()), *rule.get("holds", ())]
            named += [rule[k] for k in ("filled", "flag", "else") if k in rule]
            assert named and set(named) <= set(OUTCOMES), rule
    for each in data()["any"]["files"]:
        assert each["outcome"] in OUTCOMES and each["outcome"] != "subscribed"
    assert set(SUPPRESSING) < set(OUTCOMES)


def test_a_file_that_says_nothing_is_as_the_operator_says():
    plan, columns = recognise(["E-Mail", "City", "Status"], [["a@x.example"], ["Oslo"], ["gold"]])
    assert (plan, columns) == (None, {})
    assert "as you say" in described(plan)[0]
    exported = planned(["subscriber_id", "email", "status"], [["1"], ["a@b.example"], ["x"]], {})
    assert exported.statuses is None


def test_words_of_the_operator_come_first(tmp_path):
    path = tmp_path / "subscribers.csv"
    path.write_text(FILES["listmonk"][1])
    plan = plan_import(path, {}, words={"Enabled": "subscribed", "": "pending"})
    (batch,) = read_people(path, plan)
    assert batch.rows[STATUS].to_pylist() == ["subscribed", "suppressed"]
    with pytest.raises(InvalidRequest) as caught:
        plan_import(path, {}, words={"enabled": "happy"})
    assert caught.value.path == "words.enabled"


def test_a_mapped_column_is_no_status_unless_the_platform_says_so(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("email,status\na@x.example,unsubscribed\n")
    assert plan_import(path, {}).statuses is not None
    assert plan_import(path, {}, {"status": "tier"}).statuses is None


def test_types_of_a_parquet_file_are_read_too(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "email": ["a@x.example", "b@x.example", "c@x.example"],
            "accepts_marketing": [True, False, None],
            "unsubscribed_at": pa.array([None, None, 0], pa.timestamp("us")),
        }
    )
    pq.write_table(table, path)
    plan = plan_import(path, {})
    (batch,) = [b for b in read_people(path, plan) if b.rows.num_rows]
    assert batch.rows[STATUS].to_pylist() == ["subscribed", "none", "unsubscribed"]


# -- into the shards -------------------------------------------------------------------------------

KEY = b"k" * 32


class Cluster:
    """Two shards with memories of keys, and the workspace's secret."""

    def __init__(self, seed: int = 1) -> None:
        self.first_buckets = even_ranges(2)
        self.shards = [Keyed(seed), Keyed(seed + 1)]
        self.keys: set[str] = set()

    def submit(self, shard: int, command: Any) -> Any:
        future: Any = Future()
        if command.key is not None and command.key in self.keys:
            future.set_result(Repeated(command.key))
        else:
            future.set_result(self.shards[shard].answer(command))
            self.keys.add(command.key)
        return future

    def bring_in(self, path: Any, consent: Consent | None = NEWS, **words: str) -> Any:
        plan = plan_import(path, {}, words=words)
        return import_people(
            read_people(path, plan, 3),
            self.submit,
            self.first_buckets,
            key="k",
            source="import",
            consent=consent,
        )

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return sorted(row for shard in self.shards for row in shard.rows(sql))

    def home(self, email: str) -> Keyed:
        from manta.ids import shard_of_bucket
        from manta.people.identities import bucket_of

        return self.shards[shard_of_bucket(bucket_of("email", email), self.first_buckets)]

    def consents(self) -> dict[str, str]:
        return dict(
            self.rows(
                "SELECT email, status FROM consents JOIN profiles USING (subscriber_id)"
                " WHERE topic = 'news'"
            )
        )

    def stops(self) -> dict[str, str]:
        return dict(self.rows("SELECT address, reason FROM suppressions"))


class Keyed(Shard):
    def run(self, command: Any) -> Any:
        context = Context(self.now, self.random, "default", 0, {SETTING: KEY})
        self.database.begin()
        try:
            decision = command.decide(self.database, context)
            self.database.apply(self.database.prepare(decision.changes))
        except BaseException:
            self.database.rollback()
            raise
        self.database.commit()
        return decision


def written(tmp_path: Any, name: str, header: list[str], rows: list[list[str]]) -> Any:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    path = tmp_path / name
    path.write_text(text.getvalue(), "utf-8")
    return path


def test_a_file_of_all_kinds(tmp_path):
    cluster = Cluster()
    path = tmp_path / FILES["Klaviyo"][0]
    path.write_text(FILES["Klaviyo"][1])
    summary = cluster.bring_in(path)
    assert (summary.created, summary.consented, summary.suppressed) == (7, 2, 4)
    assert cluster.consents() == {"a@x.example": "subscribed", "c@x.example": "unsubscribed"}
    assert cluster.stops() == {
        "c@x.example": "unsubscribed",
        "d@x.example": "hard_bounce",
        "e@x.example": "manual",
        "f@x.example": "complaint",
    }
    again = cluster.bring_in(path)
    assert (again.repeated, again.suppressed) == (7, 0)


def test_a_refusal_is_not_lost_to_a_mistake_in_its_row(tmp_path):
    cluster = Cluster()
    path = tmp_path / "x.csv"
    path.write_text(
        "email,Time zone,Status\na@x.example,Nowhere/Land,unsubscribed\n"
        "b@x.example,Nowhere/Land,subscribed\nno address,,unsubscribed\n"
    )
    summary = cluster.bring_in(path)
    assert (summary.rejected, summary.created) == (2, 1)
    assert cluster.stops() == {"a@x.example": "unsubscribed"}


def test_without_a_consent_only_refusals_are_taken(tmp_path):
    cluster = Cluster()
    path = tmp_path / "x.csv"
    path.write_text(FILES["Klaviyo"][1])
    cluster.bring_in(path, consent=None)
    assert cluster.consents() == {}
    assert len(cluster.stops()) == 4


def test_the_strictest_row_of_a_person_counts_whatever_the_order(tmp_path):
    header = ["email", "status"]
    for states in (["subscribed", "unsubscribed"], ["unsubscribed", "subscribed"]):
        cluster = Cluster()
        rows = [["A@x.example", state] for state in states]
        cluster.bring_in(written(tmp_path, "x.csv", header, rows))
        assert cluster.consents() == {"A@x.example": "unsubscribed"}
        assert cluster.stops() == {"a@x.example": "unsubscribed"}


STATES = ("free", "unsubscribed", "all", "pending", "expired", "suppressed", "erased")
WORDS = st.sampled_from(
    ["subscribed", "Subscribed ", "SUBSCRIBED", "active", "enabled", "yes", "true", "1",
     "confirmed", "Express", "unsubscribed", "", "opted in", "pending", "new word", "false",
     "2020-01-01"]
)  # fmt: skip
HEADERS = st.sampled_from(
    ["Status", "status", "Email Marketing Consent", "Klaviyo ID", "LEID", "EUID", "MEMBER_RATING",
     "OPTIN_TIME", "Opted In", "consent", "state", "created_at", "uuid", "name", "attributes",
     "email_disabled", "active_subscription", "expiry", "Unsubscribed", "doNotContact", "City",
     "Email permission status", "cio_id", "DOUBLE_OPT-IN", "Accepts Marketing"]
)  # fmt: skip


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_whatever_a_file_says_nobody_who_refused_gets_consent(tmp_path, data):
    cluster = Cluster()
    people = {f"p{n}@x.example": state for n, state in enumerate(STATES)}
    for email, state in people.items():
        prepared(cluster.home(email), email, state)
    before = cluster.consents()
    header = ["email", *data.draw(st.lists(HEADERS, max_size=6, unique=True))]
    emails = [*data.draw(st.permutations(sorted(people))), data.draw(st.sampled_from([*people]))]
    rows = [
        [
            data.draw(st.sampled_from([email, email.upper()])),
            *(data.draw(WORDS) for _ in header[1:]),
        ]
        for email in emails
    ]
    name = data.draw(st.sampled_from(["people.csv", "subscribed_x.csv", "unsubscribed.csv"]))
    words = data.draw(st.dictionaries(WORDS.map(plain), st.sampled_from(OUTCOMES), max_size=2))
    path = written(tmp_path, name, header, rows)
    plan = plan_import(path, {}, words=words)
    import_people(
        read_people(path, plan, 4), cluster.submit, cluster.first_buckets,
        key="k", source="import", consent=NEWS,
    )  # fmt: skip
    after = cluster.consents()
    for email, state in people.items():
        if state != "free":
            assert after.get(email) != "subscribed", (state, header, rows, words)
            assert after.get(email) in (before.get(email), "unsubscribed", None)
    if plan.statuses is not None and plan.statuses.platform and "" not in words:
        columns = [pa.array(cells) for cells in zip(*rows, strict=True)]
        said = cleaned(plan, columns, range(len(rows))).rows[STATUS].to_pylist()
        assert AS_GIVEN not in said  # of a known platform silence is no consent


def prepared(shard: Keyed, email: str, state: str) -> None:
    if state == "erased":
        hashed = keyed_hash(KEY, "email", email)
        shard.load("suppressions", {"channel": "email", "address": hashed, "reason": "erased"})
        forget_held(shard.database)
    if state in ("free", "erased"):
        return
    person = shard.person(email)
    match state:
        case "unsubscribed":
            shard.answer(SetConsent(None, person, "email", "news", "unsubscribed", "page"))
        case "all":
            shard.answer(Unsubscribe(None, person, None, None, "one_click"))
        case "pending" | "expired":
            shard.answer(RequestConsent(None, person, (("news", True),), "form"))
            if state == "expired":
                shard.pass_time(days=30)
        case "suppressed":
            shard.answer(Suppress(None, "email", email, "complaint", "fbl"))
