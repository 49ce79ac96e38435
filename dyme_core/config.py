"""Settings: frozen dataclasses, the profiles, and where everything lives. An unknown key is an error.

Numbers marked "public code, chart" are the settings of the paper's public chart run (docs/method.md); the others are ours and
say why.
"""
from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyme_core.engine import HELD_OUT, DataSource, Engine
from dyme_core.settings import check

METHODS = ("base", "sft", "grpo", "sft_grpo", "pure_dyme", "full_dyme")
METHOD_NAMES = {"base": "Base", "sft": "CoT-SFT", "grpo": "GRPO", "sft_grpo": "SFT then GRPO",
                "pure_dyme": "Pure DyME", "full_dyme": "Full DyME"}
PUBLISH = "DYME_PUBLISH"  # environment variable, see `paths`
DEFAULT = "mini"  # the profile whose figures and claims are the repository's
SPLITS = ("train", *HELD_OUT)
SUPERVISORS = ("rule", "api", "replay")
COLLAPSE_ACTIONS = ("warn", "stop")
POLICIES = ("rule", "raise", "skip")  # what a call without a usable reply comes to (judge.py)
QUALITIES = ("high", "medium", "low")  # of targets
ENDPOINT_SETTINGS = ("model", "base_url", "known_as", "max_concurrency", "requests_per_minute", "total_timeout_s", "max_tries",
                     "breaker_failures", "breaker_cooldown_s")
PRICES_DATE = "2026-03"  # list prices of the standard tier as quoted then; check the provider's page before citing a cost
PRICES_USD_PER_MILLION = {  # model: (input tokens, output tokens); a model that is not here has no known cost
    "gpt-4o": (2.50, 10.00), "gpt-4o-mini": (0.15, 0.60), "gpt-4.1": (2.00, 8.00), "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4.1-nano": (0.10, 0.40), "gpt-5": (1.25, 10.00), "gpt-5-mini": (0.25, 2.00), "gpt-5-nano": (0.05, 0.40)}


@dataclass(frozen=True)
class World:
    """The mini chart world: how many tables and questions each split draws."""

    train_questions: int = 2048
    validation_questions: int = 200
    test_questions: int = 400  # each of the two test sets (in-style, unseen style)
    real_share: float = 0.5  # share of tables drawn from real public statistics
    train_real_share: float | None = None  # of the training split alone; None: real_share
    left_out_kinds: tuple[str, ...] = ()  # kinds of questions that the training split does not ask

    def __post_init__(self) -> None:
        check(self, "world", **dict.fromkeys(("train_questions", "validation_questions", "test_questions"), (1, None)),
              **dict.fromkeys(("real_share", "train_real_share"), (0, 1)))


@dataclass(frozen=True)
class Base:
    """How the base VLM is pre-trained from nothing (vision tower on column reading, then language)."""

    vision_steps: int = 1500
    vision_batch_size: int = 32
    vision_learning_rate: float = 2e-3
    align_steps: int = 200
    language_steps: int = 1100
    early_steps: int = 300  # captions alone: they teach where to look
    batch_size: int = 24
    turns: int = 3  # questions about one picture in one row
    sums: int = 8  # rows without a picture in each step, of eight sums each
    learning_rate: float = 6e-3

    def __post_init__(self) -> None:
        lowest = {"batch_size": 1, "vision_batch_size": 1, "turns": 1, "learning_rate": 1e-12, "vision_learning_rate": 1e-12}
        check(self, "base", **{one.name: (lowest.get(one.name, 0), None) for one in dataclasses.fields(self)})


