"""Pre-training of the mini bases from nothing: the vision tower learns to read charts, then the language model to talk of them.

`python -m dyme_core.pretrain` builds both bases (svlm and large) again. What the base is taught is what a small VLM brings
along: captions, look-ups, arithmetic, direct answers to the other questions, and loose prose when it is asked to think
(MINI.md): it never sees a worked-out trace of anything but look-ups.
"""
from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyme_core import charts, config, drawing, models, prompts, provenance
from dyme_core.data import mini_records
from dyme_core.decoding import decode
from dyme_core.facts import facts_of, write_facts
from dyme_core.models import ASSISTANT, END, PATCH, USER
from dyme_core.questions import KINDS, Question, draw_question
from dyme_core.supervision import FIRST_TEMPLATE, Item, item_of

logger = logging.getLogger(__name__)
NAMES = {name: place for place, name in enumerate(
    ("none", *map(str, range(100)), *charts.LABELS, *map(str, charts.YEARS)))}
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OTHER_KINDS = tuple(kind for kind in KINDS if kind != "lookup")
LOOSE = ("We look at {labels} and compare the values. Therefore, {conclusion}.",
         "First, we find {labels} in the figure. Then, {conclusion}.",
         "We read the values of {labels} and compare. Therefore, {conclusion}.",
         "We locate {labels} and see the result. Therefore, {conclusion}.")
SIDE = drawing.SIZE // PATCH  # patches a side; a group of the chart is one column of patches


def item_from(table: charts.Table, question: Question) -> Item:
    """What supervision needs of a question on a table."""
    return Item(question.text, question.answer, facts_of(table), question.evidence, question.labels, question.working,
                question.conclusion)


class ColumnReader(nn.Module):
    """What the vision tower is trained to make readable, linearly, at every patch: the letters in its cells, and the label,
    values and series names of its column of the chart."""

    def __init__(self, width: int):
        super().__init__()
        self.columns = nn.Linear(width, 5 * len(NAMES))
        self.letters = nn.Linear(width, (PATCH // drawing.CELL_WIDTH) * (PATCH // drawing.CELL_HEIGHT) * (len(LETTERS) + 1))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden.shape[0]
        return (self.columns(hidden).view(rows, SIDE, SIDE, 5, len(NAMES)),
                self.letters(hidden).view(rows, SIDE * SIDE, -1, len(LETTERS) + 1))


def draw_chart(rng: random.Random, split: str) -> tuple[charts.Table, drawing.Style]:
    """A chart to learn reading from: values up to those of the unseen test set (a base reads numbers), never its styles."""
    return charts.draw_table(rng, split, values=(1, charts.UNSEEN_VALUES[1])), drawing.draw_style(rng)


def column_batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures and what stands where in them.

    Returns:
        pixels (B, 3, 96, 96) in [-1, 1]; columns (B, rows, columns, 5) of NAMES ids: the label of the patch's column, the
        value of either series printed in this patch, both series' names (0 where there is none); letters (B, patches,
        cells of a patch) of LETTERS ids, their number where a cell is empty.
    """
    pictures = []
    columns = np.zeros((size, SIDE, SIDE, 5), dtype=np.int64)
    letters = np.full((size, drawing.ROWS, drawing.COLUMNS), len(LETTERS))
    for place in range(size):
        table, style = draw_chart(rng, "train")
        pictures.append(drawing.render(table, style))
        layout = drawing.lay_out(table, style)
        texts = [(cell, str(table.values[s][g])) for (s, g), cell in layout.values.items()]
        for (series, group), (column, row) in layout.values.items():
            columns[place, row * SIDE // drawing.ROWS, column * SIDE // drawing.COLUMNS, 1 + series] = \
                NAMES[str(table.values[series][group])]
        for group, cell in zip(table.groups, layout.groups, strict=True):
            columns[place, :, cell[0] * SIDE // drawing.COLUMNS, 0] = NAMES[group]
            texts.append((cell, group))
        for number, (series, cell) in enumerate(zip(table.series, layout.series, strict=True)):
            columns[place, :, :, 3 + number] = NAMES[series]
            texts.append((cell, series))
        for (column, row), text in texts:
            letters[place, row, column: column + len(text)] = [LETTERS.index(letter) for letter in text]
    high, wide = drawing.ROWS // SIDE, drawing.COLUMNS // SIDE
    cells = letters.reshape(size, SIDE, high, SIDE, wide).transpose(0, 1, 3, 2, 4).reshape(size, SIDE * SIDE, high * wide)
    return to_pixels(pictures), torch.from_numpy(columns), torch.from_numpy(cells)


class Aligner(nn.Module):
    """Reads the projector's output in the language model's own words: the label of a patch's column is the embedding that
    lies nearest to it, the values and series names lie behind one learned map each."""

    def __init__(self, embedding: nn.Embedding, tokenizer):
        super().__init__()
        self.embedding = embedding
        ids = tokenizer([f" {name}" for name in list(NAMES)[1:]], add_special_tokens=False)["input_ids"]
        self.register_buffer("ids", torch.tensor([tokenizer.pad_token_id, *(name[-1] for name in ids)]))
        self.maps = nn.ModuleList(nn.Linear(embedding.embedding_dim, embedding.embedding_dim) for _ in range(4))

    def forward(self, projected: Tensor) -> Tensor:
        rows = projected.shape[0]
        slots = torch.stack([projected, *(read(projected) for read in self.maps)], dim=2)
        return (slots @ self.embedding.weight[self.ids].T).view(rows, SIDE, SIDE, 5, len(NAMES))


def align(model: nn.Module, processor: models.MiniProcessor, settings: config.Base, seed: int) -> None:
    """Train projector and word embeddings, tower frozen, until patches speak the language model's words (LLaVA's stage 1)."""
    rng = random.Random(f"align {seed}")
    aligner = Aligner(model.get_input_embeddings(), processor.tokenizer)

    def loss_of(_: int) -> Tensor:
        pixels, columns, _ = column_batch(rng, settings.batch_size)
        with torch.no_grad():
            hidden = model.model.vision_tower(pixel_values=pixels).last_hidden_state
        return F.cross_entropy(aligner(model.model.multi_modal_projector(hidden)).flatten(0, -2), columns.flatten())

    optimise([model.model.multi_modal_projector, aligner], loss_of, settings.align_steps, settings.learning_rate, "alignment")


def to_pixels(pictures: list) -> Tensor:
    """(B, 3, 96, 96) in [-1, 1], as the processor gives it for a picture of the model's own size."""
    stacked = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.astype(np.float32) / 127.5 - 1.0)


