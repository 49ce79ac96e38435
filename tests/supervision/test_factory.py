"""Runs supervised by a (scripted) language model: real training steps, a server that dies under them, replay, the bank."""
from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scripted_judge import client_of, is_check, judge, num_checks, num_drafts, rule_draft
from scripted_server import ScriptedServer
from transformers import TrainerCallback

from dyme_core import config
from dyme_core.data import datasets
from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import item_of
from dyme_core.models import loading, tiny_onevision
from dyme_core.pipeline import train
from dyme_core.pipeline.checkpointing import Keeper, train_from
from dyme_core.pipeline.trainers import supervise_online
from dyme_core.supervision import factory
from dyme_core.supervision.corruption import GradedRefiner
from dyme_core.supervision.factory import Experts
from dyme_core.supervision.llm.judge import LLMChecker
from dyme_core.supervision.llm.parsing import SupervisionError
from dyme_core.supervision.llm.refiner import LLMRefiner
from dyme_core.supervision.refiner import DEFAULT_TEMPLATES, LearningChecker, RuleRefiner, TemplateBank, target_writer
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.rewards import dyme_rewards
from dyme_core.utils import read_rows

SECRET = "sk-planted-0123456789abcdef"
G = 4
PROCESSOR = tiny_onevision.build_processor(96, 24)
RECORDS = datasets.mini_records("train", 6, seed=0)
TARGETS = {record.item: RuleRefiner().refine(item_of(record.row)) for record in RECORDS}
WRONG = "We look at the chart.\n<answer>no idea</answer>"
OWN = "So look: {facts}. Then {working}, {conclusion}."


class Scripted(DyMETrainer):
    """Each step samples one all-wrong and one mixed group; the mixed one's thinking is right in every rollout."""

    def _generate_and_score_completions(self, inputs):
        self._rows = inputs
        batch = super()._generate_and_score_completions(inputs)
        self.seen = [*getattr(self, "seen", []), batch["advantages"].tolist()]
        return batch

    def _generate_single_turn(self, prompt_ids, *args):
        texts = []
        for place, row in enumerate(self._rows):
            group, rollout = divmod(place, G)
            thinking = f"{'Well, ' * rollout}{TARGETS[row['item']]}"
            texts.append(WRONG if group == 0 else write_response(thinking, row["answer"] if rollout < 2 else "no idea"))
        return [[*PROCESSOR.tokenizer(text, add_special_tokens=False)["input_ids"], PROCESSOR.tokenizer.eos_token_id]
                for text in texts], None


