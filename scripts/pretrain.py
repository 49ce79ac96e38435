"""Pre-training of the mini bases from nothing: the vision tower learns to read charts, the language model to talk about them.

`dyme base` builds a base of each size again, on the lessons of `curriculum`.
"""
from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaNextProcessor

from dyme_core import config, utils
from dyme_core.data import chart_images, prompt_format
from dyme_core.data.chart_questions import KINDS
from dyme_core.data.datasets import mini_records
from dyme_core.models import loading, tiny_onevision
from dyme_core.models.generation import caption_match, decode
from dyme_core.models.tiny_onevision import PATCH
from scripts.curriculum import LETTERS, NAMES, SIDE, column_batch, conversation_batch, draw_sum, padded, sum_batch, tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """How a base VLM is pre-trained from nothing: vision tower on column reading, projector, then language; the last steps on
    conversations of the seed's own."""

    vision_steps: int = 1500
    vision_batch_size: int = 16  # pictures of two tiles
    vision_learning_rate: float = 2e-3
    align_steps: int = 200
    language_steps: int = 2000
    early_steps: int = 500  # captions alone: they teach where to look
    own_steps: int = 400
    batch_size: int = 24
    sums: int = 12  # rows without a picture in each step
    learning_rate: float = 6e-3
    own_learning_rate: float = 3e-3


# A step of the middle size costs 1.6 times as much, of the large one 2.3 times.
BASES = {"svlm": Base(), "middle": Base(learning_rate=5e-3, own_learning_rate=2.5e-3),
         "large": Base(learning_rate=4e-3, own_learning_rate=2e-3)}


