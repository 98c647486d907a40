"""Webhooks of providers over HTTP: proof first, then the shards, then the answer."""

import base64
import hmac
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from manta.clock import ManualClock, as_text
from manta.content.mime import message_id
from manta.errors import InvalidRequest, NotReady
from manta.settings import WebhookSettings
from serve_apps.links import LinkKeys
from serve_apps.problems import Unauthorized
from serve_apps.webhooks import Source, create_webhooks, generic, ses, sources_of
from tests.unit.inbox_house import FakeCatalog, FakeShards
from tests.unit.people_shard import START
from tests.unit.serve_fakes import client

POSTMARK = "user:pass word"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:mail"
CERTIFICATE_URL = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem"
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
SENDGRID_KEY = ec.generate_private_key(ec.SECP256R1())
SNS_KEY = rsa.generate_private_key(65537, 2048)
VECTORS = Path(__file__).parents[3] / "shared/data/webhooks/standard_webhooks.json"


def certificate(key=SNS_KEY, until=START + timedelta(days=300)):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START - timedelta(days=100))
        .not_valid_after(until)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


class World:
    """The app over shards that really decide."""

    def __init__(self):
        self.clock = ManualClock(START)
        self.shards = FakeShards()
        self.catalog = FakeCatalog()
        self.fetched = []
        self.certificate = certificate()
        self.random = None
        public = SENDGRID_KEY.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        sources = {
            "generic": Source((SECRET,)),
            "mailgun": Source(("old-key", "key")),
            "postmark": Source((POSTMARK,)),
            "sendgrid": Source((base64.b64encode(public).decode(),)),
            "ses": Source(topics=(TOPIC,)),
        }
        self.app = create_webhooks(
            self, LinkKeys(self.catalog, "default", self.clock), sources, self.fetch
        )

    async def fetch(self, url):
        self.fetched.append(url)
        if isinstance(self.certificate, Exception):
            raise self.certificate
        return self.certificate

    async def post(self, provider, body, headers=None):
        async with client(self.app, "/webhooks") as http:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(f"/webhooks/{provider}", content=raw, headers=headers)

    def message(self, email="ann@x.example", key=11, **columns):
        person = self.shards.person(email)
        return self.shards.accepted(person, key, **columns)

    def suppressions(self):
        return self.shards.rows("SELECT address, reason, source FROM suppressions ORDER BY 1")


@pytest.fixture
def world():
    return World()


def seconds(at):
    return str(int(at.replace(tzinfo=UTC).timestamp()))


# -- each provider's way ---------------------------------------------------------------------------


def of_generic(body, now, secret=SECRET, id="msg_1"):
    raw = json.dumps(body).encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{id}.{seconds(now)}.".encode() + raw
    mac = base64.b64encode(hmac.digest(key, signed, sha256)).decode()
    return raw, {
        "webhook-id": id,
        "webhook-timestamp": seconds(now),
        "webhook-signature": f"v1a,xx v1,AAAA v1,{mac}",
    }


def of_sendgrid(body, now, key=SENDGRID_KEY):
    raw = json.dumps(body).encode()
    signature = key.sign(seconds(now).encode() + raw, ec.ECDSA(hashes.SHA256()))
    return raw, {
        "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
        "X-Twilio-Email-Event-Webhook-Timestamp": seconds(now),
    }


def of_mailgun(event, now, key="key"):
    token = "t" * 50
    mac = hmac.digest(key.encode(), f"{seconds(now)}{token}".encode(), sha256).hex()
    signature = {"timestamp": seconds(now), "token": token, "signature": mac}
    return json.dumps({"signature": signature, "event-data": event}).encode(), {}


def of_postmark(body, now, secret=POSTMARK):
    basic = base64.b64encode(secret.encode()).decode()
    return json.dumps(body).encode(), {"Authorization": f"Basic {basic}"}


def of_ses(message, now, version="2", key=SNS_KEY, **changed):
    fields = {
        "Type": "Notification",
        "MessageId": "m-1",
        "TopicArn": TOPIC,
        "Message": json.dumps(message),
        "Timestamp": as_text(now),
        "SignatureVersion": version,
        "SigningCertURL": CERTIFICATE_URL,
    } | changed
    names = ses._SIGNED.get(fields["Type"], ())
    signed = "".join(f"{name}\n{fields[name]}\n" for name in names if name in fields)
    algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()  # noqa: S303  # as SNS does
    signature = key.sign(signed.encode(), padding.PKCS1v15(), algorithm)
    fields["Signature"] = base64.b64encode(signature).decode()
    return json.dumps(fields).encode(), {"Content-Type": "text/plain; charset=UTF-8"}