@dataclass(frozen=True)
class LargeBase(Base):
    """The larger sibling sees fewer conversations (a step costs six times the SVLM's) at half the learning rate."""

    language_steps: int = 500
    early_steps: int = 140
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Training:
    """One post-training run; every method shares every number here (learning rates: Profile)."""

    steps: int = 240
    prompts_per_step: int = 4  # public code, chart: 32 prompts a step on 8 cards
    num_generations: int = 8  # G; public code, chart
    sft_share: float = 0.5  # of the steps, the first phase of "SFT then GRPO"
    max_completion_tokens: int = 56  # the longest target has 50; public code, chart: 300 of a large tokenizer
    switch: str = "binary"  # one of switches.SWITCHES; "binary" is the paper's
    switch_value: float | None = None  # the switch's own number; None: its default
    thinking_weight: float = 1.0  # of the checker's score in DyME's reward; 0 is the ablation without checker
    memorize_weight: str = "group"  # "row" is the public code's; "group" makes one prompt count as one SFT example
    mastered: str = "skip"
    reward_gate: str = "sum"  # public code: trains on the ungated sum
    correct_needs_format: bool = True  # public code: false; see docs/method.md
    evaluate_every: int = 40
    probe_every: int = 40  # steps between measurements of the gradients of targets and rollouts (mechanism)

    def __post_init__(self) -> None:
        check(self, "training", **dict.fromkeys(("steps", "prompts_per_step", "max_completion_tokens", "evaluate_every"),
                                                (1, None)), num_generations=(2, None), sft_share=(0, 1),
              thinking_weight=(0, None), probe_every=(0, None), memorize_weight=("row", "group"),
              mastered=("skip", "explore"), reward_gate=("sum", "gated"))


@dataclass(frozen=True)
class Supervision:
    """Who checks and refines. The API key is read from $OPENAI_API_KEY and stands in no setting.

    Attributes:
        backend: "rule"; "api", an OpenAI-compatible server; or "replay", a recording of one, without any network.
        policy: where a call fails, "rule" lets the rules take over, "raise" stops, "skip" goes on without a score or target.
        recording: file of replies, relative to the repository; "" is supervision.sqlite in the profile's `runs` folder.
        model, base_url, known_as: as in endpoint.Endpoint; None reads $OPENAI_MODEL and $OPENAI_BASE_URL.
        parameters: sent with each request.
        quality: of the targets: "high" is the refiner's; "medium" and "low" are `corruption`'s (back end "rule" alone).
        corruption: share of training questions whose facts are wrong, for checker and refiner alike ("rule" alone).
    """

    backend: str = "rule"  # the paper's: Qwen2.5-7B, Qwen2.5-14B or GPT-4o behind an API
    policy: str = "rule"
    recording: str = ""
    model: str | None = None
    base_url: str | None = None
    known_as: str | None = None
    max_concurrency: int = 8
    requests_per_minute: float | None = None
    total_timeout_s: float = 60.0
    max_tries: int = 4
    breaker_failures: int = 5
    breaker_cooldown_s: float = 30.0
    parameters: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 400})
    quality: str = "high"
    corruption: float = 0.0

    def __post_init__(self) -> None:
        check(self, "supervision", backend=SUPERVISORS, policy=POLICIES, quality=QUALITIES, corruption=(0, 1),
              **dict.fromkeys(("max_concurrency", "max_tries", "breaker_failures"), (1, None)),
              **dict.fromkeys(("requests_per_minute", "total_timeout_s", "breaker_cooldown_s"),
                              (1e-3, None)))
        if self.backend != "rule" and (self.quality != "high" or self.corruption):
            raise ValueError(f"supervision.quality and supervision.corruption need backend 'rule': got {self.backend!r}")


@dataclass(frozen=True)
class Profile:
    """All settings of one way to run the artifact."""

    name: str
    world: World = field(default_factory=World)
    base: Base = field(default_factory=Base)
    large_base: LargeBase = field(default_factory=LargeBase)
    training: Training = field(default_factory=Training)
    supervision: Supervision = field(default_factory=Supervision)
    engine: Engine = field(default_factory=Engine)
    data: DataSource = field(default_factory=DataSource)
    learning_rates: dict[str, float] = field(default_factory=dict)  # by method; "sft_grpo" is its second phase's
    warmup_steps: dict[str, int] = field(default_factory=dict)  # by method, as above
    model: str = "mini"  # "mini", a local folder or a hub id
    save_every: int = 50  # steps between checkpoints, from which an interrupted run goes on; 0: none
    on_collapse: str = "warn"  # or "stop", where rollouts or the loss say that training has collapsed (callbacks.py)
    backend: str = "transformers"  # or "unsloth", on a CUDA GPU
    seed: int = 0  # where none is given
    overrides: tuple[tuple[str, Any], ...] = ()  # what was changed against the profile of this name

    def __post_init__(self) -> None:
        check(self, "", learning_rates=(1e-12, 1), warmup_steps=(0, None), save_every=(0, None), seed=(0, None),
              on_collapse=COLLAPSE_ACTIONS, backend=("transformers", "unsloth"))
        if not self.model.strip():
            raise ValueError("model must be 'mini', a folder or a hub id: got ''; leave it out for 'mini'")


