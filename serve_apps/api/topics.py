"""Topics, and sign-ups for them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from manta.errors import NotFound
from manta.people.topics import COLLECTION
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.preferences.confirming import SignUp, sign_up

router = APIRouter(tags=["consent"])
READ, WRITE = needs("subscribers:read"), needs("subscribers:write")
Text = Annotated[str, StringConstraints(max_length=1_000)]


class Topic(Body):
    """What is absent stays as it is."""

    titles: dict[str, str] | None = Field(None, description="By locale.", max_length=100)
    descriptions: dict[str, str] | None = Field(None, max_length=100)
    channels: list[str] | None = Field(None, max_length=3)
    double_opt_in: bool | None = Field(None, description="True for a new topic.")
    public: bool | None = Field(None, description="On everybody's preference page.")
    from_email: str | None = Field(None, max_length=320, description="Sends confirmation mails.")
    from_name: str | None = Field(None, max_length=200)
    templates: dict[str, int] | None = Field(
        None, max_length=100, description="Confirmation mails of your own, by locale."
    )


class NewTopic(Topic):
    name: str = Field(max_length=200, description="What consents and campaigns carry; fixed.")


class Proof(Body):
    """What you know of where and how they asked; it is kept with the consent."""

    ip: Text | None = None
    user_agent: Text | None = None
    form: Text | None = None
    page: Text | None = None
    wording: Text | None = Field(None, description="The version of the text they agreed to.")
    at: Text | None = Field(None, description="RFC 3339.")


class Subscription(Body):
    email: str = Field(max_length=320)
    topics: list[str] = Field(min_length=1, max_length=50)
    locale: str | None = Field(
        None, max_length=35, pattern=r"^[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,4}$",
        description="BCP 47; of people who are new.",
    )  # fmt: skip
    source: str = Field("form", min_length=1, max_length=200)
    proof: Proof = Field(default_factory=Proof)


@router.post("/topics", dependencies=[WRITE], status_code=201, summary="Create a topic")
async def create_topic(body: NewTopic, ports: Ports, key: Key) -> dict[str, Any]:
    return await _save(ports, body.model_dump(exclude_none=True), key)


@router.put("/topics/{number}", dependencies=[WRITE], summary="Change a topic")
async def change_topic(number: Number, body: Topic, ports: Ports, key: Key) -> dict[str, Any]:
    return await _save(ports, body.model_dump(exclude_none=True) | {"id": number}, key)


@router.get("/topics", dependencies=[READ], summary="Topics, newest first")
async def list_topics(ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None) -> dict[str, Any]:
    return await reads.documents_page(ports.catalog, COLLECTION, limit, cursor)


@router.get("/topics/{number}", dependencies=[READ], summary="A topic")
async def get_topic(number: Number, ports: Ports) -> dict[str, Any]:
    found = await ports.catalog.call("get", COLLECTION, str(number), deadline_s=CALL_DEADLINE_S)
    if found is None:
        raise NotFound(f"no topic {number}", path="number")
    return dict(found)


@router.delete("/topics/{number}", dependencies=[WRITE], status_code=204, summary="Forget a topic")
async def delete_topic(number: Number, ports: Ports, key: Key) -> None:
    """People's consents to it stay, and it stays on the preference page of those who have it."""
    await ports.catalog.call("delete", COLLECTION, str(number), key, deadline_s=CALL_DEADLINE_S)


@router.post(
    "/subscriptions", dependencies=[WRITE], status_code=202, summary="Sign somebody up for topics"
)
async def subscribe(body: Subscription, ports: Ports, key: Key) -> dict[str, Any]:
    """For sign-up forms. A topic with double opt-in waits for the answer to a mail, for seven days;
    another one is subscribed at once, unless they had unsubscribed. Repeated within an hour it
    sends no second mail. The answer is the same for every address, known or not."""
    proof = body.proof.model_dump(exclude_none=True)
    asked = SignUp(body.email, body.topics, body.locale, body.source, proof)
    return {"accepted": True, "topics": await sign_up(ports, asked, key)}


async def _save(ports: Ports, fields: dict[str, Any], key: str | None) -> dict[str, Any]:
    saved: dict[str, Any] = await ports.catalog.call(
        "save", COLLECTION, fields, key, deadline_s=CALL_DEADLINE_S
    )
    return saved
