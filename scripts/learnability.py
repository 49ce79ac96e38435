"""How learnable a wording is for a policy: the mean negative log-likelihood of its targets, in nats per token.

`python -m scripts.learnability` measures the gap of each set of a teacher's traces that a run of the study memorized: the mean
over the traces of NUM training questions, under the base of seed 0, into results/mini/learnability.csv.
"""
from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, ProcessorMixin

from dyme_core import config
from dyme_core.data.datasets import of_profile
from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import Record, item_of
from dyme_core.models.generation import prompt_inputs
from dyme_core.models.loading import load_policy
from dyme_core.models.processors import target_ids
from dyme_core.pipeline.methods import UNSUPERVISED, base_folder
from dyme_core.utils import read_json, write_atomic

NUM = 64
COLUMNS = ("model", "wordings", "length", "new_words")


@torch.no_grad()
def nats_per_token(model: PreTrainedModel, processor: ProcessorMixin, records: Sequence[Record], thinkings: Sequence[str]
                   ) -> list[float]:
    """The mean negative log-likelihood per token of each thinking with its record's answer line, end token included.

    Args:
        model, processor: the policy.
        records: the questions.
        thinkings: one for each record.
    """
    model.eval()
    return [_nats(model, prompt_inputs(processor, [record]), target_ids(processor, write_response(thinking, record.answer)))
            for record, thinking in zip(records, thinkings, strict=True)]


def _nats(model: PreTrainedModel, inputs: dict[str, Any], ids: list[int]) -> float:
    target = torch.tensor([ids])
    whole = torch.cat([inputs["input_ids"], target], dim=1)
    known = {name: value for name, value in inputs.items() if name == "pixel_values" or name.startswith("image")}
    logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **known).logits[0, -len(ids) - 1: -1]
    return torch.nn.functional.cross_entropy(logits.float(), target[0]).item()


def gaps(paths: config.Paths, num: int = NUM) -> pd.DataFrame:
    """The gap of each set of traces that some run of `paths` memorized.

    Returns:
        Columns model, wordings, length, new_words (the teacher's dials), gap (nats per token), num_traces.
    """
    made = [read_json(path) for path in sorted(paths.manifests.glob("*.json"))]
    worlds = [(run["model"], run["settings"]["world"]) for run in made if run["method"] not in UNSUPERVISED]
    sets = dict.fromkeys((model, world["trace_wordings"], world["trace_length"], world["trace_new_words"])
                         for model, world in worlds if world["traces"] == "teacher")
    return pd.DataFrame([dict(zip(COLUMNS, dials, strict=True), gap=_gap(paths, num, *dials), num_traces=num)
                         for dials in sorted(sets)])


def _gap(paths: config.Paths, num: int, model: str, wordings: int, length: int, new_words: bool) -> float:
    profile = config.load_profile(paths.profile, **{
        "world.train_questions": num, "world.trace_wordings": wordings, "world.trace_length": length,
        "world.trace_new_words": new_words})
    records = of_profile(profile, "train", seed=0)
    policy, processor = load_policy(base_folder(paths, model, seed=0))
    return fmean(nats_per_token(policy, processor, records, [item_of(record.row).trace for record in records]))


def main() -> None:
    paths = config.paths(config.DEFAULT)
    write_atomic(paths.results / "learnability.csv", gaps(paths).to_csv(index=False, float_format="%.4f", lineterminator="\n"))


if __name__ == "__main__":
    main()
