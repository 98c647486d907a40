"""Whether the mail of a link went to the address that its person has now.

A link in a mail proves that whoever presses it reads the address that the mail went to. A person
may get another address afterwards, by a change of their account or by a merge; then the link still
stands for the person, who may choose and leave, but it proves nothing of the new address: by it no
sign-up is confirmed, and no mark of an erasure or of an unsubscription is lifted from that address.
"""

from __future__ import annotations

from manta.command import Database
from manta.ids import MessageRef
from manta.people.identities import EMAIL


def is_of_address(database: Database, person: int, mail: MessageRef | None) -> bool:
    """``mail`` is what the link was in; ``None``: there is no link, and it is not asked. Of a mail
    that is no longer in memory only an address that never changed is taken to be the one."""
    if mail is None:
        return True
    if mail.subscriber_id != person:  # of somebody who was merged into them
        return False
    newer = database.rows(
        "SELECT 1 FROM attribute_times t LEFT JOIN ledger l"
        " ON l.subscriber_id = t.subscriber_id AND l.message_key = ?"
        " WHERE t.subscriber_id = ? AND t.name = ?"
        " AND (l.planned_at IS NULL OR l.planned_at < t.changed_at)",
        [mail.message_key, person, EMAIL],
    )
    return not newer
