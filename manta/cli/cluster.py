"""``manta up``, ``down``, ``status`` and ``demo``: the commands that compose.

``up`` may be run again at any time: what runs stays. Ray is started only where nobody listens at
its address, as a process of its own session that outlives the command; its process id is kept
beside the data, and ``down`` ends that process and no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from manta.cli.common import CREDENTIALS, Door, door, facts, read_credentials, say, table
from manta.cli.common import write_credentials as keep
from manta.errors import MantaError, NotReady

Address = Annotated[
    str, typer.Option("--ray", envvar="RAY_ADDRESS", help="host:port of the Ray cluster's head.")
]
DEMO_FOLDER = Path(".manta/demo")
RAY_ADDRESS = "127.0.0.1:6379"
STATUS_DEADLINE_S = 10.0


def up(
    context: typer.Context,
    ray: Address = RAY_ADDRESS,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make an API key though there is one.")
    ] = False,
) -> None:
    import asyncio

    from manta.cli import head
    from serve_apps import bootstrap

    here = door(context)
    if not head.listens(ray):
        bootstrap.require_free_port(here.settings)  # before anything is started in vain
    if head.ensure(ray, here.folder, bootstrap.serve_environment()):
        say(f"Ray runs at {ray} (log: {here.folder / head.LOG})")
    head.join(ray)
    made = asyncio.run(_start(here, new_key))
    url = bootstrap.deploy(here.settings)
    _show_up(here, url, made)


async def _start(here: Door, new_key: bool) -> str | None:
    """Start the actors; the text of the API key that was made, if one was."""
    from actors import bootstrap
    from manta.definitions import SCOPES

    handles = await bootstrap.up(here.settings)
    if await handles.catalog.call("list", "api_keys") and not new_key:
        return None
    key = await handles.catalog.call("create_api_key", "manta up", list(SCOPES), once=True)
    keep(here.folder, here.settings.workspace, here.settings.public_url, key["key"])
    return str(key["key"])


def _show_up(here: Door, url: str, made: str | None) -> None:
    lines: dict[str, Any] = {"API": f"{url}/v1/docs", "console": f"{url}/console"}
    path = here.folder / CREDENTIALS
    if made is not None:
        lines |= {"API key": made, "kept in": str(path)}
    elif read_credentials(here.folder, here.settings.workspace):
        lines["API key"] = f"in {path}"
    else:
        lines["API key"] = "made earlier and not kept here; `manta up --new-key` makes another"
    facts(lines)


def down(context: typer.Context, ray: Address = RAY_ADDRESS) -> None:
    from manta.cli import head

    here = door(context)
    if head.listens(ray):
        from actors import bootstrap as actors
        from serve_apps import bootstrap as apps

        head.join(ray)
        apps.undeploy()
        actors.down(actors.absolute(here.settings))
        head.leave()
        say("Manta is down; its data stays.")
    else:
        say(f"Nobody listens at {ray}.")
    if head.end(here.folder):
        say("Ray, which `manta up` had started, is down too.")


def status(context: typer.Context, ray: Address = RAY_ADDRESS) -> None:
    import asyncio

    from manta.cli import head

    here = door(context)
    if not head.listens(ray):
        raise NotReady(
            f"nobody listens at {ray}", path="--ray", expected="a Ray that runs: `manta up`"
        )
    head.join(ray)
    table("Actors", ("actor", "state", "about"), asyncio.run(_actors(here)))
    table("Apps", ("app", "state", "at"), head.serve_apps())


async def _actors(here: Door) -> list[tuple[str, str, str]]:
    """A row for each actor: its name, how it is, and what is worth knowing."""
    import asyncio

    from actors import bootstrap
    from actors.runtime import Caller

    caller = Caller(here.settings.workspace)
    names = bootstrap.roles(here.settings)
    return list(await asyncio.gather(*(_actor(caller, name) for name in names)))


async def _actor(caller: Any, role: str) -> tuple[str, str, str]:
    method, arguments = ("attributes", ()) if role == "catalog" else ("status", ())
    try:
        answer = await caller.call(role, method, *arguments, timeout_s=STATUS_DEADLINE_S)
    except MantaError as error:
        return role, "not ready", error.message
    if role == "catalog":
        return role, "ready", f"{len(answer)} attributes"
    found: dict[str, Any] = answer if isinstance(answer, dict) else {}
    state = "ready" if found.get("ready", True) else "not ready"
    return role, state, _about(role, found)


def _about(role: str, found: dict[str, Any]) -> str:
    if not found.get("ready", True):
        return str(found.get("reason", ""))
    if role.startswith("shard"):
        rows = found.get("rows", {})
        return (
            f"{rows.get('profiles', 0):,} people, lag {found.get('mailbox_lag_s', 0.0):.2f} s, "
            f"{found.get('mailbox_commands', 0):,} commands wait, epoch {found.get('epoch', 0)}"
        )
    if role == "director":
        running = found.get("driving", [])
        return f"campaigns at work: {', '.join(map(str, running)) or 'none'}"
    plain = {n: v for n, v in found.items() if isinstance(v, int | float | str) and n != "ready"}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running until Ctrl-C, to look around.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="For its data; emptied first.")] = DEMO_FOLDER,
) -> None:
    from sandbox.demo import main

    raise typer.Exit(main(folder, keep=keep))
