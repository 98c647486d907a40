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
from random import Random, SystemRandom
from typing import Any

from actors import handles
from actors.bursts import Connect, Connection
from actors.catalog import Catalog
from actors.composers import Composers
from actors.director import Director
from actors.handles import Handles, Retrying, Singleton, sender_role, shard_role
from actors.inbox import Inbox, tls_context
from actors.io.connection import SmtpLimits
from actors.io.dns import DnsClient
from actors.io.policies import HttpsFetch, Policies
from actors.io.smtp import DirectConnector, SmtpConnector
from actors.reputation import ReputationActor
from actors.resolver import Resolver, Returns
from actors.runtime import Caller, exit_process, node_count, start_actor, stop_actor
from actors.sender import Ports, Sender, SenderSettings
from actors.shard import ShardActor, ShardActorSettings
from actors.throttle import Throttle
from manta.clock import SystemClock
from manta.delivery import norms, shaping
from manta.delivery import queries as delivery_queries
from manta.delivery.attempts import AttemptJournal
from manta.delivery.hooks import HookSettings, delivery_hooks
from manta.delivery.lanes import Lane, Site
from manta.delivery.replies import Reply, Verdict
from manta.delivery.retry import RetryPolicy
from manta.delivery.sending import SendingSettings
from manta.delivery.sites import Route
from manta.delivery.throttle import Connections
from manta.delivery.ways import Ways, limits_of
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
FIRST = ("catalog", "throttle", "reputation", "resolver")  # they start without a shard
INBOX = "inbox-00"
S3_APPEND_GAP_S = 0.1
LOCAL_APPEND_GAP_S = 0.04
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
    shaping.parse(text, shaping.builtin())
    return text


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


def _builder(role: str, settings: Settings) -> Callable[[], Any]:
    kind, _, number = role.partition("-")
    builders: dict[str, Callable[..., Any]] = {
        "catalog": build_catalog,
        "throttle": build_throttle,
        "reputation": build_reputation,
        "resolver": build_resolver,
        "director": build_director,
        "inbox": build_inbox,
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
    documents, ways = _documents(settings, "throttle"), Ways.of(settings)
    return Throttle(documents, exit_process, SystemClock(), limits_of(settings), ways)


def build_reputation(settings: Settings) -> ReputationActor:
    return ReputationActor(
        _documents(settings, "reputation"),
        exit_process,
        SystemClock(),
        Caller(settings.workspace),
        partial(find, settings),
        settings.egress,
        shaping.builtin(),
        norms.builtin(),
    )


def build_resolver(settings: Settings) -> Resolver:
    clock, private = SystemClock(), settings.dns.private_addresses
    dns = DnsClient(settings.dns, clock)
    policies = Policies(dns, HttpsFetch(dns, private=private), clock)
    base = shaping.builtin()
    addresses = [source.source_address for source in settings.egress if source.kind == "direct"]
    return Resolver(
        dns,
        policies,
        base,
        lambda text: shaping.parse(text, base),
        clock,
        private=private,
        returns=Returns(
            settings.return_path_domain,
            tuple(address for address in addresses if address),
            settings.inbox.port > 0,
        ),
    )


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


async def build_inbox(settings: Settings) -> Inbox:
    found = await find(settings)
    return Inbox(
        found.catalog,
        found.shards,
        SystemClock(),
        settings.workspace,
        settings.return_path_domain,
        settings.inbox,
        tls_context(settings.inbox),
    )


def build_shard(settings: Settings, shard: int) -> ShardActor:
    clock = SystemClock()
    objects = _objects(settings)
    shard_settings = ShardSettings(
        memory_limit_mb=settings.shard_memory_limit_bytes >> 20,
        flush_bytes=settings.flush_bytes,
        flush_after_s=settings.flush_seconds,
        domain={
            "time_zone": settings.time_zone,
            "settling_time_h": settings.settling_time_h,
            "message_age_max_h": settings.message_age_max_h,
        },
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

    async def find_ports() -> Ports:
        found = await find(settings)
        composers = Composers(
            found.catalog,
            found.director,
            clock,
            settings.workspace,
            settings.public_url,
            settings.return_path_domain,
            has_inbox=settings.inbox.port > 0,
        )
        return Ports(
            found.shards,
            found.throttle,
            found.reputation,
            composers,
            _connect(settings, found.resolver, random),
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


def _connect(settings: Settings, resolver: Singleton, random: Random) -> Connect:
    """Opens connections as each source does: to its relay, or to the exchangers of a site."""
    limits = SmtpLimits.within(settings.lease_deadline_s)

    async def routes(site: Site) -> list[Route]:
        found: list[Route] = await resolver.call("routes", site, deadline_s=0.0)
        return found

    relays = {
        source.name: SmtpConnector(source, os.environ.get(source.password_env, ""), limits)
        for source in settings.egress
        if source.kind == "relay"
    }
    direct = {
        source.name: DirectConnector(source, limits, routes, random)
        for source in settings.egress
        if source.kind == "direct"
    }

    async def connect(lane: Lane, site: Site, held: Connections) -> Connection | Reply:
        if lane.source in relays:
            return await relays[lane.source].connect(held.messages_per_connection)
        if lane.source in direct:
            connector = direct[lane.source]
            return await connector.connect(lane, site, held.tls, held.messages_per_connection)
        why = f"this Sender knows no source {lane.source}"  # others have newer settings
        return Reply(Verdict.NOT_SENT, 0, why, "not sent")

    return connect
