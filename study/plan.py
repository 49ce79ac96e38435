"""The study, declared: which runs answer which question, with which seeds. `run_all` carries it out, `report` draws it.

A point is one setting of one experiment; a run is a point with a seed. Points without a variant are the main runs, which
every experiment shares. Experiments are in the order in which they run: choices on validation come first.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dyme_core import config
from dyme_core.pipeline.methods import UNSUPERVISED, Run

PROFILE = config.DEFAULT
WORLDS = (PROFILE, "smol")  # the profiles that have a study
SEEDS = tuple(range(8))  # each has its own base, training questions, order and rollouts
SOME_SEEDS = SEEDS[:5]  # of all but the main runs; fewer give no verdict
RATES = {"sft": (3e-4, 1e-3, 2e-3), "grpo": (1e-4, 3e-4, 1e-3), "sft_grpo": (1e-4, 3e-4, 1e-3),
         "pure_dyme": (3e-5, 1e-4, 3e-4, 1e-3, 2e-3), "full_dyme": (3e-4, 1e-3, 2e-3)}  # learning rates tried
REFINED_RATES = {"sft": (3e-4, 1e-3, 2e-3, 4e-3), "sft_grpo": (1e-4, 3e-4, 1e-3), "pure_dyme": (3e-4, 1e-3, 2e-3)}
SWITCH_NAMES = {"binary": "DyME (binary)", "threshold": "HPT gate", "cosine": "Cosine annealing", "budget": "SFT budget",
                "luffy": "LUFFY", "chord": "CHORD", "prefix": "Expert prefix",
                "grounded": "Grounded (ours)"}
SWITCH_VALUES = {"threshold": (0.25, 0.5), "cosine": (None,), "budget": (8.0, 32.0), "luffy": (0.1, 1.0), "chord": (0.1, 0.5),
                 "prefix": (None,), "grounded": (None,)}  # those tried, each with all REFINED_RATES of Pure DyME
LEFT_OUT_KINDS = ("gap", "count")  # of question, in the experiment "kinds"
GRADIENT_BOUNDS = {"float64": 1e-12, "float32": 1e-5}  # on the relative error of gradients that should be equal (notebook 01)
ONCE = {"training.evaluate_every": 240}  # at the end alone: of ablations, switches and sweeps no curve is drawn
SWEPT = ("validation", "test")  # what the runs of a sweep answer
# Refined targets, with the learning rates that are best with them on validation.
REFINED = {"world.traces": "refined", "learning_rates.sft": 2e-3, "learning_rates.sft_grpo": 1e-4,
           "learning_rates.pure_dyme": 1e-3}
CHOSEN_SWITCHES = {"threshold": (0.5, 2e-3), "cosine": (None, 2e-3), "budget": (8.0, 2e-3), "luffy": (0.1, 3e-4),
                   "chord": (0.5, 3e-4), "prefix": (None, 1e-3), "grounded": (None, 2e-3)}  # (value, rate): best on validation

# The smol world: the settings of the mini world that are made there, and how their profile's settings differ; rates are not
# tuned yet.
SMOL_SEEDS = SEEDS[:3]
SMOL = {"svlm-base": {}, "svlm-sft": {}, "svlm-grpo": {}, "svlm-sft_grpo": {}, "svlm-pure_dyme": {}, "svlm-full_dyme": {},
        "svlm-sft-refined": {"world.traces": "refined", "learning_rates.sft": 1e-4},
        "svlm-sft-answers": {"world.traces": "none", "learning_rates.sft": 1e-4}}
SMOL_RATES = {"sft": (5e-5, 1e-4, 2e-4), "grpo": (1e-5, 2e-5, 5e-5), "sft_grpo": (1e-5, 2e-5, 5e-5),
              "pure_dyme": (2e-5, 5e-5, 1e-4), "full_dyme": (2e-5, 5e-5, 1e-4)}


@dataclass(frozen=True)
class Point:
    """One setting of one experiment.

    Attributes:
        experiment: a key of EXPERIMENTS.
        label: what figures and tables call it.
        method: one of config.METHODS.
        variant: part of the run's name; "" are the main runs.
        settings: of the profile, as `config.load_profile` takes them.
        seeds: training seeds; the base of the same seed is built where it is missing.
        splits: answered at the end of a run; runs for choosing settings leave the test sets closed.
        model: one of config.MODEL_NAMES.
        value: place on the x axis of a sweep; None where settings are no numbers.
        profile: whose runs they are, where it is not PROFILE.
    """

    experiment: str
    label: str
    method: str
    variant: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    splits: tuple[str, ...] = config.HELD_OUT
    model: str = "svlm"
    value: float | None = None
    profile: str = ""

    @property
    def setting(self) -> str:
        """The name of its runs without the seed, as "svlm-pure_dyme-luffy"."""
        return "-".join(filter(None, (self.model, self.method, self.variant)))

    def runs(self) -> list[Run]:
        """The point's runs, in order of their seeds."""
        profile = config.load_profile(self.profile or PROFILE, **self.settings)
        return [Run(profile, self.method, self.model, seed, self.variant) for seed in self.seeds]


