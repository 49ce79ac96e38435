"""The decoding loop: responses are those of transformers' own loop, or follow from its probabilities and the numbers drawn."""
from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from dyme_core.data import datasets
from dyme_core.models import decoding, generation, loading, processors, tiny_onevision
from dyme_core.models.engine import share_prefixes

PROCESSOR = tiny_onevision.build_processor()
RECORDS = datasets.mini_records("train", 6, seed=0)
LENGTHS = [0, 0, 0, 2, 2, 1, 3]  # records of a batch


def pair(dtype: torch.dtype = torch.float64) -> list:
    """A policy without and one with the loop, of the same weights."""
    policies = [tiny_onevision.build_model("svlm", PROCESSOR, 0).to(dtype) for _ in range(2)]
    share_prefixes(policies[1])
    return policies


def prompts(rows: list[int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return generation.prompt_inputs(PROCESSOR, [RECORDS[row] for row in rows]).to("cpu", dtype)


PLAIN, SHARED = pair()
SUPPRESSED = processors.suppressed_ids(PLAIN, PROCESSOR)
ENDS = [PROCESSOR.tokenizer.eos_token_id, *range(300, 400)]  # so many that rows end one after another


def generate(policy, rows: list[int], **settings) -> torch.Tensor:
    torch.manual_seed(3)
    return policy.generate(**prompts(rows, policy.dtype), **{"suppress_tokens": SUPPRESSED, "pad_token_id": 726,
                                                             "max_new_tokens": 12, "do_sample": False} | settings)


def count_rows(policy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The list grows by the rows of each decoded token."""
    counts: list[int] = []
    monkeypatch.setattr(decoding, "_next", lambda model, tokens, rows, plain=decoding._next:
                        counts.append(len(tokens)) or plain(model, tokens, rows))
    return counts


@pytest.mark.parametrize("rows", [LENGTHS, [0, 1, 2, 3], [5] * 8, [4]], ids=str)
@pytest.mark.parametrize("settings", [{}, dict(repetition_penalty=1.3), dict(min_new_tokens=4), dict(max_new_tokens=1),
                                      dict(max_new_tokens=70), dict(no_repeat_ngram_size=2)], ids=str)
def test_greedy_responses_are_the_plain_models(rows: list[int], settings: dict) -> None:
    settings = {"eos_token_id": ENDS, **settings}
    assert torch.equal(generate(SHARED, rows, **settings), generate(PLAIN, rows, **settings))


@pytest.mark.parametrize("settings", [dict(num_beams=2), dict(do_sample=True, num_return_sequences=2), dict(use_cache=False),
                                      dict(do_sample=True, cache_implementation="static", disable_compile=True)], ids=str)
def test_other_ways_to_generate_are_transformers_own(settings: dict) -> None:
    assert torch.equal(generate(SHARED, LENGTHS, **settings), generate(PLAIN, LENGTHS, **settings))


@pytest.mark.parametrize("settings", [dict(top_k=0), dict(top_k=5), dict(top_k=0, temperature=0.5, top_p=0.9)], ids=str)
def test_sampled_tokens_follow_from_the_plain_models_probabilities(settings: dict) -> None:
    made = generate(SHARED, LENGTHS, do_sample=True, eos_token_id=ENDS, **settings)
    inputs = prompts(LENGTHS)
    first, size = inputs["input_ids"].shape[1], len(LENGTHS)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(made[:, first:])], dim=1)
    logits = PLAIN(**{**inputs, "input_ids": made, "attention_mask": mask},
                   position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)).logits
    torch.manual_seed(3)
    checked, is_open = 0, [True] * size
    for place in range(first, made.shape[1]):
        numbers = torch.rand(size, 1, dtype=torch.float64)
        for row in range(size):
            if not is_open[row]:
                assert made[row, place] == 726
                continue
            scores = logits[row, place - 1].detach().float() / settings.get("temperature", 1)
            scores[SUPPRESSED] = float("-inf")
            if settings["top_k"]:
                scores[scores < scores.topk(settings["top_k"]).values[-1]] = float("-inf")
            if "top_p" in settings:
                chances, order = scores.softmax(-1).sort()
                scores[order[chances.cumsum(-1) <= 1 - settings["top_p"]]] = float("-inf")
            sums = scores.softmax(-1).double().cumsum(-1)
            token = int(made[row, place])
            assert sums[token] >= numbers[row] - 1e-6 and (sums[token - 1] if token else 0) <= numbers[row] + 1e-6
            is_open[row], checked = token not in ENDS, checked + 1
    assert checked > 3 * size


def test_sampled_frequencies_are_the_probabilities() -> None:
    scores = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]).log().expand(20_000, 5)
    torch.manual_seed(0)
    counts = torch.bincount(decoding._sample(scores, torch.arange(20_000), 20_000), minlength=5)
    assert counts[1] == counts[4] == 0
    assert counts[[0, 2, 3]].tolist() == pytest.approx([10_000, 6_000, 4_000], abs=300)  # four standard deviations


def test_a_number_next_to_one_draws_no_token_of_probability_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, **settings: torch.full(size, 1 - 2**-53, **settings))
    assert decoding._sample(torch.tensor([[0.1, 0.7, 0.2, 0.0]]).log(), torch.arange(1), 1).tolist() == [2]


def test_rows_that_have_ended_leave_and_change_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dict(do_sample=True, top_k=0, eos_token_id=ENDS, max_new_tokens=30)
    counts = count_rows(SHARED, monkeypatch)
    made = generate(SHARED, LENGTHS * 3, **settings)
    assert counts[0] > counts[-1] and counts == sorted(counts, reverse=True)
    monkeypatch.setattr(decoding._Rows, "leave", lambda rows, is_open: None)
    assert torch.equal(generate(SHARED, LENGTHS * 3, **settings), made)


def test_no_row_leaves_where_a_processor_may_know_rows_by_their_place(monkeypatch: pytest.MonkeyPatch
                                                                     ) -> None:
    counts = count_rows(SHARED, monkeypatch)
    generate(SHARED, LENGTHS, eos_token_id=ENDS, no_repeat_ngram_size=2, max_new_tokens=30)
    assert set(counts) == {len(LENGTHS)}


def test_a_prompt_is_prefilled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    hook = SHARED.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[:2].numel()))
    generate(SHARED, [0] * 6 + [1] * 6, max_new_tokens=3)
    hook.remove()
    assert seen == [2 * prompts([0, 1])["input_ids"].shape[1]]


def test_stopping_criteria_see_every_row_after_each_token() -> None:
    seen: list[torch.Size] = []

    class Watch(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.shape)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    made = generate(SHARED, LENGTHS, eos_token_id=ENDS, stopping_criteria=StoppingCriteriaList([Watch()]))
    first = prompts(LENGTHS)["input_ids"].shape[1]
    assert seen == [(len(LENGTHS), length) for length in range(first + 1, made.shape[1] + 1)]


def test_with_lora_it_decodes_what_the_adapted_model_says() -> None:
    plain, shared = pair(torch.float32)
    policies = []
    for policy in (plain, shared):
        torch.manual_seed(0)
        policies.append(get_peft_model(policy, LoraConfig(r=4, target_modules=loading.language_layers(policy),
                                                          init_lora_weights=False)))
    made = [generate(policy, LENGTHS) for policy in (*policies, plain)]
    assert torch.equal(made[0], made[1])


def test_heads_that_share_a_key_and_half_precision() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2)
    plain = LlamaForCausalLM(config).to(torch.bfloat16)
    shared = copy.deepcopy(plain)
    share_prefixes(shared)
    ids = torch.randint(6, 200, (3, 12)).repeat_interleave(2, dim=0)
    mask = torch.ones_like(ids)
    mask[:2, :3] = 0
    made = [policy.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=8, pad_token_id=0)
            for policy in (plain, shared)]
    assert made[0].shape == made[1].shape and (made[0] == made[1]).float().mean() > 0.9


def test_what_it_returns_can_be_trained_on() -> None:
    ids = generate(SHARED, [0, 0])
    SHARED(**{**prompts([0, 0]), "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits.sum().backward()


def test_generating_in_16_bits_is_a_16_bit_models_and_leaves_the_weights_as_they_were() -> None:
    exact, rounded = pair(torch.float32)[1], pair(torch.bfloat16)[1]
    before = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in exact.named_parameters()}
    generation.generate_in_16_bits(exact)
    assert torch.equal(generate(exact, LENGTHS), generate(rounded, LENGTHS))
    with pytest.raises(ValueError, match="max_new_tokens"):
        exact.generate(**prompts(LENGTHS, torch.float32), max_new_tokens=0)
    for name, weight in exact.named_parameters():
        address, value = before[name]
        assert weight.data_ptr() == address and torch.equal(weight, value)


def test_training_goes_on_between_generations_in_16_bits() -> None:
    policy = pair(torch.float32)[1]
    generation.generate_in_16_bits(policy)
    optimiser = torch.optim.SGD(policy.parameters(), lr=1e-2)
    for _ in range(2):
        before = policy.lm_head.weight.detach().clone()
        generate(policy, [0, 1])
        inputs = prompts([0, 1], torch.float32)
        policy(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimiser.step()
        assert policy.lm_head.weight.dtype == torch.float32 and not torch.equal(policy.lm_head.weight, before)
