"""What this machine can run, and which command to type next (`dyme doctor`)."""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from dyme_core import config, utils

GIB = 2**30
EXTRAS = {"ocr": ("rapidocr", "onnxruntime"), "llm": ("fastapi", "uvicorn", "gguf")}  # what each extra of pyproject.toml brings
CARD_GIB = 11  # that the profile gpu takes, by `estimate`


def examine(paths: config.Paths) -> str:
    """A line for each thing that decides what can be run here; the last one is a command to type."""
    card, memory = _card(), psutil.virtual_memory()
    unsloth = _version("unsloth")
    told = {"python": f"{platform.python_version()} (3.11 or newer is needed)",
            "CPU": f"{utils.cpu_kind()}; {utils.cpu_model().rpartition(', ')[2]}",
            "memory": f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free (2 processes of mini take 4)",
            "disk": f"{shutil.disk_usage(paths.root).free / GIB:.1f} GiB free",
            "CUDA card": f"{card[0]}, {card[1]:.0f} GiB" if card else "none: profiles smoke and mini run, gpu and paper do not",
            "Unsloth": unsloth or "not installed (extra gpu; the profile gpu trains with it)",
            "vLLM": _version("vllm") or "not installed (no profile needs it)",
            **{f"extra {name}": "installed" if all(map(util.find_spec, needs)) else f"not installed: pip install -e '.[{name}]'"
               for name, needs in EXTRAS.items()},
            "endpoint": _endpoint(), "published results": _published(paths), "next": _next(paths, card, unsloth)}
    return "".join(f"{name:19}{value}\n" for name, value in told.items())


def measure_card(root: Path) -> int:
    """Run the stages of benchmarks/gpu (docs/gpu.md) in a process of their own; its exit code.

    Raises:
        FileNotFoundError: where the package was installed without the repository.
    """
    if not (root / "benchmarks" / "gpu").is_dir():
        raise FileNotFoundError(f"no folder benchmarks/gpu in {root}: the stages are no part of the package; clone the "
                                "repository and start this there")
    return subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=root).returncode


def _card() -> tuple[str, float] | None:
    """Name and memory in GiB of the first CUDA card."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _endpoint() -> str:
    """Whether a model server is set; of its address only the host, which holds no key."""
    url, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not url:
        return "not set (OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY; the mini profiles check by rules, without one)"
    return f"{urlsplit(url).hostname}, model {os.environ.get('OPENAI_MODEL') or 'not set'}, key {'set' if key else 'not set'}"


def _published(paths: config.Paths) -> str:
    command = ["git", "-C", str(paths.root), "status", "--porcelain", "--", "results", "paper_figures"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "no git repository here"
    changed = len(done.stdout.splitlines())
    return f"{changed} files differ from git (git status shows them)" if changed else "as in git"


def _next(paths: config.Paths, card: tuple[str, float] | None, unsloth: str) -> str:
    manifest = paths.results / "manifest.json"
    done = len(utils.read_json(manifest)["notebooks"]) if manifest.is_file() else 0
    if done < len(list((paths.root / "notebooks").glob("*.ipynb"))):
        return "dyme paper (all notebooks, 16 minutes on two cores; a first try: dyme paper --profile smoke, 2 minutes)"
    if card and card[1] >= CARD_GIB and unsloth:
        return "dyme train --profile gpu --method full_dyme (half a day on one card)"
    return "make lab (read the notebooks), or dyme study (every experiment, about 9 hours on two cores)"
