"""The quiet start of every notebook; light, so that what is wrong is refused at once."""
from __future__ import annotations

import os
import warnings

from dyme_core import config

NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def begin(profile: str, **numbers: int) -> None:
    """Check a notebook's parameters. What is imported from now on draws no bars and gives no notices below the cells.

    Args:
        profile: its name.
        numbers: the parameters that are whole numbers.
    Raises:
        ValueError: for an unknown profile, or a parameter that is no whole number from 0.
    """
    config.load_profile(profile)
    for name, value in numbers.items():
        if type(value) is not int or not 0 <= value <= config.MAX_SEED:
            raise ValueError(f"{name} must be a whole number from 0 to {config.MAX_SEED}: got {value!r}; leave it out for the "
                             "default")
    os.environ.update(NO_BARS, TRANSFORMERS_VERBOSITY="error")  # read when the libraries are imported
    warnings.filterwarnings("ignore", "IProgress not found")  # by tqdm, which draws bars as text without ipywidgets
