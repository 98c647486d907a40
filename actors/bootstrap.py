"""Composition: how the actors of a workspace are built, started and ended.

The ``build_*`` functions run in each actor's own process: they alone create clocks, randomness,
stores and keys, and pass them in. ``up`` may be called again at any time: actors that run stay.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any

from actors import handles
from actors.catalog import Catalog
from actors.composers import Composers
from actors.director import Director
from actors.handles import Handles, Retrying, sender_role, shard_role
from actors.io.smtp import SmtpConnector, SmtpLimits
from actors.runtime import Caller, exit_process, node_count, start_actor, stop_actor
from actors.sender import Ports, Sender, SenderSettings
from actors.shard import ShardActor, ShardActorSettings
from actors.throttle import Throttle
from manta.clock import SystemClock
from manta.content.dkim import DkimSigner, load_private_key
from manta.delivery import queries as delivery_queries
from manta.delivery.attempts import AttemptJournal
from manta.delivery.hooks import HookSettings, delivery_hooks
from manta.delivery.lanes import Limits
from manta.delivery.retry import RetryPolicy
from manta.delivery.sending import SendingSettings
from manta.errors import InvalidRequest, NotReady
from manta.events import queries as event_queries
from manta.people import queries as people_queries
from manta.rules import queries as rule_queries
from manta.settings import Settings
from manta.store.documents import Documents
from manta.store.journal import Journal
from manta.store.objects import ObjectStore, open_objects
from manta.store.queries import Queries
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore

UP_DEADLINE_S = 120.0
S3_APPEND_GAP_S = 0.1
LOCAL_APPEND_GAP_S = 0.005
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
        "catalog",
        "throttle",
        *(shard_role(n) for n in range(settings.shards)),
        "director",
        *(sender_role(n) for n in range(settings.senders)),
    ]


async def up(settings: Settings, deadline_s: float = UP_DEADLINE_S) -> Handles:
    """Start what does not run yet and wait until every shard answers.

    The Catalog comes first: no shard is started unless its table has as many as the settings.
    """
    settings = absolute(settings)
    _check_root(settings)
    catalog, *others = roles(settings)
    _start(settings, catalog)
    found = await find(settings, deadline_s)
    check_shards(settings, found.shards.count)
    for role in others:
        _start(settings, role)
    retrying = Retrying(found.clock, SystemRandom(), deadline_s)
    while waiting := [s for s in await found.shards.status() if not s.get("ready")]:
        if not await retrying.pause():
            raise NotReady(f"not every shard is ready: {waiting[0].get('reason', waiting[0])}")
    await found.director.call("status", deadline_s=deadline_s)
    return found


def _start(settings: Settings, role: str) -> None:
    name = f"{settings.workspace}/{role}"
    start_actor(name, _builder(role, settings), environment=PROCESS_ENVIRONMENT)


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
    for role in reversed(roles(settings)):
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


def _builder(role: str, settings: Settings) -> Callable[[], Any]:
    kind, _, number = role.partition("-")
    builders: dict[str, Callable[..., Any]] = {
        "catalog": build_catalog,
        "throttle": build_throttle,
        "director": build_director,
    }
    if kind in builders:
        return partial(builders[kind], settings)
    numbered: dict[str, Callable[..., Any]] = {"shard": build_shard, "sender": build_sender}
    return partial(numbered[kind], settings, int(number))


def _documents(settings: Settings, role: str) -> Documents:
    prefix = f"{settings.workspace}/journal/{role}"
    return Documents(_objects(settings), prefix, role, os.urandom(16), SystemClock())


def _attempts(settings: Settings, sender: str) -> AttemptJournal:
    """The attempt journal of a Sender (a role), not yet taken over."""
    return AttemptJournal(_attempt_entries(settings, sender))


def _attempt_entries(settings: Settings, sender: str) -> Journal:
    prefix = f"{settings.workspace}/journal/sender={sender.partition('-')[2]}"
    return Journal(_objects(settings), prefix, sender, os.urandom(16), SystemClock())


def _objects(settings: Settings) -> ObjectStore:
    return open_objects(settings.root)


def build_catalog(settings: Settings) -> Catalog:
    documents = _documents(settings, "catalog")
    return Catalog(documents, exit_process, SystemClock(), settings.workspace, settings.shards)


def build_throttle(settings: Settings) -> Throttle:
    sources = {
        source.name: Limits(
            rate_per_s=source.rate_per_s,
            burst=source.burst,
            connections_max=source.connections_max,
            messages_per_connection=source.messages_per_connection,
        )
        for source in settings.egress
    }
    return Throttle(_documents(settings, "throttle"), exit_process, SystemClock(), sources)


def build_director(settings: Settings) -> Director:
    return Director(
        _documents(settings, "director"),
        exit_process,
        SystemClock(),
        Caller(settings.workspace),
        partial(find, settings),
        partial(_attempts, settings),
        settings,
    )


def build_shard(settings: Settings, shard: int) -> ShardActor:
    clock = SystemClock()
    objects = _objects(settings)
    shard_settings = ShardSettings(
        memory_limit_mb=settings.shard_memory_limit_bytes >> 20,
        flush_bytes=settings.flush_bytes,
        flush_after_s=settings.flush_seconds,
        domain={"time_zone": settings.time_zone, "settling_time_h": settings.settling_time_h},
    )

    def open_store() -> ShardStore:
        return ShardStore(
            objects,
            settings.workspace,
            shard,
            os.urandom(16),
            clock,
            SystemRandom(),
            shard_settings,
            delivery_hooks(clock, HookSettings(lease_deadline_s=settings.lease_deadline_s)),
        )

    queries = Queries(
        people_queries.QUERIES,
        event_queries.QUERIES,
        rule_queries.QUERIES,
        delivery_queries.QUERIES,
    )
    gap_s = S3_APPEND_GAP_S if settings.root.startswith("s3://") else 0.0
    return ShardActor(
        open_store,
        Caller(settings.workspace).push,
        clock,
        exit_process,
        queries,
        ShardActorSettings(append_gap_s=gap_s),
    )


def build_sender(settings: Settings, number: int) -> Sender:
    role = sender_role(number)
    clock, random = SystemClock(), SystemRandom()
    journal = _attempt_entries(settings, role)
    limits = SmtpLimits.within(settings.lease_deadline_s)
    connectors = {
        source.name: SmtpConnector(source, os.environ.get(source.password_env, ""), limits)
        for source in settings.egress
    }

    async def find_ports() -> Ports:
        found = await find(settings)
        composers = Composers(
            found.catalog,
            found.director,
            clock,
            settings.workspace,
            settings.public_url,
            settings.return_path_domain,
            _signers(settings),
        )
        return Ports(
            found.shards,
            found.throttle,
            composers,
            lambda lane, messages_max: connectors[lane.source].connect(messages_max),
        )

    gap_s = S3_APPEND_GAP_S if settings.root.startswith("s3://") else LOCAL_APPEND_GAP_S
    director = Caller(settings.workspace)
    return Sender(
        role,
        journal,
        exit_process,
        clock,
        random,
        find_ports,
        SenderSettings(
            append_gap_s=gap_s,
            sending=SendingSettings(retry=RetryPolicy(first_wait_s=settings.retry_first_wait_s)),
        ),
        tell_ready=lambda: director.push("director", "sender_ready", role),
    )


def _signers(settings: Settings) -> list[DkimSigner]:
    return [
        DkimSigner(
            key.domain, key.selector, load_private_key(Path(key.private_key_file).read_bytes())
        )
        for key in settings.dkim
    ]
