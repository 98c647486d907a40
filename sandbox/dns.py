"""A DNS server for one machine: authoritative, over UDP and TCP, and able to misbehave.

It answers from a zone that may change while it runs. A name that is not in the zone is NXDOMAIN, a
type that a name lacks is an empty answer, both with an SOA for negative caching (RFC 2308).
``*.example`` stands for any name below that has no entry. CNAMEs are followed inside the zone, as a
resolver would. A name whose entry is a ``Trouble`` makes the server misbehave for it.

    zone = {
        "gmail.example": {"MX": ["10 mx1.gmail.example", "20 mx2.gmail.example"]},
        "mx1.gmail.example": {"A": ["127.0.0.2"], "AAAA": ["::1"]},
        "_mta-sts.gmail.example": {"TXT": ["v=STSv1; id=1"]},
        "2.0.0.127.in-addr.arpa": {"PTR": ["mx1.gmail.example"]},
        "broken.example": Trouble.SERVFAIL,
    }
    server = serve_dns(zone)    # on 127.0.0.1, at server.port, until server.stop()
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

CHAIN_MAX = 16
UDP_BYTES_MAX = 1_232
TCP_IDLE_S = 10.0


class Trouble(StrEnum):
    """How a server can go wrong for a name."""

    SILENT = "silent"  # no answer at all
    SERVFAIL = "servfail"
    REFUSED = "refused"
    TRUNCATED = "truncated"  # too long for UDP, and TCP is cut off in the middle of the answer
    WRONG_ID = "wrong_id"
    WRONG_QUESTION = "wrong_question"
    OTHER_NAME = "other_name"  # records, but of a name that nobody asked for
    CHAIN = "chain"  # each CNAME leads to another one, for ever
    REFERRAL = "referral"  # ask somebody else
    NONSENSE = "nonsense"  # bytes that are no DNS message


Entry = Mapping[str, Sequence[str]]
Zone = Mapping[str, Entry | Trouble]


class DnsServer:
    """Runs on a thread of its own. ``asked`` counts the questions by (name, type), both in the form
    ``("gmail.example", "MX")``."""

    def __init__(self, zone: Zone, host: str, port: int, ttl_s: int, negative_ttl_s: int) -> None:
        self.zone = zone
        self.host = host
        self.port = port
        self.ttl_s = ttl_s
        self.negative_ttl_s = negative_ttl_s
        self.asked: Counter[tuple[str, str]] = Counter()
        self._known_parents: frozenset[str] = frozenset()
        self._counted = (0, 0)
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._fault: BaseException | None = None
        self._ending: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="dns", daemon=True)

    @property
    def address(self) -> str:
        """As ``DnsSettings.servers`` wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def start(self) -> DnsServer:
        self._thread.start()
        self._up.wait()
        if self._fault is not None:
            raise self._fault
        return self

    def stop(self) -> None:
        def end() -> None:
            if self._ending is not None:
                self._ending.set()

        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(end)
        self._thread.join()

    # -- inside ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as fault:
            self._fault = fault
            self._up.set()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        """UDP and TCP at the same port, which the system chooses for both when it is 0."""
        self._ending = asyncio.Event()
        tries = 20 if self.port == 0 else 1
        for left in reversed(range(tries)):
            tcp = await asyncio.start_server(self._tcp, self.host, self.port)
            port = int(tcp.sockets[0].getsockname()[1])
            try:
                udp, _ = await self._loop.create_datagram_endpoint(
                    lambda: _Udp(self), local_addr=(self.host, port)
                )
                break
            except OSError:
                tcp.close()
                if not left:
                    raise
        self.port = port
        self._up.set()
        async with tcp:
            await self._ending.wait()
            udp.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """RFC 7766: questions in a row, each with its length before it."""
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_S):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(length)
                answer = self.answer(wire, 65_535)
                if answer is None:
                    continue
                sent = len(answer).to_bytes(2, "big") + answer
                if self._trouble_of(wire) is Trouble.TRUNCATED:
                    writer.write(sent[: len(sent) // 2])
                    return
                writer.write(sent)
                await writer.drain()
        except (TimeoutError, EOFError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _trouble_of(self, wire: bytes) -> Trouble | None:
        question = dns.message.from_wire(wire).question[0]
        entry = self._entry(question.name.canonicalize().to_text(omit_final_dot=True))
        return entry if isinstance(entry, Trouble) else None

    def answer(self, wire: bytes, bytes_max: int) -> bytes | None:
        """The answer to a message; None: none is given."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if query.flags & dns.flags.QR or query.opcode() != dns.opcode.QUERY or not query.question:
            return None
        (question,) = query.question[:1]
        name = question.name.canonicalize().to_text(omit_final_dot=True)
        self.asked[name, dns.rdatatype.to_text(question.rdtype)] += 1
        response = dns.message.make_response(query, our_payload=UDP_BYTES_MAX)
        response.flags |= dns.flags.AA | dns.flags.RA
        entry = self._entry(name)
        if isinstance(entry, Trouble):
            return self._misbehave(entry, response, question)
        self._fill(response, question.name, question.rdtype)
        return _wire(response, bytes_max)

    def _entry(self, name: str) -> Entry | Trouble | None:
        """The entry of the name, or the wildcard's next above (RFC 4592, roughly)."""
        if name in self.zone:
            return self.zone[name]
        _, _, parent = name.partition(".")
        while parent:
            if f"*.{parent}" in self.zone:
                return self.zone[f"*.{parent}"]
            if parent in self.zone:
                return Trouble.CHAIN if self.zone[parent] is Trouble.CHAIN else None
            _, _, parent = parent.partition(".")
        return None

    def _parents(self) -> frozenset[str]:
        """Names that have none of their own but names below: they exist (RFC 8020)."""
        if self._counted != (id(self.zone), len(self.zone)):
            parents = {
                name.split(".", cut)[-1]
                for name in self.zone
                for cut in range(1, name.count(".") + 1)
            }
            self._known_parents = frozenset(parents)
            self._counted = (id(self.zone), len(self.zone))
        return self._known_parents

    def _fill(
        self, response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> None:
        for _ in range(CHAIN_MAX):
            text = name.canonicalize().to_text(omit_final_dot=True)
            entry = self._entry(text)
            if entry is None and text not in self._parents():
                response.set_rcode(dns.rcode.NXDOMAIN)
            if entry is None or isinstance(entry, Trouble):
                break
            if records := entry.get(dns.rdatatype.to_text(kind)):
                response.answer.append(self._rrset(name, kind, records))
                return
            alias = entry.get("CNAME")
            if not alias:
                break
            rrset = self._rrset(name, dns.rdatatype.CNAME, alias)
            response.answer.append(rrset)
            name = rrset[0].target
        else:
            response.set_rcode(dns.rcode.SERVFAIL)
            return
        soa = f"ns.test. hostmaster.test. 1 7200 900 1209600 {self.negative_ttl_s}"
        rrset = dns.rrset.from_text(name, self.negative_ttl_s, "IN", "SOA", soa)
        response.authority.append(rrset)

    def _rrset(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, records: Sequence[str]
    ) -> dns.rrset.RRset:
        if kind == dns.rdatatype.TXT:
            records = [_quoted(text) for text in records]
        elif kind in (dns.rdatatype.MX, dns.rdatatype.CNAME, dns.rdatatype.PTR):
            records = [text if text.endswith(".") else text + "." for text in records]
        return dns.rrset.from_text_list(name, self.ttl_s, dns.rdataclass.IN, kind, list(records))

    def _misbehave(
        self, trouble: Trouble, response: dns.message.Message, question: dns.rrset.RRset
    ) -> bytes | None:
        name, kind = question.name, question.rdtype
        lie = {dns.rdatatype.MX: "10 trap.example.", dns.rdatatype.A: "192.0.2.66"}.get(kind)
        if trouble is Trouble.SILENT:
            return None
        if trouble is Trouble.NONSENSE:
            return b"\xff" * 37
        if trouble in (Trouble.SERVFAIL, Trouble.REFUSED):
            response.set_rcode(dns.rcode.from_text(trouble.value))
        elif trouble is Trouble.TRUNCATED:
            response.flags |= dns.flags.TC
        elif trouble is Trouble.CHAIN:
            onward = dns.name.from_text("x", None) + name
            response.answer.append(self._rrset(name, dns.rdatatype.CNAME, [onward.to_text()]))
        elif trouble is Trouble.REFERRAL:
            response.flags &= ~dns.flags.AA
            response.authority.append(
                dns.rrset.from_text(name, self.ttl_s, "IN", "NS", "ns.elsewhere.example.")
            )
        elif lie is not None:
            liar = (
                name if trouble is not Trouble.OTHER_NAME else dns.name.from_text("other.example")
            )
            response.answer.append(dns.rrset.from_text(liar, self.ttl_s, "IN", kind, lie))
        if trouble is Trouble.WRONG_ID:
            response.id ^= 0x5555
        if trouble is Trouble.WRONG_QUESTION:
            asked = dns.name.from_text("unasked.example")
            response.question = [dns.rrset.RRset(asked, dns.rdataclass.IN, kind)]
        return _wire(response, 65_535)


def serve_dns(
    zone: Zone,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ttl_s: int = 300,
    negative_ttl_s: int = 60,
) -> DnsServer:
    """Start a server; ``.port`` tells where, also for port 0."""
    return DnsServer(zone, host, port, ttl_s, negative_ttl_s).start()


@contextlib.contextmanager
def dns_server(zone: Zone, host: str = "127.0.0.1", **options: int) -> Iterator[DnsServer]:
    """A server for the time of a ``with`` block."""
    server = serve_dns(zone, host, **options)
    try:
        yield server
    finally:
        server.stop()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.answer(data, UDP_BYTES_MAX)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


def _wire(response: dns.message.Message, bytes_max: int) -> bytes:
    try:
        return response.to_wire(max_size=bytes_max)
    except dns.exception.TooBig:
        response.answer, response.authority = [], []
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=bytes_max)


def _quoted(text: str) -> str:
    """A TXT record's text as strings of at most 255 bytes (RFC 1035 §3.3.14)."""
    data = text.encode()
    parts = [data[i : i + 255] for i in range(0, len(data), 255)] or [b""]
    return " ".join('"' + "".join(f"\\{byte:03d}" for byte in part) + '"' for part in parts)
