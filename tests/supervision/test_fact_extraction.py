"""The store of facts and the comparison of back ends with gold tables."""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dyme_core.data.schema import Fact
from dyme_core.supervision.chart_ocr.matching import backend_rows, compare
from dyme_core.supervision.fact_extraction import Extraction, FactsError, FactStore, Picture, TableFacts, store_key

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
    (Picture("a", b"png"), Scripted(name="x")), (Picture("a", b"png", hint="new"), Scripted(reads=("hint",)))])
def test_another_image_back_end_version_or_hint_makes_facts_anew(tmp_path: Path, picture: Picture, backend: Scripted) -> None:
    store = FactStore(tmp_path)
    store.get(Picture("a", b"png"), Scripted(reads=backend.reads))
    store.get(picture, backend)
    assert (store.misses, len(list(tmp_path.rglob("*.json")))) == (2, 2)


def test_what_a_back_end_does_not_read_does_not_matter(tmp_path: Path) -> None:
    assert store_key(Picture("a", b"png", table="x"), Scripted()) == store_key(Picture("b", b"png", hint="y"), Scripted())


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
    path.write_text(json.dumps({"facts": [{"entity": "x"}]}))
    with pytest.raises(FactsError, match=f"{path.name} cannot be read .*; remove the file"):
        FactStore(tmp_path).get(Picture("a", b"png"), Scripted())


def test_a_picture_is_read_from_files_with_the_table_beside_it(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(b"png")
    (tmp_path / "7.csv").write_bytes("\ufeffWho,A\r\nx,1\r\n".encode())
    picture = Picture.of_files(tmp_path / "7.png", tmp_path / "7.csv")
    assert (picture.item, picture.image) == ("7", b"png")
    assert TableFacts().extract(picture) == (Fact("x", "A", 1.0),)
    assert Picture.of_files(tmp_path / "7.png", tmp_path / "no.csv").table == ""


GOLD = (Fact("2010", "FAV", 62.0), Fact("2010", "UNF", 36.0), Fact("2012", "FAV", 65.4))


@pytest.mark.parametrize(("found", "right", "contradicted", "values"), [
    (GOLD, 3, 0, 3),
    ((), 0, 0, 0),
    ((Fact("2010", "FAV", 36.0), Fact("2010", "UNF", 62.0)), 0, 2, 2),  # series swapped: right numbers, no right fact
    ((Fact("2012", "fav.", 65.0, "%"),), 1, 0, 1),  # printed rounded, another spelling
    ((Fact("2010", "FAV", 62.0), Fact("2010", "FAV", 62.0)), 1, 1, 1),  # said twice, counts once
    ((Fact("2011", "FAV", 62.0), Fact("", "", 65.4)), 0, 0, 2),  # a cell the table has not; a loose number
])
def test_facts_are_counted_against_gold(found: tuple[Fact, ...], right: int, contradicted: int, values: int) -> None:
    assert compare(found, GOLD) == {"num_gold": 3, "num_found": len(found), "num_right": right,
                                    "num_contradicted": contradicted, "num_values_right": values}


def test_one_found_value_matches_one_gold_value_only() -> None:
    gold = (Fact("a", "", 5.0), Fact("b", "", 5.0))
    assert compare((Fact("", "", 5.0),), gold)["num_values_right"] == 1


def test_the_name_of_a_single_series_does_not_count() -> None:
    assert compare((Fact("DK", "Strong support", 3.0),), (Fact("DK", "Value", 3.0),))["num_right"] == 1


def test_a_back_end_gets_a_row_a_chart_and_the_totals(tmp_path: Path) -> None:
    pictures = [Picture("a", b"1", "Year,FAV,UNF\n2010,62,36\n2012,65,35"), Picture("b", b"2", "Year,FAV,UNF\n2010,62,37"),
                Picture("no table", b"3")]
    backend = Scripted()
    *rows, total = backend_rows(pictures, backend, FactStore(tmp_path, clock=iter(range(9)).__next__))
    assert [(row["item"], row["precision"], row["recall"]) for row in rows] == [("a", 1.0, 0.5), ("b", 0.5, 0.5)]
    assert (total["item"], total["num_gold"], total["precision"], total["recall"], total["seconds"]) == ("all", 6, 0.75, 0.5, 2)
    assert total["precision_listed"] == 0.75 and backend.items == ["a", "b"]


def test_shares_of_nothing_are_unknown(tmp_path: Path) -> None:
    [_, total] = backend_rows([Picture("a", b"1", "Year,A\n2010,6")], Scripted(facts=()), FactStore(tmp_path))
    assert (total["precision"], total["recall"]) == (None, 0.0)


def test_an_extraction_is_a_value() -> None:
    assert Extraction(SHOWN, "x", "1", "0" * 64, 1.0) == Extraction(SHOWN, "x", "1", "0" * 64, 1.0)