def pretrain_vision(model: nn.Module, settings: config.Base, seed: int) -> dict[str, float]:
    """Train the vision tower to read columns; returns the reader's accuracy on fresh validation charts."""
    tower, rng = model.model.vision_tower, random.Random(f"vision {seed}")
    torch.manual_seed(seed)
    reader = ColumnReader(tower.config.hidden_size)
    weight = torch.ones(len(LETTERS) + 1)
    weight[-1] = 0.05  # most cells are empty

    def loss_of(_: int) -> Tensor:
        pixels, columns, letters = column_batch(rng, settings.vision_batch_size)
        read, spelled = reader(tower(pixel_values=pixels).last_hidden_state)
        return (3 * F.cross_entropy(read.flatten(0, -2), columns.flatten())
                + F.cross_entropy(spelled.flatten(0, -2), letters.flatten(), weight=weight))

    optimise([tower, reader], loss_of, settings.vision_steps, settings.vision_learning_rate, "vision")
    with torch.no_grad():
        pixels, columns, _ = column_batch(random.Random(f"vision check {seed}"), 256)
        is_right = reader(tower(pixel_values=pixels).last_hidden_state)[0].argmax(-1) == columns
    names = ("label", "first value", "second value", "first series", "second series")
    return {f"reads {name}": is_right[..., place][columns[..., place] > 0].float().mean().item()
            for place, name in enumerate(names)}


