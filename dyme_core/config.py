"""Settings (frozen and checked; an unknown key is an error), the profiles, and the folders of a run.

Numbers marked "public code, chart" are the settings of the paper's public chart run (docs/method.md); the others are ours and
say why.
"""
from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import pydantic
from pydantic import ConfigDict, Field, Strict
from pydantic_core import ErrorDetails

METHODS = ("base", "sft", "grpo", "sft_grpo", "pure_dyme", "full_dyme")
METHOD_NAMES = {"base": "Base", "sft": "CoT-SFT", "grpo": "GRPO", "sft_grpo": "SFT then GRPO",
                "pure_dyme": "Pure DyME", "full_dyme": "Full DyME"}
MODEL_NAMES = {"svlm": "SVLM", "middle": "Middle VLM", "large": "Large VLM"}  # the sizes of the mini model
PUBLISH = "DYME_PUBLISH"  # environment variable, see `paths`
DEFAULT = "mini"  # the profile whose figures and claims are the repository's
HELD_OUT = ("validation", "test", "unseen", "altered")
SPLITS = ("train", *HELD_OUT)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# List prices of the standard tier in 2026-03: (input tokens, output tokens); check them before citing a cost. That of other
# models is unknown.
PRICES_USD_PER_MILLION = {
    "gpt-4o": (2.50, 10.00), "gpt-4o-mini": (0.15, 0.60), "gpt-4.1": (2.00, 8.00), "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4.1-nano": (0.10, 0.40), "gpt-5": (1.25, 10.00), "gpt-5-mini": (0.25, 2.00), "gpt-5-nano": (0.05, 0.40)}

Policy = Literal["rule", "raise", "skip"]  # for a call without a usable reply (judge.py)
Quality = Literal["high", "medium", "low"]  # of targets
BadRowPolicy = Literal["raise", "skip"]
CollapseAction = Literal["warn", "stop"]
POLICIES, QUALITIES, BAD_ROWS = map(get_args, (Policy, Quality, BadRowPolicy))
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
MAX_SEED = 2**32 - 1  # numpy's
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Price = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[float, Field(ge=1e-3)]  # of seconds, or of something a minute
LearningRate = Annotated[float, Field(ge=1e-12, le=1)]


