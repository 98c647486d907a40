"""The demo: a whole campaign on this machine, from an empty folder to the report.

Starts Ray, the actors of a workspace, the HTTP apps and the sandbox; imports people with a past;
finds those who bought a product lately and opened none of the last mails; writes to them; watches
what becomes of every single message; ends everything. Nothing outside the machine is needed.

Mail goes straight to the exchangers of the sandbox's providers, from a pool of two addresses: one
that they know, and a new one that is being warmed up, so that most of its share goes out by the
other. Bounces, complaints and unsubscribes come back to the inbox.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from manta.clock import SystemClock
from manta.definitions import SCOPES
from manta.settings import (
    DnsSettings,
    EgressSource,
    InboxSettings,
    Pool,
    PoolMember,
    Settings,
)
from sandbox.network import Network, free_port
from sandbox.sample import PRODUCT, history, people_csv
from sandbox.town import Town, TownSettings

PEOPLE = 5_000
SEED = 7
HASTE = 4.0  # the sandbox's people act so much faster than they would
SPEED = 1_200.0  # the time of the sandbox's providers: an hour in three seconds
DOMAIN = "news.example"
RETURN_PATHS = f"bounces.{DOMAIN}"
KNOWN, NEW = "127.0.0.2", "127.0.0.3"  # our addresses
NETWORK = Network(
    sources={f"out1.{DOMAIN}": KNOWN, f"out2.{DOMAIN}": NEW},
    return_path_domain=RETURN_PATHS,
    senders=(DOMAIN,),
)
# What a greylister wants to come again from an address that has used up its hour of warm-up would
# outlast the demo: so this one has heard of the new address, and not of the other.
ACQUAINTED = {name: {KNOWN: 100_000} for name in NETWORK.hosts} | {"greylister": {NEW: 100}}
# So that a few hundred mails show some of each; mailboxes that stay full would never end.
CHANGES = {name: {"full_share": 0.0, "late_share": 0.01} for name in NETWORK.hosts}
for _name in ("yahoo", "outlook"):
    CHANGES[_name]["complaint_share"] = 0.02
ACTS_WAIT_S = 25.0
FINISH_WAIT_S = 240.0
TEMPLATE = Path(__file__).parents[1] / "examples" / "templates" / "newsletter"
STATES = ("accepted", "failed", "suppressed", "cancelled", "expired", "uncertain", "pending")
SEGMENT = {
    "all": [
        {
            "event": {
                "type": "purchased",
                "where": [{"property": "item", "operator": "equals", "value": PRODUCT}],
                "within": {"last": {"days": 30}},
            }
        },
        {"last_messages": {"number": 3, "which": "none", "were": "opened"}},
    ]
}


def build_town(settings: TownSettings) -> Town:
    """Runs in the sandbox's own process."""
    return Town(settings, SystemClock())