def _main() -> Iterator[Point]:
    for method in config.METHODS:
        yield Point("main", config.METHOD_NAMES[method], method)


def _short() -> Iterator[Point]:
    """A few steps of each trainer; a test repeats them, to show that the present code gives the published rows."""
    settings = {"training.steps": 6, "training.evaluate_every": 6, "world.train_questions": 64,
                "world.validation_questions": 40}
    for method in ("sft", "grpo", "pure_dyme", "full_dyme"):
        yield Point("short", f"{config.METHOD_NAMES[method]}, 6 steps", method, "short", settings, (0,), ("validation",))


def _refined() -> Iterator[Point]:
    """DyME's own supervision handed to every method that memorizes: short right targets in words that the base knows."""
    for method in ("sft", "sft_grpo", "pure_dyme", "full_dyme"):
        yield Point("refined", f"{config.METHOD_NAMES[method]}, refined targets", method, "refined", REFINED, SOME_SEEDS)


def _cost() -> Iterator[Point]:
    """CoT-SFT at four times the steps, about the cost of DyME; and SFT on the answers alone, without any thinking."""
    yield Point("cost", f"{config.METHOD_NAMES['sft']}, 960 steps", "sft", "960", {"training.steps": 960}, SOME_SEEDS)
    yield Point("cost", "SFT on answers alone", "sft", "answers", {"world.traces": "none"}, SOME_SEEDS)


def _learnability() -> Iterator[Point]:
    """A teacher with fewer and more wordings, in words that the base has seen, with longer traces; and fewer questions. Full
    DyME takes its own target in place of the teacher's new words, so that its main runs stand for any number of wordings."""
    wordings = {f"w{count}": {"world.trace_wordings": count} for count in (1, 3, 40)}
    others = {"seen": {"world.trace_new_words": False}, "x2": {"world.trace_length": 2, "training.max_completion_tokens": 240},
              "n64": {"world.train_questions": 64}, "n512": {"world.train_questions": 512}}
    for name, settings in (wordings | others).items():
        yield Point("learnability", name, "sft", name, settings, SOME_SEEDS)
    for name in ("seen", "x2", "n64"):
        yield Point("learnability", name, "full_dyme", name, others[name] | ONCE, SOME_SEEDS, SWEPT)


def _sizes() -> Iterator[Point]:
    """Larger models, whose bases and steps take two and three times as long; CoT-SFT also on a teacher with one wording."""
    for model, methods in (("middle", ("base", "sft")), ("large", ("base", "sft", "pure_dyme"))):
        for method in methods:
            yield Point("sizes", config.METHOD_NAMES[method], method, model=model, seeds=SOME_SEEDS)
        yield Point("sizes", "w1", "sft", "w1", {"world.trace_wordings": 1, **ONCE}, SOME_SEEDS, SWEPT, model)


def _tuning() -> Iterator[Point]:
    """Three to five learning rates of each method, for half of the steps on seed 0, on a teacher's traces and again on refined
    targets. What the profile and REFINED have is the best on validation, or a lower one within a point of it."""
    yield from _grid(RATES, {}, 120)
    yield from _grid(REFINED_RATES, REFINED, 120, "refined-", ", refined targets")


def _grid(grids: dict[str, tuple[float, ...]], settings: dict[str, Any], steps: int, variant: str = "", suffix: str = ""
          ) -> Iterator[Point]:
    for method, rates in grids.items():
        for rate in rates:
            own = settings | {f"learning_rates.{method}": rate, "training.steps": steps}
            yield Point("tuning", f"{config.METHOD_NAMES[method]}{suffix}", method, f"{variant}lr{rate:g}", own, (0,),
                        ("validation",), value=rate)


def _smol_tuning() -> Iterator[Point]:
    yield from _grid(SMOL_RATES, {}, 50)
    for variant, name in (("refined", "refined targets"), ("answers", "answers alone")):
        yield from _grid({"sft": SMOL_RATES["sft"]}, SMOL[f"svlm-sft-{variant}"], 50, f"{variant}-", f", {name}")


def _in_smol(declare: Callable[[], Iterator[Point]]) -> Iterator[Point]:
    """Of an experiment's points those that are made in the smol world, too."""
    for point in declare():
        if point.setting in SMOL:
            yield replace(point, settings=SMOL[point.setting], seeds=SMOL_SEEDS)


def _switch_tuning() -> Iterator[Point]:
    """Each switch's own number with the learning rates that the binary one had, for half of the steps on seed 0."""
    for switch, values in SWITCH_VALUES.items():
        for value in values:
            for rate in REFINED_RATES["pure_dyme"]:
                variant = f"refined-{switch}{'' if value is None else f'{value:g}'}-lr{rate:g}"
                settings = _switched(switch, value, rate) | {"training.steps": 120}
                yield Point("switch_tuning", f"Pure DyME, {SWITCH_NAMES[switch]}", "pure_dyme", variant, settings, (0,),
                            ("validation",), value=value)


def _switched(switch: str, value: float | None, rate: float) -> dict[str, Any]:
    return REFINED | {"training.switch": switch, "training.switch_value": value, "learning_rates.pure_dyme": rate, **ONCE}