class After(TrainerCallback):
    """Calls `act` at the end of a step."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.act()


def trainer_of(folder: Path, client, policy: str = "rule", callbacks=(), bank: TemplateBank | None = None,
               **changes) -> Scripted:
    bank = bank or TemplateBank()
    checker, refiner = LLMChecker(client, policy), LLMRefiner(client, bank, policy)
    settings = dict(per_device_train_batch_size=2 * G, num_generations=G, max_completion_length=64, max_steps=3,
                    learning_rate=1e-3, use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1,
                    shuffle_dataset=False, disable_tqdm=True, gradient_checkpointing=False, seed=0, drop_idle_rows=False)
    model = tiny_onevision.build_model("svlm", PROCESSOR, 0, 96, 24)
    loading.freeze_vision(model)
    trainer = Scripted(model, args=DyMEConfig(str(folder), **settings | changes), train_dataset=datasets.to_dataset(RECORDS),
                       processing_class=PROCESSOR, callbacks=list(callbacks),
                       reward_funcs=dyme_rewards(LearningChecker(checker, bank), group_size=G,
                                                     on_all_wrong=refiner.prefetch),
                       refiner=refiner)
    trainer.experts = checker, refiner
    return trainer


def draft_of(asked: dict) -> str:
    return next(TARGETS[record.item] for record in RECORDS
                if record.question == asked["question"] and record.answer == asked["answer"])


def grade_of(asked: dict) -> str:
    return "medium" if asked["thinking"].startswith("Well, Well, Well") else "high"


def logged(trainer: Scripted) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "memorize" in entry]


def test_training_asks_for_the_mixed_group_and_the_failed_prompt_and_learns_from_the_replies(tmp_path: Path) -> None:
    with ScriptedServer(judge(grade_of, draft_of)) as server, client_of(server) as client:
        trainer = trainer_of(tmp_path, client)
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
    assert (num_checks(server), num_drafts(server)) == (3 * G, 3), "three steps, one group each of both kinds"
    changed = {name for name, parameter in trainer.model.named_parameters() if not parameter.equal(before[name])}
    assert changed == {name for name in before if "vision_tower" not in name}
    for advantages in trainer.seen:
        assert advantages[:G] == [1, 0, 0, 0]
        first, second, third, fourth = advantages[G:]
        assert first == second > 0 > third > fourth, "the fourth rollout's thinking is rated lower than the third's"
    assert all((entry["memorize"], entry["explore"], entry["without_target"]) == (1, 1, 0) for entry in logged(trainer))
    assert logged(trainer)[0]["thinking"] == pytest.approx(3.5 / 4), "the mean of the scores that are known"


@pytest.mark.promise("judge", "training goes on when the judge's server is killed; what was lost is counted")
@pytest.mark.parametrize("policy", ["rule", "skip"])
def test_training_goes_on_when_the_server_is_killed(tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(judge(grade_of, draft_of)) as server, client_of(server, breaker_failures=2) as client:
        trainer = trainer_of(tmp_path, client, policy, [After(1, server.stop)])
        trainer.train()
        failures = client.counts()["failures"]
    assert trainer.state.global_step == 3 and failures == 2 * (G + 1)
    checker, refiner = (expert.counts() for expert in trainer.experts)
    lost = "fell_back" if policy == "rule" else "skipped"
    assert (checker[lost], refiner[lost]) == (2 * G, 2)
    late = trainer.seen[2]
    assert late[G] == late[G + 1] > 0 > late[G + 2] == late[G + 3], "no thinking score, or the same for all: accuracy decides"
    assert late[:G] == ([1, 0, 0, 0] if policy == "rule" else [0] * G)
    assert logged(trainer)[2]["without_target"] == (policy == "skip")
    said = [record.message for record in caplog.records if record.name == "dyme_core.supervision.llm.judge"]
    assert 1 <= len(said) <= 4 and any("lost the connection" in line for line in said)


@pytest.mark.promise("judge", "under policy 'raise' training stops with the cause")
def test_training_stops_with_the_cause_when_the_policy_is_to_raise(tmp_path: Path) -> None:
    with ScriptedServer(judge(grade_of, draft_of)) as server, client_of(server) as client:
        trainer = trainer_of(tmp_path, client, "raise", [After(1, server.stop)])
        with pytest.raises(SupervisionError, match="check of item 'train-0-.*' by 'm'.*lost the connection.*OPENAI_BASE_URL"):
            trainer.train()
    assert trainer.state.global_step == 1


def test_a_server_that_comes_back_costs_nothing_but_time(tmp_path: Path) -> None:
    with ScriptedServer(judge(grade_of, draft_of)) as server, client_of(server, max_tries=8) as client:
        trainer = trainer_of(tmp_path, client, "raise", [After(1, lambda: (server.stop(), server.start()))])
        trainer.train()
    assert trainer.state.global_step == 3 and num_drafts(server) == 3


def test_a_resumed_run_has_the_bank_of_the_one_not_interrupted(tmp_path: Path) -> None:
    bank, changes = TemplateBank(), {"save_strategy": "steps", "save_steps": 1}
    bank.counts |= {OWN: 10, DEFAULT_TEMPLATES[1].text: 1}
    with ScriptedServer(judge(grade_of, draft_of)) as server, client_of(server) as client:
        train_from(trainer_of(tmp_path, client, bank=bank, max_steps=1, **changes), None, Keeper("", bank=bank))
        keeper = Keeper("", bank=(restored := TemplateBank()))
        train_from(trainer_of(tmp_path, client, bank=restored, max_steps=2, **changes), keeper.latest(tmp_path), keeper)
        drafts = [seen.body for seen in server.seen if not is_check(json.loads(seen.body["messages"][-1]["content"]))]
    assert restored.best().text == OWN and restored.counts.items() >= {(OWN, 10), (DEFAULT_TEMPLATES[1].text, 1)}
    assert sum(restored.counts.values()) > sum(bank.counts.values()), "and goes on learning"
    assert OWN in drafts[-1]["messages"][-1]["content"]


def test_a_response_too_long_for_the_policy_is_objected_to() -> None:
    target = write_response(TARGETS[RECORDS[0].item], RECORDS[0].answer)
    num_tokens = len(PROCESSOR.tokenizer(target, add_special_tokens=False)["input_ids"]) + 1
    assert factory.too_long(PROCESSOR.tokenizer, num_tokens)(target) is None
    assert f"takes {num_tokens} tokens" in factory.too_long(PROCESSOR.tokenizer, num_tokens - 1)(target)


@pytest.mark.parametrize(("change", "said"), [
    ({"supervision.backend": "llm"}, "supervision.backend must be 'rule', 'api' or 'replay': got 'llm'"),
    ({"supervision.policy": "zero"}, "supervision.policy must be 'rule', 'raise' or 'skip': got 'zero'"),
    ({"supervision.key": "x"}, "unknown setting 'supervision.key'; known: model, base_url"),
])
def test_an_unknown_supervision_setting_is_an_error(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.load_profile("smoke", **change)


# --- Whole runs: base to manifest -----------------------------------------------------------------------------------------

SMALL = {"world.train_questions": 24, "world.validation_questions": 4, "world.test_questions": 4, "training.steps": 2,
         "training.evaluate_every": 2, "training.prompts_per_step": 2, "training.num_generations": 4, "world.traces": "refined"}


@pytest.fixture
def root(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same with a key in the environment, which must appear nowhere."""
    for name, value in {"OPENAI_API_KEY": SECRET, "OPENAI_MODEL": "m"}.items():
        monkeypatch.setenv(name, value)
    yield root
    written = [path for folder in ("results", "runs") for path in (root / folder).rglob("*") if path.is_file()]
    assert len(written) > 5 and not [path for path in written if SECRET.encode() in path.read_bytes()]