class Demo:
    """One run. ``folder`` is emptied first."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder.absolute()
        self.console = console
        self.started_s = time.monotonic()
        self.settings = Settings()
        self.key = ""

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.started_s:5.1f} s[/]  {text}")

    # -- starting ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """The settings, with ports that are free; so everything can start at once."""
        from serve_apps.bootstrap import with_free_port

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.town = TownSettings(
            self.folder / "mail.sqlite",
            smtp_port=free_port(NETWORK.addresses),
            dns_port=free_port(["127.0.0.1"], with_udp=True),
            inbox_port=free_port(["127.0.0.1"]),
            network=NETWORK,
            known=ACQUAINTED,
            changes=CHANGES,
            seed=SEED,
            haste=HASTE,
            speed=SPEED,
        )
        wanted = Settings(
            root=str(self.folder / "data"),
            flush_seconds=10.0,
            retry_first_wait_s=5.0,
            return_path_domain=RETURN_PATHS,
            egress=(
                self.source("known", KNOWN),
                self.source("new", NEW, cold_since=f"{SystemClock().now():%Y-%m-%d}"),
            ),
            pools=(Pool("both", (PoolMember("known"), PoolMember("new"))),),
            dns=DnsSettings((f"127.0.0.1:{self.town.dns_port}",), private_addresses=True),
            inbox=InboxSettings(port=self.town.inbox_port),
        )
        self.settings = with_free_port(wanted)
        if self.settings.http.port != wanted.http.port:
            self.say(
                f"port {wanted.http.port} is taken, so this demo uses {self.settings.http.port}"
            )

    def source(self, name: str, address: str, cold_since: str = "") -> EgressSource:
        """One of our addresses, which brings mail to the exchangers itself."""
        (host,) = (host for host, each in NETWORK.sources.items() if each == address)
        return EgressSource(
            name=name,
            kind="direct",
            port=self.town.smtp_port,
            ehlo_name=host,
            source_address=address,
            cold_since=cold_since,
            rate_per_s=100.0,  # so that there is something to watch
            burst=50,
        )

    async def start(self) -> Any:
        """The cluster, the sandbox, the actors and the apps; the workspace's handles."""
        from actors import bootstrap, runtime
        from sandbox.bootstrap import mail_view
        from serve_apps import bootstrap as serving

        os.environ.update(serving.serve_environment())
        self.say("starting Ray")
        runtime.start_cluster()
        self.settings = bootstrap.absolute(self.settings)
        self.say("starting shards, Senders and all who guide them, the HTTP apps and the sandbox")
        self.caller = runtime.Caller(self.settings.workspace)
        role = f"{self.settings.workspace}/sandbox"
        runtime.start_actor(role, partial(build_town, self.town))
        apps = [*serving.apps(self.settings), mail_view(self.town.mail_file)]
        handles, url = await asyncio.gather(
            bootstrap.up(self.settings),
            asyncio.to_thread(serving.deploy, self.settings, apps),
        )
        created = await handles.catalog.call("create_api_key", "demo", list(SCOPES), once=True)
        self.key = created["key"]
        await self.caller.call("sandbox", "live", f"{url}/v1/events", self.key)
        self.console.print()
        self.console.print(f"  console   [bold]{url}/console[/]   (API key [bold]{self.key}[/])")
        self.console.print(f"  mailboxes [bold]{url}/sandbox[/]")
        self.console.print(f"  API       [bold]{url}/v1/docs[/]")
        self.console.print()
        return handles

    # -- the campaign ------------------------------------------------------------------------------

    async def import_people(self, client: Any, handles: Any) -> None:
        file = self.folder / "people.csv"
        file.write_text(people_csv(PEOPLE, SEED))
        summary = await asyncio.to_thread(client.import_people, file)
        self.say(f"imported {summary.created:,} people from {file.name}")
        await self.record_history(handles)

    async def record_history(self, handles: Any) -> None:
        """What happened before the demo: events that only an import of history may write."""
        from manta.events.commands import RecordEvents

        events = 0
        for shard in range(handles.shards.count):
            people = await handles.shards.query(
                shard, "audience_page", {"limit": PEOPLE, "columns": ["subscriber_id"]}
            )
            ids = people.column("subscriber_id").to_pylist()
            rows = history(ids, SEED, handles.clock.now())
            command = RecordEvents(f"demo-history-{shard}", rows, of_messages=True)
            events += (await handles.shards.execute(shard, command)).recorded
        self.say(f"recorded {events:,} events of their past year")

    async def add_domain(self, client: Any) -> None:
        """The domain to send from: its keys are published, and receivers can trust it."""
        document = await asyncio.to_thread(client.add_domain, DOMAIN)
        keys = [
            (f"{key['selector']}._domainkey.{DOMAIN}", "TXT", key["record"])
            for key in document["keys"]
        ]
        await self.caller.call("sandbox", "publish", keys)
        check = (await asyncio.to_thread(client.check_domain, DOMAIN))["check"]
        wrong = [f["subject"] for f in check["findings"] if f["verdict"] != "ok"]
        found = "passes" if check["passing"] else f"fails: {', '.join(wrong)}"
        self.say(f"the check of {DOMAIN} (SPF, DKIM, DMARC, PTR, return path) {found}")

    def write(self, client: Any) -> int:
        """The segment, the template and the campaign; the campaign's number."""
        segment = client.create_segment(f"Bought {PRODUCT}, stopped opening", SEGMENT)
        self.say(f"segment: {client.segment_explain(segment['id'])}")
        self.say(f"segment: {client.segment_count(segment['id']):,} people")
        texts = {p.stem: p.read_text() for p in TEMPLATE.iterdir()}
        template = client.create_template(
            "Newsletter", from_name="News", from_email=f"hello@{DOMAIN}", **texts
        )
        campaign = client.create_campaign(
            "We miss you", template["template_id"], segment_id=segment["id"]
        )
        client.launch(campaign["id"])
        self.say("campaign launched")
        return int(campaign["id"])

    async def watch(self, client: Any, campaign: int) -> bool:
        """Show the progress until the campaign has finished; whether it has."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        until_s = time.monotonic() + FINISH_WAIT_S
        first_mail = False
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("sending", total=None, detail="")
            while time.monotonic() < until_s:
                document = await asyncio.to_thread(client.campaign, campaign)
                report = await asyncio.to_thread(client.report, campaign)
                counts = report["accounting"]
                progress.update(
                    task,
                    total=counts["planned_total"] or None,
                    completed=counts["planned_total"] - counts["pending"],
                    detail=", ".join(f"{s} {counts[s]:,}" for s in STATES if counts[s]),
                )
                if not first_mail and (await self.caller.call("sandbox", "status"))["mails"]:
                    first_mail = True
                    self.say("[green]the first mail is in the sandbox[/]")
                if document["state"] == "finished":
                    return True
                await asyncio.sleep(0.5)
        return False

    async def let_people_act(self) -> None:
        self.say("people open, click, buy, unsubscribe and complain; some mail bounces late")
        until_s = time.monotonic() + ACTS_WAIT_S
        while time.monotonic() < until_s:
            if not (await self.caller.call("sandbox", "status"))["waiting"]:
                return
            await asyncio.sleep(0.5)

    def show(self, report: dict[str, Any]) -> bool:
        """Print the report; whether the accounting adds up."""
        counts = report["accounting"]
        total = sum(counts[state] for state in STATES)
        table = Table("state", "messages", title="Every recipient accounted for", width=44)
        table.columns[1].justify = "right"
        for state in STATES:
            table.add_row(state, f"{counts[state]:,}")
        table.add_section()
        table.add_row("sum", f"{total:,}")
        table.add_row("planned", f"{counts['planned_total']:,}")
        self.console.print(table)
        events = report["events"]
        self.console.print(
            "  ".join(
                f"{name} [bold]{events[name]['unique']:,}[/]"
                for name in ("opened", "clicked", "unsubscribed")
            )
        )
        for failure in report["failures"][:5]:
            self.console.print(
                f"  {failure['state']}: {failure['reason']} × {failure['messages']:,}"
            )
        return total == counts["planned_total"] and counts["planned_total"] > 0

    def show_providers(self, client: Any) -> None:
        """What each provider did, as Reputation saw it, and what was done about it."""
        columns = ("accepted", "deferred", "failed", "bounced", "complained")
        rows: dict[str, Counter[str]] = {}
        for window in client.delivery()["reputation"].get("windows", ()):
            if window["sending_domain"]:
                row = rows.setdefault(window["provider"], Counter())
                for name, count in window["counts"]["day"].items():
                    kind = name.partition("_")[0]
                    row["deferred" if kind == "greylisted" else kind] += count
                    if name == "accepted" and window["source"] == "new":
                        row["warming"] += count
        table = Table("provider", *columns, "by the new address", title="By provider")
        for column in table.columns[1:]:
            column.justify = "right"
        for provider, row in sorted(rows.items(), key=lambda each: -each[1]["accepted"]):
            table.add_row(provider, *(f"{row[name]:,}" for name in (*columns, "warming")))
        self.console.print(table)
        for action in client.actions(True):
            self.console.print(f"  action {action['id']}: {action['kind']}: {action['cause']}")


async def run(folder: Path, console: Console, *, keep: bool) -> int:
    """The exit code: 0 where the campaign finished and its accounting adds up."""
    from manta.client import Client

    demo = Demo(folder, console)
    demo.prepare()
    handles = await demo.start()
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    with Client(demo.settings.public_url, demo.key) as client:
        await demo.add_domain(client)
        await demo.import_people(client, handles)
        campaign = await asyncio.to_thread(demo.write, client)
        is_finished = await demo.watch(client, campaign)
        await demo.let_people_act()
        adds_up = demo.show(await asyncio.to_thread(client.report, campaign))
        await asyncio.to_thread(demo.show_providers, client)
    console.print()
    if not (is_finished and adds_up):
        console.print("[red]The campaign did not finish, or its sums do not agree.[/]")
        return 1
    console.print("Next: [bold]manta demo --keep[/] leaves it running: watch a campaign in the")
    console.print("console, read the mails; [bold]manta --help[/] shows what else there is; the")
    console.print(f"history lies as Parquet in {folder}/data: manta.store.lake.open reads it.")
    if keep:
        console.print("\nRunning. Ctrl-C ends it.")
        await asyncio.Event().wait()
    return 0


def main(folder: Path = Path(".manta/demo"), *, keep: bool = False) -> int:
    """Run the demo and end what it started."""
    # At the end Serve's controller is ended in the middle of a call, of which Ray would tell.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "ServeController.graceful_shutdown")
    from actors.runtime import is_connected, stop_cluster
    from manta.errors import MantaError
    from serve_apps.bootstrap import undeploy

    console = Console()
    try:
        return asyncio.run(run(folder, console, keep=keep))
    except MantaError as error:
        console.print(f"[red]{error}[/]")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    finally:
        if is_connected():
            undeploy()  # else Serve's HAProxy could outlive its cluster and keep the port
            stop_cluster()


if __name__ == "__main__":
    sys.exit(main(keep="--keep" in sys.argv))
