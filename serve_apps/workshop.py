"""Templates that nobody has checked yet are tried in child processes, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from manta.content.templates import MailTemplate
from manta.errors import InvalidRequest, Overloaded
from manta.store.sandboxed import lint_template, preview_template

CHILDREN_MAX = 2
WAITING_MAX = 20


class Workshop:
    """Bounds how many children run, and how many requests wait for one."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(CHILDREN_MAX)
        self._waiting = 0

    async def lint(self, mail: MailTemplate, known: Collection[str]) -> list[dict[str, Any]]:
        """Everything that is wrong, or likely wrong."""
        found = await self._run(lint_template, mail, known)
        return [finding._asdict() for finding in found]

    async def check(self, mail: MailTemplate, known: Collection[str]) -> None:
        """Raises ``InvalidRequest`` with the findings where there is an error among them."""
        findings = await self.lint(mail, known)
        errors = [finding for finding in findings if finding["level"] == "error"]
        if errors:
            first = errors[0]
            raise InvalidRequest(first["message"], path=first["part"], findings=findings)

    async def preview(self, mail: MailTemplate, values: Mapping[str, Any]) -> dict[str, Any]:
        return asdict(await self._run(preview_template, mail, values))

    async def _run(self, work: Any, *arguments: Any) -> Any:
        if self._waiting >= WAITING_MAX:
            raise Overloaded("many templates are being checked at present")
        self._waiting += 1
        try:
            async with self._free:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting -= 1
