"""The commands that change people, in one place for callers; the modules beside this hold them."""

from manta.people.claims import (
    ClaimIdentities,
    HasIdentity,
    ReleaseIdentity,
    SettleClaims,
    TakeIdentities,
)
from manta.people.consents import SetConsent, Unsubscribe
from manta.people.memberships import UpdateMemberships
from manta.people.suppressions import LiftSuppression, Suppress
from manta.people.upsert import Consent, UpsertPeople

__all__ = [
    "ClaimIdentities",
    "Consent",
    "HasIdentity",
    "LiftSuppression",
    "ReleaseIdentity",
    "SetConsent",
    "SettleClaims",
    "Suppress",
    "TakeIdentities",
    "Unsubscribe",
    "UpdateMemberships",
    "UpsertPeople",
]
