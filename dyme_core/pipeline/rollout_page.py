"""Pages of rollouts (picture, question, mode, and what each rollout said and earned), and a table of answers.

`runs/<profile>/<run>/rollouts/step-40.html` opens in any browser: the pictures are inside, and no text of a model is markup.
"""
from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dyme_core import ranks
from dyme_core.data.schema import Record, item_of
from dyme_core.supervision import markup
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.utils import write_atomic

Rollout = tuple[dict[str, Any], str, tuple[float, ...], bool]  # data row, response, its numbers, whether it is correct
FOLDER = "rollouts"
STYLE = """<style>.said img{max-width:100%;border:1px solid #ccc}.said td img{width:192px;max-width:none}
.said mark{background:#f6c9b0}.said pre{white-space:pre-wrap;word-break:normal;margin:0;padding:0;background:none}
.said td,.said th{padding:.3em .6em;text-align:left!important;vertical-align:top!important;border-top:1px solid #ddd}</style>"""
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}</style>{style}
<body class="said"><h1>{title}</h1>
<p>Bold: values that the picture shows. Marked: values that it does not show.</p>"""


class RolloutPage(TrainerCallback):
    """Writes the rollouts of the first process as a page, rollouts/step-<number>.html.

    Args:
        folder: gets the pages; its name is their title.
        trainer: whose last rollouts are shown.
        every: steps between two pages; steps that are not logged have none.
        steps_before: of earlier phases.
    """

    def __init__(self, folder: Path, trainer: MeasuredGRPOTrainer, every: int, steps_before: int = 0) -> None:
        self.folder, self.trainer, self.every, self.steps_before = folder, trainer, every, steps_before

    def on_log(self, args, state, control, logs=None, **kwargs):
        step = state.global_step + self.steps_before
        if "loss" in logs and ranks.is_writer() and step % self.every == 0:
            said, asked = self.trainer._logs, self.trainer._asked
            names = [*said["rewards"], "advantage"]
            parts = zip(*said["rewards"].values(), said["advantages"], strict=True)
            shown = zip(asked, said["completion"], parts, self.trainer.is_correct().tolist(), strict=False)  # own ones first
            write_atomic(self.folder / FOLDER / f"step-{step}.html",
                         page(f"{self.folder.name}, step {step}", names, list(shown)))


def page(title: str, names: list[str], rollouts: list[Rollout]) -> bytes:
    """The HTML page in UTF-8; half of a surrogate pair, which UTF-8 does not have, is escaped.

    Args:
        title: its heading.
        names: of the numbers of a rollout: rewards, then the advantage.
        rollouts: those of one prompt in a row.
    """
    groups = [list(group) for _, group in groupby(rollouts, key=lambda rollout: rollout[0]["item"])]
    head = "".join(f"<th>{escape(name)}</th>" for name in [*names, "grounded", "response"])
    text = HEAD.format(title=escape(title), style=STYLE) + "".join(_group(group, head) for group in groups)
    return text.encode("utf-8", "backslashreplace")


def answers_table(records: Sequence[Record], **answers: Sequence[dict[str, Any]]) -> str:
    """What a model said to each question, as an HTML table: picture, question, answer, and a column of each of `answers`.

    Args:
        records: the questions.
        **answers: rows of `evaluate` on these records, by the column's name, such as before=..., after=...
    """
    lines = []
    for record, *said in zip(records, *answers.values(), strict=True):
        picture = "" if record.image is None else markup.picture(record.load_image())
        cells = [picture, escape(record.question), escape(record.answer), *(_answer(row, record) for row in said)]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ("picture", "question", "answer", *answers))
    return f'{STYLE}<table class="said"><tr>{head}</tr>{"".join(lines)}</table>'


def _answer(row: dict[str, Any], record: Record) -> str:
    return f"{'right' if row['correct'] else 'wrong'}<pre>{markup.judged(row['prediction'], item_of(record.row))[0]}</pre>"


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
