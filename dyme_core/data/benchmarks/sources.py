"""Every data set by its name: its files, its id on the hub, who reads its rows, and which of `metrics`'s rules are its own."""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyme_core.config import SPLITS
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks import public
from dyme_core.data.benchmarks.own import own_records
from dyme_core.data.benchmarks.rows import Row, read_hub, read_json
from dyme_core.data.schema import DataError, Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        citation: name, authors, year.
        hub_id: its id on the hub.
        task: name of its rules in `metrics.SCORERS`.
        splits: what it calls those of config.SPLITS that it has.
        read: the reader of a row (public.py); None for your own.
        files: names of a split's official files, {split} its name and {official} what `official` makes of it. All that are
            there are read, each with the numbers of its rows starting at 0.
        columns: that its rows on the hub must have.
        official: names of splits in file names that are not the hub's.
        config: its config on the hub, {split} as above; "" for none.
        images: folder of its pictures, inside its own.
        options: of its reader, with their defaults.
        wanted: what a row must hold to be no question of another sort, with the options' values.
    """

    citation: str
    hub_id: str
    task: str
    splits: Mapping[str, str]
    read: Callable[[Row, public.Place], Record | None] | None = None
    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    official: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    images: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    wanted: str = "questions"


_SAME = {split: split for split in SPLITS}
_THREE = {split: split for split in ("train", "validation", "test")}
KNOWN = {
    "chartqa": Source(
        citation="ChartQA (Masry et al. 2022)", hub_id="HuggingFaceM4/ChartQA", task="chartqa",
        splits={**_THREE, "validation": "val"}, read=public.chartqa,
        files=("{split}_human.json", "{split}_augmented.json"), images="png",
        columns=("image", "query", "label", "human_or_machine"), options={"images": None}),
    "aokvqa": Source(
        citation="A-OKVQA (Schwenk et al. 2022)", hub_id="HuggingFaceM4/A-OKVQA", task="aokvqa",
        splits={"train": "train", "validation": "validation"}, official=public.OFFICIAL, read=public.aokvqa,
        files=("aokvqa_v1p0_{official}.json",),
        columns=("image", "question_id", "question", "choices", "correct_choice_idx", "direct_answers",
                 "difficult_direct_answer", "rationales"), options={"images": None, "with_choices": False}),
    "gsm8k": Source(
        citation="GSM8K (Cobbe et al. 2021)", hub_id="openai/gsm8k", config="main", task="gsm8k",
        splits={"train": "train", "test": "test"}, read=public.gsm8k,
        files=("{split}.jsonl",), columns=("question", "answer")),
    "slake": Source(
        citation="SLAKE (Liu et al. 2021)", hub_id="BoKelvin/SLAKE", task="slake",
        splits=_THREE, official={"validation": "validate"}, read=public.slake,
        files=("{split}.json", "{official}.json"), images="imgs",
        columns=("img_name", "question", "answer", "answer_type", "q_lang"), options={"images": None, "language": "en"},
        wanted="questions with q_lang {language!r} ('en' or 'zh')"),
    "geo170k": Source(
        citation="Geo170K (Gao et al. 2023)", hub_id="Luckyjhg/Geo170K", task="geometry",
        splits={"train": "qa_tuning"}, read=public.geo170k,
        files=("{split}.json",), images="images", columns=("image", "conversations"), options={"images": None},
        wanted="solutions that close on 'Answer: ...', as the split qa_tuning has them"),
    "mathverse": Source(
        citation="MathVerse (Zhang et al. 2024)", hub_id="AI4Math/MathVerse", config="{split}", task="geometry",
        splits={"test": "testmini"}, read=public.mathverse,
        files=("{split}.json",), images="images",
        columns=("sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type"),
        options={"images": None}),
    "own": Source(citation="", hub_id="", task="own", splits=_SAME)}


def load(name: str, source: Path | str, split: str, bad: BadRows | None = None, **options: Any) -> list[Record]:
    """Records of one split of a data set.

    Args:
        name: a key of KNOWN.
        source: a folder (official files, or the hub's layout) or a hub id, such as KNOWN[name].hub_id.
        split: one of config.SPLITS that the data set has, or as it calls one itself ("testmini_text_only").
        bad: collects the rows that are refused; None raises.
        options: of its reader (public.py). `images` is the folder of the pictures that rows name: COCO's (aokvqa), the unpacked
            imgs.zip (slake) or images.zip (geo170k, mathverse); by default the one that lies beside the rows.
            `with_choices` (aokvqa), `language` (slake).
    Raises:
        DataError: for an unknown name, split or option, with the known ones; naming the row that cannot be used; where nothing
            is found, or no row holds a question.
    """
    if name not in KNOWN:
        raise DataError(f"expected one of the data sets {', '.join(KNOWN)}: got {name!r}; for another, write its rows as "
                        "your own (own.py)")
    found, folder, bad = KNOWN[name], Path(source), bad or BadRows()
    if not str(source):
        raise DataError(f"data set {name!r} needs a source: its folder, or its id on the hub ({found.hub_id or 'none'})")
    if split in SPLITS and split not in found.splits:
        raise DataError(f"expected a split that {name} has ({', '.join(found.splits)}): got {split!r}")
    if unknown := sorted(options.keys() - found.options.keys()):
        raise DataError(f"expected options that the reader of {name} has ({', '.join(found.options) or 'none'}): got "
                        f"{', '.join(unknown)}; rename or remove them")
    split = found.splits.get(split, split)
    if found.read is None:
        return own_records(source, split, bad)
    options = {**found.options, **options}
    images = options.get("images") or (folder / found.images if found.images and (folder / found.images).is_dir()
                                       else None)
    records, others, num_rows = [], [], 0
    for file, rows in _tables(found, source, split, bad):
        def read(row: Row, number: int, file: str = file) -> Record | None:
            record = found.read(row, public.Place(name, found.citation, split, number - 1, folder, file, images,
                                                  options))
            return others.append(row) if record is None else record

        num_rows += len(rows)
        records += bad.records(rows, read)
    where, wanted = f"{source}, split {split!r}", found.wanted.format(**options)
    if not records:
        raise DataError(f"{where}: expected {wanted}, got none in {num_rows} rows; name another split or option")
    if others:
        logger.warning("%s: %d of %d rows are left out: they are no %s", where, len(others), num_rows, wanted)
    return records


def _tables(found: Source, source: Path | str, split: str, bad: BadRows) -> list[tuple[str, list[Row | None]]]:
    """The rows of each file of a split, with its name; "" for the hub."""
    names = dict.fromkeys(name.format(split=split, official=found.official.get(split, split)) for name in found.files)
    files = [Path(source) / name for name in names if (Path(source) / name).is_file()]
    if files:
        return [(file.name, read_json(file, bad)) for file in files]
    return [("", read_hub(source, split, found.columns, list(names), found.config.format(split=split) or None))]
