"""Tests on Unsloth run by `make test-unsloth` alone: each file in a process and an environment of its own (Unsloth patches
transformers, PEFT and TRL when it is imported)."""
import os
import sys
from pathlib import Path

collect_ignore_glob = [] if os.environ.get("DYME_UNSLOTH") else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tiny_families, family_steps
