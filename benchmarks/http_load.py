"""A small HTTP/1.1 load generator: keep-alive connections, each with one request under way.

``python -m benchmarks.http_load HOST PORT CONNECTIONS SECONDS < requests`` prints one JSON object;
``generate`` starts it. It is a process of its own, the same for both sides of a comparison, and
says how much processor time it took itself, since it shares the machine with what it measures.

The input is a JSON list of (path, body or null, headers): a request with a body is a POST. ``MARK``
in a body becomes the number of the request, so that no two are the same. With 0 seconds each
request is sent once, and all of the time counts; otherwise they are sent in turn, over and over.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from itertools import count
from typing import Any

import uvloop

WARM_UP_S = 1.0
WAIT_MAX_S = 90.0
ANSWERS_MAX = 20  # different ones that are told apart
MARK = "@@@@@@@@"
_MARK = MARK.encode()


class Run:
    """What all connections share: the requests, the counts, the end."""

    def __init__(self, requests: list[bytes], once: bool) -> None:
        self.requests = requests
        self.once = once
        self.next = count().__next__
        self.ended = False
        self.counting = once
        self.counted = 0
        self.answers: dict[bytes, int] = {}  # status and body → how many, of the whole run
        self.latencies_s = array("d")
        self.broken = 0
        self.open = 0

    def request(self) -> bytes | None:
        """The next one; ``None``: there is no more to ask."""
        n = self.next()
        if self.ended or (self.once and n >= len(self.requests)):
            return None
        return self.requests[n % len(self.requests)].replace(_MARK, b"%08x" % n)

    def answered(self, answer: bytes, took_s: float) -> None:
        if answer not in self.answers and len(self.answers) >= ANSWERS_MAX:
            answer = answer[:3]
        self.answers[answer] = self.answers.get(answer, 0) + 1
        if self.counting:
            self.counted += 1
            self.latencies_s.append(took_s)


class Connection(asyncio.Protocol):
    """Sends the next request as soon as the answer is complete (by its Content-Length)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = b""
        self._done = False

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._run.open += 1
        self._send()

    def _send(self) -> None:
        request = self._run.request()
        if request is None:
            self._done = True
            self._transport.close()
            return
        self._sent_s = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)]) if at >= 0 else 0
        end = head + 4 + length
        if len(self._buffer) < end:
            return
        answer = self._buffer[9:12] + b" " + self._buffer[head + 4 : end][:200]
        self._buffer = self._buffer[end:]
        self._run.answered(answer, time.perf_counter() - self._sent_s)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.open -= 1
        self._run.broken += not self._done


async def load(host: str, port: int, connections: int, seconds: float, run: Run) -> float:
    """Ask for so long after warming up; the seconds that were counted."""
    loop = asyncio.get_running_loop()
    started_s = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(run), host, port)
    if not run.once:
        await asyncio.sleep(WARM_UP_S)
        run.counting = True
        started_s = time.perf_counter()
        await asyncio.sleep(seconds)
        run.counting = False
        run.ended = True
    took_s = time.perf_counter() - started_s
    until_s = time.perf_counter() + (WAIT_MAX_S if run.once else 10)
    while run.open and time.perf_counter() < until_s:
        await asyncio.sleep(0.01)
    return time.perf_counter() - started_s if run.once else took_s


def generate(
    port: int, requests: Sequence[Sequence[Any]], connections: int, seconds: float
) -> dict[str, Any]:
    """Run the generator against this machine's ``port``; what it printed."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.http_load", "127.0.0.1", str(port)),
            *(str(connections), str(seconds)),
        ],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + WAIT_MAX_S + 30,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    host, port, connections, seconds = sys.argv[1:5]
    requests = [_encoded(f"{host}:{port}", *each) for each in json.load(sys.stdin)]
    run = Run(requests, once=float(seconds) == 0)
    before_s = time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        took_s = runner.run(load(host, int(port), int(connections), float(seconds), run))
    ordered = sorted(run.latencies_s)
    statuses: dict[str, int] = {}
    for answer, n in run.answers.items():
        status = answer[:3].decode()
        statuses[status] = statuses.get(status, 0) + n
    print(
        json.dumps(
            {
                "requests_per_s": round(run.counted / took_s, 1),
                "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 1) if ordered else None,
                "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 1) if ordered else None,
                "statuses": statuses,
                "answers": {key.decode(errors="replace"): n for key, n in run.answers.items()},
                "answered": sum(run.answers.values()),
                "broken_connections": run.broken,
                "processor_share": round((time.process_time() - before_s) / took_s, 2),
            }
        )
    )


def _encoded(host: str, path: str, body: str | None, headers: dict[str, str]) -> bytes:
    head = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: Mail/1.0 (benchmark)",
        "Accept: */*",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body.encode())}"]
    return ("\r\n".join(head) + "\r\n\r\n" + (body or "")).encode()


if __name__ == "__main__":
    main()
