"""The commands that change people, in one place for callers; the modules beside this hold them."""

from manta.people.claims import (
    ClaimIdentities,
    HasIdentity,
    ReleaseIdentity,
    SettleClaims,
    TakeIdentities,
)
from manta.people.consents import SetConsent, Unsubscribe
from manta.people.memberships import ApplyMemberships, EditList, RemoveMembers, Snapshot
from manta.people.suppressions import LiftSuppression, Suppress
from manta.people.upsert import Consent, UpsertPeople

__all__ = [
    "ApplyMemberships",
    "ClaimIdentities",
    "Consent",
    "EditList",
    "HasIdentity",
    "LiftSuppression",
    "ReleaseIdentity",
    "RemoveMembers",
    "SetConsent",
    "SettleClaims",
    "Snapshot",
    "Suppress",
    "TakeIdentities",
    "Unsubscribe",
    "UpsertPeople",
]