@dataclass(frozen=True)
class Paths:
    """Where one profile reads and writes; `root` is the repository.

    What is published is tracked by git and changes only by a maintainer's command (`make study`, `make publish`); everything
    else is written to results/local/, which git ignores.
    """

    root: Path
    profile: str
    is_published: bool = False

    @property
    def results(self) -> Path:
        return self.root / "results" / (self.profile if self.is_published else f"local/{self.profile}")

    @property
    def manifests(self) -> Path:
        return self.results / "runs"

    @property
    def rows(self) -> Path:
        return self.results / "rows"

    @property
    def logs(self) -> Path:
        return self.results / "logs"

    @property
    def tables(self) -> Path:
        return self.results / "tables"

    @property
    def figures(self) -> Path:
        """The default profile's published figures are the repository's, paper_figures/."""
        return self.root / "paper_figures" if self.is_published and self.profile == DEFAULT else self.results / "figures"

    @property
    def claims(self) -> Path:
        """CLAIMS.md; the default profile's published claims are the repository's."""
        return (self.results.parent if self.is_published and self.profile == DEFAULT else self.results) / "CLAIMS.md"

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def runs(self) -> Path:
        """Trained checkpoints: large, rebuilt by the notebooks, never in git."""
        return self.root / "runs" / (f"published/{self.profile}" if self.is_published else self.profile)


# Chosen on validation from one grid for all methods (plan: "tuning"). The public code has no warm-up; the fresh optimiser
# needs a few steps here.
_LEARNING_RATES = {"sft": 1e-3, "grpo": 1e-4, "sft_grpo": 1e-4, "pure_dyme": 1e-3, "full_dyme": 1e-3}
_WARMUP_STEPS = dict.fromkeys(_LEARNING_RATES, 10)
# What the two profiles of a real model share: the paper's model and data, and its experts, which no rule can stand in for
# (ChartQA says no steps to an answer).
_REAL = dict(model="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",  # paper: LLaVA-OV-0.5B is one of its three models
             data=DataSource("chartqa", "HuggingFaceM4/ChartQA", ("validation", "test"), facts="vlm"),  # paper: chart; that
             # copy has no tables, so that its facts are extracted, once a picture, as the paper does
             supervision=Supervision(backend="api"))
_CHARTQA_TRAINING = 28299  # questions of its training split (Masry et al. 2022: 7,398 human and 20,901 augmented)
PROFILES = {
    "gpu": Profile("gpu", learning_rates=dict.fromkeys(_LEARNING_RATES, 1e-5),  # public code: its GRPO's and SFT's; with
                   warmup_steps=_WARMUP_STEPS,  # memorize_weight "group" a target then weighs what 8e-5 gives it there
                   # ours: 4 rollouts at a time (11 GiB by `estimate`); G and tokens: public code, chart
                   training=Training(steps=480, prompts_per_step=4, max_completion_tokens=300, evaluate_every=80,
                                     probe_every=0),
                   world=World(train_questions=4096, validation_questions=200, test_questions=500),  # ours: half a day
                   engine=Engine(micro_batches=8, bf16=True, gradient_checkpointing=True,
                                 lora_rank=16, lora_alpha=16),  # Unsloth's recipe for vision models
                   backend="unsloth", **_REAL),
    "paper": Profile("paper", learning_rates={**dict.fromkeys(_LEARNING_RATES, 1e-5),  # public code: its GRPO's and SFT's
                                              "pure_dyme": 8e-5, "full_dyme": 8e-5},  # public code, chart
                     warmup_steps=dict.fromkeys(_LEARNING_RATES, 0),  # public code: none
                     training=Training(steps=10 * _CHARTQA_TRAINING // 32,  # public code, chart: 10 epochs
                                       prompts_per_step=32, num_generations=8, max_completion_tokens=300,  # public code, chart
                                       memorize_weight="row", mastered="skip", reward_gate="sum",  # public code
                                       correct_needs_format=False,  # public code
                                       evaluate_every=500, probe_every=0),  # ours
                     world=World(train_questions=_CHARTQA_TRAINING, validation_questions=200, test_questions=2500),  # all
                     engine=Engine(micro_batches=8, bf16=True, gradient_checkpointing=True),  # ours; every weight but the
                     seed=42, **_REAL),  # vision tower's (public code, chart), and its seed
    "mini": Profile("mini", learning_rates=_LEARNING_RATES, warmup_steps=_WARMUP_STEPS),
    "smoke": Profile("smoke", learning_rates=_LEARNING_RATES, warmup_steps=_WARMUP_STEPS,
                     world=World(train_questions=64, validation_questions=16, test_questions=16),
                     training=Training(steps=4, prompts_per_step=2, num_generations=4, evaluate_every=2)),
}


