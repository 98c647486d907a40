"""The normaliser of each kind of source."""

from __future__ import annotations

from collections.abc import Mapping

from manta.ingestion import segment
from manta.ingestion.normalised import Normaliser

NORMALISERS: Mapping[str, Normaliser] = {segment.KIND: segment.normalise}