def optimise(modules: list[nn.Module], loss_of: Callable[[int], Tensor], steps: int, learning_rate: float, name: str) -> None:
    """Train what is not frozen with one-cycle schedules and clipping; logs loss, pace and time left every 5 s or so.

    The matrices of the transformer layers are trained with Muon (Jordan et al. 2024), everything else with AdamW: at the
    same steps the vision tower read 99 % of the second series' values instead of 82 % (results/LOG.md).
    """
    named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
    parameters = list({id(parameter): parameter for _, parameter in named}.values())
    matrices = {id(parameter) for label, parameter in named if "layers." in label and parameter.ndim == 2}
    rest = [parameter for parameter in parameters if id(parameter) not in matrices]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, learning_rate, weight_decay=0.01, betas=(0.9, 0.98))]
    if matrices:
        optimisers.append(torch.optim.Muon([parameter for parameter in parameters if id(parameter) in matrices], learning_rate,
                                           weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    schedules = [torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.08,
                                                     cycle_momentum=False) for optimiser in optimisers]
    start = said = time.perf_counter()
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            loss = loss_of(step)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for each in (*optimisers, *schedules):
            each.step()
        if time.perf_counter() - said > 5 or step == steps - 1:
            said = time.perf_counter()
            pace = (said - start) / (step + 1)
            logger.info("%s: step %d of %d, loss %.3f, %.2f s a step, %.0f s left", name, step + 1, steps, loss.item(), pace,
                        pace * (steps - step - 1))


def draw_turns(rng: random.Random, table: charts.Table, is_early: bool) -> list[tuple[str, str]]:
    """One or two questions and replies of the base's training conversations.

    Early ones are captions of all or of named groups, which teach to find a group by its name. Two turns describe groups and
    then work with what was said: together what thinking needs, but never in one reply.
    """
    weights = (40, 60, 0, 0, 0) if is_early else (8, 14, 26, 30, 22)
    kind = rng.choices(("caption", "named", "lookup", "other", "described"), weights)[0]
    if kind == "caption":
        return [(prompts.CAPTION_INSTRUCTION, write_facts(facts_of(table)) + ".")]
    if kind == "named" or kind == "lookup" and len(table.series) > 1:
        return [_describe(table, rng.sample(table.groups, rng.randint(1, len(table.groups))))]
    if kind == "described":
        question = draw_question(rng, table, OTHER_KINDS)
        return [_describe(table, list(dict.fromkeys(fact.entity for fact in question.evidence))),
                (question.text, _work(question))]
    return [_answer(rng, table, kind)]


def _answer(rng: random.Random, table: charts.Table, kind: str) -> tuple[str, str]:
    """A look-up or another question, answered with or without thinking; only that of a look-up states figures."""
    question = draw_question(rng, table, ("lookup",) if kind == "lookup" else OTHER_KINDS)
    answer = f"{prompts.ANSWER_OPEN}{question.answer}{prompts.ANSWER_CLOSE}"
    if rng.random() < (0.5 if kind == "lookup" else 0.3):
        return prompts.question_text(question.text, prompts.ANSWER_INSTRUCTION), answer
    if rng.random() < (0.5 if kind == "lookup" else 0.4):
        thinking = (FIRST_TEMPLATE.fill(item_from(table, question)) if kind == "lookup" else
                    rng.choice(LOOSE).format(labels=" and ".join(question.labels), conclusion=question.conclusion))
        return prompts.question_text(question.text), prompts.write_response(thinking, question.answer)
    return prompts.question_text(question.text), answer


def _describe(table: charts.Table, names: list[str]) -> tuple[str, str]:
    facts = facts_of(table)
    return f"Describe {' and '.join(names)}.", write_facts(tuple(f for name in names for f in facts if f.entity == name)) + "."


def _work(question: Question) -> str:
    return f"{question.working}, {question.conclusion}."


def draw_sum(rng: random.Random, split: str = "train") -> tuple[str, str]:
    """A question and reply without a picture: bare arithmetic, or the working of a question whose facts are stated.

    The base so brings both halves of thinking, reading figures off a picture and working with figures that it was told,
    but has never seen them put together.
    """
    if rng.random() < 0.5:
        table = charts.draw_table(rng, split, values=(1, charts.UNSEEN_VALUES[1]))
        question = draw_question(rng, table, OTHER_KINDS)
        return f"{write_facts(question.evidence)}. {question.text}", _work(question)
    high, low = sorted((rng.randint(1, 80), rng.randint(1, 80)), reverse=True)
    sign = rng.choices("-+<", (45, 40, 15))[0]
    if sign == "<":
        first, second = rng.sample((high, low), 2)
        return f"Compare {first} and {second}.", f"{first} {'<' if first < second else '>' if first > second else '='} {second}"
    if sign == "+" and rng.random() < 0.5:
        high, low = low, high
    return f"Calculate {high} {sign} {low}.", f"{high} {sign} {low} = {high - low if sign == '-' else high + low}"


def conversation_batch(rng: random.Random, processor: models.MiniProcessor, size: int, turns: int, is_early: bool
                       ) -> dict[str, Tensor]:
    """Pictures with `turns` (or one more) questions and replies; labels are -100 but on the replies and their end tokens."""
    pictures, rows = [], []
    for _ in range(size):
        table, style = draw_chart(rng, "train")
        pictures.append(drawing.render(table, style))
        image = [processor.image_token_id] * (2 * SIDE * SIDE + SIDE)  # base view, tile, one newline a row
        talk: list[tuple[str, str]] = []
        while len(talk) < turns:
            talk += draw_turns(rng, table, is_early)
        rows.append(_tokens(processor, talk, image))
    return {**_padded(processor, rows),
            "pixel_values": to_pixels(pictures)[:, None].repeat(1, 2, 1, 1, 1),  # base view and its one tile are the same
            "image_sizes": torch.full((size, 2), drawing.SIZE)}


def _tokens(processor: models.MiniProcessor, turns: list[tuple[str, str]], image: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a conversation; the picture's tokens open its first question."""
    tokenizer = processor.tokenizer
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    ids = tokenizer([text for turn in turns for text in turn], add_special_tokens=False)["input_ids"]
    row, label = [], []
    for place in range(len(turns)):
        asked = [user, *(image if place == 0 else ()), *ids[2 * place], end, assistant]
        reply = [*ids[2 * place + 1], end]
        row += asked + reply
        label += [-100] * len(asked) + reply
    return torch.tensor(row), torch.tensor(label)


def _padded(processor: models.MiniProcessor, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Rows padded on the right, which causal attention never looks at, to a multiple of 16: few shapes, few new kernels."""
    ids, labels = zip(*rows, strict=True)
    length = -(-max(map(len, ids)) // 16) * 16
    pad = processor.tokenizer.pad_token_id
    return {"input_ids": torch.stack([F.pad(row, (0, length - len(row)), value=pad) for row in ids]),
            "labels": torch.stack([F.pad(row, (0, length - len(row)), value=-100) for row in labels])}


def _reply_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the reply tokens; the head is applied to these alone, in 32 bits."""
    labels = batch.pop("labels")[:, 1:]
    is_reply = labels != -100
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
    with torch.autocast("cpu", enabled=False):
        return F.cross_entropy(model.lm_head(hidden[is_reply].float()), labels[is_reply])


def sum_batch(rng: random.Random, processor: models.MiniProcessor, size: int, turns: int = 8) -> dict[str, Tensor]:
    """Conversations without pictures, `turns` sums each (`draw_sum`); labels as in `conversation_batch`."""
    return _padded(processor, [_tokens(processor, [draw_sum(rng) for _ in range(turns)], ()) for _ in range(size)])


def pretrain_language(model: nn.Module, processor: models.MiniProcessor, settings: config.Base, seed: int) -> None:
    """Train projector and language model on conversations about charts and on sums, vision tower frozen."""
    models.freeze_vision(model)
    rng = random.Random(f"language {seed}")

    def loss_of(step: int) -> Tensor:
        is_early = step < settings.early_steps
        talk = conversation_batch(rng, processor, settings.batch_size, 1 if is_early else settings.turns, is_early)
        return _reply_loss(model, talk) + _reply_loss(model, sum_batch(rng, processor, settings.sums))

    optimise([model], loss_of, settings.language_steps, settings.learning_rate, "language")


@torch.no_grad()
def _share_of_sums(model: nn.Module, processor: models.MiniProcessor, count: int, is_stated: bool) -> float:
    """Share of sums whose whole reply has the highest probability token by token, which is what greedy decoding writes."""
    rng, rows = random.Random("sums to measure"), []
    while len(rows) < count:
        turn = draw_sum(rng, "validation")
        rows += [_tokens(processor, [turn], ())] if (" has " in turn[0]) == is_stated else []
    batch = _padded(processor, rows)
    labels = batch["labels"][:, 1:]
    is_right = (model(input_ids=batch["input_ids"]).logits[:, :-1].argmax(-1) == labels) | (labels == -100)
    return is_right.all(dim=1).float().mean().item()


def measure_base(model: nn.Module, processor: models.MiniProcessor, num_items: int = 200) -> dict[str, float]:
    """Base quality on validation charts, all shares in [0, 1].

    Captions (exact match), sums (exact match) and look-ups (direct answers) are greedy; in thinking mode one response a
    question is sampled at temperature 1: its format rate, its strict accuracy, and the share that is both.
    """
    lookups = [record for record in mini_records("validation", len(KINDS) * num_items, seed=1) if record.kind == "lookup"]
    captions = [replace(record, question=prompts.CAPTION_INSTRUCTION) for record in lookups]
    said = decode(model, processor, captions, instruction="")
    answered = decode(model, processor, lookups, instruction=prompts.ANSWER_INSTRUCTION)
    mixed = mini_records("validation", num_items, seed=1)
    thought = [response.text for response in decode(model, processor, mixed, seed=0)]
    well_formed = [prompts.is_well_formed(text) for text in thought]
    is_right = [prompts.split_response(text)[1] == record.answer for text, record in zip(thought, mixed, strict=True)]
    return {"caption exact match": _share(response.text == write_facts(item_of(record.row).facts) + "."
                                          for response, record in zip(said, captions, strict=True)),
            "look-up accuracy": _share(prompts.split_response(response.text)[1] == record.answer
                                       for response, record in zip(answered, lookups, strict=True)),
            "bare sums": _share_of_sums(model, processor, num_items, is_stated=False),
            "sums of stated facts": _share_of_sums(model, processor, num_items, is_stated=True),
            "thinking format rate": _share(well_formed), "thinking accuracy": _share(is_right),
            "thinking well-formed accuracy": _share(a and b for a, b in zip(well_formed, is_right, strict=True))}


def _share(flags) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


def build_base(size: str, seed: int, settings: config.Base, folder: Path, tower: dict[str, Tensor] | None = None
               ) -> dict[str, Any]:
    """Build one base and write it to `folder` in 16 bits with its manifest.json; returns the manifest.

    Args:
        tower: weights of an already trained vision tower; None trains one.
    """
    processor = models.build_processor()
    model = models.build_model(size, processor, seed)
    start, metrics = time.perf_counter(), {}
    if tower is None:
        metrics |= pretrain_vision(model, settings, seed)
    else:
        model.model.vision_tower.load_state_dict(tower)
    vision_s = time.perf_counter() - start
    align(model, processor, settings, seed)
    pretrain_language(model, processor, settings, seed)
    seconds = time.perf_counter() - start
    metrics |= measure_base(model, processor)
    models.save_policy(model, processor, folder, torch.bfloat16)
    manifest = {"model": size, "seed": seed, "parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds,
                "vision_seconds": vision_s, "settings": asdict(settings), "metrics": metrics,
                **provenance.provenance(config.paths("mini").root)}
    provenance.write_json(folder / "manifest.json", manifest)
    for name, value in metrics.items():
        logger.info("%s: %s %.3f", folder.name, name, value)
    return manifest


def main(arguments: list[str] | None = None) -> None:
    """Build the bases: the SVLM with its own vision tower, then the larger sibling on the same tower."""
    parser = argparse.ArgumentParser(prog="python -m dyme_core.pretrain", description="Build the mini bases from nothing.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=tuple(models.SIZES), default=list(models.SIZES))
    parser.add_argument("--threads", type=int, default=2, help="torch threads; two cores are free while a base is built alone")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    paths, profile = config.paths("mini"), config.load_profile("mini")
    for size in options.models:
        svlm = paths.bases / f"svlm-s{options.seed}"
        tower = models.load_policy(svlm)[0].model.vision_tower.state_dict() if size != "svlm" else None
        settings = profile.base if size == "svlm" else profile.large_base
        build_base(size, options.seed, settings, paths.bases / f"{size}-s{options.seed}", tower)


if __name__ == "__main__":
    main()
