"""The normaliser of each kind of source."""

from __future__ import annotations

from collections.abc import Mapping

from manta.ingestion import mapping, segment, shopify, stripe, woocommerce
from manta.ingestion.normalised import Normaliser

NORMALISERS: Mapping[str, Normaliser] = {
    segment.KIND: segment.normalise,
    shopify.KIND: shopify.normalise,
    woocommerce.KIND: woocommerce.normalise,
    stripe.KIND: stripe.normalise,
    mapping.KIND: mapping.normalise,
}
