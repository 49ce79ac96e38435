"""Trainers side by side in one process, one optimisation step at a time in turns: what a step costs, and where the time goes.

Every arm trains through its own `Trainer.train()`, in a thread that waits for its turn; at a learning rate of 0 and with
the same seed before each turn all arms of a shape write rollouts of the same distribution, so only the work differs: of the
same lengths where these are fixed or scripted, else token by token the same with the engine or all without (its decoding loop
draws other random numbers). Rewards are scripted: they fix how many groups are all wrong; in the others every second rollout
is right.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from transformers import PrinterCallback, StoppingCriteria, StoppingCriteriaList, Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from dyme_core import config
from dyme_core.data.chart_images import NUM_TILES
from dyme_core.data.datasets import mini_records, to_dataset
from dyme_core.models import loading, processors, tiny_onevision
from dyme_core.models.engine import with_engine
from dyme_core.models.vision_cache import cache_vision_features
from dyme_core.pipeline import methods, trainers
from dyme_core.supervision.factory import Experts
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ("pictures", "prompts")
SAVINGS = (*ENGINE, "rows")
SIZES = {  # of text models with fresh weights, beside tiny_onevision's; in millions of the whole model's weights: 10, 30, 135
    "10m": dict(hidden_size=320, intermediate_size=960, num_hidden_layers=6, num_attention_heads=5),
    "30m": dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8),
    "135m": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=14, num_attention_heads=12)}
NATURAL_TOKENS = config.Training().max_completion_tokens  # the mini profile's
PHASES = ("generate", "score", "refine", "prepare", "update")


@dataclass(frozen=True)
class Shape:
    """The work of every arm of a comparison.

    Attributes:
        model: "svlm", "large" or one of SIZES.
        side: patches a side of a view; a picture (whole, two tiles, newlines) then has 3 * side^2 + side tokens.
        generations: G; `prompts` a step.
        all_wrong: share of a step's groups in which no rollout is right.
        tokens: length of every rollout, by a model with fresh weights; None: the base's own rollouts.
        shortest: of a group's rollouts, whose lengths then lie evenly up to `tokens`; None: all have `tokens`.
    """

    model: str = "svlm"
    side: int = 4
    generations: int = 8
    prompts: int = 4
    all_wrong: float = 0.5
    tokens: int | None = None
    shortest: int | None = None

    @property
    def image_tokens(self) -> int:
        return (1 + NUM_TILES) * self.side**2 + self.side

    @property
    def lengths(self) -> list[int]:
        """Tokens of a group's rollouts, end token included; of fixed or scripted length alone."""
        least = self.shortest or self.tokens
        return [round(least + (self.tokens - least) * place / (self.generations - 1)) for place in range(self.generations)]


@dataclass(frozen=True)
class Arm:
    """A trainer: TRL's own GRPO (`is_dyme` false) or DyME, with some of SAVINGS; "rows" is DyME's `drop_idle_rows`."""

    name: str
    is_dyme: bool
    savings: tuple[str, ...] = ()


STOCK, WITH_ENGINE = Arm("TRL GRPO", False), Arm("TRL GRPO + engine", False, ENGINE)
NO_ENGINE, FULL = Arm("DyME, no engine", True, ("rows",)), Arm("DyME", True, SAVINGS)
RACE = (STOCK, WITH_ENGINE, NO_ENGINE, FULL)
PICTURES, KEPT = Arm("TRL GRPO + pictures once", False, ("pictures",)), Arm("DyME, idle rows kept", True, ENGINE)
CHAIN = (STOCK, PICTURES, WITH_ENGINE, KEPT, FULL, NO_ENGINE)  # from stock TRL to DyME, a saving at a time; then beside it


class ScriptedEnd(StoppingCriteria):
    """Ends row i of a batch after lengths[i] tokens by writing the end token in the place of what was sampled.

    A stopping criterion sees every row at its place in the batch in any decoding loop, whichever rows have ended.
    """

    def __init__(self, lengths: Sequence[int], prompt_width: int, end_id: int) -> None:
        self.widths, self.end_id = torch.tensor(lengths) + prompt_width, end_id

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        ends = self.widths == input_ids.shape[1]
        input_ids[ends, -1] = self.end_id
        return ends


