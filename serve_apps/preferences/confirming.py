"""Sign-ups: from a request to the confirmation mail, by the path of every mail.

The mail is a transactional message of a template: the topic's own for the person's language, or the
one that comes with Manta, which is put among the workspace's templates when it is first needed and
may be changed there. All that could be wrong with template and domain is found out before anything
is stored, so neither an answer nor a refusal says whether an address is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from actors.handles import Handles
from manta.command import Repeated
from manta.delivery.campaign import Kind
from manta.delivery.directing import OneMessage
from manta.errors import InvalidRequest, MantaError
from manta.people import topics as topics_of
from manta.people.addresses import Refused, normalised
from manta.people.double_opt_in import RequestConsent, Requested
from manta.people.identities import EMAIL, compared
from manta.people.over_shards import execute_for
from serve_apps import reads
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.preferences.texts import language_for, texts
from serve_apps.upserts import Row, upsert_rows

# The language's name stands in it, so each language has a template of its own.
_NAME = "Confirmation mail ({language}), from {sender}"
_HTML = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{subject}</title></head>
<body style="margin:0;padding:24px;background:#f6f7f9;color:#1c2330;\
font-family:Arial,Helvetica,sans-serif;font-size:16px;line-height:1.5">
<div style="max-width:520px;margin:0 auto;padding:24px;background:#ffffff;border-radius:8px">
<h1 style="font-size:20px;margin:0 0 12px">{subject}</h1>
<p>{text}</p>
<p style="margin:24px 0"><a href="{{{{ confirm_url }}}}" style="display:inline-block;padding:12px \
24px;background:#1f5fd0;color:#ffffff;text-decoration:none;border-radius:6px">{button}</a></p>
<p style="color:#545d6c;font-size:14px">{ignore}</p>
</div></body></html>
"""


@dataclass(frozen=True)
class SignUp:
    """What a form asks for. ``locale`` counts for people who are new."""

    email: str
    topics: Sequence[str]
    locale: str | None
    source: str
    proof: Mapping[str, str]


async def sign_up(handles: Handles, asked: SignUp, key: str | None) -> list[dict[str, Any]]:
    """Take a request in and see to its confirmation mail; answers the topics with how each is
    agreed to, the same for every address. Raises ``InvalidRequest`` that names the field."""
    address = normalised(asked.email)
    if isinstance(address, Refused):
        raise InvalidRequest(
            f"{asked.email!r:.80} is not an address: {address.reason}",
            path="email",
            expected="local@domain",
        )
    known = topics_of.named(
        await handles.catalog.call("list", topics_of.COLLECTION, deadline_s=CALL_DEADLINE_S)
    )
    topics = [_topic(known, name, place) for place, name in enumerate(asked.topics)]
    person = await _known(handles, address)
    locale = asked.locale
    if person is not None:
        locale = (await reads.person(handles, person))["locale"] or asked.locale
    template = await _template(handles, topics, locale)
    await handles.director.call(
        "standing", Kind.TRANSACTIONAL, template, None, [], deadline_s=CALL_DEADLINE_S
    )
    if person is None:
        person = await _created(handles, address, asked, key)
    requested = await _requested(handles, person, topics, asked, key)
    if requested.occurrence:
        message = OneMessage(
            requested.subscriber_id, requested.occurrence, expires_at=requested.expires_at
        )
        await handles.director.call(
            "send_one", Kind.TRANSACTIONAL, template, None, message, deadline_s=CALL_DEADLINE_S
        )
    return [{"topic": t["name"], "double_opt_in": t["double_opt_in"]} for t in topics]


def _topic(known: Mapping[str, dict[str, Any]], name: str, place: int) -> dict[str, Any]:
    topic = known.get(name)
    if topic is None or "email" not in topic["channels"]:
        raise InvalidRequest(
            f"there is no topic {name!r:.80} for e-mail",
            path=f"topics[{place}]",
            expected=", ".join(sorted(known))[:500] or "a topic; there are none yet",
        )
    return topic


async def _known(handles: Handles, address: str) -> int | None:
    value = compared(EMAIL, address)
    home = handles.shards.of_identity(EMAIL, value)
    asked = {"kind": EMAIL, "values": [value]}
    (person,) = await handles.shards.query(home, "identities", asked, CALL_DEADLINE_S)
    return None if person is None else int(person)


async def _created(handles: Handles, address: str, asked: SignUp, key: str | None) -> int:
    row = Row(email=address, external_id=None, time_zone=None, locale=asked.locale, attributes={})
    done = await upsert_rows(handles, [row], None, key and f"{key}:person", source=asked.source)
    (result,) = done.results
    if isinstance(result, MantaError):
        raise result
    if result is None:  # stored by an earlier try of the same request
        found = await _known(handles, address)
        if found is None:
            raise InvalidRequest("this address is being claimed; try again", path="email")
        return found
    return result


async def _requested(
    handles: Handles,
    person: int,
    topics: Sequence[dict[str, Any]],
    asked: SignUp,
    key: str | None,
) -> Requested:
    wanted = tuple((topic["name"], bool(topic["double_opt_in"])) for topic in topics)

    def request(id: int) -> RequestConsent:
        return RequestConsent(key, id, wanted, asked.source, asked.proof)

    answer = await execute_for(handles.shards, person, request, CALL_DEADLINE_S)
    if isinstance(answer, Repeated):
        return Requested(person, "", None)
    requested: Requested = answer
    return requested


# -- the template ----------------------------------------------------------------------------------


async def _template(handles: Handles, topics: Sequence[dict[str, Any]], locale: str | None) -> int:
    """The template of the confirmation mail: the first topic's that has one, or ours."""
    for topic in topics:
        found = topics_of.nearest(locale, topic["templates"])
        if found:
            return int(topic["templates"][found])
    topic = next(topic for topic in topics if topic["from_email"])
    language = language_for(locale)
    name = _NAME.format(language=texts()[language]["language"], sender=topic["from_email"])
    existing = await handles.catalog.call("list", "templates", deadline_s=CALL_DEADLINE_S)
    mine = [each["id"] for each in existing if each["name"] == name]
    if mine:
        return int(min(mine))
    version = await handles.catalog.call(
        "save_template",
        {"name": name, **built_in(language, topic)},
        f"confirmation-template:{name}",
        deadline_s=CALL_DEADLINE_S,
    )
    return int(version["template_id"])


def built_in(language: str, topic: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the confirmation mail that comes with Manta."""
    words = texts()[language]
    sender = topic["from_name"] or str(topic["from_email"]).rpartition("@")[2]
    # What an operator called themselves is text here, not a tag of the template language.
    safe = sender.replace("{", "(").replace("}", ")")
    text = words["mail_text"].replace("{from}", safe)
    return {
        "subject": words["mail_subject"],
        "from_email": topic["from_email"],
        "from_name": safe if topic["from_name"] else "",
        "html": _HTML.format(
            language=language,
            subject=escape(words["mail_subject"]),
            text=escape(text),
            button=escape(words["mail_button"]),
            ignore=escape(words["mail_ignore"]),
        ),
        "text": f"{text}\n\n{words['mail_button']}: {{{{ confirm_url }}}}\n\n"
        f"{words['mail_ignore']}\n",
    }
