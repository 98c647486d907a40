"""A whole campaign through the platform, against the naive way, in one run on the same machine.

The platform: shards, Throttle, Director, Catalog and Sender on Ray, with ledger, journals, tracking
links and one-click unsubscribe; the mails go to smtp-sink. Timed from launch to finish, planning
included. **Processor time** is that of all platform processes: ours and Ray's own (raylet, GCS,
agents), whatever they do meanwhile; the sink and this generator are left out. The baseline is
``benchmarks.send_naive`` with the same template, key and sink, before and after.

The ratio is the lesser one of messages/s and processor time per message.
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
from benchmarks.send_naive import NaiveFigures, send_naively
from benchmarks.smtp import smtp_sink
from manta.content.dkim import generate_private_key
from manta.people.identities import route
from manta.people.upsert import Consent, UpsertPeople
from manta.settings import EgressSource, Settings

PEOPLE = 20_000
CAMPAIGNS = 3
NAIVE_MESSAGES = 500
AIM = 8.0
FROM_EMAIL = "news@shop.example"
SUBJECT = "{{ first_name }}, the news of this week"
TEMPLATE = Path(__file__).parents[1] / "examples" / "templates" / "newsletter"


def people(count: int) -> pa.Table:
    return pa.table(
        {
            "email": [f"person{n}@d{n % 40}.example" for n in range(count)],
            "attr_first_name": [f"Person {n}" for n in range(count)],
            "attr_city": [f"City {n % 90}" for n in range(count)],
            "attr_last_product": [f"sku-{n % 200}" for n in range(count)],
        }
    )


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


async def import_all(handles: Handles, rows: pa.Table) -> None:
    names = [n.removeprefix("attr_") for n in rows.column_names if n.startswith("attr_")]
    await handles.catalog.call("declare_attributes", dict.fromkeys(names, "string"))
    for start in range(0, rows.num_rows, 10_000):
        parts = route(rows.slice(start, 10_000), handles.shards.first_buckets)
        consent = Consent("email", "newsletter", "subscribed")
        await asyncio.gather(
            *(
                handles.shards.execute(shard, UpsertPeople(f"{start}", part, "benchmark", consent))
                for shard, part in parts.items()
            )
        )


async def campaign(handles: Handles, template_id: int) -> dict[str, float]:
    """One campaign to everybody, from launch to finish."""
    created = await handles.director.call(
        "create", {"name": "Benchmark", "rule": {"all": []}, "template_id": template_id}
    )
    before, began_s = platform_seconds(), time.perf_counter()
    await handles.director.call("launch", created["id"])
    while True:
        await asyncio.sleep(0.1)
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
    return {
        "messages_per_s": accepted / wall_s,
        "processor_us": processor_s / accepted * 1e6,
    }


async def platform(port: int, folder: Path, html: str) -> list[dict[str, float]]:
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
    return [await campaign(handles, template["template_id"]) for _ in range(CAMPAIGNS)]


def naive(port: int, key: bytes, html: str) -> NaiveFigures:
    rows = [
        {n.removeprefix("attr_"): v for n, v in row.items()} | {"unsubscribe_url": "https://x/"}
        for row in people(NAIVE_MESSAGES).to_pylist()
    ]
    return send_naively(port, rows, subject=SUBJECT, html=html, from_email=FROM_EMAIL, key_pem=key)


def main() -> None:
    html = (TEMPLATE / "html.html").read_text()
    key = generate_private_key()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="manta-send-") as name, smtp_sink() as port:
        folder = Path(name)
        (folder / "dkim.pem").write_bytes(key)
        baselines = [naive(port, key, html)]
        runtime.start_cluster(num_cpus=2)
        try:
            runs = asyncio.run(platform(port, folder, html))
        finally:
            runtime.stop_cluster()
        baselines.append(naive(port, key, html))
    print(json.dumps(summary(runs, baselines)))


def summary(runs: list[dict[str, float]], baselines: list[NaiveFigures]) -> dict[str, Any]:
    rate = statistics.median(run["messages_per_s"] for run in runs)
    processor_us = statistics.median(run["processor_us"] for run in runs)
    naive_rate = statistics.mean(b.messages_per_s for b in baselines)
    naive_us = statistics.mean(b.processor_us_per_message for b in baselines)
    by_rate, by_processor = rate / naive_rate, naive_us / processor_us
    ratio = min(by_rate, by_processor)
    return {
        "name": "send",
        "ratio": round(ratio, 2),
        "unit": "times the naive way, the lesser of messages/s and processor time per message",
        "aim": AIM,
        "pass": ratio >= AIM,
        "messages_per_s": round(rate, 1),
        "processor_us_per_message": round(processor_us, 1),
        "ratio_messages_per_s": round(by_rate, 2),
        "ratio_processor": round(by_processor, 2),
        "baseline": {
            "messages_per_s": round(naive_rate, 1),
            "processor_us_per_message": round(naive_us, 1),
        },
        "runs": [{k: round(v, 1) for k, v in run.items()} for run in runs],
    }


if __name__ == "__main__":
    main()
