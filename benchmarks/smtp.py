"""Processor time of one SMTP transaction: our pipelined bursts against aiosmtplib one by one.

Both send the same messages over one connection each to the same smtp-sink (Debian's postfix
package), in turns, in one process; only that process's time counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiosmtplib
import uvloop

from actors.io.smtp import SmtpConnection, SmtpConnector
from manta.delivery.replies import Verdict
from manta.delivery.transaction import Envelope
from manta.settings import EgressSource

MESSAGES = 5_000
BURST = 50
ROUNDS = 3
AIM_US = 60.0


@contextmanager
def smtp_sink() -> Iterator[int]:
    """A running smtp-sink; its port."""
    program = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        sys.exit("smtp-sink is missing: install Debian's postfix package")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
    sink = subprocess.Popen([program, *user, f"127.0.0.1:{port}", "100"])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        sink.terminate()
        sink.wait()


def envelopes() -> list[Envelope]:
    header = b"From: Shop <news@shop.example>\r\nTo: x@sink.example\r\nSubject: News\r\n\r\n"
    data = header + b"Lorem ipsum dolor sit amet, consectetur adipiscing elit sed do.\r\n" * 90
    return [Envelope(f"b+{i}@shop.example", f"p{i}@sink.example", data) for i in range(MESSAGES)]


async def pipelined(port: int, messages: list[Envelope]) -> None:
    source = EgressSource(port=port, tls="none", messages_per_connection=MESSAGES)
    connection = await SmtpConnector(source).connect()
    assert isinstance(connection, SmtpConnection), connection
    for first in range(0, len(messages), BURST):
        for reply in await connection.send_burst(messages[first : first + BURST]):
            assert reply.verdict is Verdict.ACCEPTED, reply
    await connection.quit()


async def one_by_one(port: int, messages: list[Envelope]) -> None:
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False)
    await client.connect()
    for message in messages:
        await client.sendmail(message.mail_from, [message.rcpt_to], message.data)
    await client.quit()


def microseconds(
    send: Callable[[int, list[Envelope]], Awaitable[None]], port: int, messages: list[Envelope]
) -> float:
    """Processor time per message of this process."""

    async def run() -> float:
        began = time.process_time()
        await send(port, messages)
        return (time.process_time() - began) / len(messages) * 1e6

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def main() -> None:
    messages = envelopes()
    ours, theirs = [], []
    with smtp_sink() as port:
        for _ in range(ROUNDS):
            ours.append(microseconds(pipelined, port, messages))
            theirs.append(microseconds(one_by_one, port, messages[: MESSAGES // 5]))
            print(f"pipelined {ours[-1]:.1f} µs, one by one {theirs[-1]:.1f} µs a message")
    figure, baseline = statistics.median(ours), statistics.median(theirs)
    print(
        json.dumps(
            {
                "name": "smtp",
                "figure": round(figure, 1),
                "unit": "µs of processor time per transaction",
                "aim": AIM_US,
                "pass": figure <= AIM_US,
                "baseline": round(baseline, 1),
                "baseline_is": "aiosmtplib one by one",
                "ratio": round(baseline / figure, 2),
                "message_bytes": len(messages[0].data),
            }
        )
    )


if __name__ == "__main__":
    main()
