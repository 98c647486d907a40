"""Real processes on a real folder: killed in the middle of appends, stopped and woken too late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from manta.clock import SystemClock
from manta.store.journal import Journal, Kind
from manta.store.manifest import Manifest, Manifests, recover
from manta.store.objects import open_objects

# Appends for ever and says what has been acknowledged; says why it stops.
WRITER = """
import os, sys
from manta.clock import SystemClock
from manta.errors import Fenced
from manta.store.journal import Journal
from manta.store.objects import open_objects

journal = Journal(open_objects(sys.argv[1]), "journal/x", "writer", os.urandom(16), SystemClock())
covered, epoch = int(sys.argv[2]), int(sys.argv[3])
journal.take_over(covered, epoch)
try:
    while True:
        print(journal.append(os.urandom(20_000)), flush=True)
except Fenced as fault:
    print("fenced", flush=True)
"""


def writer(root: Path, covered: int = 0, epoch: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), str(covered), str(epoch)],
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def journal(root: Path) -> Journal:
    return Journal(open_objects(str(root)), "journal/x", "test", os.urandom(16), SystemClock())


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    covered = epoch = 0
    for _ in range(2):
        with writer(tmp_path, covered, epoch) as process:
            said = lines(process, random.randrange(5, 40))
            process.kill()
            assert process.stdout is not None
            rest = process.stdout.read()
        said += rest[: rest.rfind("\n") + 1].split()  # the kill may have cut the last line
        acknowledged = int(said[-1])
        entries = list(journal(tmp_path).replay(covered))  # raises for a hole or a torn entry
        assert entries[-1].sequence >= acknowledged
        assert [entry.sequence for entry in entries] == list(
            range(covered + 1, covered + 1 + len(entries))
        )
        covered, epoch = entries[-1].sequence, entries[-1].epoch
    assert epoch == 2


def test_a_stopped_writer_woken_after_two_manifests_and_a_truncation_stops(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    with writer(tmp_path) as process:
        lines(process, 5)
        process.send_signal(signal.SIGSTOP)
        successor = journal(tmp_path)
        manifests = Manifests(objects, "manifest/x", SystemClock())
        taken = recover(successor, manifests, lambda manifest: None, lambda entry: None).taken
        number = 0
        for _ in range(2):
            last = successor.append(b"by the successor")
            number = manifests.publish(Manifest(number, "x", taken.epoch, last)).number
            successor.truncate(last)
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert process.stdout.read().split()[-1] == "fenced"
        assert process.wait() == 0
    kept = [successor.read(sequence) for sequence in successor.sequences()]
    assert [entry.kind for entry in kept if entry is not None] == [Kind.EPOCH, Kind.EPOCH]
