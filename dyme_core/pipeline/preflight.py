"""Checks of a whole data set before step 0; the first fault stops the run and names its row."""
from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from dyme_core.config import Training
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.datasets import Refine
from dyme_core.data.pictures import digest
from dyme_core.data.prompt_format import is_well_formed
from dyme_core.data.schema import DataError, Record
from dyme_core.models.generation import decode, prompt_inputs, render_prompt
from dyme_core.models.processors import tokenizer_of
from dyme_core.supervision.refiner import RuleRefiner, target_writer

ROLLOUT_SEED = 0
NO_SIZE = (0, 0)  # of a record without a picture
SAME_FOLDER = "load processor and model from the same folder"


@dataclass(frozen=True)
class PreflightReport:
    """The result of the checks; `str()` is the text to show.

    Attributes:
        num_records, num_images: questions, and distinct pictures among them (0: text alone).
        image_tokens: smallest and largest number of tokens of a picture; each equals the number of its features.
        longest_item, longest_tokens: the longest prompt with its target, in tokens.
        context: how many tokens the model can read.
        longest_target: tokens of the longest target, end token included (0: no record has steps).
        prompt, target: of the first record, as the model gets them ("" without steps).
        format_rate: share of `rollouts` sampled responses that are well formed.
    """

    num_records: int
    num_images: int
    image_tokens: tuple[int, int]
    longest_item: str
    longest_tokens: int
    context: int
    longest_target: int
    prompt: str
    target: str
    rollouts: int
    format_rate: float

    def __str__(self) -> str:
        return "\n".join(f"{item.name}: {getattr(self, item.name)}" for item in fields(self))


