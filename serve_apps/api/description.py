"""The OpenAPI document: what FastAPI finds, with scopes, problems and the ingest app's route."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from serve_apps.ingest import SCOPE, Event
from serve_apps.limits import BATCH_ITEMS_MAX
from serve_apps.problems import CONTENT_TYPE

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "path": {"type": "string", "description": "the field that is wrong"},
        "expected": {"type": "string", "description": "what would be right"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
_REFUSED = {
    "description": "Refused, with the reason.",
    "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def describe(api: FastAPI, prefix: str) -> dict[str, Any]:
    """The document of an app whose routes stand below ``prefix``."""
    document = get_openapi(
        title=api.title,
        version=api.version,
        description=api.description,
        routes=api.routes,
        servers=[{"url": prefix}],
    )
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    scopes = _scopes(api)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            _finish(operation, scopes.get((method, path)))
    document["paths"]["/events"] = {"post": _events(schemas)}
    return document


def _finish(operation: dict[str, Any], scope: str | None) -> None:
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = _REFUSED
    if scope:
        operation["security"] = [{"key": []}]
        operation["x-scope"] = scope


def _scopes(api: FastAPI) -> dict[tuple[str, str], str]:
    """(method, path) → the scope that a key needs."""
    found = {}
    for route in _routes(api):
        for dependant in route.dependant.dependencies:
            scope = getattr(dependant.call, "scope", None)
            if isinstance(scope, str):
                for method in route.methods:
                    found[method.lower(), route.path_format] = scope
    return found


def _routes(api: FastAPI) -> list[APIRoute]:
    return [route for route in api.routes if isinstance(route, APIRoute)]


def _events(schemas: dict[str, Any]) -> dict[str, Any]:
    schemas["Event"] = Event.model_json_schema(ref_template="#/components/schemas/{model}")
    event = {"$ref": "#/components/schemas/Event"}
    batch = {
        "type": "object",
        "required": ["events"],
        "additionalProperties": False,
        "properties": {
            "events": {
                "type": "array",
                "items": event,
                "minItems": 1,
                "maxItems": BATCH_ITEMS_MAX,
            }
        },
    }
    operation: dict[str, Any] = {
        "tags": ["events"],
        "summary": "Record an event or a batch",
        "operationId": "record_events",
        "description": 'What people did: one event, or `{"events": […]}` with up to '
        f"{BATCH_ITEMS_MAX:,}. Answered after they are stored; in a batch each succeeds or fails "
        "alone, `errors` names the refused ones by `index`. An event with an `id` counts once. "
        "Somebody new, named by address, external or anonymous id, is created without consent.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"oneOf": [event, batch]}}},
        },
        "responses": {"200": {"description": "Stored."}},
    }
    _finish(operation, SCOPE)
    return operation
