"""The command `dyme`, also `python -m study`: train, evaluate, run the notebooks and the study, inspect this machine.

Each command imports what it needs, so that `dyme --help` loads no torch. Several processes share a run under
`torchrun --nproc_per_node 2 -m study train ...`. Exit codes: 0 done, 1 failed, 2 wrong request, 130 interrupted.
"""
from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dyme_core import config
from dyme_core.config import BAD_ROWS
from dyme_core.pipeline.methods import Run
from study import plan

logger = logging.getLogger(__name__)
DATA = ("chartqa", "aokvqa", "gsm8k", "slake", "geo170k", "mathverse", "own")  # sources.KNOWN, which loads pandas
# Not among --options of evaluate.
OWN_OPTIONS = {"model", "data", "out", "source", "split", "limit", "batch_size", "max_new_tokens", "on_bad_row", "bad"}
PACKAGES = ("dyme_core", "study", "scripts")
app = typer.Typer(name="dyme", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                  help="DyME at two scales: small vision-language models that learn to think by memorizing and exploring.")

# A Literal gives a plain text, but an option that may be repeated needs an Enum.
Split = StrEnum("Split", {name: name for name in config.HELD_OUT})
Size = StrEnum("Size", {name: name for name in config.MODEL_NAMES})
Experiment = StrEnum("Experiment", {name: name for name in plan.EXPERIMENTS})
Profile = Annotated[Literal[tuple(config.PROFILES)], typer.Option(help="settings: three for a CPU, two for a CUDA card")]
World = Annotated[Literal[plan.WORLDS], typer.Option(help="mini: charts in codes; smol: SmolLM2 and plain English")]
Settings = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="change a setting, the value in JSON: training.steps=100; may be repeated")]
Only = Annotated[list[str] | None, typer.Option(metavar="NAME", help="notebooks that begin so, such as 03; may be repeated")]
Own = Annotated[bool, typer.Option("--own", help="of your own runs, not the published study")]
Force = Annotated[bool, typer.Option("--force", help="run finished notebooks again")]
BadRow = Annotated[Literal[BAD_ROWS] | None, typer.Option(help="what a row that cannot be used does; default: raise")]


@app.command()
def train(
    method: Annotated[Literal[config.METHODS], typer.Option(help="what to train with")],
    profile: Profile = config.DEFAULT,
    model: Annotated[Size, typer.Option(help="which mini base; GPU profiles name their model")] = Size.svlm,
    seed: Annotated[int | None, typer.Option(min=0, max=config.MAX_SEED, help="default: the profile's")] = None,
    variant: Annotated[str, typer.Option(help="what the settings are called in the run's name; default: derived")] = "",
    split: Annotated[list[Split] | None, typer.Option(help="answered at the end; default: all")] = None,
    no_policy: Annotated[bool, typer.Option("--no-policy", help="do not keep the trained policy")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace a finished run with other settings")] = False,
    on_bad_row: BadRow = None,
    settings: Settings = None,
) -> None:
    """Train and evaluate one method. An interrupted run goes on from its last checkpoint."""
    changed = _settings(settings)
    changed |= {"data.on_bad_row": on_bad_row} if on_bad_row else {}
    chosen = config.load_profile(profile, **changed)
    if chosen.backend == "unsloth" and importlib.import_module("torch").cuda.is_available():
        importlib.import_module("unsloth")  # it replaces parts of TRL and has to come before it
    from dyme_core import ranks
    from dyme_core.pipeline.train import execute

    ranks.start()
    if not ranks.is_writer():
        logging.getLogger().setLevel(logging.ERROR)
    run = Run(chosen, method, model.value, chosen.seed if seed is None else seed, variant)
    execute(run, tuple(each.value for each in split or Split), keep_policy=not no_policy, force=force)
    ranks.stop()


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="folder of a saved model, or a hub id")],
    data: Annotated[Literal["mini", *DATA], typer.Option(help="the data set")],
    out: Annotated[Path, typer.Option(help="folder for rows.jsonl, scores.txt and manifest.json")],
    source: Annotated[str, typer.Option(help="the data set's folder, or its hub id")] = "",
    split: Annotated[Literal[config.SPLITS], typer.Option(help="of the data set")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many questions, kinds in equal numbers")] = None,
    options: Annotated[str, typer.Option(metavar="JSON", help='of the data set\'s reader: \'{"images": "coco"}\'')] = "{}",
    batch_size: Annotated[int, typer.Option(min=1, help="questions answered at a time")] = 100,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = config.Training.max_completion_tokens,
    on_bad_row: BadRow = None,
) -> None:
    """Score a saved model on a data set, by the common prompt and rules."""
    from dyme_core.pipeline.evaluate import evaluate_saved

    sys.stdout.write(evaluate_saved(model, data, out, source=source, split=split, limit=limit, batch_size=batch_size,
                                    max_new_tokens=max_new_tokens, on_bad_row=on_bad_row or "raise",
                                    **_reader_options(options)))


@app.command()
def paper(profile: Profile = config.DEFAULT, only: Only = None, settings: Settings = None, force: Force = False) -> None:
    """Run the notebooks into results/local and compare with what is published (mini: 16 minutes on two cores; smoke: 2)."""
    raise typer.Exit(_run_notebooks(profile, only, settings, force))


@app.command()
def publish(profile: Profile = config.DEFAULT, only: Only = None, settings: Settings = None, force: Force = False) -> None:
    """A maintainer's: run the notebooks where the published results are, then draw every table and figure again."""
    os.environ[config.PUBLISH] = "1"  # for the kernels, too
    if code := _run_notebooks(profile, only, settings, force):
        raise typer.Exit(code)
    figures(profile)


