"""How each actor is built, in its own process: clocks, randomness, stores and keys come from here.

A process imports what its own actor needs and no more: that is most of what starting costs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

from actors import handles
from actors.handles import Handles, Singleton, sender_role
from actors.runtime import Caller, exit_process
from manta.clock import SystemClock
from manta.settings import Settings
from manta.store.documents import Documents
from manta.store.journal import Journal
from manta.store.objects import ObjectStore, open_objects
from manta.store.secrets import PRIVACY, RECEIPTS, workspace_secret

if TYPE_CHECKING:
    from actors.bursts import Connect, Connection
    from actors.catalog import Catalog
    from actors.courier import Courier
    from actors.director import Director
    from actors.inbox import Inbox
    from actors.reputation import ReputationActor
    from actors.resolver import Resolver
    from actors.sender import Ports, Sender
    from actors.shard import ShardActor
    from actors.throttle import Throttle
    from manta.delivery.attempts import AttemptJournal
    from manta.delivery.lanes import Lane, Site
    from manta.delivery.replies import Reply
    from manta.delivery.routing.sites import Route
    from manta.delivery.throttle.budgets import Connections
    from manta.store.shard import ShardStore

FOUND_WITHIN_S = 120.0
S3_APPEND_GAP_S = 0.1
LOCAL_APPEND_GAP_S = 0.04


def build(role: str, settings: Settings) -> Any:
    """The object of a role; an awaitable where its building has to wait for others."""
    kind, _, number = role.partition("-")
    builders: dict[str, Callable[..., Any]] = {
        "catalog": build_catalog,
        "throttle": build_throttle,
        "reputation": build_reputation,
        "resolver": build_resolver,
        "director": build_director,
        "inbox": build_inbox,
        "courier": build_courier,
    }
    if kind in builders:
        return builders[kind](settings)
    numbered: dict[str, Callable[..., Any]] = {"shard": build_shard, "sender": build_sender}
    return numbered[kind](settings, int(number))


async def _find(settings: Settings) -> Handles:
    return await handles.find(
        settings.workspace,
        Caller(settings.workspace),
        SystemClock(),
        SystemRandom(),
        senders=settings.senders,
        deadline_s=FOUND_WITHIN_S,
    )


def _documents(settings: Settings, role: str) -> Documents:
    prefix = f"{settings.workspace}/journal/{role}"
    return Documents(_objects(settings), prefix, role, os.urandom(16), SystemClock())


def _attempts(settings: Settings, sender: str) -> AttemptJournal:
    """The attempt journal of a Sender (a role), not yet taken over."""
    from manta.delivery.attempts import AttemptJournal

    return AttemptJournal(_attempt_entries(settings, sender))


def _attempt_entries(settings: Settings, sender: str) -> Journal:
    prefix = f"{settings.workspace}/journal/sender={sender.partition('-')[2]}"
    return Journal(_objects(settings), prefix, sender, os.urandom(16), SystemClock())


def _secret(settings: Settings, name: str) -> bytes:
    return workspace_secret(_objects(settings), settings.workspace, name, os.urandom)


def _objects(settings: Settings) -> ObjectStore:
    return open_objects(settings.root)


def build_catalog(settings: Settings) -> Catalog:
    from actors.catalog import Catalog
    from actors.distributing import Distributor

    clock = SystemClock()
    return Catalog(
        _documents(settings, "catalog"),
        exit_process,
        clock,
        settings.workspace,
        settings.shards,
        Distributor(Caller(settings.workspace), clock, SystemRandom()),
        lambda: _secret(settings, RECEIPTS),
    )


def build_throttle(settings: Settings) -> Throttle:
    from actors.throttle import Throttle
    from manta.delivery.throttle.ways import Ways, limits_of

    documents, ways = _documents(settings, "throttle"), Ways.of(settings)
    return Throttle(documents, exit_process, SystemClock(), limits_of(settings), ways)


def build_reputation(settings: Settings) -> ReputationActor:
    from actors.reputation import ReputationActor
    from manta.delivery.reputation import norms
    from manta.delivery.shaping import shaping

    return ReputationActor(
        _documents(settings, "reputation"),
        exit_process,
        SystemClock(),
        Caller(settings.workspace),
        partial(_find, settings),
        settings.egress,
        shaping.builtin(),
        norms.builtin(),
    )


def build_resolver(settings: Settings) -> Resolver:
    from actors.io.dns import DnsClient
    from actors.io.policies import HttpsFetch, Policies
    from actors.resolver import Resolver, Returns
    from manta.delivery.shaping import shaping

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
    from actors.director import Director

    return Director(
        _documents(settings, "director"),
        exit_process,
        SystemClock(),
        Caller(settings.workspace),
        partial(_find, settings),
        partial(_attempts, settings),
        settings,
    )


async def build_inbox(settings: Settings) -> Inbox:
    from actors.inbox import Inbox, tls_context

    found = await _find(settings)
    return Inbox(
        found.catalog,
        found.shards,
        SystemClock(),
        settings.workspace,
        settings.return_path_domain,
        settings.inbox,
        tls_context(settings.inbox),
    )


async def build_courier(settings: Settings) -> Courier:
    from actors.courier import Courier
    from actors.io.dns import DnsClient
    from actors.io.web import Web, asked_addresses, system_addresses

    found, clock, resolve = await _find(settings), SystemClock(), system_addresses
    if settings.dns.servers:
        resolve = asked_addresses(DnsClient(settings.dns, clock).addresses)
    web = Web(resolve, private=settings.courier.private_addresses)
    return Courier(found.catalog, found.shards, web, clock)


def build_shard(settings: Settings, shard: int) -> ShardActor:
    from actors.erasing import ErasureHook, around
    from actors.shard import ShardActor, ShardActorSettings
    from manta.delivery import queries as delivery_queries
    from manta.delivery.hooks import HookSettings, delivery_hooks
    from manta.events import queries as event_queries
    from manta.ingestion import quarantine
    from manta.people import queries as people_queries
    from manta.people.sunset import SunsetDeriver
    from manta.privacy import queries as privacy_queries
    from manta.privacy.hashes import SETTING as PRIVACY_KEY
    from manta.rules import queries as rule_queries
    from manta.segments import queries as segment_queries
    from manta.segments.notes import Notes
    from manta.store.queries import Queries
    from manta.store.settings import ShardSettings
    from manta.store.shard import ShardStore
    from manta.webhooks import queries as webhook_queries
    from manta.webhooks.deriving import OutboxDeriver
    from manta.webhooks.hooks import DeliveriesHook

    clock = SystemClock()
    objects = _objects(settings)
    shard_settings = ShardSettings(
        memory_limit_mb=settings.shard_memory_limit_bytes >> 20,
        flush_bytes=settings.flush_bytes,
        flush_after_s=settings.flush_seconds,
        event_days=settings.event_days,
        anonymous_days=settings.anonymous_days,
        quarantine_days=settings.quarantine_days,
        domain={
            "time_zone": settings.time_zone,
            "settling_time_h": settings.settling_time_h,
            "message_age_max_h": settings.message_age_max_h,
        },
    )

    notes = Notes(clock)

    def open_store() -> ShardStore:
        domain = {**shard_settings.domain, PRIVACY_KEY: _secret(settings, PRIVACY)}
        return ShardStore(
            objects,
            settings.workspace,
            shard,
            os.urandom(16),
            clock,
            SystemRandom(),
            replace(shard_settings, domain=domain),
            (
                *delivery_hooks(clock, HookSettings(lease_deadline_s=settings.lease_deadline_s)),
                DeliveriesHook(clock),
                ErasureHook(),
            ),
            (SunsetDeriver(), OutboxDeriver()),
            watch=notes.add,
        )

    queries = Queries(
        people_queries.QUERIES,
        event_queries.QUERIES,
        rule_queries.QUERIES,
        segment_queries.QUERIES,
        quarantine.QUERIES,
        delivery_queries.QUERIES,
        webhook_queries.QUERIES,
        privacy_queries.QUERIES,
    )
    gap_s = S3_APPEND_GAP_S if settings.root.startswith("s3://") else 0.0
    return ShardActor(
        open_store,
        Caller(settings.workspace).push,
        clock,
        exit_process,
        queries,
        ShardActorSettings(append_gap_s=gap_s),
        notes,
        around(partial(_find, settings), objects),
    )


def build_sender(settings: Settings, number: int) -> Sender:
    from actors.composers import Composers
    from actors.sender import Ports, Sender, SenderSettings
    from manta.delivery.retry import RetryPolicy
    from manta.delivery.sending import SendingSettings

    role = sender_role(number)
    clock, random = SystemClock(), SystemRandom()
    journal = _attempt_entries(settings, role)

    async def find_ports() -> Ports:
        found = await _find(settings)
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
    from actors.io.connection import SmtpLimits
    from actors.io.smtp import DirectConnector, SmtpConnector
    from manta.delivery.replies import Reply, Verdict

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
