"""What the mini base is taught: captions, look-ups, direct answers, loose prose, and sums without a picture.

It resembles what a small VLM brings along (docs/data_and_models.md): it reads figures off a picture and calculates with
figures that are given, but never does both in one reply. The only traces it learns are those of look-ups.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import LlavaNextProcessor, PreTrainedTokenizerFast

from dyme_core.data import chart_images, chart_tables, prompt_format
from dyme_core.data.chart_images import NUM_TILES, TILE
from dyme_core.data.chart_questions import KINDS, draw_question
from dyme_core.data.chart_tables import facts_of
from dyme_core.data.english import in_english, in_names
from dyme_core.data.schema import Fact, Item, write_facts
from dyme_core.models.tiny_onevision import ASSISTANT, END, PATCH, USER
from dyme_core.supervision.refiner import FIRST_TEMPLATE

OTHER_KINDS = tuple(kind for kind in KINDS if kind != "lookup")
LOOSE = ("We look at {labels} and compare the values. Therefore, {conclusion}.",
         "First, we find {labels} in the figure. Then, {conclusion}.",
         "We read the values of {labels} and compare. Therefore, {conclusion}.",
         "We locate {labels} and see the result. Therefore, {conclusion}.")
NAMES = {name: place for place, name in enumerate(
    ("none", *map(str, range(100)), *chart_tables.LABELS, *map(str, chart_tables.YEARS)))}
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ROW = 192  # tokens of a conversation, unless its first turns are longer
SIDE = TILE // PATCH  # patches a side of a tile; a group of the chart is one column of patches


def draw_chart(rng: random.Random, split: str) -> tuple[chart_tables.Table, chart_images.Style]:
    """A chart to learn reading from: values up to those of the unseen test set (a base reads numbers), never its styles."""
    return chart_tables.draw_table(rng, split, values=(1, chart_tables.UNSEEN_VALUES[1])), chart_images.draw_style(rng)


def draw_turns(rng: random.Random, table: chart_tables.Table, is_early: bool, language: str = "codes"
               ) -> list[tuple[str, str]]:
    """One or two questions and replies of the base's training conversations.

    Early ones are captions of all groups or of named ones, which teach the model to find a group by its name. Where there are
    two turns, the first describes groups and the second calculates with them: thinking needs both, but no reply has both.
    """
    weights = (40, 60, 0, 0, 0) if is_early else (8, 14, 26, 22, 30)
    kind = rng.choices(("caption", "named", "lookup", "other", "described"), weights)[0]
    facts = facts_of(table) if language == "codes" else in_names(facts_of(table))
    groups = list(dict.fromkeys(fact.entity for fact in facts))
    if kind == "caption":
        return [_caption(facts)]
    if kind == "named" or kind == "lookup" and len(table.series) > 1:
        return [_describe(facts, rng.sample(groups, rng.randint(1, len(groups))))]
    if kind == "described":
        item = _draw(rng, table, OTHER_KINDS, language)
        names = list(dict.fromkeys(fact.entity for fact in item.evidence))
        first = _caption(facts) if len(names) == len(groups) else _describe(facts, names)
        return [first, (item.question, _work(item))]
    return [_answer(rng, table, kind, language)]


def _draw(rng: random.Random, table: chart_tables.Table, kinds: tuple[str, ...], language: str) -> Item:
    kind, item = draw_question(rng, table, kinds)
    return item if language == "codes" else in_english(rng, item, kind, table)


def _answer(rng: random.Random, table: chart_tables.Table, kind: str, language: str) -> tuple[str, str]:
    """A look-up or another question, answered with or without thinking; only the thinking of a look-up states values."""
    item = _draw(rng, table, ("lookup",) if kind == "lookup" else OTHER_KINDS, language)
    answer = f"{prompt_format.ANSWER_OPEN}{item.answer}{prompt_format.ANSWER_CLOSE}"
    if rng.random() < (0.5 if kind == "lookup" else 0.3):
        return prompt_format.question_text(item.question, prompt_format.ANSWER_INSTRUCTION), answer
    if rng.random() < (0.5 if kind == "lookup" else 0.4):
        thinking = (FIRST_TEMPLATE.fill(item) if kind == "lookup" else
                    rng.choice(LOOSE).format(labels=" and ".join(item.labels), conclusion=item.conclusion))
        return prompt_format.question_text(item.question), prompt_format.write_response(thinking, item.answer)
    return prompt_format.question_text(item.question), answer


def _caption(facts: tuple[Fact, ...]) -> tuple[str, str]:
    return prompt_format.CAPTION_INSTRUCTION, write_facts(facts) + "."


def _describe(facts: tuple[Fact, ...], names: list[str]) -> tuple[str, str]:
    return f"Describe {' and '.join(names)}.", write_facts(tuple(f for name in names for f in facts if f.entity == name)) + "."


def _work(item: Item) -> str:
    return f"{item.working}, {item.conclusion}."


def draw_sum(rng: random.Random, split: str = "train", language: str = "codes") -> tuple[str, str]:
    """A question and reply without a picture: bare arithmetic, or the working of a question whose facts are stated.

    So the base knows both halves of thinking, reading values off a picture and calculating with given values, but has never
    seen them in one reply.
    """
    if rng.random() < 0.5:
        table = chart_tables.draw_table(rng, split, values=(1, chart_tables.UNSEEN_VALUES[1]))
        item = _draw(rng, table, OTHER_KINDS, language)
        return f"{write_facts(item.evidence)}. {item.question}", _work(item)
    high, low = sorted((rng.randint(1, 80), rng.randint(1, 80)), reverse=True)
    sign = rng.choices("-+<", (45, 40, 15))[0]
    if sign == "<":
        first, second = rng.sample((high, low), 2)
        return f"Compare {first} and {second}.", f"{first} {'<' if first < second else '>' if first > second else '='} {second}"
    if sign == "+" and rng.random() < 0.5:
        high, low = low, high
    return f"Calculate {high} {sign} {low}.", f"{high} {sign} {low} = {high - low if sign == '-' else high + low}"


def column_batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tiles of `size` pictures, and which text stands where in them.

    Returns:
        pixels (tiles, 3, 96, 96) in [-1, 1], a picture's tiles adjacent; columns (tiles, rows, columns, 5) of NAMES ids: the
        label of the patch's column, the value of either series printed in this patch, both series' names in the tile that has
        the legend (0 where there is none); letters (tiles, patches, cells of a patch) of LETTERS ids, their number where a
        cell is empty.
    """
    pictures = []
    columns = np.zeros((size, SIDE, NUM_TILES * SIDE, 5), dtype=np.int64)
    letters = np.full((size, chart_images.ROWS, chart_images.COLUMNS), len(LETTERS))
    high, wide = PATCH // chart_images.CELL_HEIGHT, PATCH // chart_images.CELL_WIDTH  # cells of a patch
    for place in range(size):
        table, style = draw_chart(rng, "train")
        pictures.append(chart_images.render(table, style))
        layout = chart_images.lay_out(table, style)
        texts = [(cell, str(table.values[s][g])) for (s, g), cell in layout.values.items()]
        for (series, group), (column, row) in layout.values.items():
            columns[place, row // high, column // wide, 1 + series] = NAMES[str(table.values[series][group])]
        for group, cell in zip(table.groups, layout.groups, strict=True):
            columns[place, :, cell[0] // wide, 0] = NAMES[group]
            texts.append((cell, group))
        for number, (series, cell) in enumerate(zip(table.series, layout.series, strict=True)):
            columns[place, :, :SIDE, 3 + number] = NAMES[series]
            texts.append((cell, series))
        for (column, row), text in texts:
            letters[place, row, column: column + len(text)] = [LETTERS.index(letter) for letter in text]
    tiled = columns.reshape(size, SIDE, NUM_TILES, SIDE, 5).transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 5)
    split = letters.reshape(size, SIDE, high, NUM_TILES, SIDE, wide).transpose(0, 3, 1, 4, 2, 5)
    cells = split.reshape(-1, SIDE * SIDE, high * wide)
    return (to_pixels([view for picture in pictures for view in views(picture)[1:]]), torch.from_numpy(tiled),
            torch.from_numpy(cells))


def views(picture: Image.Image) -> list[Image.Image]:
    """A picture as the processor cuts it: the whole, narrowed to a square, then its tiles."""
    whole = picture.resize((TILE, TILE), Image.Resampling.NEAREST)
    return [whole, *(picture.crop((TILE * place, 0, TILE * (place + 1), TILE)) for place in range(NUM_TILES))]


def to_pixels(pictures: list) -> Tensor:
    """(B, 3, 96, 96) in [-1, 1], as the processor gives it for square views."""
    stacked = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.astype(np.float32) / 127.5 - 1.0)


