"""A receiver of its own process that defers some of its mail at first and counts every copy.

`python -m tests.integration.greylister PORT FILE SHARE`: a share of the addresses is answered 451
4.7.1 at first, chosen by the address alone. What is taken is written to FILE, the address and when
(seconds of the monotonic clock) a line, before the 250. So the file knows of at least as many
copies as any sender was told of.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

_ADDRESS = re.compile(rb"<([^>]*)>")


class Receiver(asyncio.Protocol):
    """One connection; PIPELINING and dot-stuffing as RFC 2920 and RFC 5321 have them."""

    def __init__(self, file: int, share: float, tried: set[bytes]) -> None:
        self._file, self._share, self._tried = file, share, tried
        self._buffer = bytearray()
        self._recipients: list[bytes] = []
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._transport.write(b"220 greylister.example ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        out = bytearray()
        while True:
            if self._in_data:
                end = 0 if self._buffer.startswith(b".\r\n") else self._buffer.find(b"\r\n.\r\n")
                if end < 0:
                    break
                del self._buffer[: 3 if end == 0 else end + 5]
                self._in_data = False
                out += self._taken()
                continue
            end = self._buffer.find(b"\r\n")
            if end < 0:
                break
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            out += self._command(line)
        self._transport.write(bytes(out))

    def _command(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"EHLO":
            return b"250-greylister.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
        if verb == b"MAIL":
            self._recipients = []
        elif verb == b"RCPT":
            found = _ADDRESS.search(line)
            address = found[1].lower() if found else b""
            if address not in self._tried and crc32(address) < self._share * (1 << 32):
                self._tried.add(address)
                return b"451 4.7.1 greylisted, please try again later\r\n"
            self._recipients.append(address)
        elif verb == b"DATA":
            if not self._recipients:
                return b"503 5.5.1 no recipients\r\n"
            self._in_data = True
            return b"354 go ahead\r\n"
        elif verb == b"QUIT":
            self._transport.write(b"221 bye\r\n")
            self._transport.close()
            return b""
        return b"250 2.0.0 ok\r\n"

    def _taken(self) -> bytes:
        at = b" %.6f\n" % time.monotonic()
        os.write(self._file, b"".join(address + at for address in self._recipients))
        return b"250 2.0.0 taken\r\n"


def taken(path: Path) -> list[tuple[str, float]]:
    """(address, when) of what was taken, in order; seconds of the machine's monotonic clock."""
    rows = (line.split() for line in path.read_text().splitlines()) if path.exists() else ()
    return [(address, float(at)) for address, at in rows]


@contextmanager
def receiving(path: Path, share_deferred: float) -> Iterator[int]:
    """A receiver in a process of its own; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["-m", "tests.integration.greylister", str(port), str(path), str(share_deferred)]
    process = subprocess.Popen([sys.executable, *command])
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


async def main(port: int, path: str, share: float) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    tried: set[bytes] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Receiver(file, share, tried), "127.0.0.1", port
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
