"""The store over the S3 protocol: moto's server, real HTTP, real conditional writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from manta.clock import SystemClock
from manta.errors import Damaged, Fenced, OutcomeUnknown, StoreUnavailable
from manta.store.documents import Documents
from manta.store.journal import Journal
from manta.store.manifest import FileEntry, Manifest, Manifests
from manta.store.objects import AlreadyExists, ObjectStore, open_objects


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def store(endpoint: str, request: pytest.FixtureRequest) -> ObjectStore:
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="manta")
    return open_objects(f"s3://manta/{request.node.name}?endpoint={endpoint}&region=us-east-1")


def journal(store: ObjectStore, name: str, seed: int) -> Journal:
    return Journal(
        store, "default/journal/shard=000", name, Random(seed).randbytes(16), SystemClock()
    )


def test_put_get_list_stat_delete(store: ObjectStore, tmp_path: Path) -> None:
    assert store.list("") == []
    assert store.get("a/b=1/c") is None
    assert store.stat("a/b=1/c") is None
    store.put_if_absent("a/b=1/c", b"1")
    with pytest.raises(AlreadyExists):
        store.put_if_absent("a/b=1/c", b"2")
    store.put("a/b=1/c", b"333")
    store.put("a/bb", b"")
    assert store.get("a/b=1/c") == b"333"
    assert store.list("") == ["a/b=1/c", "a/bb"]
    assert store.list("a/b=1/") == ["a/b=1/c"]
    stat = store.stat("a/b=1/c")
    assert stat is not None
    assert stat.size == 3
    assert stat.last_modified.tzinfo is None
    target = tmp_path / "copy"
    assert store.fetch("a/b=1/c", str(target))
    assert target.read_bytes() == b"333"
    assert not store.fetch("a/none", str(tmp_path / "none"))
    target.write_bytes(b"rows" * 2_000_000)  # more than one part
    store.put_file("lake/x.parquet", str(target))
    assert store.get("lake/x.parquet") == target.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    store.delete(["a/b=1/c", "lake/x.parquet", "never"])
    assert store.list("") == ["a/bb"]
    assert store.local_path("a/bb") is None
    assert store.url("a/bb").startswith("s3://manta/test_put_get")


def test_of_many_writers_exactly_one_wins(store: ObjectStore) -> None:
    won: list[int] = []
    barrier = threading.Barrier(4)

    def write(me: int) -> None:
        for n in range(5):
            barrier.wait()
            try:
                store.put_if_absent(f"race/{n}", b"%d" % me)
                won.append(n)
            except AlreadyExists:
                pass

    threads = [threading.Thread(target=write, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(5))


def test_a_stalled_owner_is_fenced_after_two_manifests_and_a_truncation(
    store: ObjectStore,
) -> None:
    stalled = journal(store, "stalled", 1)
    stalled.take_over()
    stalled.append(b"x" * 100_000)
    successor = journal(store, "successor", 2)
    assert successor.take_over() == (2, 3)
    manifests = Manifests(store, "default/manifest/shard=000", SystemClock())
    manifest = Manifest(0, "shard-000", 2, 0)
    for n in range(2):
        last = successor.append(b"%d" % n)
        file = FileEntry(f"default/lake/shard=000/events/{n}.parquet", 1, 1, "part")
        store.put(file.path, b"x")
        manifest = manifests.publish(
            Manifest(manifest.number, "shard-000", 2, last, {"events": (file,)})
        )
        successor.truncate(last)
    assert manifests.latest() == manifest
    assert successor.sequences() == [1, 3]
    with pytest.raises(Fenced, match="successor"):
        stalled.append(b"late")
    assert journal(store, "third", 3).take_over(5, floor_epoch=2) == (3, 6)


def test_documents_and_damage(store: ObjectStore) -> None:
    def documents(seed: int) -> Documents:
        return Documents(
            store, "default/journal/catalog", "catalog", Random(seed).randbytes(16), SystemClock()
        )

    first = documents(1)
    first.recover()
    first.change([("topics", "news", {"title": "News"})], key="k")
    first.snapshot()
    first.change([("topics", "offers", {"title": "Offers"})])
    second = documents(2)
    second.recover()
    assert second.list("topics") == [{"title": "News"}, {"title": "Offers"}]
    data = store.get("default/journal/catalog/000000000003")
    assert data is not None
    store.put("default/journal/catalog/000000000003", data[:-1])
    with pytest.raises(Damaged, match="catalog/000000000003"):
        documents(3).recover()


def test_a_store_without_bucket_or_server_is_unavailable(endpoint: str) -> None:
    nowhere = open_objects(f"s3://no-such-bucket/x?endpoint={endpoint}")
    with pytest.raises(StoreUnavailable, match="no-such-bucket"):
        nowhere.get("a")
    with pytest.raises(StoreUnavailable):
        nowhere.put_if_absent("a", b"")


def test_a_server_that_cannot_be_reached_leaves_the_outcome_unknown(endpoint: str) -> None:
    nobody = open_objects("s3://manta/x?endpoint=http://127.0.0.1:9")
    with pytest.raises(OutcomeUnknown):
        nobody.put_if_absent("a", b"")
    with pytest.raises(StoreUnavailable, match="nothing was acknowledged"):
        nobody.get("a")


class LossyProxy:
    """Passes requests on to the server; the next ``lose`` writes are carried out, not answered."""

    def __init__(self, target: str) -> None:
        self.lose = 0
        self.writes = 0
        proxy, address = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                onward = HTTPConnection(address)
                onward.request(self.command, self.path, body, dict(self.headers))
                reply = onward.getresponse()
                content = reply.read()
                onward.close()
                self.close_connection = True
                if self.command == "PUT":
                    proxy.writes += 1
                    if proxy.lose > 0:
                        proxy.lose -= 1
                        return
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_POST = forward

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_reply_lost_on_the_wire_is_settled_by_reading(endpoint: str, store: ObjectStore) -> None:
    proxy = LossyProxy(endpoint)
    try:
        port = proxy.server.server_address[1]
        lossy = open_objects(f"{store.root}?endpoint=http://127.0.0.1:{port}")
        with_losses = journal(lossy, "a", 1)
        proxy.lose = 1
        assert with_losses.take_over() == (1, 1)
        proxy.lose = 1
        assert with_losses.append(b"once") == 2
        assert with_losses.append(b"twice") == 3
        assert proxy.writes == 3  # none was sent again, by us or by the library
        proxy.lose = 1
        with pytest.raises(OutcomeUnknown):
            lossy.put_if_absent("x", b"")
    finally:
        proxy.close()
    assert [entry.body for entry in journal(store, "b", 2).replay(1)] == [b"once", b"twice"]