def default_settings() -> dict[str, Any]:
    """Every setting's default, in the form of a manifest's `settings`: what runs had that are older than the setting."""
    parts = {"world": World(), "supervision": Supervision(), "engine": Engine(), "data": DataSource()}
    return dataclasses.asdict(Training()) | {name: dataclasses.asdict(part) for name, part in parts.items()}


def load_profile(name: str, /, **overrides: Any) -> Profile:
    """The profile called `name`; `overrides` are its fields or those of its parts as "training.steps".

    Raises:
        ValueError: for an unknown profile or key, with the known ones.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r:.100}; known: {', '.join(PROFILES)}")
    profile = PROFILES[name]
    for key, value in overrides.items():
        if key in ("name", "overrides"):
            raise ValueError(f"{key!r} is no setting to change: got {value!r}; choose another of {', '.join(PROFILES)}")
        profile = _override(profile, key, value)
    for part in ("learning_rates", "warmup_steps"):
        if missing := getattr(PROFILES[name], part).keys() - getattr(profile, part).keys():
            raise ValueError(f"{part} must name every method that is trained: got none for {', '.join(sorted(missing))}; set "
                             f"them one by one, as {part}.sft")
    if profile.data.name != "mini" and not profile.data.source:
        raise ValueError(f"data.source must name the folder or hub id of {profile.data.name!r}: got ''; give one, or leave "
                         "data.name out for the mini charts")
    return dataclasses.replace(profile, overrides=tuple(overrides.items()))


def read_setting(text: str) -> tuple[str, Any]:
    """A setting from the command line, "KEY=VALUE" with VALUE in JSON; what is no JSON is a text.

    Raises:
        ValueError: where there is no "=".
    """
    key, mark, value = text.partition("=")
    if not mark or not key.strip():
        raise ValueError(f"a setting must be written KEY=VALUE, as training.steps=100: got {text!r:.100}")
    try:
        return key.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return key.strip(), value


def _override(settings: Any, key: str, value: Any) -> Any:
    """A copy of `settings` with one field changed; "part.field" reaches into a part."""
    name, _, rest = key.partition(".")
    if rest and not (isinstance(settings, dict) or dataclasses.is_dataclass(getattr(settings, name, None))
                     or isinstance(getattr(settings, name, None), dict)):
        raise ValueError(f"unknown setting {key!r}: {name!r} has no parts; known: "
                         f"{', '.join(f.name for f in dataclasses.fields(settings))}")
    if isinstance(settings, dict):
        if key not in settings:
            raise ValueError(f"unknown setting {key!r}; known: {', '.join(settings)}")
        return {**settings, key: value}
    known = [f.name for f in dataclasses.fields(settings)]
    if name not in known:
        raise ValueError(f"unknown setting {name!r} of {type(settings).__name__}; known: {', '.join(known)}")
    return dataclasses.replace(settings, **{name: _override(getattr(settings, name), rest, value) if rest else value})


def paths(profile: str) -> Paths:
    """Where `profile` lives: $DYME_ROOT, or the nearest folder above the working folder or this file with pyproject.toml.

    A maintainer's commands set $DYME_PUBLISH to 1, for themselves and the processes they start: they alone write where the
    published results are.
    """
    is_published = os.environ.get(PUBLISH) == "1"
    if os.environ.get("DYME_ROOT"):
        return Paths(Path(os.environ["DYME_ROOT"]), profile, is_published)
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        if (folder / "pyproject.toml").is_file():
            return Paths(folder, profile, is_published)
    raise FileNotFoundError("no folder with pyproject.toml above the working folder; set DYME_ROOT to the repository")