def run_of(method: str, **changes) -> train.Run:
    return train.Run(config.load_profile("smoke", **SMALL | changes), method)


def steps_of(root: Path, run: train.Run) -> list[dict]:
    rows = read_rows(root / "results" / "local" / "smoke" / "logs" / f"{run.name}.jsonl.xz")
    return [row for row in rows if row["event"] == "step"]


def test_full_dyme_by_api_counts_its_calls_and_replays_without_a_server(root: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    records = datasets.mini_records("train", 24, 0)
    with ScriptedServer(judge("high", rule_draft(records))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        run = run_of("full_dyme", **{"supervision.backend": "api"})
        manifest = train.execute(run, ("validation",))
        steps, num_calls = steps_of(root, run), len(server.seen)
        told = manifest["supervision"]
        assert num_calls >= sum(row["memorize"] for row in steps) > 0
        assert sum(row["supervision_calls"] for row in steps) == num_calls == told["client"]["calls"]
        assert sum(row["supervision_hits"] + row["supervision_failures"] for row in steps) == 0
        assert all(row["supervision_waited_s"] > 0 for row in steps if row["supervision_calls"])
        assert (told["backend"], told["policy"], told["model"]) == ("api", "rule", "m") and "bank" in told
        assert told["refiner"]["drafts"] == sum(row["memorize"] for row in steps)
        assert any(f"{steps[0]['supervision_calls']:.0f} calls, 0 hits, 0 failed" in line for line in caplog.messages)
        assert json.loads((root / "runs" / "smoke" / run.name / "bank.json").read_text()) == told["bank"]
        policy = (root / "runs" / "smoke" / run.name / "policy" / "model.safetensors").read_bytes()
        again = train.execute(run, ("validation",))["supervision"]["client"]
        assert (again["calls"], again["hits"], len(server.seen)) == (0, num_calls, num_calls)
    ledger = (root / "runs" / "smoke" / run.name / "ledger.jsonl").read_text().splitlines()
    assert len(ledger) == num_calls and all(json.loads(line)["hit"] for line in ledger), "of the run that was made last"
    monkeypatch.delenv("OPENAI_BASE_URL")
    replay = run_of("full_dyme", **{"supervision.backend": "replay", "supervision.policy": "raise"})
    assert train.execute(replay, ("validation",))["supervision"]["client"]["hits"] == num_calls
    assert (root / "runs" / "smoke" / run.name / "policy" / "model.safetensors").read_bytes() == policy


def test_pure_dyme_and_sft_ask_for_every_target_once_before_training(root: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(factory, "CHUNK", 10)
    own = rule_draft(datasets.mini_records("train", 24, 0))
    with ScriptedServer(judge("low", lambda asked: f"Well. {own(asked)}")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        run = run_of("pure_dyme", **{"supervision.backend": "api"})
        told = train.execute(run, ("validation",))["supervision"]
        assert num_checks(server) == 0 and told["refiner"]["drafts"] == told["client"]["calls"] == 24
        assert sum(row["supervision_calls"] for row in steps_of(root, run)) == 0, "all were asked before the first step"
        assert [line for line in caplog.messages if line.startswith("targets: 24 of 24, 0 without one, 4 calls")]
        sft = train.execute(run_of("sft", **{"supervision.backend": "api"}), ("validation",))["supervision"]["client"]
        assert (sft["calls"], sft["hits"]) == (0, 24), "SFT learns from the same targets"


def test_methods_without_experts_need_no_server(root: Path) -> None:
    manifest = train.execute(run_of("grpo", **{"supervision.backend": "api"}), ("validation",))
    assert manifest["supervision"]["backend"] == "rule"


def test_an_api_without_an_address_says_what_to_set(root: Path, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    train.execute(run_of("base"), ("validation",))
    with pytest.raises(ValueError, match="set OPENAI_BASE_URL"):
        train.execute(run_of("full_dyme", **{"supervision.backend": "api"}))


def test_experts_of_rules_score_every_thinking_and_ask_nobody(tmp_path: Path) -> None:
    with Experts(config.Supervision(), config.Paths(tmp_path, "smoke"), tmp_path) as by_rule:
        online = supervise_online(by_rule, config.Training())
        functions, refine = online["reward_funcs"], target_writer(online["refiner"])
        assert online["watch"] is None
        row = RECORDS[0].row
        text = write_response(TARGETS[RECORDS[0].item], "no idea")
        assert functions[2]([text] * 8, **{name: [value] * 8 for name, value in row.items()}) == [1.0] * 8
        assert refine([row]) == [write_response(TARGETS[RECORDS[0].item], row["answer"])]
        assert by_rule.take_counts() == {} and by_rule.summary() == {
            "backend": "rule", "quality": "high", "corruption": 0.0, "bank": by_rule.bank.state_dict()}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quality", ["medium", "low"])
def test_experts_of_rules_write_targets_of_the_quality_before_and_during_training(tmp_path: Path, quality: str) -> None:
    with Experts(config.Supervision(quality=quality, corruption=0.5), config.Paths(tmp_path, "smoke"), tmp_path) as by_rule:
        records = by_rule.with_corruption(RECORDS)
        assert 0 < sum(one.supervision != other.supervision for one, other in zip(records, RECORDS, strict=True)) < len(RECORDS)
        rows = [record.row for record in records]
        wanted = target_writer(GradedRefiner(quality))(rows)
        assert wanted != target_writer(RuleRefiner())([record.row for record in RECORDS])
        online = target_writer(supervise_online(by_rule, config.Training())["refiner"])
        assert by_rule.offline(records)(rows) == online(rows) == wanted
        told = by_rule.summary()
        assert (told["quality"], told["corruption"]) == (quality, 0.5)


def test_experts_behind_an_api_ask_for_the_targets_of_failed_prompts_while_rewards_are_computed(tmp_path: Path) -> None:
    with ScriptedServer(judge("high", draft_of)) as server:
        settings = config.Supervision(backend="api", model="m", base_url=server.base_url)
        with Experts(settings, config.Paths(tmp_path, "smoke"), tmp_path) as by_api:
            online = supervise_online(by_api, config.Training(num_generations=2))
            functions, refine = online["reward_funcs"], target_writer(online["refiner"])
            rows = [record.row for record in RECORDS[:2]]
            texts = [WRONG, WRONG, write_response(TARGETS[rows[1]["item"]], rows[1]["answer"]), WRONG]
            scores = functions[2](texts, **{name: [rows[0][name]] * 2 + [rows[1][name]] * 2 for name in rows[0]})
            assert all(map(math.isnan, scores[:2])) and scores[2:] == [1.0, 0.0]
            assert refine(rows[:1]) == [write_response(TARGETS[rows[0]["item"]], rows[0]["answer"])]
            assert (num_checks(server), num_drafts(server), by_api.refiner.counts()["asked"]) == (1, 1, 1)
            assert by_api.take_counts()["supervision_calls"] == 2


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)
