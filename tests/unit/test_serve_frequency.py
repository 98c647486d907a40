"""Caps and quiet hours by HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from serve_apps.api import create_api
from tests.unit.serve_fakes import client
from tests.unit.serve_world import House, house


@pytest.fixture
async def http() -> Any:
    async with house() as world:
        built: House = world
        app = create_api(built.handles, built.authenticator, "http://manta.test")
        async with client(app, "/v1", await built.key()) as opened:
            yield opened


@pytest.mark.parametrize(
    ("path", "fields", "changed"),
    [
        ("/v1/caps", {"name": "Few", "limit": 3, "days": 7}, {"limit": 5}),
        ("/v1/quiet-hours", {"name": "Night", "start": "21:00", "end": "08:00"}, {"end": "07:00"}),
    ],
)
async def test_they_are_kept_changed_and_deleted(
    http: Any, path: str, fields: dict[str, Any], changed: dict[str, Any]
) -> None:
    made = await http.post(path, json=fields)
    assert made.status_code == 201 and made.json()["version"] == 1
    again = await http.put(f"{path}/1", json=fields | changed)
    assert again.json().items() >= changed.items() and again.json()["version"] == 2
    assert (await http.get(f"{path}/1")).json() == again.json()
    assert len((await http.get(path)).json()["items"]) == 1
    assert (await http.delete(f"{path}/1")).status_code == 204
    assert (await http.get(f"{path}/1")).status_code == 404


async def test_what_is_wrong_is_named(http: Any) -> None:
    refused = await http.post("/v1/caps", json={"name": "x", "limit": 3})
    assert refused.status_code == 422 and refused.json()["path"] == "days"
    refused = await http.post("/v1/quiet-hours", json={"name": "x", "start": "9", "end": "25:00"})
    assert refused.status_code == 422
