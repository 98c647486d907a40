"""What Reputation sees: what became of messages, counted by who sent them where.

Senders tell it what servers answered, shards what came later (bounces by mail, complaints, opens).
Observations are hints: a few may be lost with a process, and after a start the windows are rebuilt
from what the shards have on record.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class BounceClass(StrEnum):
    """What a refusal says, whoever brought it: an SMTP reply, a DSN, a webhook."""

    HARD = "hard"  # this address will never take mail
    SOFT = "soft"  # this mailbox or system does not take it now
    BLOCK = "block"  # it is about us: reputation, policy, authentication, rate
    MESSAGE = "message"  # it is about this message: size, content; never counts against anybody
    COMPLAINT = "complaint"  # a person said that it is spam
    NONE = ""  # no bounce: an auto-reply, or nothing that can be told


class Seen(StrEnum):
    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    FAILED = "failed"  # refused in the SMTP dialogue
    BOUNCED = "bounced"  # by a DSN or a webhook, after it had been accepted
    COMPLAINED = "complained"
    OPENED = "opened"
    CLICKED = "clicked"
    UNSUBSCRIBED = "unsubscribed"
    UNREACHED = "unreached"  # a connection failed, or a server refused to greet us


class Observed(NamedTuple):
    """``messages`` of one kind. ``text`` is the server's reply with its enhanced code, as
    received; empty where no server said anything. ``is_internal``: the words are ours, not a
    server's, so no rule may match them."""

    occurred_at: datetime
    seen: Seen
    sending_domain: str
    source: str
    provider: str
    site: str
    campaign_id: int
    bounce_class: BounceClass = BounceClass.NONE
    category: str = ""
    code: int = 0
    text: str = ""
    is_internal: bool = False
    messages: int = 1
