"""Facts of pictures: extracted once and stored; a failing model never invents facts."""
from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from scripted_server import ScriptedServer, answer, status

from dyme_core import config
from dyme_core.config import Endpoint
from dyme_core.data.schema import Fact
from dyme_core.supervision.fact_extraction import (
    FactsError,
    FactStore,
    ImageFacts,
    Picture,
    TableFacts,
    backend_of,
    store_key,
)
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.parsing import InvalidReply, SupervisionError

SHOWN = (Fact("2010", "FAV", 62.0, "%"), Fact("2010", "UNF", 36.0, "%"))


@dataclass
class Scripted:
    """A back end that counts its calls."""

    facts: tuple[Fact, ...] = SHOWN
    name: str = "scripted"
    version: str = "1"
    reads: tuple[str, ...] = ("image",)
    items: list[str] = field(default_factory=list)

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        self.items.append(picture.item)
        return self.facts


def test_facts_are_made_once_and_reused_by_another_store_and_under_another_name(tmp_path: Path) -> None:
    backend, ticks = Scripted(), iter((1.0, 3.5))
    store = FactStore(tmp_path, clock=lambda: next(ticks))
    made = store.get(Picture("a", b"png"), backend)
    assert (made.facts, made.seconds, made.backend, made.version) == (SHOWN, 2.5, "scripted", "1")
    assert FactStore(tmp_path).get(Picture("b", b"png"), backend) == made
    assert (backend.items, store.misses, store.hits) == (["a"], 1, 0)


@pytest.mark.parametrize(("picture", "backend"), [
    (Picture("a", b"other"), Scripted()), (Picture("a", b"png"), Scripted(version="2")),
    (Picture("a", b"png"), Scripted(name="x")), (Picture("a", b"png", "new"), Scripted(reads=("table",)))])
def test_another_image_back_end_version_or_table_makes_facts_anew(tmp_path: Path, picture: Picture, backend: Scripted) -> None:
    store = FactStore(tmp_path)
    store.get(Picture("a", b"png"), Scripted(reads=backend.reads))
    store.get(picture, backend)
    assert (store.misses, len(list(tmp_path.rglob("*.json")))) == (2, 2)


def test_what_a_back_end_does_not_read_does_not_matter(tmp_path: Path) -> None:
    assert store_key(Picture("a", b"png", table="x"), Scripted()) == store_key(Picture("b", b"png", table="y"), Scripted())


def test_a_picture_without_facts_is_stored_too(tmp_path: Path) -> None:
    store, backend = FactStore(tmp_path), Scripted(facts=())
    assert [store.get(Picture("a", b"png"), backend).facts for _ in range(2)] == [(), ()]
    assert backend.items == ["a"]


def test_a_failure_is_passed_on_and_stores_nothing(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match="item 'a': expected a table, got none"):
        FactStore(tmp_path).get(Picture("a", b"png"), TableFacts())
    assert list(tmp_path.rglob("*")) == []


def test_a_broken_stored_file_is_named(tmp_path: Path) -> None:
    FactStore(tmp_path).get(Picture("a", b"png"), Scripted())
    [path] = tmp_path.rglob("*.json")
    stored = json.loads(path.read_text())
    huge = stored | {"facts": [{**stored["facts"][0], "value": 10**400}]}
    for broken in ({"facts": [{"entity": "x"}]}, [], huge, "[" * 10**5):
        path.write_text(broken if isinstance(broken, str) else json.dumps(broken))
        with pytest.raises(FactsError, match=f"{path.name} cannot be read .*; remove the file"):
            FactStore(tmp_path).get(Picture("a", b"png"), Scripted())
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(stored).encode())
    assert FactStore(tmp_path).get(Picture("a", b"png"), Scripted()).facts == SHOWN