def bounce_by(provider, ref, address="ann@x.example", now=START):
    """A hard bounce of a message as each provider tells it."""
    name = message_id(ref, "news.example")
    words = "550 5.1.1 no such user"
    match provider:
        case "generic":
            body = {"id": "e1", "type": "bounced", "address": address, "bounce_class": "hard"}
            return of_generic(body | {"message_id": name, "diagnostic": words}, now)
        case "sendgrid":
            body = {"sg_event_id": "e1", "event": "bounce", "type": "bounce", "email": address}
            body |= {"smtp-id": name, "reason": words, "timestamp": int(seconds(now))}
            return of_sendgrid([body], now)
        case "mailgun":
            status = {"code": 550, "message": words}
            event = {"id": "e1", "event": "failed", "severity": "permanent", "reason": "bounce"}
            event |= {"recipient": address, "delivery-status": status}
            event |= {"message": {"headers": {"message-id": name.strip("<>")}}}
            return of_mailgun(event, now)
        case "postmark":
            body = {"RecordType": "Bounce", "Type": "HardBounce", "ID": 1, "Email": address}
            dump = f"Received: x\r\nMessage-ID: {name}\r\n\r\n"
            return of_postmark(body | {"Details": words, "Content": dump}, now)
        case _:
            one = {"emailAddress": address, "diagnosticCode": f"smtp; {words}"}
            bounce = {"bounceType": "Permanent", "bouncedRecipients": [one]}
            headers = [{"name": "Message-ID", "value": name}]
            mail = {"source": "x@y.example", "headers": headers}
            said = {"notificationType": "Bounce", "bounce": bounce, "mail": mail}
            return of_ses(said, now)


PROVIDERS = ("generic", "sendgrid", "mailgun", "postmark", "ses")


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_bounce_is_recorded_for_its_message_and_once(world, provider):
    ref = world.message()
    answer = await world.post(provider, *bounce_by(provider, ref))
    assert (answer.status_code, answer.json()) == (
        200,
        {"recorded": 1, "repeated": 0, "ignored": 0},
    )
    source = f"webhook:{provider}"
    assert world.suppressions() == [("ann@x.example", "hard_bounce", source)]
    assert world.shards.rows("SELECT message_key, item FROM events") == [(11, "hard")]
    again = await world.post(provider, *bounce_by(provider, ref))
    assert (again.status_code, again.json()["recorded"]) == (200, 0)
    assert len(world.shards.rows("SELECT 1 FROM events")) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_cannot_be_stored_is_asked_for_again(world, provider):
    ref = world.message()
    world.shards.trouble = [NotReady("starting")]
    answer = await world.post(provider, *bounce_by(provider, ref))
    assert (answer.status_code, world.suppressions()) == (503, [])
    assert "retry-after" in answer.headers
    assert (await world.post(provider, *bounce_by(provider, ref))).json()["recorded"] == 1


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_wrong_signature_does_nothing(world, provider):
    raw, headers = bounce_by(provider, world.message())
    tampered = raw.replace(b"ann@x", b"bob@x")
    if provider == "mailgun":  # it signs no content: a wrong key, then
        tampered, headers = of_mailgun({"id": "e"}, START, key="guess")
    if provider == "postmark":
        tampered, headers = of_postmark({}, START, secret="user:guess")
    if provider == "ses":
        tampered = raw.replace(b"no such user", b"no SUCH user")
    for body, given in ((tampered, headers), (raw, {}), (b"{}", headers), (b"[]", {})):
        if provider in ("mailgun", "ses") and body is raw:
            continue  # their proof stands in the body
        if provider == "postmark" and given and body is not tampered:
            continue
        answer = await world.post(provider, body, given)
        assert answer.status_code == 401, (body, answer.text)
        assert "bearer" not in answer.headers.get("www-authenticate", "").lower()
    assert world.shards.log == []


