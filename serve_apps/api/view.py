"""View in browser: the page that shows a recipient their mail, as it is made for them now.

Tracking verifies the link and sends the browser here, so that composing never holds up the links.
The template is the version that the campaign has pinned, the values are the person's present ones,
the links the tracked ones of the mail itself; there is no open pixel. The page is made on a thread
of its own, one at a time, by the compiled template that Senders use. It comes from strangers' hands
and stands under our own name: its policy allows no script, no form, and gives it no origin, so that
it reaches neither a cookie nor the console.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from actors.handles import Handles
from manta.content.composer import Composer, MailSettings
from manta.content.language import TemplateError
from manta.content.templates import MailTemplate
from manta.content.tokens import Keyring, Payload, TokenKind
from manta.definitions import TEMPLATE_FIELDS
from manta.errors import InvalidRequest, MantaError, NotFound, Overloaded
from manta.ids import NOBODY
from manta.schema import ATTRIBUTE_PREFIX
from serve_apps import landing
from serve_apps.limits import CALL_DEADLINE_S
from serve_apps.links import LinkKeys
from serve_apps.problems import RETRY_AFTER_S

WAITING_MAX = 40
COMPOSERS_MAX = 64
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src http: https: data:; style-src 'unsafe-inline' https:; "
    "font-src https: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox"
)
_HEADERS = {
    "Cache-Control": "no-store, max-age=0",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
router = APIRouter(include_in_schema=False)


class Views:
    """Composes pages; ``base_url`` is where the links of mails lead."""

    def __init__(self, handles: Handles, base_url: str) -> None:
        self._handles = handles
        self._base_url = base_url
        self._keys = LinkKeys(handles.catalog, handles.workspace, handles.clock)
        self._composers: OrderedDict[int, Composer] = OrderedDict()
        self._signed_by: Keyring | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="view")
        self._waiting = 0

    async def page(self, token: str) -> str:
        """The mail's HTML. Raises ``NotFound`` for a link that is not ours or whose mail is gone,
        ``Overloaded`` where many wait."""
        if self._waiting >= WAITING_MAX:
            raise Overloaded("many mails are being shown at present")
        self._waiting += 1
        try:
            said = await self._keys.verify(token, TokenKind.VIEW)
            composer, row = await asyncio.gather(self._composer(said.campaign_id), self._row(said))
            loop = asyncio.get_running_loop()
            rendered = await loop.run_in_executor(
                self._thread, lambda: composer.render(row, said.ref)
            )
            return str(rendered.html)
        finally:
            self._waiting -= 1

    async def _row(self, said: Payload) -> dict[str, Any]:
        """The person's values, named as templates name them."""
        id = said.subscriber_id
        if id == NOBODY:
            return {}
        shard = self._handles.shards.of_subscriber(id)
        asked = {"subscriber_id": id}
        found = await self._handles.shards.query(shard, "person", asked, CALL_DEADLINE_S)
        if found is None:
            raise NotFound("the person is gone", path="token")
        row = {name.removeprefix(ATTRIBUTE_PREFIX): v for name, v in found["attributes"].items()}
        return row | {name: found[name] for name in ("email", "time_zone", "locale")}

    async def _composer(self, campaign_id: int) -> Composer:
        """Of the version that the campaign has pinned; made again when the signing key changes."""
        keyring = await self._keys.current()
        if keyring is not self._signed_by:
            self._composers.clear()
            self._signed_by = keyring
        composer = self._composers.get(campaign_id)
        if composer is None:
            composer = await self._make(campaign_id, keyring)
            self._composers[campaign_id] = composer
        self._composers.move_to_end(campaign_id)
        while len(self._composers) > COMPOSERS_MAX:
            self._composers.popitem(last=False)
        return composer

    async def _make(self, campaign_id: int, keyring: Keyring) -> Composer:
        campaign = await self._handles.director.call(
            "get", "campaigns", str(campaign_id), deadline_s=CALL_DEADLINE_S
        )
        if campaign is None or campaign["template_version"] is None:
            raise NotFound("the campaign is gone", path="token")
        version = await self._handles.catalog.call(
            "template_version",
            campaign["template_id"],
            campaign["template_version"],
            deadline_s=CALL_DEADLINE_S,
        )
        template = MailTemplate.from_json(
            {name: version.get(name) or "" for name in TEMPLATE_FIELDS}
        )
        domain = template.from_email.rpartition("@")[2]
        settings = MailSettings(
            campaign_id, self._base_url, domain, kind=campaign["kind"], track_opens=False
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: Composer(template, settings, keyring)
        )


@router.api_route("/view/{token}", methods=["GET", "HEAD"])
async def view(token: str, request: Request) -> HTMLResponse:
    views: Views = request.app.state.views
    try:
        page = await views.page(token)
    except NotFound:
        return _landed(landing.NOT_VALID, 404)
    except (TemplateError, InvalidRequest):
        return _landed(landing.NOT_SHOWN, 404)
    except MantaError:
        return _landed(landing.TRY_AGAIN, 503, {"Retry-After": str(RETRY_AFTER_S)})
    return HTMLResponse(
        page, headers=_HEADERS | {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    )


def _landed(page: bytes, status: int, more: dict[str, str] | None = None) -> HTMLResponse:
    policy = {"Content-Security-Policy": landing.CONTENT_SECURITY_POLICY}
    return HTMLResponse(page, status, _HEADERS | policy | (more or {}))
