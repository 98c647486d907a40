"""A shard and its lake on the S3 protocol: moto's server, real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import boto3
import pytest
from moto.server import ThreadedMotoServer

from manta.store import lake
from manta.store.objects import open_objects
from manta.store.settings import ShardSettings
from manta.store.shard import Stopped
from tests.unit.store_shard import START, content, delete, event, flush, person, recovered, write


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="manta-shard")
    yield f"s3://manta-shard/some/root?endpoint={endpoint}&region=us-east-1"
    server.stop()


def test_a_shard_lives_on_s3(root: str) -> None:
    objects = open_objects(root)
    store = recovered(objects, 1, settings=ShardSettings(merge_files=2, month_file_bytes=4_000))
    for number in range(6):
        at = START - timedelta(days=20 * number)
        changes = [person(number, **{f"attr_a{number % 2}": "x"}), event(number, "opened", at)]
        changes.append(delete("profiles", {"subscriber_id": number - 3}))
        store.execute([write(*changes, key=f"k{number}")])
        if number % 2:
            flush(store)
    store.execute([write(person(77))])
    new = recovered(objects, 2)
    assert content(new) == content(store)
    with pytest.raises(Stopped):
        store.execute([write(person(78))])
    flush(new)
    with lake.open(root) as connection:
        sql = "SELECT subscriber_id, attr_a0, attr_a1 FROM profiles ORDER BY 1"
        assert connection.sql(sql).fetchall() == new.database.rows(sql)
        sql = "SELECT subscriber_id, occurred_at FROM events WHERE subscriber_id > 2 ORDER BY 1"
        assert connection.sql(sql).fetchall() == new.database.rows(sql)
        assert connection.sql("SELECT DISTINCT shard FROM profiles").fetchall() == [(0,)]
        assert connection.sql("SELECT count(*) FROM ledger").fetchall() == [(0,)]
