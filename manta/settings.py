"""What an operator may set, as values: parsed and checked once at start, units in the names.

``load`` reads a TOML file; a key that is not known is refused with the names that are. Secrets are
never in the file: a setting that ends in ``_env`` names the environment variable that holds one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from manta.errors import InvalidRequest

WEBHOOK_PROVIDERS = ("ses", "sendgrid", "mailgun", "postmark", "generic")
WORKSPACE_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


@dataclass(frozen=True)
class EgressSource:
    """One way out. A relay takes all our mail by SMTP; a direct source brings it to the mail
    exchangers of the recipients' domains itself.

    ``tls``: ``none``, ``opportunistic``, ``required`` or ``implicit`` (TLS from the first byte); of
    a direct source the shaping file says it. ``source_address``: the address to connect from.
    ``cold_since``: the day (YYYY-MM-DD) on which a new address begins to be warmed up.
    """

    name: str = "relay"
    kind: str = "relay"  # relay | direct
    host: str = "127.0.0.1"  # of a relay
    port: int = 25
    tls: str = "opportunistic"
    username: str = ""
    password_env: str = ""
    ca_file: str = ""  # certificate authorities to trust in the place of the system's
    ehlo_name: str = "localhost"
    source_address: str = ""
    cold_since: str = ""
    connections_max: int = 10
    messages_per_connection: int = 1_000
    rate_per_s: float = 1_000.0
    burst: int = 1_000

    def __post_init__(self) -> None:
        if self.kind not in ("relay", "direct"):
            raise InvalidRequest(
                f"egress source {self.name}: no kind {self.kind!r:.40}",
                path="egress.kind",
                expected="relay or direct",
            )


@dataclass(frozen=True)
class PoolMember:
    source: str
    weight: int = 1


@dataclass(frozen=True)
class Pool:
    """Sources that share the mail of campaigns that ask for the pool, by weight."""

    name: str
    members: tuple[PoolMember, ...] = ()


@dataclass(frozen=True)
class DnsSettings:
    """``servers``: ``address`` or ``address:port``; none: those of the system.

    ``private_addresses``: mail may go to exchangers in private networks and on this machine; else
    what a stranger's DNS says cannot reach them.
    """

    servers: tuple[str, ...] = ()
    timeout_s: float = 5.0
    private_addresses: bool = False


@dataclass(frozen=True)
class InboxSettings:
    """Where bounces, complaints and unsubscribes arrive by SMTP: the exchanger of
    ``return_path_domain``. Port 0: there is no inbox. STARTTLS is offered where a certificate (PEM,
    with its chain) is named; its key may be in the same file."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate_file: str = ""
    private_key_file: str = ""


@dataclass(frozen=True)
class WebhookSettings:
    """A provider that reports bounces and complaints to ``/webhooks/<provider>``.

    ``secret_env`` names the variable with what proves its requests (several, separated by blanks,
    while one replaces another): the verification key of SendGrid, the signing key of Mailgun,
    ``user:password`` or the text of a header for Postmark, ``whsec_…`` for generic. SES has none:
    ``topics`` are the ARNs of the SNS topics that are taken.
    """

    provider: str
    secret_env: str = ""
    topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.provider not in WEBHOOK_PROVIDERS:
            raise InvalidRequest(
                f"no provider of webhooks {self.provider!r:.40}",
                path="webhooks.provider",
                expected=", ".join(WEBHOOK_PROVIDERS),
            )
        wanted = "topics" if self.provider == "ses" else "secret_env"
        if not getattr(self, wanted):
            raise InvalidRequest(
                f"webhooks of {self.provider} lack {wanted}: anybody could send them",
                path=f"webhooks.{wanted}",
                expected="the ARNs of SNS topics" if self.provider == "ses" else "a variable",
            )


@dataclass(frozen=True)
class CourierSettings:
    """Of outgoing webhooks. ``private_addresses``: endpoints may be in private networks and on this
    machine, and have ``http`` URLs; else whoever may set an endpoint cannot reach these by it."""

    private_addresses: bool = False


@dataclass(frozen=True)
class HttpSettings:
    """``trusted_proxies``: the networks (10.0.0.0/8) of the proxies before the apps whose
    X-Forwarded-For is believed; nobody else may be able to connect from there. None: clients'
    addresses are not known, and what depends on them is off."""

    host: str = "127.0.0.1"
    port: int = 8000
    request_timeout_s: float = 30.0
    tracking_replicas: int = 1
    trusted_proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in self.trusted_proxies:
            try:
                ip_network(text)
            except ValueError as error:
                raise InvalidRequest(
                    f"{text!r:.60} is no network: {error!s:.80}",
                    path="http.trusted_proxies",
                    expected="networks such as 10.0.0.0/8 or fd00::/8",
                ) from None


