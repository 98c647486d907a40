"""Composition: the sandbox's mail view beside the other apps on Ray Serve."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from actors.handles import Handles
from manta.settings import Settings
from sandbox.mailview import create_mail_view
from serve_apps.bootstrap import AppSpec
from serve_apps.limits import App

ROUTE = "/sandbox"


async def build_mail_view(settings: Settings, handles: Handles, *, mail_file: Path) -> App:
    return create_mail_view(mail_file)


def mail_view(mail_file: Path) -> AppSpec:
    """The app to deploy with the others; it reads the file on its own node."""
    build = partial(build_mail_view, mail_file=Path(mail_file).absolute())
    return AppSpec("mailboxes", ROUTE, build, ongoing_max=50, queued_max=100)
