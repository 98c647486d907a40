"""The client against the real API over real actors in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest

from manta.client import Client, http
from tests.unit.bridge import URL, Town, town

PEOPLE = "E-Mail,First Name,City,Orders,Born,VIP\n" + "\n".join(
    [
        "ann@x.example,Ann,Bern,3,1990-02-03,yes",
        "Bob@X.Example,Bob,,0,,no",
        "not an address,Eve,Rome,1,,no",
        'cem@x.example,"Cem\nJr.",Basel,2,1970-01-01,yes',
    ]
)


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as built:
        yield built


@pytest.fixture
def manta(place: Town, monkeypatch) -> Iterator[Client]:
    pauses: list[float] = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    place.bridge.troubles.clear()
    place.bridge.requests.clear()
    with Client(URL, place.key(), transport=place.bridge) as opened:
        opened.pauses = pauses  # type: ignore[attr-defined]
        yield opened


def test_a_file_in_and_its_people_out(manta, tmp_path):
    file, rejects = tmp_path / "people.csv", tmp_path / "rejects.csv"
    file.write_text(PEOPLE)
    seen = []
    summary = manta.import_people(file, rejects=rejects, progress=lambda *at: seen.append(at))
    assert (summary.rows, summary.created, summary.rejected, summary.consented) == (4, 3, 1, 3)
    assert seen[-1] == (4, 1.0)
    assert "4,E-Mail" in rejects.read_text()
    again = manta.import_people(file)
    assert (again.created, again.updated, again.unchanged) == (0, 0, 3)

    frame = manta.export()
    assert set(frame["email"]) >= {"ann@x.example", "Bob@x.example", "cem@x.example"}
    ann = frame[frame["email"] == "ann@x.example"].iloc[0]
    assert (ann["first_name"], ann["orders"], ann["vip"]) == ("Ann", 3.0, True)
    assert ann["born"] == pd.Timestamp("1990-02-03")
    assert list(frame["subscriber_id"]) == sorted(frame["subscriber_id"])
    assert manta.subscriber(email="ANN@x.example")["id"] == ann["subscriber_id"]
