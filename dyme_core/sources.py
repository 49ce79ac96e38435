"""Every data set by its name: who reads it, its id on the hub, and which of `scoring`'s rules are its own."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyme_core.aokvqa import aokvqa_records
from dyme_core.chartqa import chartqa_records
from dyme_core.data import DataError, Record
from dyme_core.geometry import geo170k_records, mathverse_records
from dyme_core.gsm8k import gsm8k_records
from dyme_core.own import own_records
from dyme_core.slake import slake_records


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        read: (source, split, **options) to records.
        hub_id: its id on the hub, "" for your own.
        task: name of its rules in `scoring.SCORERS`.
    """

    read: Callable[..., list[Record]]
    hub_id: str
    task: str


KNOWN = {"chartqa": Source(chartqa_records, "HuggingFaceM4/ChartQA", "chartqa"),
         "aokvqa": Source(aokvqa_records, "HuggingFaceM4/A-OKVQA", "aokvqa"),
         "gsm8k": Source(gsm8k_records, "openai/gsm8k", "gsm8k"),
         "slake": Source(slake_records, "BoKelvin/SLAKE", "slake"),
         "geo170k": Source(geo170k_records, "Luckyjhg/Geo170K", "geometry"),
         "mathverse": Source(mathverse_records, "AI4Math/MathVerse", "geometry"),
         "own": Source(own_records, "", "chartqa")}


def load(name: str, source: Path | str, split: str, **options: Any) -> list[Record]:
    """Records of one split of a data set.

    Args:
        name: a key of KNOWN.
        source: a folder (official files, or the hub's layout) or a hub id, such as KNOWN[name].hub_id.
        split: as the data set calls it.
        options: `bad`, which takes the rows that are refused (badrows.BadRows), and the reader's own: `images` (aokvqa,
            slake, geo170k, mathverse), `with_choices` (aokvqa), `language` (slake).
    Raises:
        DataError: for an unknown name, with the known ones, and what the reader raises.
    """
    if name not in KNOWN:
        raise DataError(f"expected one of the data sets {', '.join(KNOWN)}: got {name!r}; for another, write its rows as "
                        "your own (own.py)")
    return KNOWN[name].read(source, split, **options)
