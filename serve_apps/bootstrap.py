"""Composition: the apps of a workspace as Ray Serve applications behind HAProxy.

Each app is built in its replica's own process from the settings and the handles. What Serve must
know before Ray starts stands in ``serve_environment``: HAProxy and every replica read it from the
environment of the whole cluster, so it has to be set before ``ray start`` or ``ray.init``.

Everything has a limit: requests at work and waiting per replica (beyond: 503 with Retry-After),
the time of a request, the size of a body. When Serve stops a replica, the app's lifespan ends only
after what it had taken is stored; when a replica dies, nobody was answered for what it had not
stored.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import Any

from actors.handles import Handles
from manta.errors import Conflict
from manta.settings import Settings
from serve_apps.limits import App
from serve_apps.problems import RETRY_AFTER_S

PORTS_TRIED = 50
DOWN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class AppSpec:
    """An app and its limits. ``build`` must be importable: it runs in each replica."""

    name: str
    route_prefix: str
    build: Callable[[Settings, Handles], Awaitable[App]]
    replicas: int = 1
    ongoing_max: int = 200
    queued_max: int = 400


async def build_tracking(settings: Settings, handles: Handles) -> App:
    from manta.traffic.networks import TrustedProxies
    from serve_apps.hits import hit_gatherer
    from serve_apps.links import LinkKeys
    from serve_apps.preferences.app import Preferences, front
    from serve_apps.tracking import Tracking

    keys = LinkKeys(handles.catalog, settings.workspace, handles.clock)
    hits = hit_gatherer(handles.shards, _incarnation(), SystemRandom())
    proxies = TrustedProxies(settings.http.trusted_proxies)
    return front(Preferences(handles, keys, proxies), Tracking(handles, keys, hits, proxies))


async def build_ingest(settings: Settings, handles: Handles) -> App:
    from serve_apps.auth import Authenticator
    from serve_apps.ingest import create_ingest

    authenticator = Authenticator(handles.catalog, settings.workspace, handles.clock)
    return create_ingest(handles, authenticator, _incarnation(), SystemRandom())


async def build_webhooks(settings: Settings, handles: Handles) -> App:
    from serve_apps.links import LinkKeys
    from serve_apps.webhooks import create_webhooks, fetch, sources_of

    keys = LinkKeys(handles.catalog, settings.workspace, handles.clock)
    return create_webhooks(handles, keys, sources_of(settings.webhooks, os.environ), fetch)


async def build_api(settings: Settings, handles: Handles) -> App:
    from manta.traffic.networks import TrustedProxies
    from serve_apps.api import create_api
    from serve_apps.auth import Authenticator

    authenticator = Authenticator(handles.catalog, settings.workspace, handles.clock)
    trusted = TrustedProxies(settings.http.trusted_proxies)
    return create_api(handles, authenticator, settings.public_url, trusted)


async def build_console(settings: Settings, handles: Handles) -> App:
    from serve_apps.auth import Authenticator
    from serve_apps.console import create_console

    authenticator = Authenticator(handles.catalog, settings.workspace, handles.clock)
    return create_console(handles, authenticator, secure=settings.public_url.startswith("https:"))


def apps(settings: Settings) -> list[AppSpec]:
    """The apps of every workspace. Tracking stands at the root, so that links are short."""
    tracking = settings.http.tracking_replicas
    return [
        AppSpec("tracking", "/", build_tracking, tracking, ongoing_max=2_000, queued_max=2_000),
        AppSpec("ingest", "/v1/events", build_ingest, ongoing_max=500, queued_max=1_000),
        AppSpec("api", "/v1", build_api),
        AppSpec("console", "/console", build_console),
        *([AppSpec("webhooks", "/webhooks", build_webhooks)] if settings.webhooks else []),
    ]


def serve_environment(cpus: int | None = None) -> dict[str, str]:
    """What has to stand in the environment before Ray starts, on every node.

    Without HAProxy the throughput switch alone would put the proxy on the head node only. HAProxy's
    own statistics ports get free ones, as they are bound on all interfaces and would stop a second
    cluster on the machine.
    """
    threads = max(1, min(4, (cpus or os.cpu_count() or 1) // 2))
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(threads),
        # Its per-request log would be read line by line by a Python process.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_any_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_any_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_any_port()),
    }


def with_free_port(settings: Settings) -> Settings:
    """The settings with the first free port from the wanted one on.

    To be called before the actors start, since the links in mails carry the port.
    """
    wanted = settings.http.port
    for port in range(wanted, wanted + PORTS_TRIED):
        if _is_free(settings.http.host, port):
            return replace(settings, http=replace(settings.http, port=port))
    raise Conflict(
        f"no free port from {wanted} on",
        path="http.port",
        expected=f"a free one of {wanted} to {wanted + PORTS_TRIED - 1}",
    )


def require_free_port(settings: Settings) -> None:
    """Raises ``Conflict`` where the port of the settings is another's."""
    http = settings.http
    if not _is_free(http.host, http.port):
        raise Conflict(
            f"port {http.port} on {http.host} is taken",
            path="http.port",
            expected="a free port: stop what listens there, or set another one",
        )


def deploy(settings: Settings, wanted: Sequence[AppSpec] | None = None) -> str:
    """Start Serve and the apps in a cluster that this process is connected to; returns the URL.

    Raises ``Conflict`` where the port is another's. Apps that run already are updated.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions

    if not _serve_runs():
        require_free_port(settings)
    http = settings.http
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress is not the caller's
    serve.start(
        http_options=HTTPOptions(
            host=http.host, port=http.port, request_timeout_s=http.request_timeout_s
        )
    )
    specs = apps(settings) if wanted is None else list(wanted)
    targets = [
        serve.RunTarget(_bind(spec, settings), name=spec.name, route_prefix=spec.route_prefix)
        for spec in specs
    ]
    serve.run_many(targets)
    return settings.public_url


def undeploy() -> None:
    """Stop Serve with all apps."""
    from ray import serve

    serve.shutdown()


def _bind(spec: AppSpec, settings: Settings) -> Any:
    """The Serve application of an app."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    class Replica:
        """Late-bound: handles must be found in the replica's own process and loop."""

        async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
            from actors.bootstrap import find

            self._built = await spec.build(settings, await find(settings))

        def __serve_build_asgi_app__(self) -> App:
            return self._built

    Replica.__name__ = spec.name
    deployment = serve.deployment(
        name=spec.name,
        num_replicas=spec.replicas,
        max_ongoing_requests=spec.ongoing_max,
        max_queued_requests=spec.queued_max,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": 0},
        # Serve makes a log record of each request before a handler drops it; not at this level.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        graceful_shutdown_timeout_s=DOWN_TIMEOUT_S,
    )
    return deployment(serve.ingress()(Replica)).bind()


def _serve_runs() -> bool:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return serve.status().proxies != {}
    except RayServeException:
        return False


def _incarnation() -> str:
    """A name that no other replica has or had: it begins the keys of its batches."""
    return secrets.token_hex(8)


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