@app.command("study")
def run_study(
    profile: World = config.DEFAULT,
    only: Annotated[list[Experiment] | None, typer.Option(help="an experiment; may be repeated")] = None,
    hours: Annotated[float, typer.Option(min=0, help="start nothing after these; what runs is finished")] = float("inf"),
    show: Annotated[bool, typer.Option("--list", help="show the runs and which are finished, and start nothing")] = False,
) -> None:
    """Run every experiment with every seed (about 9 hours on two cores). Stop it at any time: it goes on where it was."""
    from study.runner import run_all

    os.environ[config.PUBLISH] = "1"  # for the processes of the runs, too
    experiments = [experiment.value for experiment in only or ()]
    if show:
        sys.stdout.write(run_all.listing(experiments, profile))
        return
    _end_like_ctrl_c()
    raise typer.Exit(run_all.run_study(experiments, hours, profile))


@app.command()
def figures(profile: Profile = config.DEFAULT, own: Own = False) -> None:
    """Draw tables and figures from stored rows, into results/local; nothing is trained (under a minute)."""
    from study import report

    report.write_all(profile, own)


@app.command()
def page(
    profile: Profile = config.DEFAULT,
    own: Own = False,
    out: Annotated[Path | None, typer.Option(help="the file; default: results/local/page.html")] = None,
) -> None:
    """Write the study as one HTML file: figures, tables, claims, and what the models say (under a minute)."""
    from study.page import write_page

    write_page(profile, own, out)


@app.command()
def base(
    profile: World = config.DEFAULT,
    seed: Annotated[int, typer.Option(min=0, max=config.MAX_SEED, help="of the base")] = 0,
    model: Annotated[list[Size] | None, typer.Option(help="default: all; smol has one size, svlm")] = None,
    threads: Annotated[int, typer.Option(min=1, help="of torch")] = 2,
) -> None:
    """Train the bases of a seed from their starts (about 20 minutes of one thread; a missing start, up to an hour more)."""
    if profile == "smol":
        from scripts import smol

        smol.build_base(seed, threads)
    else:
        from scripts import pretrain

        pretrain.build_bases(seed, [size.value for size in model or Size], threads)


@app.command("judge-server")
def judge_server(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="on 127.0.0.1; default: a free one")] = None,
) -> None:
    """Serve a small model on this machine. It shows that client and server work; it is too weak to judge."""
    from scripts import serving

    _end_like_ctrl_c()
    try:
        serving.serve(port, config.paths("llm").runs)
    except KeyboardInterrupt:
        logger.info("stopped")


@app.command()
def card(
    run: Annotated[str, typer.Option(help="its name, for example svlm-full_dyme-s0")],
    out: Annotated[Path, typer.Option(help="a new folder")],
    profile: Profile = config.DEFAULT,
) -> None:
    """Gather one run in a folder for readers: model card, rows, log, manifest."""
    from dyme_core.pipeline.model_card import gather

    sys.stdout.write(f"{gather(config.paths(profile), run, out)}\n")


@app.command()
def doctor(gpu: Annotated[bool, typer.Option("--gpu", help="measure the CUDA card into results/gpu (docs/gpu.md)")] = False
           ) -> None:
    """Say what this machine can run, and which command to type next."""
    from study.doctor import examine, measure_card

    sys.stdout.write(examine(config.paths(config.DEFAULT)))
    if gpu:
        raise typer.Exit(measure_card(config.paths("gpu").root))


def _show_version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"dyme {metadata.version('dyme')}\n")
        raise typer.Exit


@app.callback()
def dyme(version: Annotated[bool, typer.Option("--version", help="show the version", callback=_show_version)] = False) -> None:
    """What every command shares."""
    with contextlib.suppress(FileNotFoundError):  # an installed copy can evaluate without a repository
        root = config.paths(config.DEFAULT).root.resolve()
        if not Path.cwd().is_relative_to(root):
            logger.info("dyme works in %s", root)


def _reader_options(text: str) -> dict[str, Any]:
    """The data set's options from the command line, a JSON object."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"--options takes a JSON object, such as '{{\"images\": \"coco\"}}': got {text!r:.100}")
    if taken := sorted(options.keys() & OWN_OPTIONS):
        raise ValueError(f"--options must not hold {', '.join(taken)}: this command has an option of its own for it")
    return options


def _settings(given: list[str] | None) -> dict[str, Any]:
    """Every --set, by name; naming one setting twice with two values is refused, for one would be lost."""
    found: dict[str, Any] = {}
    for name, value in map(config.read_setting, given or ()):
        if name in found and found[name] != value:
            raise ValueError(f"--set {name} is given twice, as {found[name]!r} and {value!r}; give it once")
        found[name] = value
    return found


def _run_notebooks(profile: str, only: list[str] | None, settings: list[str] | None, force: bool) -> int:
    from study.runner import run_notebooks

    _end_like_ctrl_c()
    return run_notebooks.run(profile, only or (), _settings(settings), force)


def _end_like_ctrl_c() -> None:
    """Treat SIGTERM like Ctrl-C, so that child processes end, too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def exit_code(error: Exception) -> int | None:
    """2 for a wrong request, 1 for work that failed, None for a bug, which needs its traceback.

    A user can fix what our own code raises and what the operating system refuses.
    """
    innermost = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals["__name__"]
    is_ours = any(name.split(".")[0] in PACKAGES for name in (type(error).__module__, innermost))
    if isinstance(error, OSError) or is_ours and isinstance(error, ValueError | ImportError):
        return 2
    return 1 if is_ours and isinstance(error, RuntimeError) else None


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run one command and end with its exit code; an error that a user can fix is printed without a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app(arguments, prog_name="dyme")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if (code := exit_code(error)) is None:
            raise
        sys.stderr.write(f"dyme: {error}\n")
        sys.exit(code)
