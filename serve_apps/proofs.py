"""Test mails of a template: to addresses of one's own, filled with somebody's values.

A test goes the way of every mail: a ledger row in the campaign of the template version's tests,
then lease, Throttle and Sender. The row is of the person who fills it, in that person's shard; with
nobody named, each recipient who is a subscriber fills their own, and for others there are no values
at all. All addresses are checked before the first message is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from actors.handles import Handles
from manta.clock import as_text
from manta.delivery.campaign import MARKETING_ONLY_SUPPRESSIONS
from manta.delivery.directing import OneMessage
from manta.errors import InvalidRequest
from manta.ids import NOBODY, encode_id
from manta.people.addresses import Refused, normalised
from manta.people.identities import EMAIL, compared
from serve_apps.limits import CALL_DEADLINE_S

RECIPIENTS_MAX = 10
EXPIRES_AFTER = timedelta(days=1)


class _Recipient(NamedTuple):
    address: str
    filled_by: int


async def send_tests(
    handles: Handles,
    template_id: int,
    version: int | None,
    to: Sequence[str],
    filled_by: int | None,
    key: str | None,
) -> dict[str, Any]:
    """Enqueue a test to each address. Raises ``InvalidRequest`` with ``to[n]`` where it is no
    address or must not be mailed; then nothing was sent."""
    recipients: dict[str, _Recipient] = {}
    for n, text in enumerate(to):
        found = await _recipient(handles, text, f"to[{n}]", filled_by)
        recipients[compared(EMAIL, found.address)] = found
    now = handles.clock.now()
    occasion = key or as_text(now)
    campaign: dict[str, Any] = {}
    sent = []
    for found in recipients.values():
        message = OneMessage(
            found.filled_by, f"{occasion} {found.address}", found.address, now + EXPIRES_AFTER
        )
        campaign = await handles.director.call(
            "send_one", "test", template_id, version, message, key, deadline_s=CALL_DEADLINE_S
        )
        sent.append(
            {
                "to": found.address,
                "message": encode_id(campaign["message_key"]),
                "state": campaign["state"],
            }
        )
        if campaign["reason"]:
            sent[-1]["reason"] = campaign["reason"]
    about = {"campaign_id": campaign["campaign_id"], "version": campaign["template_version"]}
    return {**about, "sent": sent}


async def _recipient(handles: Handles, text: str, path: str, filled_by: int | None) -> _Recipient:
    address = normalised(text)
    if isinstance(address, Refused):
        raise InvalidRequest(
            f"{text!r:.80} is not an address: {address.reason}", path=path, expected="local@domain"
        )
    asked = {"kind": EMAIL, "values": [compared(EMAIL, address)]}
    home = handles.shards.of_identity(EMAIL, compared(EMAIL, address))
    (person,) = await handles.shards.query(home, "identities", asked, CALL_DEADLINE_S)
    shards = {home} if person is None else {home, handles.shards.of_subscriber(person)}
    for shard in sorted(shards):
        reason = await handles.shards.query(
            shard, "suppression", {"channel": "email", "address": address}, CALL_DEADLINE_S
        )
        if reason is not None and reason not in MARKETING_ONLY_SUPPRESSIONS:
            raise InvalidRequest(
                f"{address} is suppressed: {reason}", path=path, expected="an address of your own"
            )
    if filled_by is None:
        filled_by = NOBODY if person is None else person
    return _Recipient(address, filled_by)