@pytest.mark.parametrize("provider", [p for p in PROVIDERS if p != "postmark"])
@pytest.mark.parametrize("hours", [-3, 3])
async def test_an_old_or_future_timestamp_is_a_replay(world, provider, hours):
    ref = world.message()
    raw, headers = bounce_by(provider, ref, now=START + timedelta(hours=hours))
    assert (await world.post(provider, raw, headers)).status_code == 401
    assert world.shards.log == []


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("raw", [b"", b"\xff", b"null", b"[" * 100_000, b'{"a":'])
async def test_what_is_no_document(world, provider, raw):
    answer = await world.post(provider, raw)
    assert answer.status_code in (400, 401)
    assert world.shards.log == []


async def test_who_is_not_in_the_settings_and_what_is_too_large(world):
    assert (await world.post("nobody", b"{}")).status_code == 404
    assert (await world.post("", b"{}")).status_code == 404
    async with client(world.app, "/webhooks") as http:
        assert (await http.get("/webhooks/generic")).status_code == 405
    assert (await world.post("generic", b"x" * (5 << 20))).status_code == 413
    many = [{"id": str(n), "type": "bounced", "address": "a@b.example"} for n in range(1_001)]
    assert (await world.post("generic", *of_generic({"events": many}, START))).status_code == 413
    assert world.shards.log == []


async def test_by_address_where_no_message_is_named(world):
    person = world.shards.person("ann@x.example")
    body = {"id": "e1", "type": "complained", "address": "Ann@X.example"}
    answer = await world.post("generic", *of_generic(body, START))
    assert answer.json()["recorded"] == 1
    assert world.suppressions() == [("ann@x.example", "complaint", "webhook:generic")]
    assert world.shards.rows("SELECT subscriber_id, message_key FROM events") == [(person, None)]


async def test_by_address_over_two_shards(world):
    owner = world.shards.of_identity("email", "ann@x.example")
    world.shards.person("ann@x.example", home=1 - owner)
    body = {"id": "e1", "type": "bounced", "address": "ann@x.example", "bounce_class": "hard"}
    await world.post("generic", *of_generic(body, START))
    assert len(world.suppressions()) == 2
    assert len(world.shards.rows("SELECT 1 FROM events")) == 1


async def test_by_the_signed_return_path(world):
    ref = world.message()
    path = world.catalog.keyring.verp_local_part(ref) + "@bounces.example.com"
    mail = {"source": path, "commonHeaders": {"messageId": "<other@eu.amazonses.com>"}}
    complaint = {"complainedRecipients": [{"emailAddress": "ann@x.example"}]}
    said = {"eventType": "Complaint", "complaint": complaint, "mail": mail}
    answer = await world.post("ses", *of_ses(said, START))
    assert answer.json()["recorded"] == 1
    assert world.shards.rows("SELECT message_key, type FROM events") == [(11, "complained")]


async def test_a_batch_whose_events_do_not_all_make_sense(world):
    refs = [world.message(f"p{n}@x.example", 100 + n) for n in range(3)]
    events = [
        {"sg_event_id": f"e{n}", "event": "bounce", "email": f"p{n}@x.example"}
        | {"smtp-id": message_id(ref, "news.example"), "reason": "550 5.1.1 unknown"}
        for n, ref in enumerate(refs)
    ]
    events += [
        {"sg_event_id": "e5", "event": "open", "email": "p1@x.example"},
        {"sg_event_id": "e6", "event": "deferred", "email": "p1@x.example"},
        {"sg_event_id": "e7", "event": "delivered", "email": "p1@x.example"},
        {"sg_event_id": {"a": 1}, "event": "bounce", "email": "p1@x.example"},
        {"event": "bounce"},
        None,
        7,
    ]
    answer = await world.post("sendgrid", *of_sendgrid(events, START))
    assert answer.json() == {"recorded": 3, "repeated": 0, "ignored": 1}
    assert len(world.suppressions()) == 3


