"""From a template and a person to the bytes of a signed mail: the Sender's hot path.

A ``Composer`` serves one campaign with one template version: all that does not depend on the person
is worked out when it is made. ``compose`` is a function of (row, ref, now): the same arguments
give the same bytes (RSA PKCS #1 v1.5 and Ed25519 sign deterministically), so a repeated
delivery is the same mail with the same Message-ID.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from manta.content import dkim, mime
from manta.content.dkim import DkimSigner
from manta.content.links import DECOY_LINK, clean_url
from manta.content.templates import (
    CompiledMail,
    MailTemplate,
    Rendered,
    clean_values,
    safe_address,
)
from manta.content.tokens import PATHS, Keyring, TokenKind, encode_piece
from manta.content.unsubscribe import unsubscribe_headers
from manta.errors import InvalidRequest
from manta.ids import NOBODY, MessageRef

KINDS = ("marketing", "transactional", "test")
TEST_MARK = "[Test] "

_BASE_URL = re.compile(r"https?://[A-Za-z0-9._-]+(?::\d{1,5})?(?:/[A-Za-z0-9._~/-]*)?", re.ASCII)


@dataclass(frozen=True)
class MailSettings:
    """What a campaign says about its mails besides the template.

    ``base_url`` is where the tracking app answers; ``return_path_domain`` receives bounces, and
    unsubscribes by mail where ``has_inbox``.
    A transactional mail carries no unsubscribe header and no unsubscribe link of its own. The links
    of a test work but name nobody: whoever reads it neither counts as nor unsubscribes the person
    whose values fill it; its subject says that it is a test.
    """

    campaign_id: int
    base_url: str
    return_path_domain: str
    kind: str = "marketing"
    track_opens: bool = True
    track_clicks: bool = True
    has_inbox: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequest(
                f"no kind of mail {self.kind!r:.40}", path="kind", expected=", ".join(KINDS)
            )
        if len(self.base_url) > 200 or not _BASE_URL.fullmatch(self.base_url):
            raise InvalidRequest(
                f"not a base URL: {self.base_url!r:.80}",
                path="base_url",
                expected="https://host, at most 200 characters",
            )
        mime.check_address(f"b@{self.return_path_domain}", "return_path_domain")


@dataclass(frozen=True, slots=True)
class Composed:
    """One mail: the envelope and the message, CRLF line ends, not dot-stuffed."""

    mail_from: str
    rcpt_to: str
    data: bytes


_NOTHING = Composed("", "", b"")
_OWN_LINKS = {
    "view_url": TokenKind.VIEW,
    "preferences_url": TokenKind.PREFERENCES,
    "confirm_url": TokenKind.CONFIRM,
}


class Draft:
    """A mail in the making: what each step has added."""

    __slots__ = (
        "address",
        "body",
        "composed",
        "error",
        "fields",
        "mail_from",
        "ref",
        "rendered",
        "row",
        "unsigned",
    )

    def __init__(self, row: Mapping[str, Any], ref: MessageRef) -> None:
        self.row, self.ref = row, ref
        self.address = self.mail_from = ""
        self.rendered: Rendered | None = None
        self.fields: list[tuple[str, str]] = []
        self.body = b""
        self.unsigned: list[dkim.Unsigned] = []
        self.composed: Composed = _NOTHING
        self.error: Exception | None = None


_mailbox = lru_cache(maxsize=64)(mime.mailbox)  # a campaign has one sender, or few names of it


class Composer:
    """Composes the mails of one campaign. Not for use by two threads at once."""

    def __init__(
        self,
        template: MailTemplate | CompiledMail,
        settings: MailSettings,
        keyring: Keyring,
        signers: Sequence[DkimSigner] = (),
    ) -> None:
        self.mail = template if isinstance(template, CompiledMail) else CompiledMail(template)
        self.settings = settings
        self._keyring = keyring
        self._signers = tuple(signers)
        base = settings.base_url.rstrip("/")
        self._prefixes = {kind: f"{base}/{segment}/" for kind, segment in PATHS.items()}
        self._links = [
            (f"_c{link.position}", link.position, link.url, link.url.encode("ascii"))
            for link in self.mail.links
            if link.url
        ]
        self._encoded = [encode_piece(raw) for *_, raw in self._links]
        self._has_decoy = settings.track_clicks and settings.kind != "transactional"
        self._id_domain = self.mail.from_email.rpartition("@")[2]
        workspace = re.sub(r"[^A-Za-z0-9_-]", "-", keyring.current.workspace)[:40]
        self._feedback_id = f"{settings.campaign_id}:{workspace}:{settings.kind}:manta"

    @property
    def attributes(self) -> tuple[str, ...]:
        """The person's attributes to put into each row, besides ``email``."""
        return self.mail.attributes

    @property
    def sending_domain(self) -> str:
        """The domain of the From address, in lower case: whose reputation is at stake."""
        return self._id_domain.lower()

    def compose(self, row: Mapping[str, Any], ref: MessageRef, now: datetime) -> Composed:
        """The mail for a person.

        ``row`` holds ``email`` and ``attributes`` by their names; ``_send_to``, no name that an
        attribute can have, is where a test goes instead. Raises ``TemplateError`` where
        the template fails on these values and ``InvalidRequest`` for an address that cannot be
        mailed to; both concern this message only.
        """
        draft = Draft(row, ref)
        for step in self.steps.values():
            step(draft, now)
        return draft.composed

    def compose_each(
        self, messages: Iterable[tuple[Mapping[str, Any], MessageRef]], now: datetime
    ) -> list[Composed | Exception]:
        """``compose`` of each (row, ref), or what it raised.

        Each step is taken for all messages before the next one: what a processor has at hand for
        one step is gone after a signature, which makes the others cost half as much again.
        """
        drafts = [Draft(row, ref) for row, ref in messages]
        for step in self.steps.values():
            for draft in drafts:
                if draft.error is None:
                    try:
                        step(draft, now)
                    except Exception as error:  # it fails its own message only
                        draft.error = error
        return [draft.error or draft.composed for draft in drafts]

    @property
    def steps(self) -> dict[str, Callable[[Draft, datetime], None]]:
        """What is done to a draft, in order."""
        return {
            "render": self._render,
            "mime": self._assemble,
            "dkim": self._canonicalize,
            "sign": self._sign,
        }

    def _render(self, draft: Draft, now: datetime) -> None:
        draft.address = mime.check_address(draft.row.get("_send_to") or draft.row.get("email"))
        draft.rendered = self.render(draft.row, draft.ref)

    def _assemble(self, draft: Draft, now: datetime) -> None:
        assert draft.rendered is not None
        draft.fields, draft.body = self.assemble(draft.rendered, draft.address, draft.ref, now)
        local_part = self._keyring.verp_local_part(draft.ref)
        draft.mail_from = f"{local_part}@{self.settings.return_path_domain}"

    def _canonicalize(self, draft: Draft, now: datetime) -> None:
        timestamp = int(now.replace(tzinfo=UTC).timestamp())
        draft.unsigned = dkim.unsigned(draft.fields, draft.body, self._signers, timestamp)

    def _sign(self, draft: Draft, now: datetime) -> None:
        signatures = [each.signed() for each in draft.unsigned]
        head = mime.fields_text([*signatures, *draft.fields])
        data = b"".join((head, b"\r\n", draft.body))
        draft.composed = Composed(draft.mail_from, draft.address, data)

    # -- the steps, apart for those who measure them ----------------------------------------------

    def render(self, row: Mapping[str, Any], ref: MessageRef) -> Rendered:
        values = clean_values(row, self.mail.attributes)
        acting = self._acting(ref)
        for name in self.mail.own_links:
            kind = _OWN_LINKS[name]
            values[name] = self._url(kind, ref if kind is TokenKind.VIEW else acting)
        ref = acting
        values["unsubscribe_url"] = self._url(TokenKind.UNSUBSCRIBE, ref)
        self._add_links(values, ref)
        pixel = self._url(TokenKind.OPEN, ref) if self.settings.track_opens else ""
        decoy = self._url(TokenKind.CLICK, ref, DECOY_LINK) if self._has_decoy else ""
        return self.mail.render(values, self._signer(ref), pixel, decoy)

    def assemble(
        self, rendered: Rendered, address: str, ref: MessageRef, now: datetime
    ) -> tuple[list[tuple[str, str]], bytes]:
        """(header fields, body) of the mail, unsigned."""
        mark = TEST_MARK if self.settings.kind == "test" else ""
        # The text of a person stands in the parts: the boundary must be one they cannot guess.
        boundary = "=_" + self._keyring.boundary(ref)
        fields = [
            ("From", _mailbox(rendered.from_name, self.mail.from_email)),
            ("To", address),
            ("Subject", mime.unstructured(mark + rendered.subject)),
            ("Date", mime.date_text(now)),
            ("Message-ID", mime.message_id(ref, self._id_domain)),
        ]
        if self.mail.reply_to:
            fields.append(("Reply-To", self.mail.reply_to))
        if self.settings.kind != "transactional":
            address = self._unsubscribe_address(self._acting(ref))
            fields += unsubscribe_headers(rendered.unsubscribe_url, address)
        fields += [
            ("Feedback-ID", self._feedback_id),
            ("MIME-Version", "1.0"),
            ("Content-Type", mime.alternative_type(boundary)),
        ]
        return fields, mime.alternative(rendered.text, rendered.html, boundary)

    # -- links -------------------------------------------------------------------------------------

    def _acting(self, ref: MessageRef) -> MessageRef:
        """In whose name the reader of the mail acts."""
        return MessageRef(NOBODY, ref[1]) if self.settings.kind == "test" else ref

    def _unsubscribe_address(self, ref: MessageRef) -> str:
        if not self.settings.has_inbox:
            return ""
        return f"{self._keyring.unsubscribe_local_part(ref)}@{self.settings.return_path_domain}"

    def _url(self, kind: TokenKind, ref: MessageRef, link: int = 0) -> str:
        return self._prefixes[kind] + self._keyring.sign_prepared(
            kind, ref, self.settings.campaign_id, link, b"", ""
        )

    def _add_links(self, values: dict[str, Any], ref: MessageRef) -> None:
        if not self.settings.track_clicks:
            values.update((name, url) for name, _, url, _ in self._links)
            return
        sign = self._keyring.sign_prepared
        prefix, campaign = self._prefixes[TokenKind.CLICK], self.settings.campaign_id
        for (name, position, _, raw), encoded in zip(self._links, self._encoded, strict=True):
            values[name] = prefix + sign(TokenKind.CLICK, ref, campaign, position, raw, encoded)

    def _signer(self, ref: MessageRef) -> Callable[[int, str], str]:
        def sign(position: int, url: str) -> str:
            if position >= 0 and self.settings.track_clicks:
                raw, encoded = _target(url)
                if raw:
                    return prefix + token(TokenKind.CLICK, ref, campaign, position, raw, encoded)
            return safe_address(url)

        prefix, campaign = self._prefixes[TokenKind.CLICK], self.settings.campaign_id
        token = self._keyring.sign_prepared
        return sign


@lru_cache(maxsize=1_024)
def _target(url: str) -> tuple[bytes, str]:
    """A link's address as it is signed, and its base64; empty where nothing can be tracked."""
    raw = clean_url(url).encode("ascii")
    return raw, encode_piece(raw)