@dataclass(frozen=True)
class Settings:
    """Everything that differs from one installation to the next."""

    workspace: str = "default"
    root: str = ".manta/data"  # a path, file:///…, or s3://bucket/prefix
    root_is_shared: bool = False  # a file root that all nodes see, such as NFS
    shards: int = 2
    senders: int = 1
    time_zone: str = "UTC"
    base_url: str = ""  # of the tracking links; empty: http://<host>:<port>
    return_path_domain: str = "bounces.localhost"  # of the envelope; its mail comes to the inbox
    settling_time_h: float = 24.0
    retry_first_wait_s: float = 1_200.0  # after a 4xx; doubled each time, up to four hours
    lease_deadline_s: float = 900.0  # then a silent Sender's journal is fenced and read
    flush_seconds: float = 60.0
    flush_bytes: int = 64 << 20
    shard_memory_limit_bytes: int = 4 << 30
    message_age_max_h: float = 72.0  # from its first trouble on; then it expires
    event_days: int = 0  # older events are deleted everywhere; 0: they are kept for ever
    anonymous_days: int = 400  # anonymous people of whom nothing was heard for so long are deleted
    quarantine_days: int = 30  # what fits no schema is kept so long
    shaping_file: str = ""  # the operator's own, over the one that comes with Manta
    egress: tuple[EgressSource, ...] = (EgressSource(),)
    pools: tuple[Pool, ...] = ()
    http: HttpSettings = field(default_factory=HttpSettings)
    dns: DnsSettings = field(default_factory=DnsSettings)
    inbox: InboxSettings = field(default_factory=InboxSettings)
    webhooks: tuple[WebhookSettings, ...] = ()
    courier: CourierSettings = field(default_factory=CourierSettings)

    def __post_init__(self) -> None:
        if not WORKSPACE_NAME.fullmatch(self.workspace):
            raise InvalidRequest(
                f"workspace {self.workspace!r} is not a name",
                path="workspace",
                expected="a lower-case letter, then up to 30 letters, digits or hyphens",
            )
        if not 1 <= self.shards <= 1024:
            raise InvalidRequest(f"{self.shards} shards", path="shards", expected="1 to 1,024")
        if not 1 <= self.senders <= 256:
            raise InvalidRequest(f"{self.senders} senders", path="senders", expected="1 to 256")
        if not self.egress:
            raise InvalidRequest("no way out", path="egress", expected="at least one source")
        self._check_ways_out()

    def _check_ways_out(self) -> None:
        """Sources and pools share one set of names: a campaign asks for either."""
        sources = {source.name for source in self.egress}
        names = [source.name for source in self.egress] + [pool.name for pool in self.pools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidRequest(f"two ways out are named {twice[0]}", path="egress.name")
        for pool in self.pools:
            unknown = [member.source for member in pool.members if member.source not in sources]
            bad = [member for member in pool.members if member.weight < 1]
            if unknown or bad or not pool.members:
                raise InvalidRequest(
                    f"pool {pool.name}: "
                    + (f"no source {unknown[0]!r:.40}" if unknown else "a member without weight"),
                    path="pools.members",
                    expected=f"weights from 1, sources of {', '.join(sorted(sources))}",
                )

    @property
    def ways_out(self) -> dict[str, tuple[PoolMember, ...]]:
        """What campaigns may ask for, each with its sources; the default first."""
        alone = {source.name: (PoolMember(source.name),) for source in self.egress}
        return {**{pool.name: pool.members for pool in self.pools}, **alone}

    @property
    def public_url(self) -> str:
        return self.base_url.rstrip("/") or f"http://{self.http.host}:{self.http.port}"


def load(path: str | Path) -> Settings:
    """Settings from a TOML file. Raises ``InvalidRequest`` that names the key."""
    try:
        document = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InvalidRequest(f"no settings file {path}", path=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{path} is not TOML: {error}", path=str(path)) from None
    return parse(document)


def parse(document: Mapping[str, Any]) -> Settings:
    settings = _build(Settings, document, "")
    assert isinstance(settings, Settings)
    return settings


def _build(kind: type, document: Mapping[str, Any], path: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    values = {}
    for key, value in document.items():
        here = f"{path}.{key}" if path else key
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InvalidRequest(
                f"unknown setting {here}",
                path=here,
                expected=f"{hint}one of {', '.join(sorted(known))}",
            )
        values[key] = _convert(hints[key], value, here)
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidRequest(f"{path or 'settings'}: {error}", path=path) from None


def _convert(kind: Any, value: Any, path: str) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise InvalidRequest(f"{path} is not a list", path=path, expected="[[…]] tables")
        (item, _) = get_args(kind)
        return tuple(_convert(item, entry, f"{path}[{i}]") for i, entry in enumerate(value))
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise InvalidRequest(f"{path} is not a table", path=path, expected=f"[{path}]")
        return _build(kind, value, path)  # type: ignore[arg-type]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRequest(
            f"{path} is {value!r:.60}", path=path, expected=f"a value of type {kind.__name__}"
        )
    return value
