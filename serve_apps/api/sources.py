"""Where data comes in from: sources, the secrets that prove their webhooks, and trying them.

A secret is in the answer to who has it made, and nowhere else.
"""

from __future__ import annotations

import secrets as randomness
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from actors.handles import Handles
from manta.clock import as_text, parse_instant
from manta.errors import InvalidRequest, NotFound
from manta.ingestion import mapping as mappings
from manta.ingestion.mapping_form import plan_of
from manta.ingestion.normalised import Normalised, Unfit
from manta.ingestion.normalisers import NORMALISERS
from manta.ingestion.sources import HOOKED, MAPPING, SECRETS_MAX, SOURCES, shown
from manta.ingestion.traits import typed
from manta.webhooks.signing import SECRET_BYTES, secret_bytes, secret_text
from serve_apps import reads
from serve_apps.api.wiring import LIMIT, Cursor, Key, Limit, Number, Ports, needs
from serve_apps.bodies import Body
from serve_apps.collect.webhooks import Counts
from serve_apps.limits import CALL_DEADLINE_S

router = APIRouter(prefix="/sources", tags=["sources"])
SETTINGS = needs("keys:write")
SAMPLES_MAX = 20
OWN_SECRET = ("woocommerce", MAPPING)  # whose secrets we may choose
OLD_SECRET_HOURS, OLD_SECRET_HOURS_MAX = 24.0, 168.0

Document = dict[str, Any]
Secret = Annotated[
    str | None,
    Field(
        max_length=200,
        description="Given by Shopify and Stripe; for the others one is made if absent.",
    ),
]
Mapping_ = Annotated[
    dict[str, Any] | None,
    Field(description="Of kind `mapping`: how its JSON becomes people and events."),
]
ConsentTopic = Annotated[
    str | None,
    Field(max_length=200, description="What marketing consent in the shop stands for here."),
]


class NewSource(Body):
    name: str = Field(max_length=200)
    kind: Literal["segment", "shopify", "woocommerce", "stripe", "mapping"]
    declare: bool = Field(True, description="Whether unknown traits become attributes.")
    key_id: str | None = Field(
        None, max_length=40, description="Of kind `segment`: the API key that sends them."
    )
    secret: Secret = None
    consent_topic: ConsentTopic = None
    mapping: Mapping_ = None


class ChangedSource(Body):
    name: str | None = Field(None, max_length=200)
    declare: bool | None = None
    key_id: str | None = Field(None, max_length=40)
    consent_topic: ConsentTopic = None
    mapping: Mapping_ = None


class Rotation(Body):
    secret: Secret = None
    old_secret_hours: float = Field(
        OLD_SECRET_HOURS,
        ge=0,
        le=OLD_SECRET_HOURS_MAX,
        description="How long the present secret is good beside the new one.",
    )


class Trial(Body):
    samples: list[Any] = Field(min_length=1, max_length=SAMPLES_MAX)
    mapping: Mapping_ = None
    topic: str | None = Field(
        None,
        max_length=200,
        description="Of `shopify` and `woocommerce`: the topic that the samples have.",
    )


@router.get("", dependencies=[SETTINGS], summary="Sources of data")
async def list_sources(
    ports: Ports, request: Request, limit: Limit = LIMIT, cursor: Cursor = None
) -> Document:
    """The newest first."""
    return await reads.documents_page(
        ports.catalog, SOURCES, limit, cursor, lambda found: _shown(found, request)
    )


@router.post("", dependencies=[SETTINGS], status_code=201, summary="Add a source")
async def add_source(body: NewSource, ports: Ports, key: Key, request: Request) -> Document:
    """`secret` is in this answer alone. Webhooks are sent to `webhook_url`; without a secret none
    is taken. Shopify and Stripe show theirs when the webhook has been made with the URL: `rotate`
    takes it then."""
    secret = _secret(body.kind, body.secret)
    fields = body.model_dump(exclude={"secret"}, exclude_none=True)
    if secret is not None:
        fields["secrets"] = [{"secret": secret, "until": None}]
    saved = await _save(ports, fields, key)
    return _shown(saved, request) | ({} if secret is None else {"secret": secret})


@router.get("/{id}", dependencies=[SETTINGS], summary="One source")
async def get_source(id: Number, ports: Ports, request: Request) -> Document:
    """With `received`: what became of its webhooks since this process began."""
    document = _shown(await _required(ports, id), request)
    if document["kind"] in HOOKED:
        counts: Counts = request.app.state.source_counts
        document["received"] = counts.of(id)
    return document


