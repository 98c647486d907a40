"""A small HTTP/1.1 load generator: keep-alive connections, each with one request under way.

``python -m benchmarks.http_load HOST PORT CONNECTIONS SECONDS < paths`` prints one JSON object.
It is a process of its own, the same for both sides of a comparison, and says how much processor
time it took itself, since it shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from itertools import count
from typing import Any

import uvloop

WARM_UP_S = 1.0


class Run:
    """What all connections share: the requests, the counts, the end."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = requests
        self.next = count().__next__
        self.ended = False
        self.counting = False
        self.statuses: dict[bytes, int] = {}
        self.latencies_s = array("d")
        self.broken = 0
        self.open = 0


class Connection(asyncio.Protocol):
    """Sends the next request as soon as the answer is complete (by its Content-Length)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._run.open += 1
        self._send()

    def _send(self) -> None:
        run = self._run
        self._sent_s = time.perf_counter()
        self._transport.write(run.requests[run.next() % len(run.requests)])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)]) if at >= 0 else 0
        if len(self._buffer) < head + 4 + length:
            return
        run, status = self._run, self._buffer[9:12]
        self._buffer = self._buffer[head + 4 + length :]
        if run.counting:
            run.statuses[status] = run.statuses.get(status, 0) + 1
            run.latencies_s.append(time.perf_counter() - self._sent_s)
        if run.ended:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.open -= 1
        if not self._run.ended:
            self._run.broken += 1


async def load(host: str, port: int, connections: int, seconds: float, run: Run) -> float:
    """Ask for so long after warming up; the seconds that were counted."""
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(run), host, port)
    await asyncio.sleep(WARM_UP_S)
    run.counting = True
    started_s = time.perf_counter()
    await asyncio.sleep(seconds)
    run.counting = False
    took_s = time.perf_counter() - started_s
    run.ended = True
    until_s = time.perf_counter() + 10
    while run.open and time.perf_counter() < until_s:
        await asyncio.sleep(0.01)
    return took_s


def main() -> None:
    host, port, connections, seconds = sys.argv[1:5]
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: Mail/1.0 (benchmark)\r\n"
        f"Accept: */*\r\n\r\n".encode()
        for path in sys.stdin.read().split()
    ]
    run = Run(requests)
    before_s = time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        took_s = runner.run(load(host, int(port), int(connections), float(seconds), run))
    ordered = sorted(run.latencies_s)
    total = sum(run.statuses.values())
    print(
        json.dumps(
            {
                "requests_per_s": round(total / took_s, 1),
                "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 1) if ordered else None,
                "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 1) if ordered else None,
                "statuses": {status.decode(): n for status, n in sorted(run.statuses.items())},
                "broken_connections": run.broken,
                "asked": run.next(),
                "processor_share": round((time.process_time() - before_s) / took_s, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
