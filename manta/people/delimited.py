"""Delimited text (CSV): encoding, dialect, and rows out of blocks of text. Pure.

RFC 4180 says what a good file is; this module is about the others. The rule is that one bad row
costs one row: a row with a torn quote, too many or too few fields, a NUL, bytes that are not of
the file's encoding, or without end is refused with its line and reason, and the rows after it are
read as if it were not there. A quote that opens and is not closed could be a text over many lines
or a torn row: it is a text if, and only if, up to its closing quote (within ``OPEN_LINES_MAX``
lines) the row is well-formed and has the right number of fields.

Lines without any quote, nearly all of most files, are split at the delimiter and nothing more.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LINE_LENGTH_MAX = 1_000_000  # characters of one line, and of one row over many lines
OPEN_LINES_MAX = 1_000  # lines of one row
COLUMNS_MAX = 600
RAW_LENGTH_MAX = 10_000  # characters of a refused row that are kept
SAMPLE_BYTES = 262_144
_SAMPLE_LINES = 200
_DELIMITERS = (",", ";", "\t", "|")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Dialect:
    """How a file writes rows. ``escape``: the character that escapes a quote, else it is doubled.
    ``line_end`` is ``\\n`` (also for ``\\r\\n``) or, in very old files, ``\\r``."""

    delimiter: str = ","
    quote: str = '"'
    escape: str | None = None
    skip_space: bool = False
    line_end: str = "\n"

    def parse(self, text: str) -> list[list[str]]:
        """The rows of the text, strictly. Raises ``csv.Error``."""
        reader = csv.reader(
            [text],
            delimiter=self.delimiter,
            quotechar=self.quote,
            escapechar=self.escape,
            doublequote=self.escape is None,
            skipinitialspace=self.skip_space,
            strict=True,
        )
        return list(reader)


@dataclass(frozen=True)
class Reject:
    """A refused row: where it begins (1 is the first line), why, and its text as far as kept."""

    line: int
    reason: str
    raw: str


@dataclass
class Rows:
    """Rows with the line on which each begins, and what was refused between them."""

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def sniffed_encoding(head: bytes) -> tuple[str, int]:
    """The encoding of a file that begins so, and the length of its byte order mark.

    Without a mark: UTF-16 where every other byte is NUL, UTF-8 where the sample is valid, else
    Windows-1252, of which Latin-1 is the printable part.
    """
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name, len(bom)
    even, odd = head[0::2], head[1::2]
    if len(head) >= 4 and odd.count(0) > 0.4 * len(odd) and even.count(0) < 0.1 * len(even):
        return "utf-16-le", 0
    if len(head) >= 4 and even.count(0) > 0.4 * len(even) and odd.count(0) < 0.1 * len(odd):
        return "utf-16-be", 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)  # the sample may end within a character
    except UnicodeDecodeError:
        # One damaged row does not make a file Latin-1: count what is not UTF-8 against what is.
        text = head.decode("utf-8", "replace")
        multibyte = sum(char > "\x7f" and char != "\ufffd" for char in text)
        if multibyte > 3 * text.count("\ufffd"):
            return "utf-8", 0
        return ("cp1252" if _is_windows(head) else "latin-1"), 0
    return "utf-8", 0


def _is_windows(head: bytes) -> bool:
    try:
        head.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return True


def sniffed_dialect(sample: str) -> Dialect:
    """The dialect whose rows are most alike in their number of fields.

    The sample may end within a row. A file of one column has the standard dialect.
    """
    line_end = "\r" if "\n" not in sample and "\r" in sample else "\n"
    lines = sample.split(line_end)
    whole = lines[:_SAMPLE_LINES] if len(lines) > _SAMPLE_LINES else lines
    text = line_end.join(whole)
    best, best_score = Dialect(line_end=line_end), (0.0, 0)
    for delimiter in _DELIMITERS:
        if delimiter not in text:
            continue
        dialect = Dialect(delimiter, *_quoting(text, delimiter), line_end=line_end)
        splitter = Splitter(dialect, None)
        counts = [len(row) for row in splitter.feed(text).rows + splitter.finish().rows]
        if not counts or counts[0] < 2:
            continue
        alike = sum(count == counts[0] for count in counts) / len(counts)
        score = (round(alike, 1), counts[0])
        if score > best_score:
            best, best_score = dialect, score
    return best


def _quoting(text: str, delimiter: str) -> tuple[str, str | None, bool]:
    """The quote, its escape, and whether blanks stand between delimiter and quote."""
    d = re.escape(delimiter)
    quote = '"'
    if '"' not in text:
        fields = len(re.findall(rf"(?:^|{d})'[^'\n]*'(?={d}|\r?$)", text, re.MULTILINE))
        quote = "'" if fields >= max(2, text.count("\n")) else '"'
    q = re.escape(quote)
    escaped = re.search(rf"\\{q}(?!{d}|\r?\n|\Z)", text)
    doubled = re.search(rf"[^{d}\n]{q}{q}[^{d}\r\n]", text)
    spaced = delimiter != "\t" and re.search(rf"{d} +{q}", text) is not None
    return quote, ("\\" if escaped and not doubled else None), spaced


class Splitter:
    """Rows from blocks of text, fed in order; ``finish`` at the end.

    ``fields`` is the number of fields of a good row (``None`` while sniffing: any).
    """

    def __init__(self, dialect: Dialect, fields: int | None, first_line: int = 1) -> None:
        self._dialect = dialect
        self._fields = fields
        self._number = first_line  # of the first line in `_waiting`, else of `_rest`
        self._waiting: list[str] = []  # lines of a row that is not complete yet
        self._rest = ""
        self._skipping = False
        self._damaged = False
        special = re.escape(dialect.quote + "\0\ufffd" + (dialect.escape or ""))
        self._doubtful = re.compile(rf"[{special}]|\r.", re.DOTALL)

    def expect(self, fields: int) -> None:
        """From now on a good row has so many fields."""
        self._fields = fields

    def feed(self, text: str, damaged: bool = False) -> Rows:
        """The rows that end in this block. ``damaged``: some of its bytes were no text and stand
        as U+FFFD."""
        found = Rows()
        text = self._rest + text
        self._damaged |= damaged
        if self._dialect.line_end == "\r":
            text = text.replace("\r", "\n")
        lines = text.split("\n")
        self._rest = lines.pop()
        if self._skipping and lines:
            # `_rest` was emptied when the line was refused: what remains of it goes here.
            lines.pop(0)
            self._number += 1
            self._skipping = False
        if self._skipping:
            self._rest = ""
        if len(self._rest) > LINE_LENGTH_MAX:
            self._split(found, lines, text)
            lines = self._waiting
            self._waiting = []
            self._drain(found, lines, final=True)
            self._refuse(
                found,
                self._number,
                f"a line longer than {LINE_LENGTH_MAX} characters",
                [self._rest],
            )
            self._rest, self._skipping = "", True
            return found
        self._split(found, lines, text)
        return found

    def finish(self) -> Rows:
        """The rows that the end of the file completes."""
        found = Rows()
        lines = [*self._waiting, *([self._rest] if self._rest else [])]
        self._waiting, self._rest = [], ""
        self._drain(found, lines, final=True)
        return found

    def _split(self, found: Rows, lines: list[str], text: str) -> None:
        dialect = self._dialect
        plain = not (
            self._waiting
            or self._damaged
            or dialect.quote in text
            or "\0" in text
            or (dialect.escape is not None and dialect.escape in text)
            or text.count("\r") != text.count("\r\n")
            or len(text) > LINE_LENGTH_MAX
        )
        if plain:
            self._plain(found, lines)
        else:
            lines = self._waiting + lines
            self._waiting = []
            self._drain(found, lines, final=False)

    def _plain(self, found: Rows, lines: list[str]) -> None:
        """Lines of which each is a row."""
        delimiter, skip = self._dialect.delimiter, self._dialect.skip_space
        first = self._number
        self._number += len(lines)
        rows = [line.rstrip("\r").split(delimiter) for line in lines]
        if skip:
            rows = [[cell.lstrip(" ") for cell in row] for row in rows]
        numbers = range(first, first + len(lines))
        wanted = self._fields
        if wanted is not None and wanted > 1 and all(len(row) == wanted for row in rows):
            found.rows += rows
            found.lines += numbers
            return
        for number, row, line in zip(numbers, rows, lines, strict=True):
            self._take(found, number, row, [line])

    def _drain(self, found: Rows, lines: list[str], final: bool) -> None:
        """Lines of which some need care: those one by one; what is not complete waits for more."""
        doubtful = self._doubtful.search
        marks = [n for n, line in enumerate(lines) if doubtful(line) or len(line) > LINE_LENGTH_MAX]
        place = mark = 0
        while place < len(lines):
            while mark < len(marks) and marks[mark] < place:
                mark += 1
            following = marks[mark] if mark < len(marks) else len(lines)
            if following > place:
                self._plain(found, lines[place:following])
                place = following
                continue
            used = self._one(found, lines, place, final)
            if used == 0:
                break
            place += used
            self._number += used
        self._waiting = lines[place:]

    def _one(self, found: Rows, lines: list[str], place: int, final: bool) -> int:
        """One row from ``place`` on: how many lines it took, 0 if more must come first."""
        line, number = lines[place], self._number
        fault = _fault(line, self._damaged)
        if fault:
            self._refuse(found, number, fault, [line])
            return 1
        dialect = self._dialect
        if dialect.quote not in line and not (dialect.escape and dialect.escape in line):
            row = line.rstrip("\r").split(dialect.delimiter)
            if dialect.skip_space:
                row = [cell.lstrip(" ") for cell in row]
            self._take(found, number, row, [line])
            return 1
        row_or_fault = self._parsed(line)
        if not isinstance(row_or_fault, str):
            self._take(found, number, row_or_fault, [line])
            return 1
        if not _is_open(row_or_fault):
            self._refuse(found, number, row_or_fault, [line])
            return 1
        return self._over_lines(found, lines, place, final)

    def _over_lines(self, found: Rows, lines: list[str], place: int, final: bool) -> int:
        """A quote is open at the end of the line: a text over lines, or a torn row."""
        end = min(len(lines), place + OPEN_LINES_MAX)
        length, odd = len(lines[place]), True
        for last in range(place + 1, end):
            length += len(lines[last]) + 1
            if length > LINE_LENGTH_MAX or "\0" in lines[last]:
                break
            odd ^= self._quotes(lines[last]) % 2 == 1
            if odd:
                continue
            row = self._parsed("\n".join(lines[place : last + 1]))
            if isinstance(row, str) or (self._fields is not None and len(row) != self._fields):
                break
            self._take(found, self._number, row, lines[place : last + 1])
            return last + 1 - place
        else:
            if end == len(lines) and end - place < OPEN_LINES_MAX and not final:
                return 0
        self._refuse(found, self._number, "a quote is opened and not closed", [lines[place]])
        return 1

    def _quotes(self, line: str) -> int:
        escape = self._dialect.escape
        escaped = line.count(escape + self._dialect.quote) if escape else 0
        return line.count(self._dialect.quote) - escaped

    def _parsed(self, text: str) -> list[str] | str:
        """The one row that a text is, or what is wrong with it."""
        try:
            rows = self._dialect.parse(text)
        except csv.Error as error:
            return str(error)
        if len(rows) > 1:
            return "a line end within a field without quotes"
        return rows[0] if rows else []

    def _take(self, found: Rows, number: int, row: list[str], lines: Sequence[str]) -> None:
        wanted = self._fields
        if not row or (len(row) == 1 and not row[0].strip() and wanted != 1):
            return  # a blank line is no row
        if wanted == 1 and not row[0].strip():
            return
        if wanted is not None and len(row) > wanted and not any(row[wanted:]):
            row = row[:wanted]  # delimiters after the last field
        if wanted is not None and len(row) != wanted:
            reason = f"{len(row)} fields where the header has {wanted}"
            self._refuse(found, number, reason, lines)
            return
        found.rows.append(row)
        found.lines.append(number)

    def _refuse(self, found: Rows, number: int, reason: str, lines: Iterable[str]) -> None:
        raw = "\n".join(lines)[:RAW_LENGTH_MAX].rstrip("\r")
        found.rejects.append(Reject(number, reason, raw))


def _fault(line: str, damaged: bool) -> str | None:
    if len(line) > LINE_LENGTH_MAX:
        return f"a line longer than {LINE_LENGTH_MAX} characters"
    if "\0" in line:
        return "a NUL character"
    if damaged and "\ufffd" in line:
        return "bytes that are not of the file's encoding"
    if "\r" in line[:-1] and '"' not in line:
        return "a carriage return within the line"
    return None


def _is_open(fault: str) -> bool:
    """Whether ``csv`` complained of nothing but that the text ended within quotes."""
    return "unexpected end of data" in fault