# -- what counts as what ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "stops"),
    [
        ({"event": "bounce", "bounce_classification": "Invalid Address"}, "hard_bounce"),
        ({"event": "bounce", "bounce_classification": "Mailbox Unavailable"}, None),
        ({"event": "bounce", "type": "blocked"}, None),
        ({"event": "bounce", "reason": "552 5.3.4 message too big"}, None),
        ({"event": "bounce", "reason": "550 5.7.1 blocked using spamhaus"}, None),
        ({"event": "dropped", "reason": "Bounced Address"}, "hard_bounce"),
        ({"event": "dropped", "reason": "Unsubscribed Address"}, None),
        ({"event": "spamreport"}, "complaint"),
    ],
)
async def test_sendgrid_events(world, event, stops):
    world.shards.person("ann@x.example")
    body = [{"sg_event_id": "e", "email": "ann@x.example", **event}]
    assert (await world.post("sendgrid", *of_sendgrid(body, START))).status_code == 200
    assert [row[1] for row in world.suppressions()] == ([stops] if stops else [])


@pytest.mark.parametrize(
    ("event", "stops"),
    [
        ({"event": "failed", "severity": "temporary", "reason": "bounce"}, None),
        ({"event": "failed", "severity": "permanent", "reason": "espblock"}, None),
        ({"event": "failed", "severity": "permanent", "reason": "old"}, None),
        ({"event": "failed", "severity": "permanent", "reason": "suppress-bounce"}, "hard_bounce"),
        ({"event": "failed", "severity": "permanent", "reason": "suppress-unsubscribe"}, None),
        ({"event": "complained"}, "complaint"),
        ({"event": "opened"}, None),
    ],
)
async def test_mailgun_events(world, event, stops):
    world.shards.person("ann@x.example")
    body = {"id": "e", "recipient": "ann@x.example", **event}
    assert (await world.post("mailgun", *of_mailgun(body, START))).status_code == 200
    assert [row[1] for row in world.suppressions()] == ([stops] if stops else [])


async def test_a_signature_of_mailgun_that_was_overheard_signs_nothing_else(world):
    world.shards.person("ann@x.example")
    said = {"id": "e", "event": "opened", "recipient": "ann@x.example"}
    heard = of_mailgun(said, START)
    forged = of_mailgun(said | {"id": "f", "event": "complained"}, START)
    assert (await world.post("mailgun", *heard)).status_code == 200
    assert (await world.post("mailgun", *heard)).status_code == 200  # its own retry
    assert (await world.post("mailgun", *forged)).status_code == 401
    assert not world.suppressions()


@pytest.mark.parametrize(
    ("body", "stops"),
    [
        ({"RecordType": "Bounce", "Type": "SoftBounce"}, None),
        ({"RecordType": "Bounce", "Type": "Blocked"}, None),
        ({"RecordType": "Bounce", "Type": "AutoResponder"}, None),
        ({"RecordType": "Bounce", "Type": "BadEmailAddress"}, "hard_bounce"),
        ({"RecordType": "SpamComplaint", "Type": "SpamComplaint"}, "complaint"),
        ({"RecordType": "Delivery", "Recipient": "ann@x.example"}, None),
        ({"RecordType": "Open"}, None),
    ],
)
async def test_postmark_events(world, body, stops):
    world.shards.person("ann@x.example")
    said = {"ID": 7, "Email": "ann@x.example", **body}
    assert (await world.post("postmark", *of_postmark(said, START))).status_code == 200
    assert [row[1] for row in world.suppressions()] == ([stops] if stops else [])


