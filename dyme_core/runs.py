"""What is trained: a method on a base with a seed; where it starts, and all that its result depends on."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyme_core import config, provenance

UNSUPERVISED = ("base", "grpo")  # methods that ask no expert for anything that is learned
HELD_OUT = config.SPLITS[1:]


@dataclass(frozen=True)
class Run:
    """What is trained: a method of config.METHODS on a base ("svlm" or "large") with a seed.

    `variant` names what differs from the profile's own settings (`plan`); "" nothing.
    """

    profile: config.Profile
    method: str
    model: str = "svlm"
    seed: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.model, self.method, self.variant, f"s{self.seed}")))

    @property
    def paths(self) -> config.Paths:
        return config.paths(self.profile.name)

    @property
    def columns(self) -> dict[str, Any]:
        return {"run": self.name, "method": self.method, "variant": self.variant, "model": self.model, "seed": self.seed}


def supervision_of(run: Run) -> config.Supervision:
    """Who checks and refines in this run; methods that learn from no expert have the rules, which only measure."""
    return config.Supervision() if run.method in UNSUPERVISED else run.profile.supervision


def base_folder(paths: config.Paths, model: str, seed: int) -> Path:
    """The base a seed starts from: its own, which `scheduler` builds where it is missing."""
    return paths.bases / f"{model}-s{seed}"


def base_name(run: Run) -> str:
    """What a run starts from, as its manifest says it."""
    return base_folder(run.paths, run.model, run.seed).name if run.profile.model == "mini" else run.profile.model


def fingerprint(run: Run) -> str:
    """What a run's result depends on: its settings, the core's sources and the base."""
    root = run.paths.root
    sources = [*provenance.rooms_of("experiment", root / "dyme_core"), *base_folder(run.paths, run.model, run.seed).glob("*")]
    return provenance.hash_json([repr(run), provenance.hash_files(sources, root)])
