"""The base's lessons as tensors: pictures with the place of each text, conversations and sums as token ids with labels."""
from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dyme_core.data import chart_images, chart_tables
from dyme_core.models import processors
from dyme_core.models.tiny_onevision import ASSISTANT, END, PATCH, USER
from scripts.lessons import draw_chart, draw_sum, draw_turns

NAMES = {name: place for place, name in enumerate(
    ("none", *map(str, range(100)), *chart_tables.LABELS, *map(str, chart_tables.YEARS)))}
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIDE = chart_images.SIZE // PATCH  # patches a side; a group of the chart is one column of patches


def column_batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, and which text stands where in them.

    Returns:
        pixels (B, 3, 96, 96) in [-1, 1]; columns (B, rows, columns, 5) of NAMES ids: the label of the patch's column, the
        value of either series printed in this patch, both series' names (0 where there is none); letters (B, patches,
        cells of a patch) of LETTERS ids, their number where a cell is empty.
    """
    pictures = []
    columns = np.zeros((size, SIDE, SIDE, 5), dtype=np.int64)
    letters = np.full((size, chart_images.ROWS, chart_images.COLUMNS), len(LETTERS))
    for place in range(size):
        table, style = draw_chart(rng, "train")
        pictures.append(chart_images.render(table, style))
        layout = chart_images.lay_out(table, style)
        texts = [(cell, str(table.values[s][g])) for (s, g), cell in layout.values.items()]
        for (series, group), (column, row) in layout.values.items():
            columns[place, row * SIDE // chart_images.ROWS, column * SIDE // chart_images.COLUMNS, 1 + series] = \
                NAMES[str(table.values[series][group])]
        for group, cell in zip(table.groups, layout.groups, strict=True):
            columns[place, :, cell[0] * SIDE // chart_images.COLUMNS, 0] = NAMES[group]
            texts.append((cell, group))
        for number, (series, cell) in enumerate(zip(table.series, layout.series, strict=True)):
            columns[place, :, :, 3 + number] = NAMES[series]
            texts.append((cell, series))
        for (column, row), text in texts:
            letters[place, row, column: column + len(text)] = [LETTERS.index(letter) for letter in text]
    high, wide = chart_images.ROWS // SIDE, chart_images.COLUMNS // SIDE
    cells = letters.reshape(size, SIDE, high, SIDE, wide).transpose(0, 1, 3, 2, 4).reshape(size, SIDE * SIDE, high * wide)
    return to_pixels(pictures), torch.from_numpy(columns), torch.from_numpy(cells)


def to_pixels(pictures: list) -> Tensor:
    """(B, 3, 96, 96) in [-1, 1], as the processor gives it for a picture of the model's own size."""
    stacked = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.astype(np.float32) / 127.5 - 1.0)


def conversation_batch(rng: random.Random, processor: processors.MiniProcessor, size: int, turns: int, is_early: bool
                       ) -> dict[str, Tensor]:
    """Pictures with `turns` (or one more) questions and replies; labels are -100 except on the replies and their end tokens."""
    pictures, rows = [], []
    for _ in range(size):
        table, style = draw_chart(rng, "train")
        pictures.append(chart_images.render(table, style))
        image = [processor.image_token_id] * (2 * SIDE * SIDE + SIDE)  # base view, tile, one newline per row
        talk: list[tuple[str, str]] = []
        while len(talk) < turns:
            talk += draw_turns(rng, table, is_early)
        rows.append(tokens(processor, talk, image))
    return {**padded(processor, rows),
            "pixel_values": to_pixels(pictures)[:, None].repeat(1, 2, 1, 1, 1),  # base view and its one tile are the same
            "image_sizes": torch.full((size, 2), chart_images.SIZE)}


def sum_batch(rng: random.Random, processor: processors.MiniProcessor, size: int, turns: int = 8) -> dict[str, Tensor]:
    """Conversations without pictures, `turns` sums each (`draw_sum`); labels as in `conversation_batch`."""
    return padded(processor, [tokens(processor, [draw_sum(rng) for _ in range(turns)], ()) for _ in range(size)])


def tokens(processor: processors.MiniProcessor, turns: list[tuple[str, str]], image: Sequence[int]) -> tuple[Tensor, Tensor]:
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


def padded(processor: processors.MiniProcessor, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Rows padded on the right (causal attention ignores it) to a multiple of 16: few shapes, few new kernels."""
    ids, labels = zip(*rows, strict=True)
    length = -(-max(map(len, ids)) // 16) * 16
    pad = processor.tokenizer.pad_token_id
    return {"input_ids": torch.stack([F.pad(row, (0, length - len(row)), value=pad) for row in ids]),
            "labels": torch.stack([F.pad(row, (0, length - len(row)), value=-100) for row in labels])}