def conversation_batch(rng: random.Random, processor: LlavaNextProcessor, size: int, is_early: bool, language: str = "codes"
                       ) -> dict[str, Tensor]:
    """Pictures with as many questions and replies as fit into ROW tokens; labels are -100 except on the replies and their end
    tokens."""
    image = [processor.image_token_id] * ((1 + NUM_TILES) * SIDE * SIDE + SIDE)  # whole, tiles, one newline per row
    pictures, rows = [], []
    for _ in range(size):
        table, style = draw_chart(rng, "train")
        pictures.append(chart_images.render(table, style))
        rows.append(_fill(processor, lambda table=table: draw_turns(rng, table, is_early, language), image))
    return {**padded(processor, rows),
            "pixel_values": torch.stack([to_pixels(views(picture)) for picture in pictures]),
            "image_sizes": torch.tensor([[chart_images.HEIGHT, chart_images.WIDTH]] * size)}


def sum_batch(rng: random.Random, processor: LlavaNextProcessor, size: int, language: str = "codes") -> dict[str, Tensor]:
    """Conversations without pictures, of sums (`draw_sum`); rows and labels as in `conversation_batch`."""
    return padded(processor, [_fill(processor, lambda: [draw_sum(rng, language=language)], ()) for _ in range(size)])


def _fill(processor: LlavaNextProcessor, draw: Callable[[], list[tuple[str, str]]], image: Sequence[int]
          ) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a conversation of the turns that `draw` gives, up to ROW tokens: a row that is full costs nothing
    for padding. Turns that do not fit are drawn again once, and then left out."""
    ids, labels, left_out = *tokens(processor, draw(), image), 0
    while left_out < 2:
        more, its_labels = tokens(processor, draw(), ())
        if len(ids) + len(more) <= ROW:
            ids, labels = torch.cat([ids, more]), torch.cat([labels, its_labels])
        else:
            left_out += 1
    return ids, labels


def tokens(processor: LlavaNextProcessor, turns: list[tuple[str, str]], image: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a conversation; the picture's tokens open its first question."""
    tokenizer = processor.tokenizer
    before, between, end, after = _marks(tokenizer)
    ids = tokenizer([text for turn in turns for text in turn], add_special_tokens=False)["input_ids"]
    row, label = [], []
    for place in range(len(turns)):
        asked = [*before, *(image if place == 0 else ()), *ids[2 * place], *between]
        reply = [*ids[2 * place + 1], *end]
        row += asked + reply + after
        label += [-100] * len(asked) + reply + [-100] * len(after)
    return torch.tensor(row), torch.tensor(label)


def _marks(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids before a question, between it and its reply, at its end, and after it, as the chat template has them."""
    if tokenizer.eos_token == END:
        user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
        return [user], [end, assistant], [end], []
    close = tokenizer.eos_token
    texts = ("<|im_start|>user\n", f"{close}\n<|im_start|>assistant\n", close, "\n")
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)


def padded(processor: LlavaNextProcessor, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Rows padded on the right (causal attention ignores it) to a multiple of 16: few shapes, few new kernels."""
    ids, labels = zip(*rows, strict=True)
    length = -(-max(map(len, ids)) // 16) * 16
    pad = processor.tokenizer.pad_token_id
    return {"input_ids": torch.stack([F.pad(row, (0, length - len(row)), value=pad) for row in ids]),
            "labels": torch.stack([F.pad(row, (0, length - len(row)), value=-100) for row in labels])}