def preflight(records: Sequence[Record], processor: ProcessorMixin, model: PreTrainedModel, *,
              others: Sequence[Record] = (), rollouts: int = 16, max_new_tokens: int = Training.max_completion_tokens,
              refine: Refine | None = None) -> PreflightReport:
    """Check every record of a training set, and sample a few rollouts.

    Args:
        records: the training set.
        others: records of the other splits, which must share no picture and no table with it.
        rollouts: sampled responses (temperature 1, special ids suppressed), on questions spread over the set.
        max_new_tokens: longest rollout; no rollout could equal a longer target.
        refine: gives targets from rows; the rule refiner by default. A record may have none (it then teaches by rewards only).
    Raises:
        DataError: at the first fault, with the row's id, what was expected, what came and what to do.
    """
    if rollouts < 0:
        raise ValueError(f"rollouts must be at least 0: got {rollouts}; give 0 to sample none")
    if not records:
        raise DataError("the training set is empty; give at least one record")
    images = _check_records(records, processor)
    _unshared(records, others, images, BadRows())
    added = _check_image_tokens(records, images, processor, model)
    targets = _targets(records, refine or target_writer(RuleRefiner()))
    rendered = [render_prompt(processor, record.question, has_image=record.image is not None) for record in records]
    prompt_lengths = _lengths(processor, rendered)
    target_lengths = [length + (length > 0) for length in _lengths(processor, targets)]  # the end token
    _check_targets(records, target_lengths, max_new_tokens)
    lengths = [prompt + added[images[record.item].size][1] + target
               for record, prompt, target in zip(records, prompt_lengths, target_lengths, strict=True)]
    longest = max(range(len(records)), key=lengths.__getitem__)
    context = _check_context(records[longest], lengths[longest] - target_lengths[longest] + max_new_tokens, model)
    sampled = decode(model, processor, records[:: max(1, len(records) // max(1, rollouts))][:rollouts],
                     max_new_tokens=max_new_tokens, seed=ROLLOUT_SEED)
    tokens = [added[image.size][0] for image in images.values()]
    return PreflightReport(len(records), len({image.digest for image in images.values() if image.size != NO_SIZE}),
                           (min(tokens), max(tokens)), records[longest].item, lengths[longest], context, max(target_lengths),
                           rendered[0], targets[0], len(sampled),
                           sum(is_well_formed(response.text) for response in sampled) / max(1, len(sampled)))


@dataclass(frozen=True)
class _Picture:
    digest: bytes
    size: tuple[int, int]


def _pictures(records: Sequence[Record]) -> dict[str, _Picture]:
    """Digest and size of each item's pixels; a file that several items share is read once. A record without a picture has
    its question's digest, and NO_SIZE."""
    files: dict[Path, _Picture] = {}
    found = {}
    for record in records:
        if record.image is None:
            found[record.item] = _Picture(hashlib.sha256(record.question.strip().lower().encode()).digest(), NO_SIZE)
            continue
        picture = files.get(record.image) if isinstance(record.image, Path) else None
        if picture is None:
            image = record.load_image()
            picture = _Picture(digest(image), image.size)
            if isinstance(record.image, Path):
                files[record.image] = picture
        found[record.item] = picture
    return found


def _check_records(records: Sequence[Record], processor: ProcessorMixin) -> dict[str, _Picture]:
    items: set[str] = set()
    for record in records:
        _check_texts(record, processor)
        if record.item in items:
            raise DataError.of(record.item, "ids to be unique", "it twice", "rename one")
        items.add(record.item)
    images = _pictures(records)
    BadRows().without_repeats(records, lambda record: images[record.item].digest)  # refuses two answers to one question
    return images


def _check_texts(record: Record, processor: ProcessorMixin) -> None:
    for name in ("question", "answer"):
        text = getattr(record, name)
        if not text.strip():
            raise DataError.of(record.item, f"a non-empty {name}", repr(text), "fill it in or remove the row")
        special = [token for token in tokenizer_of(processor).all_special_tokens if token in text]
        if special:
            raise DataError.of(record.item, f"a {name} without special tokens", f"{special[0]!r} in it",
                               "the model would take it for a picture or an end: rewrite the row")


def without_bad_rows(records: Sequence[Record], processor: ProcessorMixin, bad: BadRows, refine: Refine,
                     max_new_tokens: int) -> list[Record]:
    """The records that pass the checks of a single row: texts, picture, target; `bad` collects the others.

    Faults between rows are for `BadRows.without_repeats` and `without_shared_rows`.

    Raises:
        DataError: under the policy "raise", or where most rows are bad.
    """
    if bad.policy == "raise":
        return list(records)  # the preflight finds the first of them, reading each picture once
    kept = []
    for record in records:
        try:
            _check_texts(record, processor)
            if record.image is not None:
                record.load_image()
            _check_targets([record], [length + 1 for length in _lengths(processor, _targets([record], refine))], max_new_tokens)
            kept.append(record)
        except DataError as error:
            bad.note(error)
    bad.refuse_most(len(records) - len(kept), len(records))
    return kept


def without_shared_rows(records: Sequence[Record], others: Sequence[Record], bad: BadRows) -> list[Record]:
    """The training records that share no picture and no table with `others`; `bad` collects the rest.

    Raises:
        DataError: where most of the records are shared.
    """
    if bad.policy == "raise":
        return list(records)  # the preflight finds the first of them
    kept = _unshared(records, others, _pictures(records), bad)
    bad.refuse_most(len(records) - len(kept), len(records))
    return kept


def _unshared(records: Sequence[Record], others: Sequence[Record], images: dict[str, _Picture], bad: BadRows) -> list[Record]:
    held_out: dict[Any, tuple[str, Record]] = {}
    pictures = _pictures(others)
    for other in others:
        held_out.setdefault(pictures[other.item].digest, ("question" if other.image is None else "picture", other))
        if other.table_key:
            held_out.setdefault(other.table_key, ("table", other))
    kept = []
    for record in records:
        what, other = held_out.get(images[record.item].digest) or held_out.get(record.table_key) or ("", None)
        if other is None:
            kept.append(record)
        else:
            bad.note(DataError.of(record.item, f"no {what} shared with the {other.split} split",
                                  f"that of its item {other.item!r}", "remove it from one of the splits"))
    return kept


def _check_image_tokens(records: Sequence[Record], images: dict[str, _Picture], processor: ProcessorMixin,
                        model: PreTrainedModel) -> dict[tuple[int, int], tuple[int, int]]:
    """For each picture size: (image tokens, tokens that the processor adds to the prompt)."""
    added: dict[tuple[int, int], tuple[int, int]] = {NO_SIZE: (0, 0)}
    for record in records:
        size = images[record.item].size
        if size in added:
            continue
        inputs = prompt_inputs(processor, [record]).to(model.device, model.dtype)
        num_tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
        what = f"a feature for each of the {num_tokens} image tokens of a {size[0]} x {size[1]} picture"
        wanted = inspect.signature(model.get_image_features).parameters
        try:
            with torch.inference_mode():
                output = model.get_image_features(**{name: value for name, value in inputs.items() if name in wanted})
        except (RuntimeError, ValueError) as error:  # the vision tower cannot take the processor's pixel values
            raise DataError.of(record.item, what, f"an error ({error})", SAME_FOLDER) from error
        num_features = sum(features.shape[:-1].numel() for features in output.pooler_output)
        if num_tokens != num_features:
            raise DataError.of(record.item, what, f"{num_features} features", SAME_FOLDER)
        rendered = _lengths(processor, [render_prompt(processor, record.question)])[0]
        added[size] = num_tokens, inputs["input_ids"].shape[1] - rendered
    return added


def _lengths(processor: ProcessorMixin, texts: list[str]) -> list[int]:
    return [len(ids) if text else 0
            for text, ids in zip(texts, tokenizer_of(processor)(texts, add_special_tokens=False)["input_ids"], strict=True)]


def _targets(records: Sequence[Record], refine: Refine) -> list[str]:
    targets = []
    for record in records:  # one by one, to name the record at fault
        try:
            targets.append(refine([record.row])[0] or "")
        except ValueError as error:
            raise DataError.of(record.item, "a target that passes the checker", f"none ({error})",
                               "correct its supervision or remove the row") from error
    return targets


def _check_targets(records: Sequence[Record], lengths: list[int], max_new_tokens: int) -> None:
    longest = max(range(len(records)), key=lengths.__getitem__)
    if lengths[longest] > max_new_tokens:
        raise DataError.of(records[longest].item, f"a target of at most {max_new_tokens} tokens, as a rollout has",
                           lengths[longest], "raise max_completion_tokens or remove the row")


def _check_context(record: Record, tokens: int, model: PreTrainedModel) -> int:
    context = model.config.get_text_config().max_position_embeddings
    if tokens > context:
        raise DataError.of(record.item, f"prompt and response to fit the model's {context} tokens", tokens,
                           "shorten the question, use smaller pictures or fewer completion tokens")
    return context
