"""A run: a method on a base with a seed; its name, its base, and everything that its result depends on."""
from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dyme_core import config, utils

RESULTS_VERSION = 6  # raised when changed code gives other rows for the same settings
UNSUPERVISED = ("base", "grpo")  # methods that learn nothing from checker or refiner
LIVE_FILE = "steps.jsonl"  # in a run's folder: its log, as it comes
MAX_NAME = 40  # characters of settings in a run's name; more become a hash


class RunExists(ValueError):
    """A finished run of this name was made with other settings and would be lost."""


@dataclass(frozen=True)
class Run:
    """A method of config.METHODS on a base of a size of config.MODEL_NAMES with a seed.

    `variant` names the difference from the profile's settings; with "", `label` derives it.
    """

    profile: config.Profile
    method: str
    model: str = "svlm"
    seed: int = 0
    variant: str = ""

    def __post_init__(self) -> None:
        if self.method not in config.METHODS:
            raise ValueError(f"method must be one of {', '.join(config.METHODS)}: got {self.method!r}")
        if self.profile.world.traces == "none" and self.method not in ("base", "sft"):
            raise ValueError(f"world.traces='none' is for sft alone, whose target is then the answer: got {self.method!r}; set "
                             "'teacher' or 'refined'")
        if not 0 <= self.seed <= config.MAX_SEED:
            raise ValueError(f"seed must be from 0 to {config.MAX_SEED}: got {self.seed}; give another")
        if not re.fullmatch(r"[\w.-]*", self.variant):
            raise ValueError(f"variant is part of file names: expected letters, digits, '.', '_' and '-', got {self.variant!r}")

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.model, self.method, self.label, f"s{self.seed}")))

    @property
    def label(self) -> str:
        """The variant, or else the settings that differ from the profile's, as "own-steps100"; "" where none does."""
        return self.variant or _label(changed_settings(self))

    @property
    def paths(self) -> config.Paths:
        return config.paths(self.profile.name)

    @property
    def folder(self) -> Path:
        """The folder of its checkpoints and its policy."""
        return self.paths.runs / self.name

    @property
    def manifest(self) -> Path:
        """The manifest's path; it is written last, so that rows and log are complete where it exists."""
        return self.paths.manifests / f"{self.name}.json"

    @property
    def columns(self) -> dict[str, Any]:
        return {"run": self.name, "method": self.method, "variant": self.label, "model": self.model, "seed": self.seed}


def supervision_of(run: Run) -> config.Supervision:
    """The run's supervision; methods that learn nothing from it have the rules, which only measure."""
    return config.Supervision() if run.method in UNSUPERVISED else run.profile.supervision


def base_folder(paths: config.Paths, model: str, seed: int) -> Path:
    """The base of a seed; `scheduler` builds it where it is missing."""
    return paths.bases / f"{model}-s{seed}"


def base_name(run: Run) -> str:
    """The name of a run's base in its manifest."""
    return base_folder(run.paths, run.model, run.seed).name if run.profile.model == "mini" else run.profile.model


def phase_steps(run: Run) -> list[tuple[str, int]]:
    """(method whose trainer and learning rate it has, steps) of each phase; all methods get the same steps in all."""
    steps = run.profile.training.steps
    first = int(steps * run.profile.training.sft_share)
    chosen = {"base": [], "sft_grpo": [("sft", first), ("sft_grpo", steps - first)]}.get(run.method, [(run.method, steps)])
    return [phase for phase in chosen if phase[1]]  # a Trainer takes max_steps=0 for three epochs


def check_steps(run: Run, processes: int) -> None:
    """Refuse a run of which a phase has no step, or whose rows cannot be dealt to the processes.

    Raises:
        ValueError: with the settings to change.
    """
    training = run.profile.training
    for method, _ in phase_steps(run):
        rollouts = 1 if method == "sft" else training.num_generations
        run.profile.engine.batch(training.prompts_per_step * rollouts, processes)
    if run.method == "sft_grpo" and 0 < training.sft_share < 1 and len(phase_steps(run)) < 2:
        raise ValueError(f"sft_grpo needs a step in each of its phases: got training.steps={training.steps} with "
                         f"training.sft_share={training.sft_share:g}; raise the steps, or train with sft or grpo")


def settings_of(run: Run) -> dict[str, Any]:
    """Every setting that decides the run's result, as its manifest holds them."""
    profile = run.profile
    return {**asdict(profile.training), "learning_rate": [profile.learning_rates[name] for name, _ in phase_steps(run)],
            "warmup_steps": profile.warmup_steps.get(run.method), "world": asdict(profile.world),
            "supervision": asdict(supervision_of(run)), "engine": asdict(profile.engine), "data": asdict(profile.data)}


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as `settings_of` gives them, with the parts' fields as "part.field" and as JSON would hold them."""
    parts = [{f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
             for name, value in json.loads(json.dumps(settings)).items()]
    return {name: value for part in parts for name, value in part.items()}


def changed_settings(run: Run) -> dict[str, Any]:
    """The run's settings that are not those of the profile of its name, flat."""
    own = dataclasses.replace(run, profile=config.PROFILES[run.profile.name])
    asked, known = ({**flat(settings_of(each)), "model": each.profile.model, "backend": each.profile.backend}
                    for each in (run, own))
    return {name: value for name, value in asked.items() if known[name] != value}


def differences(made: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """The settings in which a run differs from those asked for; a setting that is newer than the run has its default."""
    known = flat(config.default_settings()) | flat(made)
    return [name for name, value in flat(asked).items() if known.get(name) != value]


def refuse_to_replace(run: Run) -> None:
    """Raise RunExists where a finished run of the same name was made with other settings."""
    if not run.manifest.is_file():
        return
    if changed := differences(utils.read_json(run.manifest)["settings"], settings_of(run)):
        raise RunExists(f"{run.name} is finished, with other settings ({', '.join(changed)}); give this one a name of its own "
                        f"(--variant), or replace it (--force): {run.manifest}")


def fingerprint(run: Run) -> str:
    """A hash of everything that a run's result depends on: its settings, the version of the results and the base."""
    base = base_folder(run.paths, run.model, run.seed).glob("*")
    return utils.hash_json([run.name, run.profile.name, run.profile.model, run.profile.backend, settings_of(run),
                            RESULTS_VERSION, utils.hash_files(base, run.paths.root)])


def _label(changed: dict[str, Any]) -> str:
    words = [_word(name, value) for name, value in changed.items()]
    label = "-".join(filter(None, words))
    return label if len(label) <= MAX_NAME else f"x{utils.hash_json(changed)[:8]}"


def _word(name: str, value: Any) -> str:
    """One setting as part of a file name: "own", "steps100", or a hash where it has no short name."""
    leaf = {"learning_rate": "lr"}.get(name, name.rpartition(".")[2])
    values = value if isinstance(value, list) else [value]
    text = "".join(f"{leaf}{each:g}" if isinstance(each, int | float) else str(each) for each in values)
    return text if re.fullmatch(r"[\w.]{1,28}", text) else f"{leaf}-{utils.hash_json(value)[:6]}"
