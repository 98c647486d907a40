"""What all tests share: where data lies, and tools that may be missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
SBIN = ("/usr/sbin", "/usr/local/sbin")


def _missing(tool: str) -> None:
    """Skip with the reason; where everything is required, fail."""
    reason = f"{tool} is not installed"
    if os.environ.get("MANTA_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def shared_data() -> Path:
    """The folder of published data sets that lies beside the repository, where it does."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data sets are not beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def smtp_sink_path() -> str:
    """Postfix's smtp-sink: a receiver that swallows mail as fast as it comes."""
    path = shutil.which("smtp-sink", path=os.pathsep.join([os.environ["PATH"], *SBIN]))
    if path is None:
        _missing("smtp-sink (Debian: postfix)")
    return str(path)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        _missing("chromium")
    return str(path)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One Ray cluster for the whole run; every test takes a workspace of its own."""
    from actors import runtime
    from serve_apps.bootstrap import serve_environment

    os.environ.update(serve_environment())
    address = runtime.start_cluster(num_cpus=2)
    yield address
    runtime.stop_cluster()
