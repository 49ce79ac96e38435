"""Pages of a run's rollouts beside its checkpoints: picture, question, mode, and what each rollout said and earned.

`runs/<profile>/<run>/rollouts/step-40.html` opens in any browser: the pictures are inside, and no text of a model is markup.
"""
from __future__ import annotations

from html import escape
from itertools import groupby
from typing import Any

from transformers import TrainerCallback

from dyme_core import ranks
from dyme_core.data.schema import item_of
from dyme_core.pipeline.methods import Run
from dyme_core.supervision import markup
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.utils import write_atomic

Rollout = tuple[dict[str, Any], str, tuple[float, ...], bool]  # data row, response, its numbers, whether it is correct
FOLDER = "rollouts"
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
img{{max-width:100%;border:1px solid #ccc}}mark{{background:#f6c9b0}}
td,th{{padding:.3em .6em;text-align:left;vertical-align:top;border-top:1px solid #ddd}}
pre{{white-space:pre-wrap;margin:0}}</style><h1>{title}</h1>
<p>Bold: values that the picture shows. Marked: values that it does not show.</p>"""


class RolloutPage(TrainerCallback):
    """Writes the rollouts of the first process as a page, every `evaluate_every` steps.

    Args:
        run: its folder gets the pages.
        trainer: whose last rollouts are shown.
        steps_before: of earlier phases.
    """

    def __init__(self, run: Run, trainer: MeasuredGRPOTrainer, steps_before: int) -> None:
        self.run, self.trainer, self.steps_before = run, trainer, steps_before

    def on_log(self, args, state, control, logs=None, **kwargs):
        step = state.global_step + self.steps_before
        if "loss" in logs and ranks.is_writer() and step % self.run.profile.training.evaluate_every == 0:
            said, asked = self.trainer._logs, self.trainer._asked
            names = [*said["rewards"], "advantage"]
            parts = zip(*said["rewards"].values(), said["advantages"], strict=True)
            shown = zip(asked, said["completion"], parts, self.trainer.is_correct().tolist(), strict=False)  # own ones first
            write_atomic(self.run.folder / FOLDER / f"step-{step}.html",
                         page(f"{self.run.name}, step {step}", names, list(shown)))


def page(title: str, names: list[str], rollouts: list[Rollout]) -> bytes:
    """The HTML page in UTF-8; half of a surrogate pair, which UTF-8 does not have, is escaped.

    Args:
        title: its heading.
        names: of the numbers of a rollout: rewards, then the advantage.
        rollouts: those of one prompt in a row.
    """
    groups = [list(group) for _, group in groupby(rollouts, key=lambda rollout: rollout[0]["item"])]
    head = "".join(f"<th>{escape(name)}</th>" for name in [*names, "grounded", "response"])
    text = HEAD.format(title=escape(title)) + "".join(_group(group, head) for group in groups)
    return text.encode("utf-8", "backslashreplace")


def _group(group: list[Rollout], head: str) -> str:
    row, lines = group[0][0], "".join(_rollout(*rollout[:3]) for rollout in group)
    num_right = sum(rollout[3] for rollout in group)
    mode = {0: "memorize", len(group): "mastered"}.get(num_right, "explore")
    return (f"<h2>{escape(row['question'])}</h2><p>Answer: {escape(row['answer'])}. {num_right} of {len(group)} rollouts are "
            f"correct: {mode}.</p>{_picture(row)}<table><tr>{head}</tr>{lines}</table>")


def _picture(row: dict[str, Any]) -> str:
    image = row.get("image") or next(iter(row.get("images") or ()), None)
    return "" if image is None else markup.picture(image)


def _rollout(row: dict[str, Any], response: str, numbers: tuple[float, ...]) -> str:
    text, judgement = markup.judged(response, item_of(row))
    grounded = "" if judgement is None else f"{judgement.reading.groundedness:.2f}"
    cells = "".join(f"<td>{cell}</td>" for cell in (*(f"{number:.2f}" for number in numbers), grounded))
    return f"<tr>{cells}<td><pre>{text}</pre></td></tr>"
