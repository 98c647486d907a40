"""Sending domains: what to publish for them, what the DNS has, and their DKIM keys.

Private keys never come out here.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from manta.delivery.domains.keys import checked_domain
from manta.errors import NotFound
from serve_apps.api.wiring import Key, Ports, needs
from serve_apps.bodies import Body
from serve_apps.limits import CALL_DEADLINE_S

router = APIRouter(tags=["domains"])
Domain = Annotated[str, Path(max_length=253, description="As in the From address.")]
PEM_LENGTH_MAX = 10_000


class NewDomain(Body):
    domain: str = Field(max_length=253, examples=["shop.example"])
    private_key: str | None = Field(
        None,
        max_length=PEM_LENGTH_MAX,
        description="A DKIM key of your own (PEM, unencrypted); one is made if absent.",
    )
    selector: str = Field("", max_length=63, description="Where that key's record is.")
    signed_by_relay: bool = Field(
        False, description="The relay signs as this domain, with keys that it holds."
    )


@router.get("/domains", summary="List the sending domains", dependencies=[needs("delivery:read")])
async def list_domains(ports: Ports) -> dict[str, Any]:
    documents = await ports.catalog.call("domains", deadline_s=CALL_DEADLINE_S)
    return {"items": documents, "next": None}


@router.post(
    "/domains",
    status_code=201,
    summary="Add a sending domain",
    dependencies=[needs("delivery:write")],
)
async def add_domain(body: NewDomain, ports: Ports, key: Key) -> dict[str, Any]:
    """Makes two DKIM keys: one signs, the other waits for a rotation. Publish the records that
    `POST /domains/{domain}/check` lists; campaigns from a domain that fails its check are
    refused."""
    document = await ports.catalog.call(
        "add_domain",
        body.domain,
        body.private_key,
        body.selector,
        body.signed_by_relay,
        key,
        deadline_s=CALL_DEADLINE_S,
    )
    return dict(document)


@router.post(
    "/domains/{domain}/check",
    summary="Look at what the DNS has",
    dependencies=[needs("delivery:write")],
)
async def check_domain(domain: Domain, ports: Ports) -> dict[str, Any]:
    """SPF, DKIM, DMARC, alignment, PTR, return path and MTA-STS, each with what is there and what
    would be right, and all `records` to publish. What is found decides whether campaigns may be
    launched from the domain."""
    document = await _required(ports, domain)
    told = await ports.resolver.call("check_domain", document, deadline_s=CALL_DEADLINE_S)
    checked = await ports.catalog.call(
        "record_domain_check", document["id"], told["findings"], deadline_s=CALL_DEADLINE_S
    )
    return {**checked, "records": told["records"]}


@router.post(
    "/domains/{domain}/rotate",
    summary="Let the next DKIM key sign",
    dependencies=[needs("delivery:write")],
)
async def rotate_domain(domain: Domain, ports: Ports, key: Key) -> dict[str, Any]:
    """Refused until a check has found the next key's record. Leave the old record in the DNS for a
    week, until mail that it signed has arrived."""
    name = checked_domain(domain)
    document = await ports.catalog.call("rotate_domain", name, key, deadline_s=CALL_DEADLINE_S)
    return dict(document)


@router.delete(
    "/domains/{domain}",
    status_code=204,
    summary="Remove a sending domain",
    dependencies=[needs("delivery:write")],
)
async def remove_domain(domain: Domain, ports: Ports) -> Response:
    """Its keys are forgotten; mails that wait go out unsigned by it."""
    await ports.catalog.call("remove_domain", domain, deadline_s=CALL_DEADLINE_S)
    return Response(status_code=204)


async def _required(ports: Ports, domain: str) -> dict[str, Any]:
    name = checked_domain(domain)
    for document in await ports.catalog.call("domains", deadline_s=CALL_DEADLINE_S):
        if document["id"] == name:
            return dict(document)
    raise NotFound(f"no sending domain {name}", path="domain", expected="one that was added")
