"""Manta from a notebook or a script: the verbs of the HTTP API, pandas in and out.

    with Client("http://127.0.0.1:8000", "manta_…") as manta:
        manta.import_people("people.csv")
        segment = manta.create_segment("Bern", {"all": [...]})
        people = manta.export(segment["id"])

Answers are the API's own JSON as dictionaries and lists; tables of people and of recipients are
DataFrames. Refusals are exceptions of ``manta.errors`` that name what was wrong and what would be
right. Changes are retried under one key, so nothing happens twice (``manta.client.http``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload
from urllib.parse import quote, urlencode

from manta.client.http import Http
from manta.clock import as_text
from manta.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    import pandas as pd
    import pyarrow as pa

    from manta.client.suppressions import SuppressionSummary
    from manta.people.importing import ImportSummary

Document = dict[str, Any]
Rule = Mapping[str, Any]
EVENTS_PER_REQUEST = 1_000
PAGE_ROWS = 1_000
ENDED = ("finished", "cancelled")
ACCOUNTING_SUMS = ("pending", "planned_total", "adds_up")  # beside the states
NEWSLETTER = ("email", "newsletter", "subscribed")

__all__ = ["Client"]


class Client:
    """One Manta, named by the URL of its API and an API key.

    ``timeout_s`` is for one try of one request. A client may be shared by threads and is a context
    manager. Every method raises the exceptions of ``manta.errors``.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        timeout_s: float = 30.0,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = Http(url, api_key, timeout_s, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- people ------------------------------------------------------------------------------------

    def import_people(
        self,
        people: str | PathLike[str] | pd.DataFrame | pa.Table,
        mapping: Mapping[str, str] | None = None,
        consent: tuple[str, str, str] | None = NEWSLETTER,
        rejects: str | PathLike[str] | None = None,
        progress: Callable[[int, float], None] | None = None,
        words: Mapping[str, str] | None = None,
        announce: Callable[[list[str]], None] | None = None,
    ) -> ImportSummary:
        """Create or change the people of a CSV or Parquet file or of a table.

        ``mapping`` says where columns go (header → ``email``, ``external_id``, ``time_zone``,
        ``locale``, ``skip`` or an attribute, if wanted with ``:type``); the others are guessed.
        ``consent`` is (channel, topic, status) for all of them, or ``None``; it never overrides
        an unsubscription. Rows that do not fit go to the CSV file ``rejects`` with line and reason.
        ``progress(rows, part)`` is called as the work goes on, ``part`` from 0 to 1.

        What the file says of consent is read from it, and ``announce`` is told in sentences before
        anything is written: who has unsubscribed, bounced or complained elsewhere is suppressed,
        and ``consent`` goes to those alone whom the file says to be subscribed, or of whom it says
        nothing. ``words`` are your meanings of its words, as ``{"enabled": "subscribed"}``.
        """
        from manta.client.people import import_people

        return import_people(
            self._http, people, mapping, consent, rejects, progress, words, announce
        )

    @overload
    def export(
        self, audience: int | Rule | None = None, path: None = None, **options: Any
    ) -> pd.DataFrame: ...

    @overload
    def export(
        self, audience: int | Rule | None, path: str | PathLike[str], **options: Any
    ) -> Path: ...

    def export(
        self,
        audience: int | Rule | None = None,
        path: str | PathLike[str] | None = None,
        **options: Any,
    ) -> pd.DataFrame | Path:
        """The people of a segment (by its id), of a rule, or everybody.

        As a DataFrame, or with ``path`` as a file: CSV, or Parquet by its name. The file appears
        complete or not at all; rows are in the order of their ids. ``progress(rows)`` is called as
        they come.
        """
        from manta.client.people import export_file, export_frame

        if path is None:
            return export_frame(self._http, audience, **options)
        export_file(self._http, audience, Path(path), **options)
        return Path(path)

    def subscriber(
        self, *, email: str | None = None, id: str | None = None, external_id: str | None = None
    ) -> Document:
        """Who has this address, id or external id. Raises ``NotFound``."""
        if sum(given is not None for given in (email, id, external_id)) != 1:
            raise InvalidRequest(
                "a subscriber is looked up by one name", expected="email, id or external_id"
            )
        if id is not None:
            return _document(self._http.get(f"/subscribers/{_segment(id)}"))
        return _document(self._http.get("/subscribers", email=email, external_id=external_id))

    def upsert(self, **fields: Any) -> Document:
        """Create or change one subscriber: ``email``, ``attributes``, ``consent``, …"""
        return _document(self._http.post("/subscribers", fields))

    def unsubscribe(self, id: str, topic: str | None = None, source: str = "client") -> Document:
        """Of one topic, or of all."""
        body = {"topic": topic, "source": source}
        return _document(self._http.post(f"/subscribers/{_segment(id)}/unsubscribe", body))

    def merge(self, id: str, into: str, cause: str = "client") -> Document:
        """Let a subscriber live on as another. Answers ``id`` and ``merged_from``."""
        body = {"into": into, "cause": cause}
        return _document(self._http.post(f"/subscribers/{_segment(id)}/merge", body))

    def undo_merge(self, id: str) -> Document:
        """Of a merged subscriber, by their own id."""
        return _document(self._http.post(f"/subscribers/{_segment(id)}/undo-merge", {}))

    def identities(self, id: str) -> list[Document]:
        """By what they are known: ``kind``, ``value``, ``since``."""
        return list(self._http.get(f"/subscribers/{_segment(id)}/identities")["identities"])

    def attributes(self) -> dict[str, str]:
        """The declared attributes with their types."""
        return dict(self._http.get("/attributes")["attributes"])

    def declare_attributes(self, types: Mapping[str, str]) -> dict[str, str]:
        """Declare attributes; answers all of them. A type cannot be changed later."""
        return dict(self._http.post("/attributes", {"attributes": dict(types)})["attributes"])

    def record_events(self, events: pd.DataFrame | Iterable[Mapping[str, Any]]) -> Document:
        """Record what people did: ``type``, one identity (``email``, …), ``occurred_at``, ….

        In batches; answers the counts ``recorded``, ``repeated`` and ``refused``, and ``errors``,
        each with the ``index`` of its event. Instants may be ``datetime``; cells without a value
        are left out.
        """
        from manta.client.events import record_events

        return record_events(self._http, events)

    # -- suppressions ------------------------------------------------------------------------------

    def suppressions(
        self, *, channel: str | None = None, reason: str | None = None, contains: str | None = None
    ) -> Iterator[Document]:
        """Those that hold, by channel and address; ``contains`` is a part of the address."""
        return self._http.pages(
            "/suppressions", limit=PAGE_ROWS, channel=channel, reason=reason, contains=contains
        )

    def suppression(self, address: str, channel: str = "email") -> Document:
        """Why nothing is sent to an address, and until when. Raises ``NotFound``."""
        return _document(self._http.get(_suppression(channel, address)))

    def suppress(self, address: str, **fields: Any) -> bool:
        """Send nothing to an address any more: ``reason``, ``evidence``, ``expires_at``,
        ``channel``. Answers whether that is new."""
        body = {"address": address, **fields}
        if fields.get("expires_at") is not None:
            body["expires_at"] = _instant(fields["expires_at"])
        return bool(self._http.post("/suppressions", body)["changed"])

    def lift_suppression(self, address: str, why: str = "", channel: str = "email") -> bool:
        """Let mail to an address pass again; ``why`` stays in the history. Consent is another
        matter. Answers whether it was suppressed."""
        path = f"{_suppression(channel, address)}?{urlencode({'why': why})}"
        return bool(self._http.send("DELETE", path)["changed"])

    def import_suppressions(
        self,
        path: str | PathLike[str],
        reason: str = "manual",
        source: str = "import",
        progress: Callable[[int], None] | None = None,
    ) -> SuppressionSummary:
        """Suppress the addresses of a CSV file. Its first row names the columns: ``address`` (or
        ``email``), and if wanted ``reason``, ``source``, ``evidence``, ``expires_at``; ``reason``
        and ``source`` stand where a row has none. Rows that do not fit are in the answer's
        ``rejects``, by line."""
        from manta.client.suppressions import import_suppressions

        done = progress or (lambda rows: None)
        return import_suppressions(self._http, Path(path), reason, source, done)

    def export_suppressions(
        self, path: str | PathLike[str], channel: str | None = None, reason: str | None = None
    ) -> int:
        """Write a CSV file that ``import_suppressions`` takes; answers how many there are. The file
        appears complete or not at all."""
        from manta.client.suppressions import export_suppressions

        return export_suppressions(self._http, Path(path), channel=channel, reason=reason)

    # -- segments ----------------------------------------------------------------------------------

    def segments(self) -> list[Document]:
        """All segments, the newest first."""
        return list(self._http.pages("/segments", limit=PAGE_ROWS))

    def segment(self, id: int) -> Document:
        return _document(self._http.get(f"/segments/{int(id)}"))

    def create_segment(self, name: str, rule: Rule, type: str = "rule") -> Document:
        """``type`` ``snapshot``: whom the rule holds for now, and stay. Lists: ``create_list``."""
        fields = {"name": name, "type": type, "rule": dict(rule)}
        return _document(self._http.post("/segments", fields))

    def create_list(self, name: str) -> Document:
        """A segment whose members are put on it by ``edit_list``."""
        return _document(self._http.post("/segments", {"name": name, "type": "list"}))

    def edit_list(self, id: int, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Document:
        """Put people (addresses or ids) on a list, take people off it; any number of them.

        Answers how many ``entered`` and ``left``, and which names are ``unknown``."""
        totals: Document = {"entered": 0, "left": 0, "unknown": []}
        for name, people in (("add", list(add)), ("remove", list(remove))):
            for start in range(0, len(people), PAGE_ROWS):
                part = {name: people[start : start + PAGE_ROWS]}
                answer = _document(self._http.post(f"/segments/{int(id)}/members", part))
                totals = {key: totals[key] + answer[key] for key in totals}
        return totals

    def members(self, id: int) -> Iterator[Document]:
        """Everybody in a live segment, a list or a snapshot: ``id`` and ``email``."""
        return self._http.pages(f"/segments/{int(id)}/members", limit=PAGE_ROWS)

    def growth(self, id: int, days: int = 90) -> list[Document]:
        """Day by day who entered and left a segment, and its size at the end of the day."""
        return list(self._http.get(f"/segments/{int(id)}/growth", days=days)["days"])

    def overlap(self, *ids: int) -> list[Document]:
        """For each pair of segments how many people are in both."""
        answer = self._http.post("/segments/overlap", {"segments": [int(id) for id in ids]})
        return list(answer["pairs"])

    def delete_segment(self, id: int) -> None:
        self._http.request("DELETE", f"/segments/{int(id)}")

    def segment_count(self, audience: int | Rule) -> int:
        """How many people a segment or a rule holds for now."""
        if isinstance(audience, Mapping):
            return int(self._tried(audience, 0)["count"])
        return int(self._http.get(f"/segments/{int(audience)}/count")["count"])

    def segment_sample(self, audience: int | Rule, size: int = 10) -> list[Document]:
        """Some of the people, the same ones each time."""
        if isinstance(audience, Mapping):
            return list(self._tried(audience, size)["sample"])
        return list(self._http.get(f"/segments/{int(audience)}/sample", limit=size)["sample"])

    def segment_explain(self, audience: int | Rule) -> str:
        """What a segment or a rule means, in English."""
        if isinstance(audience, Mapping):
            return str(self._http.post("/segments/explain", {"rule": dict(audience)})["text"])
        return str(self._http.get(f"/segments/{int(audience)}/explain")["text"])

    def _tried(self, rule: Rule, sample: int) -> Document:
        return _document(
            self._http.post("/segments/preview", {"rule": dict(rule), "sample": sample})
        )

    # -- templates ---------------------------------------------------------------------------------

    def templates(self) -> list[Document]:
        return list(self._http.pages("/templates", limit=PAGE_ROWS))

    def template(self, id: int, version: int | None = None) -> Document:
        of = "" if version is None else f"/versions/{int(version)}"
        return _document(self._http.get(f"/templates/{int(id)}{of}"))

    def create_template(self, name: str, **content: str) -> Document:
        """``subject``, ``html``, ``from_email``; if wanted ``from_name``, ``text``, ``preheader``,
        ``reply_to``."""
        return _document(self._http.post("/templates", {"name": name, **content}))

    def lint(self, **content: str) -> list[Document]:
        """What is wrong with a template's content, or likely wrong; nothing is stored."""
        return list(self._http.post("/templates/lint", content)["findings"])

    def preview(self, template_id: int, *, version: int | None = None, **person: str) -> Document:
        """The mail that a person would get, named by ``email`` or ``subscriber_id``."""
        body = person if version is None else {**person, "version": version}
        return _document(self._http.post(f"/templates/{int(template_id)}/preview", body))

    def test_send(self, template_id: int, to: str | list[str], **options: Any) -> Document:
        """Send the template to up to ten addresses of your own, marked as a test.

        ``email`` or ``subscriber_id`` names the person with whose attributes it is filled.
        """
        body = {"to": [to] if isinstance(to, str) else list(to), **options}
        return _document(self._http.post(f"/templates/{int(template_id)}/test", body))

    # -- campaigns ---------------------------------------------------------------------------------

    def campaigns(self) -> list[Document]:
        return list(self._http.pages("/campaigns", limit=PAGE_ROWS))

    def campaign(self, id: int) -> Document:
        """Its state and how far planning has come."""
        return _document(self._http.get(f"/campaigns/{int(id)}"))

    def create_campaign(self, name: str, template_id: int, **fields: Any) -> Document:
        """A draft to ``segment_id`` or a ``rule`` of its own. See the API for the other fields."""
        return _document(
            self._http.post("/campaigns", {"name": name, "template_id": template_id, **fields})
        )

    def launch(self, id: int, at: datetime | str | None = None) -> Document:
        """Now, or at an instant (a ``datetime`` without zone is in UTC)."""
        body = {"at": _instant(at)} if at is not None else {}
        return _document(self._http.post(f"/campaigns/{int(id)}/launch", body))

    def pause(self, id: int) -> Document:
        return self._move(id, "pause")

    def resume(self, id: int) -> Document:
        return self._move(id, "resume")

    def cancel(self, id: int) -> Document:
        return self._move(id, "cancel")

    def _move(self, id: int, move: Literal["pause", "resume", "cancel"]) -> Document:
        return _document(self._http.post(f"/campaigns/{int(id)}/{move}"))

    def rehearse(self, id: int, at: datetime | str | None = None, seed: int = 1) -> Document:
        """What is to be expected of a campaign before its start: when it would end, what each
        provider would do, what the warm-up holds back, what would be done about it."""
        body = {"seed": seed} | ({"at": _instant(at)} if at is not None else {})
        return _document(self._http.post(f"/campaigns/{int(id)}/rehearse", body))

    def forecast(self, id: int) -> Document:
        """The last rehearsal's ``forecast``, and its ``comparison`` with what came, once the
        campaign has ended; each may be ``None``."""
        return _document(self._http.get(f"/campaigns/{int(id)}/forecast"))

    def report(self, id: int) -> Document:
        """The accounting of every recipient, what people did, failures by reason, and over time."""
        return _document(self._http.get(f"/campaigns/{int(id)}/report"))

    def report_frame(self, id: int) -> pd.DataFrame:
        """The accounting as a table: ``state``, ``messages``, ``share``."""
        import pandas as pd

        accounting = self.report(id)["accounting"]
        states = {name: count for name, count in accounting.items() if name not in ACCOUNTING_SUMS}
        frame = pd.DataFrame({"state": list(states), "messages": list(states.values())})
        return frame.assign(share=frame["messages"] / max(int(frame["messages"].sum()), 1))

    def recipients(self, id: int, state: str | None = None) -> pd.DataFrame:
        """Every message of the campaign, or those in a state, with its reason and SMTP reply."""
        import pandas as pd

        path = f"/campaigns/{int(id)}/recipients"
        return pd.DataFrame(list(self._http.pages(path, limit=PAGE_ROWS, state=state)))

    def watch(self, id: int, every_s: float = 1.0) -> Iterator[Document]:
        """The campaign with its ``report``, again and again until it has ended."""
        while True:
            campaign = self.campaign(id)
            yield campaign | {"report": self.report(id)}
            if campaign["state"] in ENDED:
                return
            time.sleep(every_s)

    # -- sending domains ---------------------------------------------------------------------------

    def domains(self) -> list[Document]:
        return list(self._http.get("/domains")["items"])

    def add_domain(
        self,
        domain: str,
        private_key: str | None = None,
        selector: str = "",
        signed_by_relay: bool = False,
    ) -> Document:
        """A domain to send from, with two DKIM keys; ``private_key`` (PEM) is one of your own."""
        body = {
            "domain": domain,
            "private_key": private_key,
            "selector": selector,
            "signed_by_relay": signed_by_relay,
        }
        return _document(self._http.post("/domains", body))

    def check_domain(self, domain: str) -> Document:
        """What the DNS has of it (``check``), and the ``records`` to publish."""
        return _document(self._http.post(f"/domains/{_host(domain)}/check"))

    def rotate_domain(self, domain: str) -> Document:
        """The next key signs; raises ``Conflict`` until a check has found its record."""
        return _document(self._http.post(f"/domains/{_host(domain)}/rotate"))

    def remove_domain(self, domain: str) -> None:
        self._http.send("DELETE", f"/domains/{_host(domain)}")

    # -- quarantine --------------------------------------------------------------------------------

    def quarantine(self, **filters: Any) -> Document:
        """A page of what came in and fits no shape, the latest first: ``items`` and ``next``.
        Filters: ``state`` (waiting, replayed, discarded), ``source``, ``problem``, ``limit``,
        ``cursor``."""
        return _document(self._http.get("/quarantine", **filters))

    def quarantined(self, id: str) -> Document:
        return _document(self._http.get(f"/quarantine/{_segment(id)}"))

    def replay_quarantined(self, id: str, body: Mapping[str, Any] | None = None) -> Document:
        """Take one message in once more, ``body`` in its place if one is given. Raises
        ``InvalidRequest`` with what still does not fit."""
        given = {} if body is None else {"body": dict(body)}
        return _document(self._http.post(f"/quarantine/{_segment(id)}/replay", given))

    def replay_quarantine(self, source: str | None = None, problem: str | None = None) -> Document:
        """Take in up to 500 of those that wait: counts, and ``errors`` of those that stay."""
        given = {"source": source, "problem": problem}
        return _document(self._http.post("/quarantine/replay", given))

    def discard_quarantined(self, id: str) -> Document:
        return _document(self._http.send("DELETE", f"/quarantine/{_segment(id)}"))

    # -- outgoing webhooks -------------------------------------------------------------------------

    def webhooks(self) -> list[Document]:
        """The endpoints, newest first."""
        return list(self._http.pages("/webhooks"))

    def create_webhook(
        self, url: str, types: Iterable[str], *, description: str = "", ordered: bool = False
    ) -> Document:
        """An endpoint that is told of these types; ``secret`` is in this answer alone."""
        body = {"url": url, "types": list(types), "description": description, "ordered": ordered}
        return _document(self._http.post("/webhooks", body))

    def webhook(self, id: int) -> Document:
        return _document(self._http.get(f"/webhooks/{int(id)}"))

    def change_webhook(self, id: int, **fields: Any) -> Document:
        """``url``, ``types``, ``description``, ``ordered``, ``enabled``: what is given changes."""
        return _document(self._http.send("PATCH", f"/webhooks/{int(id)}", fields))

    def rotate_webhook(self, id: int, old_secret_hours: float = 24.0) -> Document:
        """A new ``secret``, in this answer alone; the old one signs as well for a while."""
        body = {"old_secret_hours": old_secret_hours}
        return _document(self._http.post(f"/webhooks/{int(id)}/rotate", body))

    def delete_webhook(self, id: int) -> None:
        self._http.send("DELETE", f"/webhooks/{int(id)}")

    def test_webhook(self, id: int) -> Document:
        """Send a test now: ``delivered``, ``status``, ``answer``."""
        return _document(self._http.post(f"/webhooks/{int(id)}/test"))

    def webhook_deliveries(self, id: int, state: str | None = None) -> Iterator[Document]:
        """The log of an endpoint, newest first."""
        return self._http.pages(f"/webhooks/{int(id)}/deliveries", state=state)

    def replay_webhooks(
        self,
        id: int,
        ids: Iterable[str] = (),
        *,
        since: str | None = None,
        until: str | None = None,
        delivered: bool = False,
    ) -> int:
        """Send again, under the same ids: these, or all of a time that failed or were discarded (or
        delivered). Answers how many."""
        states = ["failed", "discarded", *(["delivered"] if delivered else [])]
        body = {"ids": list(ids), "since": since, "until": until, "states": states}
        return self._all_of(f"/webhooks/{int(id)}/replay", body, "replayed")

    def discard_webhooks(
        self,
        id: int,
        ids: Iterable[str] = (),
        *,
        since: str | None = None,
        until: str | None = None,
        why: str = "",
    ) -> int:
        """What waits is not sent: these, or all of a time. Answers how many."""
        body = {"ids": list(ids), "since": since, "until": until, "why": why}
        return self._all_of(f"/webhooks/{int(id)}/discard", body, "discarded")

    def _all_of(self, path: str, body: Document, name: str) -> int:
        """The API takes a part at a time; what was settled since the first is left alone."""
        count = 0
        while True:
            answer = self._http.post(path, body)
            count += int(answer[name])
            if not answer["more"]:
                return count
            body["settled_before"] = answer["settled_before"]

    # -- sources -----------------------------------------------------------------------------------

    def sources(self) -> list[Document]:
        """Where data comes in from, newest first."""
        return list(self._http.pages("/sources"))

    def create_source(self, kind: str, name: str, **fields: Any) -> Document:
        """A shop or another system that sends webhooks to ``webhook_url``; ``secret`` is in this
        answer alone. ``fields``: ``secret``, ``mapping``, ``consent_topic``, ``declare``,
        ``key_id``."""
        return _document(self._http.post("/sources", {"kind": kind, "name": name, **fields}))

    def source(self, id: int) -> Document:
        return _document(self._http.get(f"/sources/{int(id)}"))

    def change_source(self, id: int, **fields: Any) -> Document:
        """``name``, ``mapping``, ``consent_topic``, ``declare``: what is given changes."""
        return _document(self._http.send("PATCH", f"/sources/{int(id)}", fields))

    def rotate_source(
        self, id: int, secret: str | None = None, old_secret_hours: float = 24.0
    ) -> Document:
        """A new ``secret``, given or made; the old one is good for a while."""
        body = {"secret": secret, "old_secret_hours": old_secret_hours}
        return _document(self._http.post(f"/sources/{int(id)}/rotate", body))

    def delete_source(self, id: int) -> None:
        self._http.send("DELETE", f"/sources/{int(id)}")

    def try_source(
        self,
        id: int,
        samples: Iterable[Any],
        *,
        mapping: Document | None = None,
        topic: str | None = None,
    ) -> list[Document]:
        """What samples would become; nothing is stored. ``mapping``: one in place of its own."""
        body = {"samples": list(samples), "mapping": mapping, "topic": topic}
        return list(self._http.post(f"/sources/{int(id)}/try", body)["results"])

    # -- delivery ----------------------------------------------------------------------------------

    def delivery(self) -> Document:
        """How the sender stands: ``reputation`` (rates and held lanes) and ``throttle`` (lanes,
        pools, warm-up)."""
        return _document(self._http.get("/delivery"))

    def actions(self, all: bool = False) -> list[Document]:
        """What is done to protect the sender, the newest first; ``all``: what is over, too."""
        return list(self._http.pages("/delivery/actions", all=all, limit=PAGE_ROWS))

    def suspend(
        self,
        cause: str,
        *,
        source: str = "",
        provider: str = "",
        sending_domain: str = "",
        campaign_id: int = 0,
        duration_s: float = 3_600,
        rate_per_s: float | None = None,
    ) -> Document:
        """Hold back what matches all that is given; with ``rate_per_s`` slow it instead."""
        scope = {
            "source": source,
            "provider": provider,
            "sending_domain": sending_domain,
            "campaign_id": campaign_id,
        }
        body = {
            "kind": "suspend" if rate_per_s is None else "limit",
            "scope": scope,
            "cause": cause,
            "duration_s": duration_s,
            "limits": {"rate_per_s": rate_per_s},
        }
        return _document(self._http.post("/delivery/actions", body))

    def undo(self, action: int) -> Document:
        """End an action; what led to it is not used again."""
        return _document(self._http.post(f"/delivery/actions/{int(action)}/undo"))

    def rehearse_law(
        self,
        shaping: str | None = None,
        limits: str | None = None,
        since: datetime | None = None,
    ) -> Document:
        """What would have been done on the record of the last days, by these texts if given."""
        body = {"shaping": shaping, "limits": limits, "since": as_text(since) if since else None}
        return _document(self._http.post("/delivery/rehearse", body))

    # -- shaping -----------------------------------------------------------------------------------

    def shaping(self) -> Document:
        """The operator's shaping text (``text``) and the ``version`` of what holds with it."""
        return _document(self._http.get("/delivery/shaping"))

    def set_shaping(self, text: str) -> Document:
        """Lay a shaping file (docs/shaping.md) over the one that comes with Manta, at once."""
        return _document(self._http.put("/delivery/shaping", {"text": text}))

    # -- privacy -----------------------------------------------------------------------------------

    def erase(self, *, now: bool = False, **named: str) -> Document:
        """Erase a person, named by ``subscriber_id`` or one identity; the request and its state."""
        return _document(self._http.post("/privacy/erasures", {**named, "now": now}))

    def erasure(self, request: str) -> Document:
        """A request of erasure: ``erased``, and when it is ``done`` its ``receipt``."""
        return _document(self._http.get(f"/privacy/erasures/{_segment(request)}"))

    def run_erasures(self) -> None:
        """Rewrite files now, for all requests that wait."""
        self._http.post("/privacy/erasures/run")

    def receipt_key(self) -> str:
        """The public key that receipts are checked with, in base64."""
        return str(self._http.get("/privacy/receipt-key")["public_key"])

    def erased_hashes(self) -> list[Document]:
        """The keyed hashes of erased addresses, to be kept apart from backups."""
        return list(self._http.get("/privacy/hashes")["hashes"])

    def apply_erasures(self, hashes: Iterable[Document] = ()) -> list[str]:
        """After a backup was restored: erase again who was erased since; the new requests."""
        body = {"hashes": list(hashes)}
        return list(self._http.post("/privacy/erasures/apply", body)["erased_again"])

    def export_person(self, id: str, file: str | PathLike[str]) -> int:
        """Write everything about one person to a zip file; its size."""
        answer = self._http.request("GET", f"/privacy/exports/{_segment(id)}")
        return int(Path(file).write_bytes(answer.content))

    # -- keys --------------------------------------------------------------------------------------

    def create_key(self, name: str, scopes: Iterable[str]) -> Document:
        """A new API key; its text is in this answer and nowhere else."""
        return _document(self._http.post("/keys", {"name": name, "scopes": list(scopes)}))


def _document(answer: Any) -> Document:
    return dict(answer)


def _suppression(channel: str, address: str) -> str:
    return f"/suppressions/{_segment(channel)}/{quote(address, safe='')}"


def _segment(text: str) -> str:
    """A path segment that cannot reach beyond itself."""
    if not text.isalnum() or not text.isascii():
        raise InvalidRequest(f"{text!r:.40} is no id", path="id", expected="13 letters and digits")
    return text


def _host(text: str) -> str:
    """A domain as a path segment."""
    if not text.isascii() or not text.replace(".", "").replace("-", "").isalnum():
        raise InvalidRequest(f"{text!r:.80} is no domain", path="domain", expected="shop.example")
    return text


def _instant(at: datetime | str) -> str:
    if isinstance(at, str):
        return at
    return as_text(at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at)
