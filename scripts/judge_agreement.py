"""How far a small language model on this machine agrees with the checker's contract (docs/method.md), kind by kind.

`python -m scripts.judge_agreement` asks SmolLM2-135M-Instruct (`make llm`), `--gguf FILE` another model. It rates
traces of the 100 kinds of scripts/traces by the prompt of `LLMChecker`, without the guard. Its grade is the likeliest
of the three words behind an empty list of reasons: each reply is valid, as with a server that enforces the schema. Into
results/llm go contract_<model>.jsonl (the replies), .csv (by kind) and .json (over all kinds). An ended run resumes.
"""
from __future__ import annotations

import argparse
import copy
import random
from collections import defaultdict
from concurrent.futures import Future
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache

from dyme_core import config
from dyme_core.supervision.checker import SCORES, RuleChecker, VisualChecker
from dyme_core.supervision.llm.cache import FIELDS, Recording
from dyme_core.supervision.llm.judge import LLMChecker
from dyme_core.supervision.llm.parsing import Request
from dyme_core.utils import write_json
from scripts.checker_benchmark import LabelledTrace, agreement, confusion
from scripts.heldout import PARTS, contract_set
from scripts.weights import convert, model_folder

RESULTS = Path(__file__).resolve().parents[1] / "results" / "llm"
PARAMETERS = {"temperature": 0.0}
BEGUN = '{"reasons": [], "rating": "'  # of a reply; a grade follows


def balanced(num: int) -> list[LabelledTrace]:
    """`num` traces of the whole set, always drawn in the same order: one of each kind, then a second one, and so on."""
    rng, kinds = random.Random(0), defaultdict(list)
    for trace in (trace for part in PARTS for trace in contract_set(part)):
        kinds[trace.label].append(trace)
    rounds = zip_longest(*(rng.sample(traces, len(traces)) for traces in kinds.values()))
    return [trace for one in rounds for trace in rng.sample(one, len(one)) if trace is not None][:num]


def measured(judge: VisualChecker, traces: list[LabelledTrace]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rate the traces: a table by kind, and what holds over all kinds.

    A judge that tells nothing apart rates equal shares of right and wrong traces high and has kappas of 0. The first
    kappa is of "high" against the label, the second of three grades against the rule checker's.
    """
    rows, by_rule = (pd.DataFrame(agreement(checker, traces)) for checker in (judge, RuleChecker()))
    is_right, is_high = rows["expected"] == "high", rows["rating"] == "high"
    return pd.DataFrame(confusion(rows.to_dict("records"))), {
        "num": len(rows), "agreement": rows["is_right"].mean(), "always_low_agreement": (~is_right).mean(),
        "right_rated_high": is_high[is_right].mean(), "wrong_rated_high": is_high[~is_right].mean(),
        "kappa_high": kappa(is_high, is_right),
        "kappa_grades": kappa(rows["rating"].map(SCORES), by_rule["rating"].map(SCORES))}


def kappa(found: pd.Series, wanted: pd.Series) -> float:
    """Cohen's kappa of ratings in numbers, weighted linearly: 0 for chance, 1 for full agreement."""
    one, other = found.to_numpy(float), wanted.to_numpy(float)
    return float(1 - np.abs(one - other).mean() / np.abs(one[:, None] - other).mean())


class LocalModel:
    """Answers an LLMChecker in this process, one request after the other; what all prompts begin with is read once."""

    def __init__(self, folder: Path, recording: Recording) -> None:
        self.name, self.recording, self._shared, self._cache = folder.name, recording, None, None
        here = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **here)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **here)

    def submit(self, request: Request) -> Future:
        """A future that is done, with the likeliest grade, which is recorded."""
        future, key = Future(), request.key(self.name)
        row = self.recording.get(key)
        if row is None:
            reply, length = self._likeliest(request)
            row = dict(zip(FIELDS, (key, request.purpose, request.item, self.name, reply, length, 1), strict=True))
            self.recording.put(row)
        future.set_result(request.schema.model_validate(row["reply"]))
        return future

    @torch.inference_mode()
    def _likeliest(self, request: Request) -> tuple[dict[str, Any], int]:
        """The reply with the likeliest grade, by its first token, and the prompt's number of tokens."""
        begun, *grades = (self.tokenizer.encode(text, add_special_tokens=False) for text in (BEGUN, *SCORES))
        prompt = torch.cat([self._tokens(request.messages, add_generation_prompt=True), torch.tensor([begun])], dim=1)
        cache = self._read(request.messages[:-1], prompt)
        rest = prompt[:, self._shared.shape[1]:]
        logits = self.model(rest, past_key_values=cache, logits_to_keep=1).logits[0, -1]
        best = int(logits[[grade[0] for grade in grades]].argmax())
        return {"reasons": [], "rating": list(SCORES)[best]}, prompt.shape[1]

    def _read(self, examples: list[dict[str, Any]], prompt: Tensor) -> Cache:
        """A copy of the keys and values of rubric and examples, with which each prompt begins."""
        if self._cache is None:
            self._shared = self._tokens(examples)
            self._cache = self.model(self._shared, use_cache=True, logits_to_keep=1).past_key_values
        if not prompt[:, :self._shared.shape[1]].equal(self._shared):
            raise ValueError(f"{self.name}: expected a chat template that writes turn by turn; take another model")
        return copy.deepcopy(self._cache)

    def _tokens(self, messages: list[dict[str, Any]], **how: Any) -> Tensor:
        return self.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False, **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, help="weights of another model, named after the file")
    parser.add_argument("--num", type=int, default=100, help="traces, drawn evenly from the kinds")
    options, runs = parser.parse_args(), config.paths("llm").runs
    folder = runs / options.gguf.stem if options.gguf else model_folder(runs)
    if options.gguf and not folder.exists():
        folder.mkdir(parents=True)
        convert(options.gguf.resolve(), folder)
    with Recording(runs / f"contract_{folder.name}.sqlite") as recording:
        judge = LLMChecker(LocalModel(folder, recording), "skip", guard=False, parameters=PARAMETERS)
        by_kind, summary = measured(judge, balanced(options.num))
        recording.export_jsonl(RESULTS / f"contract_{folder.name}.jsonl")
    by_kind.to_csv(RESULTS / f"contract_{folder.name}.csv", index=False)
    write_json(RESULTS / f"contract_{folder.name}.json", {"model": folder.name, **summary})


if __name__ == "__main__":
    main()
