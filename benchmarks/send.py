"""A whole campaign through the platform, against the naive way, in one run on the same machine.

The platform: shards, Throttle, Director, Catalog, Reputation, Resolver and Sender on Ray, with
ledger, journals, tracking links and one-click unsubscribe; the mails (``templates/offers.html``:
ten variables, a loop over four products, two parts, 6 kB, DKIM RSA-2048) go to smtp-sink on the
same processors. Timed from launch to finish, planning included. **Processor time** is that of all
platform processes: ours and Ray's own (raylet, GCS, agents), whatever they do meanwhile; the sink
and this generator are left out. It is told by process (``by_process``), and beside that what the
steps take by themselves (``steps``), measured outside the timed run by ``benchmarks.send_steps``.

The yardstick is one RSA-2048 signature, the median of batches before, between and after the
campaigns in this process. The baseline is ``benchmarks.send_naive`` with the same template, key and
sink, before and after; the ratio to it is the lesser one of messages/s and processor time.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from actors import bootstrap, runtime
from actors.handles import Handles
from benchmarks import send_steps
from benchmarks.send_naive import NaiveFigures, send_naively
from benchmarks.send_steps import FROM_EMAIL, SUBJECT
from benchmarks.smtp import smtp_sink
from manta.content.dkim import DkimSigner, PrivateKey, generate_private_key, load_private_key
from manta.people.identities import route
from manta.people.upsert import Consent, UpsertPeople
from manta.settings import EgressSource, Settings

PEOPLE = 20_000
CAMPAIGNS = 3
NAIVE_MESSAGES = 500
AIM_TIMES_RSA = 2.5  # processor time of a message, at most
AIM_PER_S = 1_200.0  # messages, at least
AIM_RATIO = 12.0  # to the naive way, at least
TEMPLATE = Path(__file__).parent / "templates" / "offers.html"
TEXTS = ("first_name", "last_name", "city", "last_product", "last_category", "shop", "plan")
TYPES = dict.fromkeys((*TEXTS, "member_since", "voucher"), "string") | {
    "points": "number",
    "products": "list",
}
ROLES = {"sender": "sender-", "shard": "shard-"}  # by_process adds up those of a kind


def people(count: int) -> pa.Table:
    numbers = range(count)
    return pa.table(
        {
            "email": [f"person{n}@d{n % 40}.example" for n in numbers],
            "attr_first_name": [f"Person {n}" for n in numbers],
            "attr_last_name": ["Müller" if n % 10 == 0 else "Miller" for n in numbers],
            "attr_city": [f"City {n % 90}" for n in numbers],
            "attr_last_product": [f"Lamp no. {n % 200}" for n in numbers],
            "attr_last_category": ["Lighting" for _ in numbers],
            "attr_shop": ["Harbour & Moor" for _ in numbers],
            "attr_plan": ["plus" if n % 3 else "free" for n in numbers],
            "attr_points": [float(n % 1000) for n in numbers],
            "attr_member_since": [str(2015 + n % 10) for n in numbers],
            "attr_voucher": [f"V-{n:06d}" for n in numbers],
            "attr_products": [[f"Product {(n + i) % 500}" for i in range(4)] for n in numbers],
        }
    )


def rsa_us(key: PrivateKey, batches: int = 9, size: int = 60) -> float:
    """Processor time of one RSA-2048 signature."""
    signer = DkimSigner("shop.example", "s", key)
    seen = []
    for _ in range(batches):
        began_s = time.process_time()
        for _ in range(size):
            signer.sign(b"x" * 900)
        seen.append((time.process_time() - began_s) / size * 1e6)
    return statistics.median(seen)


async def processes(workspace: str) -> dict[int, str]:
    """Process id → what runs in it, of every process of the platform."""
    caller = runtime.Caller(workspace)
    known: dict[int, str] = {}
    for role in bootstrap.roles(Settings(workspace=workspace)):
        known[await caller.pid(role)] = role
    names = {"raylet": "raylet", "gcs_server": "gcs"}
    for child in psutil.Process().children(recursive=True):
        try:
            known.setdefault(child.pid, names.get(child.name(), "other"))
        except psutil.NoSuchProcess:
            continue
    return known


def platform_seconds() -> dict[int, float]:
    """Processor time so far by process id, of all that this process has started but the sink:
    Ray and all that runs in it."""
    seconds = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if "smtp-sink" not in child.name():
                times = child.cpu_times()
                seconds[child.pid] = times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return seconds


def by_kind(role: str) -> str:
    return next((kind for kind, prefix in ROLES.items() if role.startswith(prefix)), role)


async def import_all(handles: Handles, rows: pa.Table) -> None:
    await handles.catalog.call("declare_attributes", TYPES)
    for start in range(0, rows.num_rows, 10_000):
        parts = route(rows.slice(start, 10_000), handles.shards.first_buckets)
        consent = Consent("email", "newsletter", "subscribed")
        await asyncio.gather(
            *(
                handles.shards.execute(shard, UpsertPeople(f"{start}", part, "benchmark", consent))
                for shard, part in parts.items()
            )
        )


async def campaign(handles: Handles, template_id: int, roles: dict[int, str]) -> dict[str, Any]:
    """One campaign to everybody, from launch to finish."""
    created = await handles.director.call(
        "create", {"name": "Benchmark", "rule": {"all": []}, "template_id": template_id}
    )
    before, began_s = platform_seconds(), time.perf_counter()
    await handles.director.call("launch", created["id"])
    while True:
        await asyncio.sleep(0.25)
        state = (await handles.director.call("campaign", created["id"]))["state"]
        if state == "finished":
            break
    wall_s = time.perf_counter() - began_s
    after = platform_seconds()
    assert before.keys() <= after.keys(), "a process of the platform has ended meanwhile"
    processor_s = sum(after.values()) - sum(before.values())
    parts = await handles.shards.query_all("accounting", {"campaign_id": created["id"]})
    accepted = sum(dict(part["states"])["accepted"] for part in parts)
    assert accepted == PEOPLE, f"{accepted} of {PEOPLE} accepted"
    spent: dict[str, float] = {}
    for pid, seconds in after.items():
        kind = by_kind(roles.get(pid, "other"))
        spent[kind] = spent.get(kind, 0.0) + seconds - before.get(pid, 0.0)
    return {
        "messages_per_s": accepted / wall_s,
        "processor_us": processor_s / accepted * 1e6,
        "by_process": {kind: s / accepted * 1e6 for kind, s in spent.items()},
    }


async def platform(
    port: int, folder: Path, html: str, key_of: PrivateKey, rsa: list[float]
) -> list[dict[str, Any]]:
    key = folder / "dkim.pem"
    source = EgressSource(host="127.0.0.1", port=port, tls="none", rate_per_s=1e6, burst=1_000_000)
    settings = Settings(
        workspace="benchmark",
        root=str(folder / "data"),
        egress=(source,),
    )
    handles = await bootstrap.up(settings)
    await handles.catalog.call("add_domain", "shop.example", key.read_text())
    await import_all(handles, people(PEOPLE))
    template = await handles.catalog.call(
        "save_template",
        {"name": "News", "subject": SUBJECT, "html": html, "from_email": FROM_EMAIL},
    )
    runs = []
    for _ in range(CAMPAIGNS):
        rsa.append(rsa_us(key_of))
        roles = await processes(settings.workspace)
        runs.append(await campaign(handles, template["template_id"], roles))
    rsa.append(rsa_us(key_of))
    return runs


def naive(port: int, key: bytes, html: str) -> NaiveFigures:
    rows = [
        {n.removeprefix("attr_"): v for n, v in row.items()} | {"unsubscribe_url": "https://x/"}
        for row in people(NAIVE_MESSAGES).to_pylist()
    ]
    return send_naively(port, rows, subject=SUBJECT, html=html, from_email=FROM_EMAIL, key_pem=key)


def main() -> None:
    html = TEMPLATE.read_text()
    key = generate_private_key()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="manta-send-") as name, smtp_sink() as port:
        folder = Path(name)
        (folder / "dkim.pem").write_bytes(key)
        rsa = [rsa_us(load_private_key(key))]
        baselines = [naive(port, key, html)]
        runtime.start_cluster(num_cpus=2)
        try:
            runs = asyncio.run(platform(port, folder, html, load_private_key(key), rsa))
        finally:
            runtime.stop_cluster()
        baselines.append(naive(port, key, html))
        rsa.append(rsa_us(load_private_key(key)))
        steps = send_steps.measure(port, key, html, people(2_000))
    print(json.dumps(summary(runs, baselines, statistics.median(rsa), steps)))


def summary(
    runs: list[dict[str, Any]],
    baselines: list[NaiveFigures],
    rsa: float,
    steps: dict[str, float],
) -> dict[str, Any]:
    rate = statistics.median(run["messages_per_s"] for run in runs)
    processor_us = statistics.median(run["processor_us"] for run in runs)
    naive_rate = statistics.mean(b.messages_per_s for b in baselines)
    naive_us = statistics.mean(b.processor_us_per_message for b in baselines)
    by_rate, by_processor = rate / naive_rate, naive_us / processor_us
    ratio, times_rsa = min(by_rate, by_processor), processor_us / rsa
    kinds = sorted({kind for run in runs for kind in run["by_process"]})
    return {
        "name": "send",
        "ratio": round(ratio, 2),
        "unit": "times the naive way, the lesser of messages/s and processor time per message",
        "aim": f"at most {AIM_TIMES_RSA} RSA-2048 signatures of processor time per message, "
        f"at least {AIM_PER_S:,.0f} messages/s, at least {AIM_RATIO:.0f} times the naive way",
        "pass": times_rsa <= AIM_TIMES_RSA and rate >= AIM_PER_S and ratio >= AIM_RATIO,
        "messages_per_s": round(rate, 1),
        "processor_us_per_message": round(processor_us, 1),
        "rsa_us": round(rsa, 1),
        "times_rsa": round(times_rsa, 2),
        "by_process": {
            kind: round(statistics.median(run["by_process"].get(kind, 0.0) for run in runs), 1)
            for kind in kinds
        },
        "steps": {name: round(us, 1) for name, us in steps.items()},
        "steps_unit": "µs of processor time per message, each step by itself, outside the run",
        "ratio_messages_per_s": round(by_rate, 2),
        "ratio_processor": round(by_processor, 2),
        "baseline": {
            "messages_per_s": round(naive_rate, 1),
            "processor_us_per_message": round(naive_us, 1),
        },
        "runs": [{k: round(v, 1) for k, v in run.items() if k != "by_process"} for run in runs],
    }


if __name__ == "__main__":
    main()
