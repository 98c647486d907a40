"""Lists of suppressions, in and out: a CSV file of any length, in parts that the API takes.

A file is read and split here, where it lies. Each part has a key of its own, so a part whose answer
was lost is sent again and stored once. Suppressing is never undone by suppressing again, so a run
that broke off is simply started anew.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from manta.client.http import Http, Retries, new_key, unreachable
from manta.errors import InvalidRequest
from manta.store.importing import text_rows

PART_ROWS = 5_000
PART_CHARACTERS = 1 << 20  # the API takes 4 MB


@dataclass
class SuppressionSummary:
    """``rejects``: (line of the file, reason) of each row that was refused."""

    rows: int = 0
    suppressed: int = 0
    unchanged: int = 0
    rejected: int = 0
    rejects: list[tuple[int, str]] = field(default_factory=list)


def import_suppressions(
    http: Http, path: Path, reason: str, source: str, progress: Callable[[int], None]
) -> SuppressionSummary:
    """See ``Client.import_suppressions``."""
    if not path.is_file():
        raise InvalidRequest(f"no file {path}", path=str(path), expected="a CSV file")
    summary, run = SuppressionSummary(), new_key()
    for number, part in enumerate(_parts(path)):
        summary.rows += len(part.rejects)
        summary.rejected += len(part.rejects)
        summary.rejects += part.rejects
        if part.lines:
            headers = {"Content-Type": "text/csv", "Idempotency-Key": f"{run}-{number}"}
            query = {"reason": reason, "source": source}
            answer = http.request(
                "POST", "/suppressions/import", params=query, content=part.text, headers=headers
            ).json()
            for count in ("rows", "suppressed", "unchanged", "rejected"):
                setattr(summary, count, getattr(summary, count) + answer[count])
            # Line 1 of a part is its header, and each row stands on one line.
            summary.rejects += [(part.lines[r["line"] - 2], r["reason"]) for r in answer["rejects"]]
        progress(summary.rows)
    return summary


class _Part:
    """A CSV text with the header, and the line of the file on which each of its rows begins."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._writer = csv.writer(self._text)
        self.lines: list[int] = []
        self.rejects: list[tuple[int, str]] = []  # rows of the file that are none

    def add(self, header: list[str], line: int, cells: list[str]) -> None:
        if not self.lines:
            self._writer.writerow(header)
        # A row over several lines would move the lines of those after it.
        self._writer.writerow([" ".join(cell.splitlines()) for cell in cells])
        self.lines.append(line)

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= PART_ROWS or self._text.tell() >= PART_CHARACTERS

    @property
    def text(self) -> str:
        return self._text.getvalue()


def _parts(path: Path) -> Iterator[_Part]:
    part = _Part()
    for header, found, _ in text_rows(path):
        part.rejects += [(reject.line, reject.reason) for reject in found.rejects]
        for line, cells in zip(found.lines, found.rows, strict=True):
            part.add(header, line, cells)
            if part.is_full:
                yield part
                part = _Part()
    yield part


def export_suppressions(http: Http, path: Path, **wanted: Any) -> int:
    """See ``Client.export_suppressions``."""
    part = path.with_name(f"{path.name}.part")
    query = {name: value for name, value in wanted.items() if value is not None}
    retries = Retries()
    while True:
        try:
            with (
                http.stream("GET", "/suppressions/export", retries, params=query) as response,
                part.open("wb") as file,
            ):
                for chunk in response.iter_bytes():
                    file.write(chunk)
            with part.open(newline="", encoding="utf-8") as text:
                rows = sum(1 for _ in csv.reader(text)) - 1
            part.replace(path)
            return rows
        except httpx.TransportError as error:
            retries.after(unreachable(error, http.url))
        finally:
            part.unlink(missing_ok=True)
