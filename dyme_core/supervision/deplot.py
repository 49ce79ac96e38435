"""Facts of a picture by DePlot (Liu et al. 2023, https://aclanthology.org/2023.findings-acl.660), the chart-to-table model.

DePlot writes the table of a chart as text: cells divided by " | ", rows by " <0x0A> ", the first row "TITLE | ...". It writes a
table for any picture, for one without a chart too.
"""
from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from PIL import Image, UnidentifiedImageError
from transformers import AutoProcessor, Pix2StructForConditionalGeneration

from dyme_core import utils
from dyme_core.data.benchmarks.tabular import csv_facts
from dyme_core.data.numbers import is_year, read_quantity
from dyme_core.data.schema import Fact
from dyme_core.models.loading import read_weights
from dyme_core.supervision.fact_extraction import FactsError, Picture

HUB_ID = "google/deplot"
HEADER = "Generate underlying data table of the figure below:"  # printed over the picture, as in DePlot's training
MAX_NEW_TOKENS = 512  # of DePlot's model card

_END_OF_ROW = re.compile(r"\s+<0x0A>\s+|\n")  # without spaces around it, <0x0A> breaks a line inside a cell


class DePlotFacts:
    """The back end "deplot".

    Args:
        source: a hub id or a folder, with weights in safetensors.
    Raises:
        ValueError, OSError: where the checkpoint cannot be read.
    """

    name = "deplot"
    reads = ("image",)

    def __init__(self, source: str = HUB_ID) -> None:
        self.processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        self.model = read_weights(Pix2StructForConditionalGeneration, source, torch.float32).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        commit = getattr(self.model.config, "_commit_hash", None) or utils.hash_files(Path(source).glob("*"), Path(source))
        self.version = f"{source} {commit[:12]}, transformers {transformers.__version__}"

    @torch.inference_mode()
    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        """Facts of the table that the model writes; greedy, so that the same picture gives the same facts.

        Raises:
            FactsError: where the bytes are no picture, or the model writes no table or none that ends.
        """
        try:
            image = Image.open(io.BytesIO(picture.image)).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise FactsError(f"item {picture.item!r}: expected a picture, got {len(picture.image)} bytes that are none; "
                             "restore the file or remove the row") from error
        inputs = self.processor(images=image, text=HEADER, return_tensors="pt").to(self.model.device)
        [written] = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        text = self.processor.decode(written, skip_special_tokens=True)
        if written[-1] != self.model.generation_config.eos_token_id:
            raise FactsError(f"item {picture.item!r}: expected a table of at most {MAX_NEW_TOKENS} tokens, got {text[:80]!r} "
                             "and no end; remove the row or give its table")
        if "|" not in text:
            raise FactsError(f"item {picture.item!r}: expected a table, got {text[:80]!r}; remove the row or give its table")
        return parse_table(text)


def parse_table(text: str) -> tuple[Fact, ...]:
    """The facts of a table in DePlot's text.

    What is not certain is left out: rows with more or fewer cells than the first one, and cells that are stated twice with
    different values.
    """
    rows = [[cell.replace("<0x0A>", " ").strip() for cell in row.split("|")] for row in _END_OF_ROW.split(text.strip())]
    rows = [row for row in rows if len(row) > 1 and row[0] != "TITLE"]
    if rows and any(read_quantity(cell) and not is_year(cell) for cell in rows[0][1:]):  # no names of series
        rows = [[""] * len(rows[0]), *rows]
    if rows:
        rows[0][0] = "Entity"  # where the whole row is blank, a table has no header
    file = io.StringIO()
    csv.writer(file).writerows(row for row in rows if len(row) == len(rows[0]))
    stated = defaultdict(set)
    for fact in (facts := csv_facts(file.getvalue())):
        stated[fact.entity, fact.attribute].add(fact)
    return tuple(dict.fromkeys(fact for fact in facts if len(stated[fact.entity, fact.attribute]) == 1))