def settings(part: str) -> Callable[[type], type]:
    """Class decorator: a frozen pydantic dataclass without conversions ("1", True and NaN are not numbers; a list may
    replace a tuple, as in JSON). A wrong value raises a ValueError of one line that names it as "PART.FIELD".
    """
    def decorate(cls: type) -> type:
        checked = pydantic.dataclasses.dataclass(
            cls, frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
        check = checked.__init__

        @functools.wraps(check)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                check(self, *args, **values)
            except pydantic.ValidationError as error:
                raise ValueError(_sentence(part, checked, error.errors()[0])) from None

        checked.__init__ = __init__
        return checked
    return decorate


def _sentence(part: str, cls: type, error: ErrorDetails) -> str:
    """The setting, what it takes, what came, and the default."""
    if error["type"] == "value_error":  # of a __post_init__
        return str(error["ctx"]["error"])
    names = [str(one) for one in error["loc"]]
    name = ".".join(filter(None, (part, *names)))
    known = {each.name: each for each in dataclasses.fields(cls)}
    if names[0] not in known:
        return f"unknown setting {name!r}; known: {', '.join(known)}"
    default = known[names[0]].default
    remedy = "give one" if default is dataclasses.MISSING else f"give one, or leave it out for {default!r}"
    return f"{name} must be {error['msg'].removeprefix('Input should be ')}: got {error['input']!r:.200}; {remedy}"


@settings("world")
class World:
    """The mini chart world: how many tables and questions each split draws."""

    train_questions: Positive = 2048
    validation_questions: Positive = 200
    test_questions: Positive = 400  # each of the two test sets (in-style, unseen style); half of the former's are also altered
    real_share: Share = 0.5  # share of tables drawn from real public statistics
    train_real_share: Share | None = None  # of the training split alone; None: real_share
    left_out_kinds: Annotated[tuple[str, ...], Strict(False)] = ()  # kinds of questions that the training split does not ask
    most_groups: Annotated[int, Field(ge=5, le=8)] = 8  # of a chart
    language: Literal["codes", "english"] = "codes"  # of questions and teacher's traces; "english": data.english
    # What is memorized: a teacher's traces (data.teacher), the refiner's targets, or the answer without any (sft alone).
    traces: Literal["teacher", "refined", "none"] = "teacher"
    trace_wordings: Annotated[int, Field(ge=1, le=40)] = 11  # of the teacher
    trace_length: Annotated[int, Field(ge=1, le=2)] = 1  # of the teacher's traces, in that of the shortest
    trace_new_words: bool = True  # the teacher uses words that the base has not seen


@settings("training")
class Training:
    """One post-training run; every method shares every number here (learning rates: Profile)."""

    steps: Positive = 240
    prompts_per_step: Positive = 4  # public code, chart: 32 prompts a step on 8 cards
    num_generations: Annotated[int, Field(ge=2)] = 8  # G; public code, chart
    sft_share: Share = 0.5  # of the steps, the first phase of "SFT then GRPO"
    max_completion_tokens: Positive = 152  # the longest target has 104, a teacher's 146; public code, chart: 300
    switch: str = "binary"  # one of switches.SWITCHES; "binary" is the paper's
    switch_value: float | None = None  # the switch's own number; None: its default
    thinking_weight: Annotated[float, Field(ge=0)] = 1.0  # of the checker's score in DyME's reward; 0: without checker
    memorize_weight: Literal["row", "group"] = "group"  # "row" is the public code's; "group": one prompt is one SFT example
    mastered: Literal["skip", "explore"] = "skip"
    reward_gate: Literal["sum", "gated"] = "sum"  # public code: trains on the ungated sum
    correct_needs_format: bool = True  # public code: false; see docs/method.md
    likeliest_target: bool = False  # full_dyme: of the right targets the most probable one under the policy
    evaluate_every: Positive = 40
    refill: Annotated[float, Field(ge=0)] = 0.0  # share of a step's rollouts that fresh prompts may add (trainer.refill)
    probe_every: NotNegative = 40  # steps between measurements of the gradients of targets and rollouts (mechanism)


@settings("endpoint")
class Endpoint:
    """An OpenAI-compatible server and the limits of using it; the API key is read from $OPENAI_API_KEY and is no setting.

    Attributes:
        model: the model's id at the server; None reads $OPENAI_MODEL.
        base_url: for example http://127.0.0.1:8000/v1; None reads $OPENAI_BASE_URL. There is no other default.
        requests_per_minute: retries count, too; None for no limit.
        total_timeout_s: limit of one try, from sending to the last byte.
        breaker_failures: failed calls in a row after which none is made for breaker_cooldown_s.
        usd_per_million: (input, output) prices in place of those above; (0.0, 0.0) says that the server costs nothing.
    """

    model: str | None = None
    base_url: str | None = None
    max_concurrency: Positive = 8
    requests_per_minute: Limit | None = None
    total_timeout_s: Limit = 60.0
    max_tries: Positive = 4
    breaker_failures: Positive = 5
    breaker_cooldown_s: Limit = 30.0
    usd_per_million: Annotated[tuple[Price, Price], Strict(False)] | None = None

    def __post_init__(self) -> None:
        if self.base_url:
            _check_url(self.base_url)

    @property
    def name(self) -> str:
        """The model's name in key, recording and ledger: its id, or the last part of a path (local servers name a model by its
        folder, which differs between machines)."""
        model = self.model or ""
        is_path = model.startswith(("/", "~", ".")) or "\\" in model
        return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if is_path else model

    @property
    def is_local(self) -> bool:
        """True for a server on this machine; it is never reached through a proxy."""
        return urlsplit(self.base_url or "").hostname in LOOPBACK

    def resolved(self) -> Endpoint:
        """These settings with the environment's model and address where none is named.

        Raises:
            ValueError: where no model is named, or the address is none.
        """
        found = dataclasses.replace(self, model=self.model or os.environ.get("OPENAI_MODEL") or None,
                                    base_url=self.base_url or os.environ.get("OPENAI_BASE_URL") or None)
        if not found.model:
            raise ValueError("no model is named; set OPENAI_MODEL or supervision.model")
        return found


def _check_url(url: str) -> None:
    """Refuse an address without showing a password that it may hold."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("base_url must not hold a user or password; put the key into OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must be like http://127.0.0.1:8000/v1: got {url!r}")


@settings("supervision")
class Supervision(Endpoint):
    """Who checks and refines: rules, or a language model at this endpoint.

    Attributes:
        backend: "rule"; "api", an OpenAI-compatible server; or "replay", a recording of one, without any network.
        policy: where a call fails, "rule" lets the rules take over, "raise" stops, "skip" goes on without a score or target.
        recording: file of replies, relative to the repository; "" is supervision.sqlite in the profile's `runs` folder.
        parameters: sent with each request; where they are these, requests for facts may take 2,000 tokens.
        quality: of the targets: "high" is the refiner's; "medium" and "low" are `corruption`'s (back end "rule" alone).
        corruption: share of training questions whose facts are wrong, for checker and refiner alike ("rule" alone).
    """

    backend: Literal["rule", "api", "replay"] = "rule"  # the paper's: Qwen2.5-7B, Qwen2.5-14B or GPT-4o behind an API
    policy: Policy = "rule"
    recording: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 400})
    quality: Quality = "high"
    corruption: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend != "rule" and (self.quality != "high" or self.corruption):
            raise ValueError(f"supervision.quality and supervision.corruption need backend 'rule': got {self.backend!r}")


@settings("engine")
class Engine:
    """How one training run uses its machine; the defaults are one CPU's.

    Attributes:
        micro_batches: parts of a step's rollouts that go through the update one after another, on each card.
        bf16: mixed precision; needs a card of NVIDIA's Ampere generation or later (a Colab T4 has none).
        gradient_checkpointing: keep one activation per layer and recompute the rest: about a third more time.
        lora_rank: of adapters on the language model; None trains every weight but the vision tower's.
        lora_alpha: adapters are scaled by lora_alpha / lora_rank.
        load_in_4bit: frozen weights in 4 bits, adapters only.
        generation: how rollouts are written: "eager", by transformers; "compiled", the same with a cache of fixed size, whose
            decoding step is compiled on a card (worth it for runs of hours: compiling takes a minute); "vllm", in the same
            processes (TRL's "colocate").
        vllm_memory_share: of the card's memory, for vLLM's weights and cache; TRL's default.
    """

    micro_batches: Positive = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    lora_rank: Positive | None = None
    lora_alpha: Positive = 16
    load_in_4bit: bool = False
    generation: Literal["eager", "compiled", "vllm"] = "eager"
    vllm_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.lora_rank is None:
            raise ValueError("engine.load_in_4bit freezes the weights, so engine.lora_rank must be a number: got None; set it, "
                             "or train in 16 bits")

    def batch(self, rows: int, processes: int) -> dict[str, int]:
        """The trainer's two numbers for a step of `rows` over `processes`, by TRL's names.

        A step with fewer rows has fewer micro-batches (SFT has one row per prompt).

        Raises:
            ValueError: where the rows cannot be dealt evenly.
        """
        if rows % processes:
            raise ValueError(f"{rows} rows a step cannot be dealt to {processes} processes evenly; change "
                             "training.prompts_per_step or training.num_generations")
        own = rows // processes
        parts = min(self.micro_batches, own)
        if own % parts:
            raise ValueError(f"{own} rows a step and process cannot be dealt to engine.micro_batches={parts} evenly")
        return {"per_device_train_batch_size": own // parts, "gradient_accumulation_steps": parts}


@settings("data")
class DataSource:
    """Which questions are trained and scored on.

    Attributes:
        name: "mini", the charts that are drawn here, or a data set's, for example "chartqa".
        source: a folder, or a hub id; "" for "mini".
        held_out: splits that are answered, of HELD_OUT; the first one is evaluated during training.
        on_bad_row: for a row that is refused: "raise" stops, "skip" leaves it out and counts it (bad_rows.py).
        options: of the data set's reader (`benchmarks.sources.load`), such as the folder of pictures.
        facts: of training questions without any: "given" leaves them so, "ocr" reads the printed values, "deplot" is the
            chart-to-table model ("deplot:FOLDER" a saved one), "vlm" asks the supervising model, which must read pictures
            (fact_extraction.py).
        test_name, test_source: another data set for the test split, as MathVerse is for Geo170K; "": the same one.
    """

    name: str = "mini"
    source: str = ""
    held_out: Annotated[tuple[Literal["validation", "test", "unseen", "altered"], ...], Strict(False)] = HELD_OUT
    on_bad_row: BadRowPolicy = "raise"
    options: dict[str, Any] = field(default_factory=dict)
    facts: str = "given"
    test_name: str = ""
    test_source: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"given|ocr|vlm|deplot(:.+)?", self.facts):
            raise ValueError("data.facts must be 'given', 'ocr', 'deplot', 'deplot:FOLDER' or 'vlm': got "
                             f"{self.facts!r}; use one of them")
        if not self.held_out or len(set(self.held_out)) < len(self.held_out):
            raise ValueError(f"data.held_out must name at least one split, none twice: got {self.held_out!r}; name some of "
                             f"{HELD_OUT}")
        if bool(self.test_name) != bool(self.test_source):
            raise ValueError("data.test_name and data.test_source must be given together: got "
                             f"{self.test_name!r} and {self.test_source!r}; give both, or leave both out")

    def place(self, split: str) -> tuple[str, str, str]:
        """(name, source, split) of a split's questions."""
        name, source = (self.test_name, self.test_source) if split == "test" and self.test_name else (self.name, self.source)
        return name, source, split


@settings("")
class Profile:
    """All settings of one way to run the artifact."""

    name: str
    world: World = field(default_factory=World)
    training: Training = field(default_factory=Training)
    supervision: Supervision = field(default_factory=Supervision)
    engine: Engine = field(default_factory=Engine)
    data: DataSource = field(default_factory=DataSource)
    learning_rates: dict[str, LearningRate] = field(default_factory=dict)  # by method; "sft_grpo" is its second phase's
    warmup_steps: dict[str, NotNegative] = field(default_factory=dict)  # by method, as above
    model: Annotated[str, Field(pattern=r"\S")] = "mini"  # "mini", a local folder or a hub id
    save_every: NotNegative = 50  # steps between checkpoints, from which an interrupted run resumes; 0: none
    on_collapse: CollapseAction = "warn"  # where rollouts or the loss say that training has collapsed (callbacks.py)
    backend: Literal["transformers", "unsloth"] = "transformers"  # "unsloth": on a CUDA GPU
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"  # where Trainer reports steps; installed by you
    seed: Seed = 0  # where none is given
    overrides: tuple[tuple[str, Any], ...] = ()  # changes against the profile of this name


@dataclass(frozen=True)
class Paths:
    """Where one profile reads and writes; `root` is the repository.

    Published results are tracked by git and change only by a maintainer's command (`make study`, `make publish`). Everything
    else is written to results/local/, which git ignores.
    """

    root: Path
    profile: str
    is_published: bool = False

    @property
    def results(self) -> Path:
        return self.root / "results" / (self.profile if self.is_published else f"local/{self.profile}")

    manifests = property(lambda self: self.results / "runs")
    rows = property(lambda self: self.results / "rows")
    logs = property(lambda self: self.results / "logs")
    tables = property(lambda self: self.results / "tables")
    bases = property(lambda self: self.root / "bases" / ("smol" if self.profile == "smol" else ""))

    @property
    def runs(self) -> Path:
        """Trained checkpoints: large, rebuilt by the notebooks, never in git."""
        return self.root / "runs" / (f"published/{self.profile}" if self.is_published else self.profile)

    @property
    def figures(self) -> Path:
        """The default profile's published figures are the repository's, paper_figures/."""
        return self.root / "paper_figures" if self._is_of_repository else self.results / "figures"

    @property
    def claims(self) -> Path:
        """CLAIMS.md; the default profile's published claims are the repository's."""
        return (self.results.parent if self._is_of_repository else self.results) / "CLAIMS.md"

    @property
    def _is_of_repository(self) -> bool:
        return self.is_published and self.profile == DEFAULT


# Chosen on validation (plan: "tuning"). The public code has no warm-up; the fresh optimiser needs a few steps here.
_LEARNING_RATES = {"sft": 1e-3, "grpo": 3e-4, "sft_grpo": 1e-4, "pure_dyme": 3e-5, "full_dyme": 1e-3}
_WARMUP_STEPS = dict.fromkeys(_LEARNING_RATES, 10)
# Shared by the two profiles of a real model: the paper's model and data, and a language model as expert, which no rule can
# replace (ChartQA has no steps to an answer).
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
    "mini": Profile("mini", learning_rates=_LEARNING_RATES, warmup_steps=_WARMUP_STEPS,
                    training=Training(likeliest_target=True)),
    "smoke": Profile("smoke", learning_rates=_LEARNING_RATES, warmup_steps=_WARMUP_STEPS,
                     world=World(train_questions=64, validation_questions=16, test_questions=16),
                     training=Training(steps=4, prompts_per_step=2, num_generations=4, evaluate_every=2)),
    # SmolLM2-135M behind the mini vision tower, asked in plain English.
    "smol": Profile("smol", learning_rates={"sft": 1e-4, "grpo": 2e-5, "sft_grpo": 2e-5, "pure_dyme": 1e-4, "full_dyme": 1e-4},
                    warmup_steps=dict.fromkeys(_LEARNING_RATES, 5),
                    world=World(train_questions=1024, validation_questions=96, test_questions=304, most_groups=5,
                                language="english"),
                    training=Training(steps=100, max_completion_tokens=216, evaluate_every=25, probe_every=0,
                                      likeliest_target=True),
                    engine=Engine(bf16=True), save_every=10),
}


def default_settings() -> dict[str, Any]:
    """Every setting's default, in the form of a manifest's `settings`: the value in runs that are older than the setting."""
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
    graded = profile.supervision.corruption or profile.supervision.quality != "high"
    if profile.data.name == "mini" and profile.world.traces != "refined" and graded:
        raise ValueError("supervision.corruption and supervision.quality change the refiner's targets, so world.traces must be "
                         f"'refined': got {profile.world.traces!r}; set it, or leave the other out")
    if profile.data.name != "mini" and not profile.data.source:
        raise ValueError(f"data.source must name the folder or hub id of {profile.data.name!r}: got ''; give one, or leave "
                         "data.name out for the mini charts")
    return dataclasses.replace(profile, overrides=tuple(overrides.items()))


def read_setting(text: str) -> tuple[str, Any]:
    """A setting from the command line, "KEY=VALUE" with VALUE in JSON, or else a plain text.

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


def read_list(name: str, value: Any, known: Sequence[Any]) -> list[Any]:
    """A notebook's parameter that is a list, also where papermill's `-p` gives it as text: "[0, 1]", "sft,grpo" or "grpo".

    Args:
        name: of the parameter.
        value: a list, one value, or their text.
        known: the values that are allowed, such as METHODS or a range.
    Raises:
        ValueError: for a value that is not allowed.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = [part.strip() for part in value.split(",") if part.strip()]
    values = list(value) if isinstance(value, list | tuple) else [value]
    # The type first: a range is searched to its end for what is no int.
    wrong = [each for each in values if type(each) is not type(known[0]) or each not in known]
    if wrong:
        allowed = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(known)
        raise ValueError(f"{name} must be a list of values out of {allowed}: got {wrong[0]!r}; leave it out for the default")
    return values


def _override(settings: Any, key: str, value: Any, part: str = "") -> Any:
    """A copy of `settings` (of `part`, "" or ending in a dot) with one field changed; "part.field" reaches into a part."""
    name, _, rest = key.partition(".")
    is_table = isinstance(settings, dict)
    known = list(settings) if is_table else [each.name for each in dataclasses.fields(settings)]
    if name not in known or is_table and rest:
        raise ValueError(f"unknown setting {part + key!r}; known: {', '.join(known)}")
    old = settings[name] if is_table else getattr(settings, name)
    if rest and not (isinstance(old, dict) or dataclasses.is_dataclass(old)):
        raise ValueError(f"unknown setting {part + key!r}: {name!r} has no parts; known: {', '.join(known)}")
    new = _override(old, rest, value, f"{part}{name}.") if rest else value
    return {**settings, name: new} if is_table else dataclasses.replace(settings, **{name: new})


def paths(profile: str) -> Paths:
    """Where `profile` lives: $DYME_ROOT, or this file's repository; of an installed copy the one above the working folder.

    A maintainer's commands set $DYME_PUBLISH to 1, also for the processes they start: only they write to the published
    results.
    """
    is_published = os.environ.get(PUBLISH) == "1"
    if os.environ.get("DYME_ROOT"):
        return Paths(Path(os.environ["DYME_ROOT"]), profile, is_published)
    for folder in (Path(__file__).resolve().parents[1], Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "dyme_core").is_dir():
            return Paths(folder, profile, is_published)
    raise FileNotFoundError("no repository of dyme above the working folder; set DYME_ROOT to it")
