"""The gap of a teacher's traces: nats per token under the base, of each set that a run memorized."""
from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dyme_core import config, utils
from dyme_core.data import datasets
from dyme_core.models import tiny_onevision
from scripts import learnability

VOCABULARY = 2048  # more than the mini tokenizer has


class Guesser:
    """A policy to which each token is as likely as any other, but for a favourite, which it expects half of the time."""

    def __init__(self, favourite: int | None = None) -> None:
        self.logits = torch.zeros(VOCABULARY)
        if favourite is not None:
            self.logits[favourite] = math.log(VOCABULARY - 1)

    def eval(self) -> None:
        """Nothing to switch."""

    def __call__(self, input_ids: torch.Tensor, **known: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(1, input_ids.shape[1], VOCABULARY))


def test_nats_are_those_of_the_target_s_tokens_alone_the_end_included() -> None:
    processor = tiny_onevision.build_processor()
    records = datasets.mini_records("train", 2, 0)
    assert learnability.nats_per_token(Guesser(), processor, records, ["We see 12.", "We see 12 and 13."]) == pytest.approx(
        2 * [math.log(VOCABULARY)])
    end = processor.tokenizer.eos_token_id
    (nats,) = learnability.nats_per_token(Guesser(end), processor, records[:1], ["We see 12."])
    num = len(learnability.target_ids(processor, learnability.write_response("We see 12.", records[0].answer)))
    assert nats == pytest.approx((math.log(2) + (num - 1) * math.log(2 * (VOCABULARY - 1))) / num)


def test_each_set_of_traces_that_a_run_memorized_is_measured_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    monkeypatch.setattr(learnability, "load_policy", lambda folder: (Guesser(), tiny_onevision.build_processor()))
    paths = config.paths("mini")
    usual = {"traces": "teacher", "trace_wordings": 11, "trace_length": 1, "trace_new_words": True}
    runs = [("sft", "svlm", {}), ("full_dyme", "svlm", {}), ("sft", "large", {}), ("sft", "svlm", {"trace_wordings": 1}),
            ("sft", "svlm", {"traces": "refined"}), ("grpo", "svlm", {"trace_length": 2})]
    for number, (method, model, changed) in enumerate(runs):
        utils.write_json(paths.manifests / f"{number}.json", {"method": method, "model": model,
                                                              "settings": {"world": usual | changed}})
    found = learnability.gaps(paths, num=2)
    assert found[["model", "wordings", "length", "new_words"]].to_numpy().tolist() == [
        ["large", 11, 1, True], ["svlm", 1, 1, True], ["svlm", 11, 1, True]]
    assert found["gap"].tolist() == pytest.approx(3 * [math.log(VOCABULARY)]) and set(found["num_traces"]) == {2}
