"""``manta shaping``: what holds for which mailbox provider, and what another file would change."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manta.cli.common import Door, door, facts, say, table
from manta.errors import InvalidRequest, MantaError, NotFound

if TYPE_CHECKING:
    from manta.delivery.lanes import Limits
    from manta.delivery.shaping.automation import Replayed
    from manta.delivery.shaping.shaping import Shaping
    from manta.delivery.shaping.values import Rule

app = typer.Typer(no_args_is_help=True)
File = Annotated[Path, typer.Argument(help="A shaping file (docs/shaping.md).")]
SHOWN_MAX = 500  # of what a replay found


@app.command(help="Limits and rules: of all providers in short, or of one in full.")
def show(
    context: typer.Context,
    provider: Annotated[str, typer.Argument(help="A provider's name.")] = "",
    domain: Annotated[str, typer.Option(help="The provider that lists this domain.")] = "",
    site: Annotated[str, typer.Option(help="As it is at this site.")] = "",
    source: Annotated[str, typer.Option(help="As it is for this egress source.")] = "",
    file: Annotated[Path | None, typer.Option(help="As this file would have it.")] = None,
) -> None:
    shaping, origin = _shaping(door(context), file)
    facts({"shaping": f"{shaping.version}, {origin}", "dated": shaping.dated.isoformat()})
    if domain:
        provider = provider or shaping.provider_of(domain) or domain
    if provider or site:
        _show_one(shaping, provider or site, site, source)
    else:
        _show_all(shaping, source)


@app.command(help="Read a file and say what is wrong with it, or what it changes.")
def check(file: File) -> None:
    from manta.delivery.shaping.shaping import builtin

    base, shaping = builtin(), _read(file)
    facts({"shaping": shaping.version, "as shipped": base.version})
    rows = [
        (name, len(found.section.rules), "new" if name not in base.providers else "changed")
        for name, found in sorted(shaping.providers.items())
        if base.providers.get(name) != found
    ]
    default = shaping.default
    if default != base.default:
        rows.insert(0, ("default", len(default.rules), "changed"))
    rows += [(f"site {name}", len(found.rules), "new") for name, found in shaping.sites.items()]
    rows += [(f"source {name}", 0, "new") for name in shaping.sources]
    table("What it changes", ("where", "rules", "against what comes with Manta"), rows)


@app.command(help="Let a file hold from now on, without a restart.")
def apply(context: typer.Context, file: File) -> None:
    _read(file)  # what is wrong is said with its line before anybody is asked
    with door(context).client() as client:
        answer = client.set_shaping(file.read_text(encoding="utf-8"))
    say(f"shaping {answer['version']} holds now")


@app.command(help="What a file's rules would have done with what is on record.")
def replay(
    context: typer.Context,
    file: File,
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d.")] = "24h",
) -> None:
    from manta.clock import SystemClock
    from manta.delivery.shaping.automation import rehearse
    from manta.delivery.shaping.file import duration_s
    from manta.delivery.shaping.recorded import recorded
    from manta.store import lake

    shaping, settings = _read(file), door(context).settings
    seconds = duration_s(since)
    if not seconds:
        raise InvalidRequest(f"{since!r:.40} is no time", path="--since", expected="90m, 24h, 7d")
    began = SystemClock().now() - timedelta(seconds=min(seconds, 3_650 * 86_400.0))
    with lake.open(settings.root, settings.workspace) as connection:
        found = rehearse(shaping, recorded(connection, began, shaping))
    _show_replayed(found, began)


# -- reading ---------------------------------------------------------------------------------------


def _read(file: Path) -> Shaping:
    from manta.delivery.shaping.file import FILE_BYTES_MAX
    from manta.delivery.shaping.shaping import builtin, parse

    with file.open("rb") as opened:
        raw = opened.read(FILE_BYTES_MAX + 1)
    try:
        return parse(raw.decode(), builtin())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is not UTF-8: {error.reason}", path=str(file)) from None
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error.message}", expected=error.expected) from None


def _shaping(here: Door, file: Path | None) -> tuple[Shaping, str]:
    """A file's, the running system's, or where none runs that of the settings."""
    from manta.delivery.shaping.shaping import builtin, parse

    if file is not None:
        return _read(file), f"as {file} would have it"
    try:
        with here.client() as client:
            return parse(client.shaping()["text"], builtin()), "as it holds now"
    except MantaError as error:
        why = f"nothing that runs was reached: {error.message}"
    if here.settings.shaping_file:
        return _read(Path(here.settings.shaping_file)), f"of the settings; {why}"
    return builtin(), f"as it comes with Manta; {why}"


# -- printing --------------------------------------------------------------------------------------


def _show_all(shaping: Shaping, source: str) -> None:
    names = ["default", *sorted(shaping.providers)]
    rows = []
    for name in names:
        found = shaping.of(name, "", source)
        known = shaping.providers.get(name)
        site = found.limits_of_site
        rows.append(
            (
                name,
                (known.title or name) if known else "whoever is not listed",
                site.connections_max,
                site.messages_per_connection,
                _rate(site.rate_per_s),
                found.tls,
                len(known.section.rules if known else shaping.default.rules),
            )
        )
    columns = ("provider", "title", "connections", "per connection", "rate", "TLS", "rules")
    table("Limits at one site, for one source", columns, rows)


def _show_one(shaping: Shaping, provider: str, site: str, source: str) -> None:
    known = shaping.providers.get(provider)
    if known is None and "." not in provider and site == "":
        raise NotFound(
            f"no provider {provider!r:.80}", path="provider", expected="one that `show` lists"
        )
    found = shaping.of(provider, site, source)
    lines = {
        "provider": known.title if known else f"{provider}: not listed, so the default holds",
        "exchangers": ", ".join(known.exchangers or ()) if known else "–",
        "domains": ", ".join(known.domains or ()) if known else "–",
        "at one site": _limits(found.limits_of_site),
        "at all together": _limits(found.limits_of_provider) if found.limits_of_provider else "–",
        "new connections": f"{_rate(found.connections_per_s)}, {found.connections_burst} at once",
        "TLS": found.tls,
    }
    facts(lines)
    own, default = shaping.tiers_of(provider, site)
    table("", ("rule", "when", "then", "for", "pattern"), [_rule(*each) for each in own + default])


def _rule(name: str, rule: Rule) -> tuple[str, str, str, str, str]:
    at_once = rule.threshold == 1
    when = "at once" if at_once else f"{rule.threshold} in {_span(rule.period_s)}"
    then = f"{rule.action} ({rule.scope})"
    limits = rule.limits
    parts = [
        _rate(limits.rate_per_s) if limits.rate_per_s is not None else "",
        f"{limits.connections_max} connections" if limits.connections_max is not None else "",
        f"{limits.messages_per_connection} a connection" if limits.messages_per_connection else "",
    ]
    said = ", ".join(filter(None, parts))
    then = f"{then}: {said}" if said else then
    return name, when, then, _span(rule.duration_s), "  or  ".join(rule.patterns)


def _show_replayed(found: list[Replayed], began: datetime) -> None:
    rows = [
        (
            each.at.isoformat(sep=" ", timespec="seconds"),
            each.trigger.cause.removeprefix("rule "),
            f"{each.trigger.kind} {_scope(each)}",
            _span((each.until - each.at).total_seconds()),
            each.messages_held,
            each.messages,
            str(each.trigger.figures["reply"]),
        )
        for each in found[:SHOWN_MAX]
    ]
    columns = ("when (UTC)", "rule", "action", "ran for", "held", "of messages", "reply")
    table("What would have happened", columns, rows)
    if len(found) > SHOWN_MAX:
        say(f"{len(found) - SHOWN_MAX:,} more are not shown.")
    held = sum(each.messages_held for each in found)
    say(
        f"Since {began.isoformat(sep=' ', timespec='minutes')}: {len(found):,} actions, "
        f"{held:,} messages held. On record is the last reply to each message, so at least this."
    )


def _scope(replayed: Replayed) -> str:
    scope = replayed.trigger.scope
    parts = {
        "source": scope.source,
        "provider": scope.provider,
        "site": scope.site,
        "campaign": scope.campaign_id,
        "sender": scope.sending_domain,
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def _limits(limits: Limits) -> str:
    return (
        f"{_rate(limits.rate_per_s)}, {limits.burst:,} at once, {limits.connections_max:,} "
        f"connections, {limits.messages_per_connection:,} messages each"
    )


def _rate(per_s: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3_600)):
        if per_s * seconds >= 1:
            return f"{per_s * seconds:,.4g}/{unit}"
    return f"{per_s * 86_400:,.4g}/day"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s" if seconds < 3_600 else f"{seconds / 3_600:.1f}h"