def _switch() -> Iterator[Point]:
    """All on refined targets: of a teacher's traces every switch makes the more, the less it memorizes."""
    yield _swept("switch", SWITCH_NAMES["binary"], "pure_dyme", "", {})
    for switch, chosen in CHOSEN_SWITCHES.items():
        yield Point("switch", SWITCH_NAMES[switch], "pure_dyme", f"refined-{switch}", _switched(switch, *chosen), SOME_SEEDS)


def _ablation() -> Iterator[Point]:
    """Full DyME with one part taken away. Where nothing is memorized its own learning rate is too high: GRPO's is taken.
    Without the refiner the teacher's trace is memorized as it is, which is Pure DyME."""
    rate = config.load_profile(PROFILE).learning_rates["grpo"]
    without = {"memorize": {"training.switch": "explore", "learning_rates.full_dyme": rate},
               "explore": {"training.switch": "memorize"}, "checker": {"training.thinking_weight": 0.0}}
    yield Point("ablation", "Full DyME", "full_dyme")
    for part, settings in without.items():
        yield Point("ablation", f"without {part}", "full_dyme", f"no-{part}", settings | ONCE, SOME_SEEDS)
    yield Point("ablation", "without refiner", "pure_dyme")


def _rollouts() -> Iterator[Point]:
    for method in ("grpo", "pure_dyme"):
        for size in (2, 8, 16):  # 32 rollouts a step in all
            yield _swept("rollouts", f"G = {size}", method, "" if size == 8 else f"g{size}",
                         {"training.num_generations": size, "training.prompts_per_step": 32 // size}, size)


def _prompts() -> Iterator[Point]:
    """Prompts a step, without and with rollouts: separates the effect of more prompts from that of fewer rollouts of each."""
    for count in (4, 16):
        settings = {"training.prompts_per_step": count}
        yield _swept("prompts", f"{count} prompts", "sft", "" if count == 4 else f"p{count}", settings, count)
        yield _swept("prompts", f"{count} prompts", "pure_dyme", "g2" if count == 16 else f"g2-p{count}",
                     settings | {"training.num_generations": 2}, count)


def _quality() -> Iterator[Point]:
    for method in ("sft", "pure_dyme"):
        for quality in ("high", "low"):
            yield _swept("quality", quality, method, "" if quality == "high" else f"{quality}-quality",
                         {"supervision.quality": quality})


def _corruption() -> Iterator[Point]:
    for method in ("sft", "pure_dyme"):
        for share in (0.0, 0.5):
            yield _swept("corruption", f"{share:.0%}", method, f"wrong{100 * share:.0f}" if share else "",
                         {"supervision.corruption": share}, 100 * share)


def _kinds() -> Iterator[Point]:
    for method in ("sft", "grpo", "pure_dyme"):
        yield _swept("kinds", "without gaps and counts", method, "no-gap-count", {"world.left_out_kinds": LEFT_OUT_KINDS})


def _swept(experiment: str, label: str, method: str, variant: str, settings: dict[str, Any],
           value: float | None = None) -> Point:
    """A point of a sweep: on refined targets, where the method memorizes any. Without a variant it is what the sweep changes,
    a point of "refined" or "main"."""
    settings, splits = (settings | ONCE, SWEPT) if variant else ({}, config.HELD_OUT)
    if method not in UNSUPERVISED:
        variant, settings = "-".join(filter(None, ("refined", variant))), REFINED | settings
    return Point(experiment, label, method, variant, settings, SOME_SEEDS, splits, value=value)


EXPERIMENTS = {"tuning": _tuning, "main": _main, "short": _short, "cost": _cost, "refined": _refined, "sizes": _sizes,
               "learnability": _learnability, "ablation": _ablation, "switch_tuning": _switch_tuning, "switch": _switch,
               "rollouts": _rollouts, "prompts": _prompts, "quality": _quality, "corruption": _corruption, "kinds": _kinds}
SMOL_EXPERIMENTS = {"tuning": _smol_tuning, "main": partial(_in_smol, _main), "cost": partial(_in_smol, _cost),
                    "refined": partial(_in_smol, _refined)}


def points(*experiments: str, methods: Sequence[str] = config.METHODS, profile: str = "") -> list[Point]:
    """The points of some experiments (all, if none is named) and methods, in the order of the plan.

    Args:
        profile: "smol" for that world's plan.
    Raises:
        ValueError: for an unknown experiment, with the known ones.
    """
    declared = SMOL_EXPERIMENTS if profile == "smol" else EXPERIMENTS
    unknown = sorted(set(experiments) - set(declared))
    if unknown:
        raise ValueError(f"unknown experiments {unknown}; known: {', '.join(declared)}")
    found = [point for name, declare in declared.items() if not experiments or name in experiments
             for point in declare() if point.method in methods]
    return [replace(point, profile=profile) for point in found] if profile == "smol" else found


def homes() -> dict[str, str]:
    """The experiment that declares a setting first, by `Point.setting`; later ones share its runs."""
    return {point.setting: point.experiment for point in reversed(points())}
