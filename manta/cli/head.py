"""Ray on this machine: find it, start it in the background, join it, end what was started here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manta.errors import InvalidRequest, NotReady

LOG = "ray.log"
PROCESS = "ray.json"
START_S = 90.0
END_S = 30.0
STEP_S = 0.2
LOCAL = ("127.0.0.1", "localhost", "::1")


def ensure(address: str, folder: Path, environment: Mapping[str, str]) -> bool:
    """Have a Ray at the address; whether it had to be started.

    The environment is what Serve wants to find in every process of the cluster.
    """
    if listens(address):
        return False
    host, port = split(address)
    if host not in LOCAL and host != socket.gethostname():
        raise NotReady(
            f"nobody listens at {address}, and Ray can only be started on this machine",
            path="--ray",
            expected="the address of a running Ray, or 127.0.0.1:port",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
                *(f"--port={port}", "--node-ip-address=127.0.0.1"),
                *("--dashboard-host=127.0.0.1", "--disable-usage-stats"),
            ],
            env=os.environ | _auth() | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (folder / PROCESS).write_text(json.dumps({"pid": process.pid, "address": address}))
    until = time.monotonic() + START_S
    while not listens(address):
        if process.poll() is not None or time.monotonic() > until:
            raise NotReady("Ray did not start", path=str(folder / LOG), expected="see its log")
        time.sleep(STEP_S)
    return True


def join(address: str) -> None:
    """Connect this process to the cluster; a head that has just begun is waited for."""
    from actors.runtime import join_cluster

    os.environ.update(_auth())
    until = time.monotonic() + START_S
    while True:
        try:
            join_cluster(address)
            return
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > until:
                raise NotReady(f"Ray at {address} cannot be joined: {error}") from None
            time.sleep(1.0)


def leave() -> None:
    from actors.runtime import stop_cluster

    stop_cluster()


def end(folder: Path) -> bool:
    """End the Ray that was started from here, if it still runs."""
    path = folder / PROCESS
    try:
        pid = int(json.loads(path.read_text())["pid"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    path.unlink()
    if not _is_ray(pid):
        return False
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + END_S
    while _is_ray(pid) and time.monotonic() < until:
        time.sleep(STEP_S)
    return True


def serve_apps() -> list[tuple[str, str, str]]:
    """Name, state and route of every Serve application."""
    from ray import serve

    found: list[tuple[str, str, str]] = []
    for name, app in sorted(serve.status().applications.items()):
        deployments: Any = app.deployments.values()
        running = sum(sum(d.replica_states.values()) for d in deployments)
        found.append((name, str(app.status.value).lower(), f"{running} replicas"))
    return found


def listens(address: str) -> bool:
    host, port = split(address)
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise InvalidRequest(
            f"{address!r:.80} is not an address", path="--ray", expected="host:port"
        )
    return host.strip("[]"), int(port)


def _is_ray(pid: int) -> bool:
    """Whether the process is still the one that was started: ids are given again."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"ray" in command and b"start" in command


def _auth() -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
    }