async def test_postmark_with_a_header(world):
    answer = await world.post("postmark", b"{}", {"X-Webhook-Secret": "user:pass word"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("kind", "finer", "stops"),
    [
        ("Permanent", "NoEmail", "hard_bounce"),
        ("Permanent", "OnAccountSuppressionList", "hard_bounce"),
        ("Transient", "MailboxFull", None),
        ("Transient", "MessageTooLarge", None),
        ("Undetermined", "", None),
        ("New", "", None),
    ],
)
async def test_ses_bounces(world, kind, finer, stops):
    world.shards.person("ann@x.example")
    bounced = [{"emailAddress": "ann@x.example"}]
    bounce = {"bounceType": kind, "bounceSubType": finer, "bouncedRecipients": bounced}
    said = {"notificationType": "Bounce", "bounce": bounce, "mail": {}}
    assert (await world.post("ses", *of_ses(said, START))).status_code == 200
    assert [row[1] for row in world.suppressions()] == ([stops] if stops else [])


# -- SNS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "2"])
async def test_both_versions_of_the_signature_and_one_fetch(world, version):
    for n in range(2):
        raw, headers = of_ses({}, START, version, MessageId=f"m{n}", Subject="with one")
        assert (await world.post("ses", raw, headers)).status_code == 200
    assert world.fetched == [CERTIFICATE_URL]


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.eu-west-1.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com.evil.example/x.pem",
        "https://evil.example/x.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/x.pem",
        "https://sns.eu-west-1.amazonaws.com@evil.example/x.pem",
        "https://evil.example#@sns.eu-west-1.amazonaws.com/x.pem",
        "https://evil.example\\@sns.eu-west-1.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com/x.pem?a=b",
        "https://sns.eu-west-1.amazonaws.com/x",
        "https://s3.eu-west-1.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com\n.evil.example/x.pem",
        "https://169.254.169.254/x.pem",
        "file:///etc/x.pem",
        "https://[::1/x.pem",
        "",
    ],
)
async def test_a_certificate_comes_from_sns_alone(world, url):
    raw, headers = of_ses({}, START, SigningCertURL=url)
    assert (await world.post("ses", raw, headers)).status_code == 401
    assert world.fetched == []


@pytest.mark.parametrize(
    "changed",
    [
        {"TopicArn": "arn:aws:sns:eu-west-1:999999999999:mail"},
        {"Type": "Other"},
        {"SignatureVersion": "3"},
        {"Timestamp": "yesterday"},
    ],
)
async def test_messages_of_others(world, changed):
    raw, headers = of_ses({}, START, **changed)
    assert (await world.post("ses", raw, headers)).status_code == 401


async def test_a_certificate_that_is_no_good(world):
    for bad in (
        certificate(until=START - timedelta(days=1)),
        certificate(rsa.generate_private_key(65537, 2048)),
        b"not a certificate",
        httpx.HTTPStatusError(
            "no", request=httpx.Request("GET", "x"), response=httpx.Response(404)
        ),
    ):
        fresh = World()
        fresh.certificate = bad
        assert (await fresh.post("ses", *of_ses({}, START))).status_code == 401
    world.certificate = httpx.ConnectError("no")
    assert (await world.post("ses", *of_ses({}, START))).status_code == 503


@pytest.mark.parametrize(
    ("url", "confirmed"),
    [
        ("https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t", True),
        ("https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe&Token=t", False),
        ("https://evil.example/?Action=ConfirmSubscription&Token=t", False),
    ],
)
async def test_a_subscription_is_confirmed_at_sns_alone(world, url, confirmed):
    raw, headers = of_ses({}, START, Type="SubscriptionConfirmation", Token="t", SubscribeURL=url)
    answer = await world.post("ses", raw, headers)
    assert answer.status_code == (200 if confirmed else 401)
    assert (url in world.fetched) is confirmed


# -- settings and vectors --------------------------------------------------------------------------


@pytest.mark.skipif(not VECTORS.exists(), reason="the shared vectors are not here")
def test_the_vector_of_standard_webhooks():
    (vector,) = json.loads(VECTORS.read_text())["vectors"]
    headers = {name: vector[name] for name in vector if name.startswith("webhook-")}
    at = datetime.fromtimestamp(int(vector["webhook-timestamp"]), UTC).replace(tzinfo=None)
    body = vector["body"].encode()
    generic.verify(headers, body, [SECRET, vector["secret"]], at)
    for secrets, now in (([SECRET], at), ([vector["secret"]], at + timedelta(minutes=6)), ([], at)):
        with pytest.raises(Unauthorized):
            generic.verify(headers, body, secrets, now)


def test_secrets_come_from_the_environment():
    wanted = [WebhookSettings("mailgun", "KEY"), WebhookSettings("ses", topics=(TOPIC,))]
    sources = sources_of(wanted, {"KEY": " one two "})
    assert sources == {"mailgun": Source(("one", "two")), "ses": Source((), (TOPIC,))}
    assert "one" not in repr(sources)
    with pytest.raises(InvalidRequest):
        sources_of(wanted, {})
    for bad in (("pigeon", "KEY"), ("ses", "KEY"), ("mailgun", "")):
        with pytest.raises(InvalidRequest):
            WebhookSettings(*bad)