class ColumnReader(nn.Module):
    """What a linear layer must read at every patch: the letters in its cells, and the label, values and series names of its
    column of the chart."""

    def __init__(self, width: int):
        super().__init__()
        self.columns = nn.Linear(width, 5 * len(NAMES))
        self.letters = nn.Linear(width,
                                 (PATCH // chart_images.CELL_WIDTH) * (PATCH // chart_images.CELL_HEIGHT) * (len(LETTERS) + 1))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden.shape[0]
        return (self.columns(hidden).view(rows, SIDE, SIDE, 5, len(NAMES)),
                self.letters(hidden).view(rows, SIDE * SIDE, -1, len(LETTERS) + 1))


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


def pretrain_vision(model: nn.Module, settings: Base, seed: int) -> dict[str, float]:
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


def align(model: nn.Module, processor: LlavaNextProcessor, settings: Base, seed: int) -> None:
    """Train projector and word embeddings, tower frozen, until patches speak the language model's words (LLaVA's stage 1)."""
    rng = random.Random(f"align {seed}")
    aligner = Aligner(model.get_input_embeddings(), processor.tokenizer)

    def loss_of(_: int) -> Tensor:
        pixels, columns, _ = column_batch(rng, settings.batch_size)
        with torch.no_grad():
            hidden = model.model.vision_tower(pixel_values=pixels).last_hidden_state
        return F.cross_entropy(aligner(model.model.multi_modal_projector(hidden)).flatten(0, -2), columns.flatten())

    optimise([model.model.multi_modal_projector, aligner], loss_of, settings.align_steps, settings.learning_rate, "alignment")


def pretrain_language(model: nn.Module, processor: LlavaNextProcessor, name: str, steps: int, early_steps: int,
                      learning_rate: float, settings: Base) -> None:
    """Train projector and language model on conversations about charts and on sums, vision tower frozen.

    Args:
        name: decides what is drawn.
        early_steps: of the steps, those with captions alone, which teach where to look.
    """
    loading.freeze_vision(model)
    rng = random.Random(f"language {name}")

    def loss_of(step: int) -> Tensor:
        is_early = step < early_steps
        talk = conversation_batch(rng, processor, settings.batch_size, is_early)
        return reply_loss(model, talk) + reply_loss(model, sum_batch(rng, processor, settings.sums))

    optimise([model], loss_of, steps, learning_rate, "language")


def reply_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the reply tokens; the head is applied to these alone, in 32 bits."""
    labels = batch.pop("labels")[:, 1:]
    is_reply = labels != -100
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
    with torch.autocast("cpu", enabled=False):
        return F.cross_entropy(model.lm_head(hidden[is_reply].float()), labels[is_reply])


class Muon32(torch.optim.Muon):
    """torch's Muon with the Newton-Schulz iteration in 32 bits: on a CPU without 16-bit instructions the 16-bit iteration takes
    a hundred times as long."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """One step, as in torch except for the precision of the iteration."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalised(weight.grad.lerp(momentum, group["momentum"]), group["ns_coefficients"],
                                        group["ns_steps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))  # "match_rms_adamw"


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The matrix with its singular values near 1, by `steps` Newton-Schulz iterations (Jordan et al. 2024)."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def optimise(modules: list[nn.Module], loss_of: Callable[[int], Tensor], steps: int, learning_rate: float, name: str,
             has_muon: bool = True) -> None:
    """Train all weights that are not frozen, with one-cycle schedules and clipping; logs loss, pace and time left every 5 s.

    The matrices of the transformer layers are trained with Muon (Jordan et al. 2024), everything else with AdamW: at the
    same steps the vision tower read 99 % of the second series' values instead of 82 % (results/LOG.md).
    """
    named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
    parameters = list({id(parameter): parameter for _, parameter in named}.values())
    matrices = {id(parameter) for label, parameter in named if has_muon and "layers." in label and parameter.ndim == 2}
    rest = [parameter for parameter in parameters if id(parameter) not in matrices]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, learning_rate, weight_decay=0.01, betas=(0.9, 0.98))]
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if matrices:
        muon = torch.optim.Muon if has_bf16 else Muon32
        optimisers.append(muon([parameter for parameter in parameters if id(parameter) in matrices], learning_rate,
                               weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    schedules = [torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.08,
                                                     cycle_momentum=False) for optimiser in optimisers]
    start = said = time.perf_counter()
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
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


def measure_base(model: nn.Module, processor: LlavaNextProcessor, language: str = "codes", num_items: int = 200
                 ) -> dict[str, float]:
    """Base quality on validation charts, all shares in [0, 1].

    Captions (exact match), sums (exact match) and look-ups (direct answers) are greedy; in thinking mode one response a
    question is sampled at temperature 1: its format rate, its strict accuracy, and the share that is both.
    """
    records = mini_records("validation", len(KINDS) * num_items, seed=1, language=language)
    lookups, mixed = [record for record in records if record.kind == "lookup"], records[:num_items]
    answered = decode(model, processor, lookups, instruction=prompt_format.ANSWER_INSTRUCTION)
    thought = [response.text for response in decode(model, processor, mixed, seed=0)]
    well_formed = [prompt_format.is_well_formed(text) for text in thought]
    is_right = [prompt_format.split_response(text)[1] == record.answer for text, record in zip(thought, mixed, strict=True)]
    return {"caption exact match": caption_match(model, processor, lookups),
            "look-up accuracy": _share(prompt_format.split_response(response.text)[1] == record.answer
                                       for response, record in zip(answered, lookups, strict=True)),
            "bare sums": _share_of_sums(model, processor, num_items, language, is_stated=False),
            "sums of stated facts": _share_of_sums(model, processor, num_items, language, is_stated=True),
            "thinking format rate": _share(well_formed), "thinking accuracy": _share(is_right),
            "thinking well-formed accuracy": _share(a and b for a, b in zip(well_formed, is_right, strict=True))}


@torch.no_grad()
def _share_of_sums(model: nn.Module, processor: LlavaNextProcessor, count: int, language: str, is_stated: bool) -> float:
    """Share of sums whose whole reply has the highest probability token by token, which is what greedy decoding writes."""
    rng, rows = random.Random("sums to measure"), []
    while len(rows) < count:
        turn = draw_sum(rng, "validation", language)
        rows += [tokens(processor, [turn], ())] if (" has " in turn[0]) == is_stated else []
    batch = padded(processor, rows)
    labels = batch["labels"][:, 1:]
    is_right = (model(input_ids=batch["input_ids"]).logits[:, :-1].argmax(-1) == labels) | (labels == -100)
    return is_right.all(dim=1).float().mean().item()


def _share(flags) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


def build_start(size: str, settings: Base, folder: Path, tower: dict[str, Tensor] | None = None) -> None:
    """Pre-train what all bases of a size start from, into `folder` in 16 bits.

    Args:
        tower: weights of an already trained vision tower; None trains one.
    """
    processor = tiny_onevision.build_processor()
    model = tiny_onevision.build_model(size, processor, 0)
    start, metrics = time.perf_counter(), {}
    if tower is None:
        metrics = pretrain_vision(model, settings, 0)
    else:
        model.model.vision_tower.load_state_dict(tower)
    align(model, processor, settings, 0)
    pretrain_language(model, processor, "start", settings.language_steps, settings.early_steps, settings.learning_rate,
                      settings)
    made = {"model": size, "seconds": time.perf_counter() - start, "settings": asdict(settings)}
    write(model, processor, folder, made, metrics)


def build_base(size: str, seed: int, settings: Base, start: Path, folder: Path) -> dict[str, Any]:
    """Train the base of a seed from the start of its size, on conversations of its own; returns its manifest."""
    model, processor = loading.load_policy(start)
    began = time.perf_counter()
    pretrain_language(model, processor, f"own {seed}", settings.own_steps, 0, settings.own_learning_rate, settings)
    seconds = time.perf_counter() - began
    return write(model, processor, folder, {"model": size, "seed": seed, "start": start.name, "seconds": seconds,
                                            "settings": asdict(settings)}, {})


def write(model: nn.Module, processor: LlavaNextProcessor, folder: Path, made: dict[str, Any], metrics: dict[str, float],
          language: str = "codes") -> dict[str, Any]:
    """Write a model to `folder` in 16 bits with its manifest.json, how it was made and what it can do; returns the manifest."""
    metrics = metrics | measure_base(model, processor, language)
    loading.save_policy(model, processor, folder, torch.bfloat16)
    manifest = {**made, "parameters": sum(p.numel() for p in model.parameters()), "metrics": metrics,
                **utils.provenance(config.paths("mini").root)}
    utils.write_json(folder / "manifest.json", manifest)
    for name, value in metrics.items():
        logger.info("%s: %s %.3f", folder.name, name, value)
    return manifest


def build_bases(seed: int, sizes: Sequence[str], threads: int) -> None:
    """Build a seed's bases into bases/, and first what they start from, where that is missing.

    All bases of a size share a start (vision tower, projector, language model), as released models are trained further from one
    checkpoint, and all sizes share a vision tower; what follows is the seed's own.

    Args:
        seed: of the conversations that the base is trained on.
        sizes: of `tiny_onevision.SIZES`.
        threads: of torch; two cores are free while a base is built alone.
    """
    torch.set_num_threads(threads)
    bases = config.paths("mini").bases
    for size in sizes:
        start = bases / f"{size}-start"
        if not (start / "manifest.json").is_file():
            tower = None if size == "svlm" else loading.load_policy(bases / "svlm-start")[0].model.vision_tower.state_dict()
            build_start(size, BASES[size], start, tower)
        build_base(size, seed, BASES[size], start, bases / f"{size}-s{seed}")
