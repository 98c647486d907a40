"""The launcher's file is one that Ray's own launcher accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_validates_the_launcher_file(cluster: dict) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["provider"]["type"] == "local"
    assert prepared["max_workers"] == len(prepared["provider"]["worker_ips"])


def test_a_misspelt_key_is_refused(cluster: dict) -> None:
    from jsonschema.exceptions import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="head_start_commands"):
        validate_config(cluster | {"head_start_commands": []})


def test_every_node_starts_with_a_token(cluster: dict) -> None:
    for part in ("head", "worker"):
        start = cluster[f"{part}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_SERVE_ENABLE_HA_PROXY=1" in start
