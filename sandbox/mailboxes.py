"""The sandbox's mailboxes: an SQLite file that keeps the newest mails, for people to look at.

Written by the receiver's thread and read by the mail view, in different processes; SQLite's own
locking is the contract between them. Bounded: the oldest mails go when there are too many.
"""

from __future__ import annotations

import email
import email.policy
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

MAILS_MAX = 50_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS mails (
    id INTEGER PRIMARY KEY,
    received_at TEXT NOT NULL,
    mail_from TEXT NOT NULL,
    rcpt_to TEXT NOT NULL,
    message_id TEXT,
    subject TEXT NOT NULL,
    raw BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_recipient ON mails (rcpt_to);
CREATE TABLE IF NOT EXISTS acts (mail_id INTEGER NOT NULL, act TEXT NOT NULL, at TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Mail:
    """One delivered mail. ``raw`` is the message as it came after DATA."""

    id: int
    received_at: str
    mail_from: str
    rcpt_to: str
    subject: str
    raw: bytes

    def body(self, kind: str) -> str:
        """The text of the ``html`` or ``plain`` part, or an empty text."""
        message = email.message_from_bytes(self.raw, policy=email.policy.default)
        part = message.get_body((kind,))
        return str(part.get_content()) if part is not None else ""

    def header(self, name: str) -> str:
        message = email.message_from_bytes(self.raw, policy=email.policy.default)
        return str(message.get(name, ""))


class Mailboxes:
    """Open or create the file. One object serves one thread."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, check_same_thread=False, timeout=10)
        self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;" + _SCHEMA)

    def deliver(self, received_at: str, mail_from: str, rcpt_to: str, raw: bytes) -> int:
        """Keep a mail; answers its number."""
        headers = email.message_from_bytes(raw[:16_384], policy=email.policy.default)
        with self._database:
            cursor = self._database.execute(
                "INSERT INTO mails (received_at, mail_from, rcpt_to, message_id, subject, raw)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    received_at,
                    mail_from,
                    rcpt_to,
                    headers.get("Message-ID"),
                    str(headers.get("Subject", "")),
                    raw,
                ),
            )
            id = int(cursor.lastrowid or 0)
            if id % 1000 == 0:
                self._database.execute("DELETE FROM mails WHERE id <= ?", (id - MAILS_MAX,))
        return id

    def note(self, mail_id: int, act: str, at: str) -> None:
        """The person behind the mailbox did something with the mail."""
        with self._database:
            self._database.execute("INSERT INTO acts VALUES (?, ?, ?)", (mail_id, act, at))

    def count(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM mails").fetchone()[0])

    def copies(self) -> dict[str, int]:
        """How many mails each recipient has got: the receiver's own view of duplicates."""
        rows = self._database.execute("SELECT rcpt_to, count(*) FROM mails GROUP BY rcpt_to")
        return dict(rows.fetchall())

    def get(self, id: int) -> Mail | None:
        row = self._database.execute(
            "SELECT id, received_at, mail_from, rcpt_to, subject, raw FROM mails WHERE id = ?",
            (id,),
        ).fetchone()
        return Mail(*row) if row else None

    def page(self, query: str, before: int | None, limit: int) -> list[tuple[Mail, list[str]]]:
        """Newest first, each with its acts; ``query`` is part of the recipient or subject."""
        pattern = "%" + query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        with closing(
            self._database.execute(
                "SELECT id, received_at, mail_from, rcpt_to, subject, x'' FROM mails"
                " WHERE id < ? AND (rcpt_to LIKE ? ESCAPE '\\' OR subject LIKE ? ESCAPE '\\')"
                " ORDER BY id DESC LIMIT ?",
                (before if before is not None else 1 << 62, pattern, pattern, limit),
            )
        ) as cursor:
            mails = [Mail(*row) for row in cursor.fetchall()]
        return [(mail, self.acts(mail.id)) for mail in mails]

    def acts(self, mail_id: int) -> list[str]:
        """What the person did with a mail, in order."""
        rows = self._database.execute(
            "SELECT act FROM acts WHERE mail_id = ? ORDER BY at", (mail_id,)
        )
        return [row[0] for row in rows.fetchall()]

    def close(self) -> None:
        self._database.close()
