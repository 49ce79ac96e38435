"""One run of any profile from the command line, arguments as for `train`; Unsloth, where a profile wants it, comes first.

Unsloth replaces parts of TRL and must be imported before it, so nothing here may import TRL at the top.
"""
from __future__ import annotations

import argparse
import importlib
import sys

import torch

from dyme_core import config


def wants_unsloth(arguments: list[str]) -> bool:
    """Whether the profile of these arguments trains with Unsloth."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--set", nargs="*", default=[])
    known, _ = parser.parse_known_args(arguments)
    changed = dict(config.read_setting(pair) for pair in known.set if pair.startswith("backend="))
    return changed.get("backend", config.load_profile(known.profile).backend) == "unsloth"


def main(arguments: list[str] | None = None) -> None:
    """The command line; without a GPU `train` says what to do."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if wants_unsloth(arguments) and torch.cuda.is_available():
        importlib.import_module("unsloth")
    importlib.import_module("dyme_core.pipeline.train").main(arguments)


if __name__ == "__main__":
    main()
