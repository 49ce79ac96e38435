"""Every data set by its name: who reads it, its id on the hub, and which of `metrics`'s rules are its own."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyme_core.config import SPLITS
from dyme_core.data.benchmarks.aokvqa import aokvqa_records
from dyme_core.data.benchmarks.chartqa import chartqa_records
from dyme_core.data.benchmarks.geometry import geo170k_records, mathverse_records
from dyme_core.data.benchmarks.gsm8k import gsm8k_records
from dyme_core.data.benchmarks.own import own_records
from dyme_core.data.benchmarks.slake import slake_records
from dyme_core.data.schema import DataError, Record


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        read: (source, split, **options) to records.
        hub_id: its id on the hub, "" for your own.
        task: name of its rules in `metrics.SCORERS`.
        splits: what it calls those of config.SPLITS that it has.
    """

    read: Callable[..., list[Record]]
    hub_id: str
    task: str
    splits: dict[str, str]


_SAME = {split: split for split in SPLITS}
_THREE = {split: split for split in ("train", "validation", "test")}
KNOWN = {"chartqa": Source(chartqa_records, "HuggingFaceM4/ChartQA", "chartqa", {**_THREE, "validation": "val"}),
         "aokvqa": Source(aokvqa_records, "HuggingFaceM4/A-OKVQA", "aokvqa", {"train": "train", "validation": "validation"}),
         "gsm8k": Source(gsm8k_records, "openai/gsm8k", "gsm8k", {"train": "train", "test": "test"}),
         "slake": Source(slake_records, "BoKelvin/SLAKE", "slake", _THREE),
         "geo170k": Source(geo170k_records, "Luckyjhg/Geo170K", "geometry", {"train": "qa_tuning"}),
         "mathverse": Source(mathverse_records, "AI4Math/MathVerse", "geometry", {"test": "testmini"}),
         "own": Source(own_records, "", "own", _SAME)}


def load(name: str, source: Path | str, split: str, **options: Any) -> list[Record]:
    """Records of one split of a data set.

    Args:
        name: a key of KNOWN.
        source: a folder (official files, or the hub's layout) or a hub id, such as KNOWN[name].hub_id.
        split: one of config.SPLITS that the data set has, or as it calls one itself ("testmini_text_only").
        options: `bad`, which collects the rows that are refused (bad_rows.BadRows), and the reader's own: `images` (aokvqa,
            slake, geo170k, mathverse), `with_choices` (aokvqa), `language` (slake).
    Raises:
        DataError: for an unknown name, with the known ones, and what the reader raises.
    """
    if name not in KNOWN:
        raise DataError(f"expected one of the data sets {', '.join(KNOWN)}: got {name!r}; for another, write its rows as "
                        "your own (own.py)")
    if not str(source):
        raise DataError(f"data set {name!r} needs a source: its folder, or its id on the hub ({KNOWN[name].hub_id or 'none'})")
    if split in SPLITS and split not in KNOWN[name].splits:
        raise DataError(f"expected a split that {name} has ({', '.join(KNOWN[name].splits)}): got {split!r}")
    return KNOWN[name].read(source, KNOWN[name].splits.get(split, split), **options)