def script_ends(model: torch.nn.Module, shape: Shape, end_id: int) -> None:
    """Let `model.generate` write rollouts of the shape's lengths."""
    plain = model.generate

    def generate(**inputs: Any) -> Any:
        lengths = shape.lengths * (len(inputs["input_ids"]) // shape.generations)
        return plain(**inputs, stopping_criteria=StoppingCriteriaList(
            [ScriptedEnd(lengths, inputs["input_ids"].shape[1], end_id)]))

    model.generate = generate


class Turn(TrainerCallback):
    """Lets a training thread go on by one step at a time."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._failure: BaseException | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._go.acquire()

    def on_step_end(self, args, state, control, **kwargs):
        self._done.release()
        self._go.acquire()

    def run(self, work: Callable[[], Any]) -> None:
        """The thread's function."""
        try:
            work()
        except BaseException as failure:
            self._failure = failure
        finally:
            self._done.release()

    def take(self) -> None:
        """One turn; raises what the training raised."""
        self._go.release()
        self._done.acquire()
        if self._failure:
            raise self._failure


class Clock:
    """Seconds of a trainer's phases within a turn, by wrapping its methods; the same for every arm."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.spent: dict[str, float] = {}
        self.lengths: list[int] = []  # of the rollouts
        self.rows = 0
        for method, phase in (("_generate", "generate"), ("_calculate_rewards", "score"), ("refine", "refine"),
                              ("_generate_and_score_completions", "before")):
            if hasattr(trainer, method):
                setattr(trainer, method, self._timed(getattr(trainer, method), phase))
        forward = trainer._compute_loss

        def counted(model, inputs):
            self.rows += len(inputs["completion_ids"])
            return forward(model, inputs)

        trainer._compute_loss = counted

    def _timed(self, method: Callable, phase: str) -> Callable:
        def timed(*args, **kwargs):
            if phase == "score":
                self.lengths += map(len, args[3])
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.spent[phase] = self.spent.get(phase, 0.0) + time.perf_counter() - start
        return timed

    def take(self, seconds: float) -> dict[str, float]:
        """The phases of a turn that took so many seconds, and its token counts; starts anew."""
        spent, before = self.spent, self.spent.get("before", 0.0)
        inner = {phase: spent.get(phase, 0.0) for phase in ("generate", "score", "refine")}
        row = {**inner, "prepare": before - sum(inner.values()), "update": seconds - before, "rows": self.rows,
               "generated": sum(self.lengths), "tokens_a_rollout": median(self.lengths or [0])}
        self.spent, self.lengths, self.rows = {}, [], 0
        return row


def policy(shape: Shape, savings: Sequence[str]) -> tuple[torch.nn.Module, Any]:
    """The model of a shape with some savings: the committed base, or one with fresh weights."""
    if shape.tokens is None:
        model, processor = loading.load_policy(ROOT / "bases" / f"{shape.model}-s0", engine=False)
    else:
        pixels = shape.side * tiny_onevision.PATCH
        processor = tiny_onevision.build_processor(pixels)
        tiny_onevision.SIZES.update(SIZES)
        model = tiny_onevision.build_model(shape.model, processor, 0, pixels)
        loading.freeze_vision(model)
    if set(ENGINE) <= set(savings):
        with_engine(model, processor)
    elif "pictures" in savings:
        cache_vision_features(model, processor)
    if shape.shortest:
        script_ends(model, shape, processor.tokenizer.eos_token_id)
    return model, processor


def build(arm: Arm, shape: Shape, steps: int, reward_funcs: Sequence[Callable] | None = None, refiner: Any = None,
          questions: int = 64, learning_rate: float = 0.0, **supervision: Any) -> Trainer:
    """An arm's trainer; rewards and targets are scripted where none are given. `supervision`: more of `Experts.online`."""
    model, processor = policy(shape, arm.savings)
    profile = config.load_profile("mini", **{"training.num_generations": shape.generations,
                                             "training.prompts_per_step": shape.prompts,
                                             "training.max_completion_tokens": shape.tokens or NATURAL_TOKENS})
    run = methods.Run(profile, "pure_dyme")
    never_ends = processors.end_ids(model, processor) if shape.tokens else []
    settings = {**trainers.grpo_arguments(run),
                "generation_kwargs": {"suppress_tokens": [*processors.suppressed_ids(model, processor), *never_ends]}}
    arguments = {**trainers.shared_arguments(run, steps, learning_rate, ROOT / "runs" / "bench"), **settings,
                 "save_strategy": "no"}
    records = mini_records("train", questions, 0)
    shared = dict(train_dataset=to_dataset(records), processing_class=processor,
                  reward_funcs=list(reward_funcs or scripted_rewards(shape)))
    if not arm.is_dyme:
        trainer = GRPOTrainer(model, args=GRPOConfig(**arguments), **shared)
    else:
        trainer = DyMETrainer(model, args=DyMEConfig(**arguments, drop_idle_rows="rows" in arm.savings,
                                                     memorize_weight="group"),
                              refiner=refiner or scripted_refine(shape, records), **supervision, **shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


def scripted_rewards(shape: Shape) -> list[Callable]:
    """[format, accuracy, thinking] that depend on a rollout's place alone."""
    num_wrong = round(shape.all_wrong * shape.prompts)

    def accuracy(completions, **columns):
        return [float(place // shape.generations >= num_wrong and place % 2) for place in range(len(completions))]

    def format_(completions, **columns):
        return [1.0] * len(completions)

    def thinking(completions, **columns):
        return [0.0] * len(completions)

    format_.role, thinking.role = "format", "thinking"
    return [format_, accuracy, thinking]


def scripted_refine(shape: Shape, records: Sequence) -> Callable:
    """Targets: the rule refiner's, or with fixed lengths as many words as a rollout has tokens on average, the end token among
    them."""
    if shape.tokens:
        return lambda rows: [" ".join(["value"] * (round(mean(shape.lengths)) - 1))] * len(rows)
    return Experts(config.Supervision(), config.Paths(ROOT, "mini"), ROOT / "runs" / "bench").offline(records)


@contextmanager
def training(trainers: Sequence[Trainer]) -> Iterator[list[Turn]]:
    """Start the trainers, each waiting for its turns; leaving the block lets them end."""
    turns, threads = [], []
    for trainer in trainers:
        turn = Turn()
        trainer.add_callback(turn)
        thread = threading.Thread(target=turn.run, args=(trainer.train,), daemon=True)
        thread.start()
        turns.append(turn)
        threads.append(thread)
    yield turns
    for turn, thread in zip(turns, threads, strict=True):
        turn.take()
        thread.join()


def race(arms: Sequence[Arm], shape: Shape, steps: int, warm_up: int = 2,
         build_arm: Callable[[Arm, Shape, int], Trainer] = build) -> list[dict[str, Any]]:
    """Interleaved steps of every arm, each round in another order.

    Returns:
        One row per arm and step after the warm-up: arm, step, seconds and cpu_s (of the whole process, while the other arms
        wait), PHASES in seconds, rows of the update, tokens generated, and the median of a rollout's.
    """
    trainers = [build_arm(arm, shape, steps + warm_up) for arm in arms]
    clocks, rows = [Clock(trainer) for trainer in trainers], []
    with training(trainers) as turns:
        for step in range(steps + warm_up):
            for place in range(len(arms)):
                place = (place + step) % len(arms)
                torch.manual_seed(step)
                start, cpu_start = time.perf_counter(), time.process_time()
                turns[place].take()
                seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
                row = clocks[place].take(seconds)
                if step >= warm_up:
                    rows.append({"arm": arms[place].name, "step": step - warm_up, "seconds": seconds, "cpu_s": cpu_s, **row})
    return rows
