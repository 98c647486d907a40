"""Templates: what a mail says, in versions that never change."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from actors.handles import Handles
from manta.content.templates import MailTemplate
from manta.definitions import TEMPLATE_FIELDS
from manta.errors import InvalidRequest, NotFound
from manta.ids import decode_id
from manta.schema import ATTRIBUTE_PREFIX
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, NUMBER_MAX, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.proofs import RECIPIENTS_MAX, send_tests
from serve_apps.workshop import Workshop

router = APIRouter(prefix="/templates", tags=["templates"])
READ, WRITE = needs("templates:read"), needs("templates:write")
SEND = needs("campaigns:write")
TEXT_MAX = 512_000


def get_workshop(request: Request) -> Workshop:
    shop: Workshop = request.app.state.workshop
    return shop


Shop = Annotated[Workshop, Depends(get_workshop)]


class Content(Body):
    """Jinja2 in a sandbox: `{{ first_name }}`, `{% if … %}`, `{% for … %}` over lists."""

    subject: str = Field(max_length=2_000)
    html: str = Field(max_length=TEXT_MAX)
    from_email: str = Field(max_length=320)
    from_name: str = Field("", max_length=2_000)
    reply_to: str = Field("", max_length=320)
    preheader: str = Field("", max_length=2_000)
    text: str = Field("", max_length=TEXT_MAX, description="Made from the HTML if empty.")


class NewTemplate(Content):
    name: str = Field(max_length=200)


class NewVersion(Content):
    name: str | None = Field(None, max_length=200)


class TestTo(Body):
    to: list[Annotated[str, Field(max_length=320)]] = Field(
        min_length=1, max_length=RECIPIENTS_MAX, description="Addresses of your own."
    )
    subscriber_id: str | None = Field(None, max_length=20, description="Whose attributes fill it.")
    email: str | None = Field(None, max_length=320, description="The same person, by address.")
    version: int | None = Field(None, ge=1, le=NUMBER_MAX, description="The latest if absent.")


class PreviewFor(Body):
    subscriber_id: str | None = Field(None, max_length=20)
    email: str | None = Field(None, max_length=320)
    version: int | None = Field(None, ge=1, le=NUMBER_MAX, description="The latest if absent.")


@router.post("", status_code=201, dependencies=[WRITE], summary="Create a template")
async def create_template(body: NewTemplate, ports: Ports, shop: Shop, key: Key) -> dict[str, Any]:
    return await _save(ports, shop, body.model_dump(), key)


@router.post(
    "/{number}/versions", status_code=201, dependencies=[WRITE], summary="Add the next version"
)
async def add_version(
    number: Number, body: NewVersion, ports: Ports, shop: Shop, key: Key
) -> dict[str, Any]:
    return await _save(ports, shop, body.model_dump(exclude_none=True) | {"id": number}, key)


async def _save(
    ports: Handles, shop: Workshop, fields: dict[str, Any], key: str | None
) -> dict[str, Any]:
    """Compiled in the workshop first: a hostile template hurts a child process, not the Catalog."""
    await shop.check(_mail(fields), await reads.attribute_types(ports))
    saved: dict[str, Any] = await ports.catalog.call(
        "save_template", fields, key, deadline_s=CALL_DEADLINE_S
    )
    return saved


@router.get("", dependencies=[READ], summary="List the templates, newest first")
async def list_templates(
    ports: Ports, limit: Limit = LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    return await reads.documents_page(ports.catalog, "templates", limit, cursor)


@router.post("/lint", dependencies=[READ], summary="Find what is wrong, without saving")
async def lint(body: Content, ports: Ports, shop: Shop) -> dict[str, Any]:
    findings = await shop.lint(_mail(body.model_dump()), await reads.attribute_types(ports))
    return {"findings": findings}


@router.get("/{number}", dependencies=[READ], summary="A template in its latest version")
async def get_template(number: Number, ports: Ports) -> dict[str, Any]:
    return await _version(ports, number, None)


@router.get("/{number}/versions/{version}", dependencies=[READ], summary="One version")
async def get_version(number: Number, version: Number, ports: Ports) -> dict[str, Any]:
    return await _version(ports, number, version)


@router.post("/{number}/preview", dependencies=[READ], summary="What a real person would get")
async def preview(number: Number, body: PreviewFor, ports: Ports, shop: Shop) -> dict[str, Any]:
    version = await _version(ports, number, body.version)
    person = await _person(ports, body)
    values = {name.removeprefix(ATTRIBUTE_PREFIX): v for name, v in person["attributes"].items()}
    values |= {name: person[name] for name in ("email", "locale", "time_zone")}
    shown = await shop.preview(_mail(version), values)
    return {"version": version["version"], "subscriber_id": person["id"], **shown}


@router.post("/{number}/test", dependencies=[SEND], summary="Send it to yourself")
async def test_send(number: Number, body: TestTo, ports: Ports, key: Key) -> dict[str, Any]:
    """Real mails to up to ten addresses, marked as tests in the subject. They are filled with the
    attributes of the subscriber named, else with each recipient's own if they are a subscriber.
    Opens, clicks and unsubscriptions from a test count for nobody. `/v1/campaigns/{campaign_id}`
    and its recipients tell what became of them."""
    filled_by = None
    if body.email is not None or body.subscriber_id is not None:
        filled_by = decode_id((await _person(ports, body))["id"])
    return await send_tests(ports, number, body.version, body.to, filled_by, key)


async def _person(ports: Handles, body: PreviewFor | TestTo) -> dict[str, Any]:
    if (body.subscriber_id is None) == (body.email is None):
        raise InvalidRequest(
            "it is filled by one person", path="email", expected="email or subscriber_id"
        )
    if body.email is not None:
        return await reads.person(ports, await reads.person_id(ports, "email", body.email))
    try:
        return await reads.person(ports, decode_id(body.subscriber_id or ""))
    except ValueError:
        raise NotFound("this is not the id of a subscriber", path="subscriber_id") from None


async def _version(ports: Handles, number: int, version: int | None) -> dict[str, Any]:
    if version is None:
        head = await ports.catalog.call("get", "templates", str(number), deadline_s=CALL_DEADLINE_S)
        if head is None:
            raise NotFound(f"no template {number}", path="number")
        version = head["version"]
    found: dict[str, Any] = await ports.catalog.call(
        "template_version", number, version, deadline_s=CALL_DEADLINE_S
    )
    return found


def _mail(fields: dict[str, Any]) -> MailTemplate:
    return MailTemplate.from_json({name: fields.get(name) or "" for name in TEMPLATE_FIELDS})
