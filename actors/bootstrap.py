"""Composition: how the actors of a workspace are started, found and ended.

How each is built in its own process is said in ``actors.building``. ``up`` may be called again at
any time: actors that run stay.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from random import SystemRandom

from actors import handles
from actors.building import build
from actors.handles import Handles, Retrying, sender_role, shard_role
from actors.runtime import Caller, node_count, start_actor, stop_actor
from manta.clock import SystemClock
from manta.errors import InvalidRequest, NotReady
from manta.settings import Settings

UP_DEADLINE_S = 120.0
FIRST = ("catalog", "throttle", "reputation", "resolver")  # they start without a shard
INBOX = "inbox-00"
# glibc keeps an arena per thread; a shard has few threads that allocate much.
PROCESS_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}


def absolute(settings: Settings) -> Settings:
    """The settings with a root that means the same in every process."""
    root = settings.root
    if "://" not in root:
        root = str(Path(root).absolute())
    return replace(settings, root=root)


def roles(settings: Settings) -> list[str]:
    """Every actor of a workspace, in the order of starting."""
    return [
        *FIRST,
        *(shard_role(n) for n in range(settings.shards)),
        "director",
        "courier",
        *(sender_role(n) for n in range(settings.senders)),
        *([INBOX] if settings.inbox.port else []),
    ]


async def up(settings: Settings, deadline_s: float = UP_DEADLINE_S) -> Handles:
    """Start what does not run yet and wait until every shard answers.

    The Catalog comes first, with those who start without a shard: none of these is started unless
    the Catalog's table has as many as the settings. The operator's shaping file holds from then on.
    """
    settings = absolute(settings)
    _check_root(settings)
    shaping_text = _shaping_text(settings)
    for role in FIRST:
        _start(settings, role)
    found = await find(settings, deadline_s)
    check_shards(settings, found.shards.count)
    for role in roles(settings)[len(FIRST) :]:
        _start(settings, role)
    retrying = Retrying(found.clock, SystemRandom(), deadline_s)
    while waiting := [s for s in await found.shards.status() if not s.get("ready")]:
        if not await retrying.pause():
            raise NotReady(f"not every shard is ready: {waiting[0].get('reason', waiting[0])}")
    await found.director.call("status", deadline_s=deadline_s)
    if shaping_text:
        known = await found.reputation.call("shaping", deadline_s=deadline_s)
        if known["text"] != shaping_text:
            await found.reputation.call("set_shaping", shaping_text, "manta up")
    return found


def _shaping_text(settings: Settings) -> str:
    """The operator's shaping, checked before anything is started; empty where there is none."""
    if not settings.shaping_file:
        return ""
    try:
        text = Path(settings.shaping_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"the shaping file cannot be read: {error}",
            path="shaping_file",
            expected="the path of a TOML file",
        ) from None
    from manta.delivery.shaping import shaping

    shaping.parse(text, shaping.builtin())
    return text


def _start(settings: Settings, role: str) -> None:
    name = f"{settings.workspace}/{role}"
    start_actor(name, partial(build, role, settings), environment=PROCESS_ENVIRONMENT)


def check_shards(settings: Settings, count: int) -> None:
    """Raises ``InvalidRequest`` where the workspace was founded with another number of shards.

    Which shard holds a person follows from that number.
    """
    if settings.shards != count:
        raise InvalidRequest(
            f"the workspace {settings.workspace} in {settings.root} has {count} shards, and the "
            f"settings say {settings.shards}",
            path="shards",
            expected=f"shards = {count}; people do not move between shards by a setting",
        )


def down(settings: Settings) -> None:
    """End the actors of a workspace for good; their state stays in the store."""
    for role in reversed([*dict.fromkeys([*roles(settings), INBOX])]):
        stop_actor(f"{settings.workspace}/{role}")


async def find(settings: Settings, deadline_s: float = UP_DEADLINE_S) -> Handles:
    """The handles of a running workspace."""
    caller = Caller(settings.workspace)
    return await handles.find(
        settings.workspace,
        caller,
        SystemClock(),
        SystemRandom(),
        senders=settings.senders,
        deadline_s=deadline_s,
    )


def _check_root(settings: Settings) -> None:
    """A folder is only good for several nodes when all of them see it."""
    if "s3://" not in settings.root and not settings.root_is_shared and node_count() > 1:
        raise InvalidRequest(
            f"the cluster has several nodes and the root is the folder {settings.root}",
            path="root",
            expected="s3://bucket/prefix, or root_is_shared = true for a folder all nodes see",
        )
