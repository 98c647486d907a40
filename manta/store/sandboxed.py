"""Lint and preview of a template that nobody has checked yet, in a process of its own.

The child is this module run as a program. It limits its own processor time, memory and files before
it reads a byte of the request, answers one JSON object and ends; the parent waits a bounded time
and kills it after that. Whatever the template does to the child, the parent gets findings or a
``TemplateError``. The child sees no environment and cannot write a file.

Synchronous: an asyncio caller runs it in a thread.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from manta.clock import parse_instant
from manta.content.language import TemplateError
from manta.content.lint import Finding, lint
from manta.content.templates import MailTemplate, Preview, preview
from manta.errors import InvalidRequest

REQUEST_BYTES_MAX = 4_000_000
ANSWER_BYTES_MAX = 8_000_000
_INSTANT = "$instant"


@dataclass(frozen=True)
class ChildLimits:
    """What the child may use."""

    processor_s: int = 4
    memory_bytes: int = 512 * 1024 * 1024
    wall_s: float = 10.0


DEFAULT_LIMITS = ChildLimits()


def lint_template(
    template: MailTemplate,
    known: Collection[str],
    kind: str = "marketing",
    sample: Mapping[str, Any] | None = None,
    limits: ChildLimits = DEFAULT_LIMITS,
) -> list[Finding]:
    """``manta.content.lint.lint`` in a child; a template that breaks the child is one error."""
    request = {
        "do": "lint",
        "template": template.to_json(),
        "known": sorted(known),
        "kind": kind,
        "sample": None if sample is None else dict(sample),
    }
    try:
        answer = _ask(request, limits)
    except TemplateError as error:
        return [Finding("error", "limit", error.path or "html", error.line, error.message)]
    return [Finding(*finding) for finding in answer["findings"]]


def preview_template(
    template: MailTemplate, row: Mapping[str, Any], limits: ChildLimits = DEFAULT_LIMITS
) -> Preview:
    """``manta.content.templates.preview`` in a child. Raises ``TemplateError``."""
    answer = _ask({"do": "preview", "template": template.to_json(), "row": dict(row)}, limits)
    return Preview(**answer["preview"])


def _ask(request: dict[str, Any], limits: ChildLimits) -> dict[str, Any]:
    body = json.dumps(request, default=_encode).encode()
    if len(body) > REQUEST_BYTES_MAX:
        raise TemplateError(
            "the template and its values are too large",
            expected=f"at most {REQUEST_BYTES_MAX:,} bytes of JSON",
        )
    command = [sys.executable, "-I", "-m", "manta.store.sandboxed"]
    command += [str(limits.processor_s), str(limits.memory_bytes)]
    try:
        done = subprocess.run(
            command,
            input=body,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.wall_s,
            env={"LC_ALL": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _broke(f"more than {limits.wall_s:g} s") from None
    if done.returncode or len(done.stdout) > ANSWER_BYTES_MAX:
        raise _broke(f"more processor time or memory than it may (status {done.returncode})")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        error = answer["error"]
        kind = TemplateError if error.pop("template") else InvalidRequest
        raise kind(error.pop("message"), **error)
    return answer


def _broke(what: str) -> TemplateError:
    return TemplateError(
        f"the template took {what}", expected="a template that is checked within a second"
    )


# -- values as JSON --------------------------------------------------------------------------------


def _encode(value: Any) -> Any:
    if isinstance(value, date):
        return {_INSTANT: value.isoformat()}
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TemplateError(f"a value of type {type(value).__name__} cannot stand in a mail")


def _decode(value: dict[str, Any]) -> Any:
    text = value.get(_INSTANT)
    if len(value) != 1 or not isinstance(text, str):
        return value
    instant = parse_instant(text)
    return instant if "T" in text else instant.date()


# -- the child -------------------------------------------------------------------------------------


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        template = MailTemplate(**request["template"])
        if request["do"] == "lint":
            found = lint(template, set(request["known"]), request["kind"], request["sample"])
            return {"findings": found}
        return {"preview": asdict(preview(template, request["row"]))}
    except InvalidRequest as error:
        return {
            "error": {
                "template": isinstance(error, TemplateError),
                "message": error.message,
                **error.details,
            }
        }


def _main(processor_s: int, memory_bytes: int) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, processor_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        resource.setrlimit(what, (most, most))
    request = json.loads(sys.stdin.buffer.read(REQUEST_BYTES_MAX + 1), object_hook=_decode)
    sys.stdout.write(json.dumps(_answer(request)))
    sys.stdout.flush()


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
