"""Training rows that overlap with a held-out row: the same picture, nearly the same picture, or the same question.

Two pictures are nearly the same where their thumbnails differ little. On the 31 pictures of ChartQA in the tests a chart that
was saved again (as JPEG, at another size, a pixel cut off) differs by up to 4.8 grey levels, another chart of the same maker by
at least 5.9. Difference and average hashes cannot separate the two: up to 19 bits of 256 against as few as 9. A picture that
was made darker or has another frame is not found.

Texts overlap where 13 words in a row are the same, as for GPT-3 (Brown et al. 2020) and LLaMA's training data; a shorter
question must be the same as a whole.
"""
from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dyme_core.data.schema import Record

GRAM = 13  # words
THUMBNAIL = 24  # pixels a side
NEAR = 5.0  # root mean square difference, in grey levels of 256
CHUNK = 1024  # thumbnails compared at a time with all others


@dataclass(frozen=True)
class Overlap:
    """A training row, a held-out row, and what they share: "same picture", "near-same picture", either of these "and question",
    "same question" or "13 words in a row"."""

    item: str
    other: str
    shared: str


def decontaminate(train: Sequence[Record], others: Sequence[Record], compare_texts: bool = False) -> list[Overlap]:
    """Find each pair of a training row and a held-out row that share a picture, or a text.

    Args:
        train: records to train on.
        others: records of every held-out set.
        compare_texts: compares the texts of questions with pictures as well, for sets that draw the same problem again
            (Geo170K, MathVerse). Otherwise only texts of two questions without pictures: on charts the same words ask
            different things.
    Returns:
        at most one overlap per pair, the strongest; in the order of `train`, then of `others`.
    Raises:
        DataError: for a picture that cannot be read.
    """
    found: dict[tuple[int, int], str] = {}
    for pair, shared in [*_pictures(train, others), *_texts(train, others, compare_texts)]:
        found.setdefault(pair, shared)
    return [Overlap(train[mine].item, others[theirs].item, shared) for (mine, theirs), shared in sorted(found.items())]


def _pictures(train: Sequence[Record], others: Sequence[Record]) -> Iterator[tuple[tuple[int, int], str]]:
    mine, theirs = ([place for place, record in enumerate(records) if record.image is not None] for records in (train, others))
    seen, held = _prints(train, mine), _prints(others, theirs)
    if not seen or not held:
        return
    known = np.stack([thumbnail for _, thumbnail in held])
    for start in range(0, len(seen), CHUNK):
        chunk = np.stack([thumbnail for _, thumbnail in seen[start: start + CHUNK]])
        squares = (chunk**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * chunk @ known.T
        for row, column in np.argwhere(squares <= NEAR**2 * THUMBNAIL**2):
            place, other = mine[start + row], theirs[column]
            shared = "same picture" if seen[start + row][0] == held[column][0] else "near-same picture"
            is_question = _words(train[place].question) == _words(others[other].question)
            yield (place, other), shared + " and question" * is_question


def _prints(records: Sequence[Record], places: Sequence[int]) -> list[tuple[bytes, np.ndarray]]:
    """Digest of the pixels and thumbnail of each picture; a file that several records share is read once."""
    files: dict[Path, tuple[bytes, np.ndarray]] = {}
    prints = []
    for place in places:
        record = records[place]
        made = files.get(record.image) if isinstance(record.image, Path) else None
        if made is None:
            image = record.load_image()
            made = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest(), thumbnail_of(image)
            if isinstance(record.image, Path):
                files[record.image] = made
        prints.append(made)
    return prints


def thumbnail_of(image: Image.Image) -> np.ndarray:
    """(576,) grey levels of the picture, shrunk to 24 x 24."""
    grey = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float64).ravel()


def _texts(train: Sequence[Record], others: Sequence[Record], compare_all: bool) -> Iterator[tuple[tuple[int, int], str]]:
    for shared, keys in (("same question", lambda words: [words]), (f"{GRAM} words in a row", _grams)):
        yield from ((pair, shared) for pair in _shared_keys(train, others, keys, compare_all))


def _shared_keys(train: Sequence[Record], others: Sequence[Record], keys: Callable[[tuple[str, ...]], list[Any]],
                 compare_all: bool) -> Iterator[tuple[int, int]]:
    held: dict[Any, list[int]] = defaultdict(list)
    for place, record in enumerate(others):
        if compare_all or record.image is None:
            for key in set(keys(_words(record.question))):
                held[key].append(place)
    for place, record in enumerate(train):
        if compare_all or record.image is None:
            yield from ((place, other) for key in keys(_words(record.question)) for other in held.get(key, ()))


def _grams(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [words[start: start + GRAM] for start in range(len(words) - GRAM + 1)]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))
