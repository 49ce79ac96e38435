"""DyME: train small vision-language models to think, by memorizing where all rollouts fail and exploring elsewhere.

Everything listed here is imported when it is first used, so that `import dyme_core` is quick and loads no torch (and so that
Unsloth can be imported before TRL).
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
EXPORTS = {  # name: the module it lies in
    "DyMEConfig": "dyme_core.trainer.config",
    "DyMETrainer": "dyme_core.trainer.dyme_trainer",
    "SWITCHES": "dyme_core.trainer.switches",
    "dyme_rewards": "dyme_core.trainer.rewards",
    "RuleChecker": "dyme_core.supervision.checker",
    "RuleRefiner": "dyme_core.supervision.refiner",
    "TemplateBank": "dyme_core.supervision.refiner",
    "LLMChecker": "dyme_core.supervision.llm.judge",
    "LLMRefiner": "dyme_core.supervision.llm.refiner",
    "Fact": "dyme_core.data.schema",
    "Record": "dyme_core.data.schema",
    "load_dataset": "dyme_core.data.datasets",
    "load_policy": "dyme_core.models.loading",
    "with_engine": "dyme_core.models.engine",
    "evaluate": "dyme_core.pipeline.evaluate",
}
__all__ = ["DyMEConfig", "DyMETrainer", "Fact", "LLMChecker", "LLMRefiner", "Record", "RuleChecker", "RuleRefiner", "SWITCHES",
           "TemplateBank", "__version__", "dyme_rewards", "evaluate", "load_dataset", "load_policy", "with_engine"]

if TYPE_CHECKING:  # what type checkers and editors read
    from dyme_core.data.datasets import load_dataset
    from dyme_core.data.schema import Fact, Record
    from dyme_core.models.engine import with_engine
    from dyme_core.models.loading import load_policy
    from dyme_core.pipeline.evaluate import evaluate
    from dyme_core.supervision.checker import RuleChecker
    from dyme_core.supervision.llm.judge import LLMChecker
    from dyme_core.supervision.llm.refiner import LLMRefiner
    from dyme_core.supervision.refiner import RuleRefiner, TemplateBank
    from dyme_core.trainer.config import DyMEConfig
    from dyme_core.trainer.dyme_trainer import DyMETrainer
    from dyme_core.trainer.rewards import dyme_rewards
    from dyme_core.trainer.switches import SWITCHES


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
