"""Rollouts are reported as they end, each once, and nothing else changes."""
from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from scripted_judge import judge, num_checks
from scripted_server import ScriptedServer

from dyme_core import config
from dyme_core.data import datasets
from dyme_core.data.schema import item_of
from dyme_core.models import generation, loading, processors
from dyme_core.models.generation import Watcher, watching
from dyme_core.pipeline.trainers import supervise_online
from dyme_core.supervision.factory import Experts
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer

BASE = Path(__file__).resolve().parents[2] / "bases" / "svlm-s0"
RECORDS = datasets.mini_records("train", 8, seed=0)
TARGETS = {record.question: RuleRefiner().refine(item_of(record.row)) for record in RECORDS}
G, LENGTH = 4, 22


@pytest.fixture(scope="module")
def policy() -> tuple:
    torch.set_num_threads(1)
    return loading.load_policy(BASE)


def test_every_rollout_is_reported_once_when_it_ends_and_the_samples_are_the_same(policy) -> None:
    model, processor = policy
    inputs = generation.prompt_inputs(processor, [record for record in RECORDS[:2] for _ in range(G)])
    end, made, reports = processor.tokenizer.eos_token_id, [], []
    for is_watched in (False, True):
        torch.manual_seed(1)
        options = dict(do_sample=True, max_new_tokens=10, eos_token_id=end,
                       suppress_tokens=processors.suppressed_ids(model, processor))
        with watching(model, Watcher(reports.append, [end], 10)) if is_watched else nullcontext():
            made.append(model.generate(**inputs, **options))
    assert torch.equal(*made) and "generate" not in vars(model)
    sampled = made[0][:, inputs["input_ids"].shape[1]:].tolist()
    rollouts = {row: ids[: ids.index(end) + 1] if end in ids else ids for row, ids in enumerate(sampled)}
    assert any(end not in ids for ids in sampled), "one that the limit cut is reported with its last token"
    assert {row: ids for report in reports for row, ids in report.items()} == rollouts
    assert sum(map(len, reports)) == len(rollouts) and all(reports)
    assert [set(map(len, report.values())) for report in reports] == [{n} for n in sorted(set(map(len, rollouts.values())))]


def test_a_generate_of_the_models_own_is_put_back() -> None:
    model = torch.nn.Linear(1, 1)
    model.generate = own = lambda **settings: settings
    with pytest.raises(RuntimeError), watching(model, watcher := Watcher(print, [0], 1)):
        assert model.generate(a=1) == {"a": 1, "stopping_criteria": [watcher]}
        raise RuntimeError
    assert model.generate is own


class Watched(DyMETrainer):
    """Keeps what the checker and the refiner had under way when the last rollout had been written, what was decoded until
    then, and all rollouts."""

    def _generate_single_turn(self, *args):
        with pytest.MonkeyPatch.context() as patch:
            plain = self.processing_class.batch_decode
            patch.setattr(self.processing_class, "batch_decode", lambda ids, **options: (
                self.decoded.extend(ids), plain(ids, **options))[1])
            rollouts, log_probs = super()._generate_single_turn(*args)
        self.written += rollouts
        self.early.append(self.count())
        return rollouts, log_probs


def train(folder: Path, server: ScriptedServer, is_watched: bool) -> tuple[Watched, dict]:
    model, processor = loading.load_policy(BASE)
    settings = config.Supervision(backend="api", policy="raise", model="m", base_url=server.base_url)
    arguments = DyMEConfig(str(folder), per_device_train_batch_size=4 * G, num_generations=G, max_completion_length=LENGTH,
                           max_steps=2, learning_rate=1e-3, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
                           logging_steps=1, disable_tqdm=True, gradient_checkpointing=False, seed=0)
    with Experts(settings, config.Paths(folder, "smoke"), folder) as experts:
        online = supervise_online(experts, config.Training(num_generations=G))
        trainer = Watched(model, args=arguments, train_dataset=datasets.to_dataset(RECORDS), processing_class=processor,
                          **online | ({} if is_watched else {"watch": None}))
        trainer.decoded, trainer.written, trainer.early = [], [], []
        trainer.count = lambda: experts.checker.counts()["asked"] + experts.refiner.counts()["asked"]
        trainer.train()
        return trainer, {"checker": experts.checker.counts(), "refiner": experts.refiner.counts(),
                         "bank": experts.bank.state_dict()}


def test_judges_are_asked_while_rollouts_are_written_and_training_is_the_same(tmp_path: Path) -> None:
    made = []
    for is_watched in (False, True):
        with ScriptedServer(judge("high", lambda asked: TARGETS[asked["question"]])) as server:
            made.append((*train(tmp_path / str(is_watched), server, is_watched), num_checks(server), len(server.seen)))
    (plain, counts, *calls), (watched, same_counts, *same_calls) = made
    assert calls == same_calls and counts == same_counts and counts["checker"]["asked"] > 0 < counts["refiner"]["asked"]
    assert plain.decoded == [] and sorted(watched.decoded) == sorted(watched.written) != [], "each rollout is decoded once"
    assert plain.early[0] == 0 < watched.early[0], "asked before the last rollout was written"
    assert watched.early[-1] == sum(each["asked"] for each in (counts["checker"], counts["refiner"])), \
        "nothing is left to ask when it has been written, whether it ended or was cut"
    assert any(ids[-1] not in watched.eos_token_ids for ids in watched.written), "some were cut"
    for wanted, found in zip(plain.state.log_history, watched.state.log_history, strict=True):
        assert [found.get(name) for name in ("loss", "grad_norm", "memorize", "thinking")] == \
            [wanted.get(name) for name in ("loss", "grad_norm", "memorize", "thinking")]
    assert all(map(torch.equal, plain.model.parameters(), watched.model.parameters()))
