"""The web snippet: one small script without dependencies, the same for every site (``snippet.js``
beside this module; docs/ingestion.md says how it is put into a page)."""

from __future__ import annotations

from importlib.resources import files

SNIPPET = files("serve_apps.collect").joinpath("snippet.js").read_bytes()
