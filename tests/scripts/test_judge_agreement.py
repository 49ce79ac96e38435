"""A small language model held against the contract: the stored tables, and the model that answers in this process."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dyme_core.config import Endpoint
from dyme_core.supervision.checker import SCORES
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.judge import LLMChecker, fact_rows
from dyme_core.supervision.llm.prompts import check_messages
from dyme_core.utils import read_json
from scripts.checker_benchmark import agreement
from scripts.judge_agreement import PARAMETERS, RESULTS, LocalModel, balanced, kappa, measured

STORED = sorted(RESULTS.glob("contract_*.jsonl"))


def test_traces_are_drawn_evenly_from_the_kinds_and_a_longer_draw_begins_like_a_shorter_one() -> None:
    kinds = Counter(trace.label for trace in balanced(200))
    assert len(kinds) == 100 and set(kinds.values()) == {2}
    assert balanced(200)[:100] == balanced(100) and len({trace.label for trace in balanced(100)}) == 100


def test_kappa_is_what_is_worked_out_by_hand() -> None:
    """Two raters of four traces: three agree; by chance half would (both say "high" half of the time)."""
    assert kappa(pd.Series([1, 1, 0, 0]), pd.Series([1, 0, 0, 1])) == 0
    assert kappa(pd.Series([1, 1, 0, 0]), pd.Series([1, 1, 0, 0])) == 1
    # Off by half a grade once in two; all four pairs differ by 0.5, 0, 1 and 0.5: 1 - 0.25 / 0.5.
    assert kappa(pd.Series([0.5, 1]), pd.Series([0, 1])) == pytest.approx(1 - 0.25 / 0.5)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_stored_replies_give_the_stored_table_again_without_a_model(path: Path) -> None:
    """After a change of the rubric or of the traces it must be made again."""
    stored, summary = pd.read_csv(path.with_suffix(".csv")), read_json(path.with_suffix(".json"))
    endpoint = Endpoint(model=summary["model"])
    with Recording(path, read_only=True) as recording, Client(endpoint, recording, "replay") as client:
        judge = LLMChecker(client, "skip", guard=False, parameters=PARAMETERS)
        by_kind, found = measured(judge, balanced(summary["num"]))
    pd.testing.assert_frame_equal(by_kind, stored)
    for name in found.keys() - {"kappa_grades"}:  # that one follows the rule checker, too
        assert summary[name] == pytest.approx(found[name]), name


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Llama of random weights over single characters, in an ordinary model folder with a chat template."""
    characters = [chr(code) for code in range(32, 127)]
    tokenizer = Tokenizer(models.WordLevel({name: at for at, name in enumerate(("<s>", *characters))}, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>", pad_token="<s>")
    fast.chat_template = ("{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"
                          "{% if add_generation_prompt %}assistant: {% endif %}")
    fast.save_pretrained(tmp_path / "tiny")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, initializer_range=1.0, eos_token_id=0, pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_grade_is_the_likeliest_word_behind_the_whole_prompt_and_a_recorded_one_is_not_asked_for_again(
        tiny: Path, tmp_path: Path) -> None:
    traces, seen = balanced(4), []
    with Recording(tmp_path / "replies.sqlite") as recording:
        model = LocalModel(tiny, recording)
        hook = model.model.register_forward_hook(lambda module, asked, made: seen.append(made.logits[0, -1]))
        checker = LLMChecker(model, "skip", guard=False, parameters=PARAMETERS)
        rated = [row["rating"] for row in agreement(checker, traces)]
        hook.remove()
        for trace, rating, found in zip(traces, rated, seen[1:], strict=True):  # the first call read what all share
            asked = check_messages(fact_rows(trace.item.facts), trace.item.question, trace.item.answer, trace.thinking)
            text = "".join(f"{turn['role']}: {turn['content']} " for turn in asked)
            text += 'assistant: {"reasons": [], "rating": "'
            with torch.inference_mode():
                logits = model.model(model.tokenizer(text, return_tensors="pt").input_ids).logits[0, -1]
            torch.testing.assert_close(found, logits)
            assert rating == max(SCORES, key=lambda word: logits[ord(word[0]) - 31])
        model.model = None
        assert [row["rating"] for row in agreement(checker, traces)] == rated