@router.patch("/{id}", dependencies=[SETTINGS], summary="Change a source")
async def change_source(
    id: Number, body: ChangedSource, ports: Ports, key: Key, request: Request
) -> Document:
    """What is not given stays. A new mapping is a new `version`; the ones before it are kept under
    `earlier`. What waits in quarantine can be replayed by the new one."""
    await _required(ports, id)
    return _shown(await _save(ports, body.model_dump(exclude_none=True) | {"id": id}, key), request)


@router.delete("/{id}", dependencies=[SETTINGS], status_code=204, summary="Remove a source")
async def remove_source(id: Number, ports: Ports, key: Key) -> None:
    """What came from it stays."""
    await ports.catalog.call("delete", SOURCES, str(id), key, deadline_s=CALL_DEADLINE_S)


@router.post("/{id}/rotate", dependencies=[SETTINGS], summary="Set or replace the secret")
async def rotate_secret(
    id: Number, body: Rotation, ports: Ports, key: Key, request: Request
) -> Document:
    """The old secret is good for a while beside the new one. Takes effect within 5 s."""
    source = await _required(ports, id)
    secret = _secret(source["kind"], body.secret)
    if secret is None:
        raise InvalidRequest(
            f"the secret of {source['kind']} is given by it", path="secret", expected="that secret"
        )
    now = ports.clock.now()
    kept = [{"secret": secret, "until": None}]
    until = as_text(now + timedelta(hours=body.old_secret_hours))
    for old in source["secrets"] if body.old_secret_hours else ():
        if old["until"] is None or parse_instant(old["until"]) > now:
            kept.append({**old, "until": old["until"] or until})
    saved = await _save(ports, {"id": id, "secrets": kept[:SECRETS_MAX]}, key)
    return _shown(saved, request) | {"secret": secret}


@router.post("/{id}/try", dependencies=[SETTINGS], summary="What samples would become")
async def try_source(id: Number, body: Trial, ports: Ports) -> Document:
    """Nothing is stored. `mapping`: one to try in place of the source's own."""
    source: Mapping[str, Any] = await _required(ports, id)
    if body.mapping is not None:
        plan_of(body.mapping)
        source = {**source, "mapping": body.mapping}
    types = await reads.attribute_types(ports)
    results: list[Document] = []
    for n, sample in enumerate(body.samples):
        for payload in _payloads(source, sample, body.topic):
            found = NORMALISERS[source["kind"]](source, payload, ports.clock.now())
            results.append({"sample": n, **_result(found, types, source)})
    return {"results": results}


def _payloads(source: Mapping[str, Any], sample: Any, topic: str | None) -> list[Any]:
    if source["kind"] == MAPPING:
        return mappings.bodies(source, sample)
    return [sample if topic is None else {"topic": topic, "payload": sample}]


def _result(found: Any, types: Mapping[str, Any], source: Mapping[str, Any]) -> Document:
    if isinstance(found, Unfit):
        return {"unfit": {"path": found.path, "problem": found.problem}}
    if not found:
        return {"ignored": True}
    means = mappings.described(found)
    misfits = [wrong for said in found for wrong in _misfits(said, types, source)]
    return {"means": means} | ({"misfits": misfits} if misfits else {})


def _misfits(said: Normalised, types: Mapping[str, Any], source: Mapping[str, Any]) -> list[Any]:
    wrong = typed(said.traits, types, bool(source.get("declare", True))).misfits
    return [{"path": each.path, "problem": each.problem} for each in wrong]


async def _required(ports: Handles, id: int) -> Document:
    document = await ports.catalog.call("get", SOURCES, str(id), deadline_s=CALL_DEADLINE_S)
    if document is None:
        raise NotFound(f"no source {id}", path="id")
    return dict(document)


async def _save(ports: Handles, fields: Document, key: str | None) -> Document:
    saved = await ports.catalog.call("save", SOURCES, fields, key, deadline_s=CALL_DEADLINE_S)
    return dict(saved)


def _shown(document: Document, request: Request) -> Document:
    made = shown(document)
    if document["kind"] in HOOKED:
        made["webhook_url"] = f"{request.app.state.public_url}/v1/sources/{document['id']}/webhook"
    return made


def _secret(kind: str, given: str | None) -> str | None:
    """The secret of a source; made where it is ours to choose."""
    if kind not in HOOKED:
        if given is not None:
            raise InvalidRequest(f"a source of kind {kind} has no secret", path="secret")
        return None
    if given is None:
        made = randomness.token_bytes(SECRET_BYTES)
        return secret_text(made) if kind in OWN_SECRET else None
    if kind == MAPPING:
        secret_bytes(given)
    return given