def test_a_picture_is_read_from_files_with_the_table_beside_it(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(b"png")
    (tmp_path / "7.csv").write_bytes("\ufeffWho,A\r\nx,1\r\n".encode())
    picture = Picture.of_files(tmp_path / "7.png", tmp_path / "7.csv")
    assert (picture.item, picture.image) == ("7", b"png")
    assert TableFacts().extract(picture) == (Fact("x", "A", 1.0),)
    assert Picture.of_files(tmp_path / "7.png", tmp_path / "no.csv").table == ""


SAID = {"facts": [{"entity": " Latvia* ", "attribute": "", "value": 3, "unit": "percent"},
                  {"entity": "2010.0", "attribute": "FAV", "value": 8.9, "unit": ""},
                  {"entity": "  ", "attribute": "", "value": 5, "unit": ""}]}
READ = (Fact("Latvia", "", 3.0, "percent"), Fact("2010", "FAV", 8.9))


def picture_of(kind: str = "png", item: str = "chart-1", colour: str = "red") -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, kind)
    return Picture(item, buffer.getvalue())


def client_of(server: ScriptedServer, recording: Recording | None = None) -> Client:
    return Client(Endpoint(model="m", base_url=server.base_url, max_tries=1), recording)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_picture_travels_whole_inside_the_message_and_is_asked_about_once(kind: str, tmp_path: Path) -> None:
    picture = picture_of(kind)
    with ScriptedServer([answer(json.dumps(SAID))]) as server, client_of(server) as client:
        store, backend = FactStore(tmp_path), ImageFacts(client)
        made = store.get(picture, backend)
        assert made.facts == READ and made.backend == "vlm" and made.version.startswith("m-")
        assert store.get(picture, backend) == made and len(server.seen) == 1
        assert ImageFacts(client, {"temperature": 1.0}).version != backend.version
    _, part = server.seen[0].body["messages"][-1]["content"]
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == f"data:image/{kind};base64" and base64.b64decode(data) == picture.image


@pytest.mark.parametrize(("given", "sent"), [
    ({"max_completion_tokens": 700, "seed": 1}, {"max_completion_tokens": 700, "seed": 1}),
    (config.Supervision().parameters, {"temperature": 0.0, "max_tokens": 2000})], ids=["own", "defaults"])
def test_facts_are_asked_for_with_the_parameters_of_the_endpoint(given: dict, sent: dict) -> None:
    """A model that refuses max_tokens refuses it for facts, too; the defaults leave room for a whole chart."""
    with ScriptedServer([answer(json.dumps(SAID))]) as server, client_of(server) as client:
        backend_of("vlm", client, given).extract(picture_of())
    body = server.seen[0].body
    assert {name: value for name, value in body.items() if name not in (
        "model", "messages", "stream", "response_format")} == sent


@pytest.mark.parametrize(("act", "error"), [(status(401), SupervisionError), (answer("no facts in sight"), InvalidReply)])
def test_a_models_failure_is_an_error_and_nothing_is_stored(act, error, tmp_path: Path) -> None:
    with ScriptedServer([act]) as server, client_of(server) as client:
        with pytest.raises(error, match="chart-1"):
            FactStore(tmp_path).get(picture_of(), ImageFacts(client))
    assert not list(tmp_path.rglob("*.json"))


def test_bytes_that_are_no_picture_are_refused_before_anything_is_sent() -> None:
    with ScriptedServer([answer(json.dumps(SAID))]) as server, client_of(server) as client:
        with pytest.raises(FactsError, match="chart-1.*expected a picture, got 3 bytes"):
            ImageFacts(client).extract(Picture("chart-1", b"GIF"))
    assert server.seen == []


def test_facts_are_replayed_from_a_recording_without_a_server(tmp_path: Path) -> None:
    with ScriptedServer([answer(json.dumps(SAID))]) as server, Recording(tmp_path / "facts.sqlite") as recording:
        with client_of(server, recording) as client:
            said = ImageFacts(client).extract(picture_of())
        recording.export_jsonl(tmp_path / "facts.jsonl")
    with Recording(tmp_path / "facts.jsonl", read_only=True) as recording, \
            Client(Endpoint(model="m"), recording, "replay") as client:
        assert ImageFacts(client).extract(picture_of()) == said == READ
        with pytest.raises(SupervisionError, match="chart-2"):
            ImageFacts(client).extract(picture_of(item="chart-2", colour="blue"))
