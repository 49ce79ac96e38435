"""The base of the smol world: SmolLM2-135M-Instruct, which was taught real English, behind the mini world's vision tower.

`dyme base --profile smol` builds it from the package that carries the weights (`scripts.weights`): the vocabulary is pruned to
what English needs most, tower and projector learn to say what a chart shows in the model's own word embeddings, and the whole
learns to talk about charts, with plain prose in between. The result is a stock LLaVA-OneVision.
"""
from __future__ import annotations

import json
import logging
import random
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from dyme_core import config
from dyme_core.data import chart_images, chart_tables, english, prompt_format
from dyme_core.models import loading, tiny_onevision
from scripts import weights
from scripts.curriculum import SIDE, conversation_batch, draw_chart, padded, sum_batch, to_pixels, views
from scripts.pretrain import optimise, reply_loss, write

logger = logging.getLogger(__name__)
COMMON = 4096  # tokens of the vocabulary that are kept in any case: those that were merged first
IMAGE, VIDEO, PAD, END = "<filename>", "<gh_stars>", "<|endoftext|>", "<|im_end|>"  # special tokens that it came with
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ '<filename>' if c.type == 'image' else c.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
PROSE_TOKENS, PROSE_KEPT = 128, 60  # longest piece of prose; pieces on which no base is trained
ONES = "zero one two three four five six seven eight nine".split()


@dataclass(frozen=True)
class Smol:
    """How a base is made; the last steps are on conversations of the seed's own."""

    align_steps: int = 1000
    align_batch_size: int = 16  # pictures of two tiles
    align_learning_rate: float = 2e-3
    language_steps: int = 320
    early_steps: int = 60  # captions alone
    own_steps: int = 60
    batch_size: int = 8
    sums: int = 4  # rows without a picture in each step
    prose: int = 1  # rows of plain English in each step, against forgetting
    prose_weight: float = 0.1  # of their loss, which is large and never falls
    learning_rate: float = 3e-4
    own_learning_rate: float = 1e-4


def world_texts() -> list[str]:
    """Every word that the charts, the questions and the teacher need."""
    grammar = (english.OPENINGS, english.FEW, english.MANY, english.GLUES, english.MIDDLES, english.WORKINGS, english.ENDINGS)
    questions = (question for each in english.QUESTIONS.values() for question in each)
    names = (*english.NAMES.values(), *map(str, chart_tables.YEARS), *ONES)
    instructions = (prompt_format.THINK_INSTRUCTION, prompt_format.ANSWER_INSTRUCTION, prompt_format.CAPTION_INSTRUCTION)
    return [*questions, *(text for each in grammar for text in each), *instructions,
            *(f"{before}{name}" for name in names for before in ("", " ", "\n"))]


def prune(folder: Path, texts: Iterable[str]) -> tuple[dict[str, Any], list[int]]:
    """A tokenizer file with the COMMON first tokens, bytes, special tokens and what `texts` take, with all that these are
    merged from, so that texts of kept tokens are read as before; and the old ids of its tokens."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = stored["model"]["vocab"], [tuple(merge) for merge in stored["model"]["merges"]]
    parts = {left + right: (left, right) for left, right in reversed(merges)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    wanted = {token for text in texts for token in tokenizer.tokenize(text)} | set(pre_tokenizers.ByteLevel.alphabet())
    wanted |= {token for token, place in vocabulary.items() if place < COMMON}  # special tokens come first
    kept: set[str] = set()
    while wanted:
        token = wanted.pop()
        if token in vocabulary and token not in kept:
            kept.add(token)
            wanted.update(parts.get(token, ()))
    ids = sorted(vocabulary[token] for token in kept)
    words = {place: token for token, place in vocabulary.items()}
    stored["model"]["vocab"] = {words[old]: new for new, old in enumerate(ids)}
    stored["model"]["merges"] = [list(merge) for merge in merges if {*merge, "".join(merge)} <= kept]
    for each in stored["added_tokens"]:
        each["id"] = stored["model"]["vocab"][each["content"]]
    return stored, ids


def build_processor(tokenizer_file: Path) -> LlavaNextProcessor:
    """The mini model's processor with another tokenizer."""
    images = tiny_onevision.build_processor().image_processor
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), pad_token=PAD, eos_token=END, padding_side="left",
                                        extra_special_tokens={"image_token": IMAGE}, clean_up_tokenization_spaces=False,
                                        chat_template=CHAT_TEMPLATE)
    return LlavaNextProcessor(images, tokenizer, patch_size=tiny_onevision.PATCH, vision_feature_select_strategy="full",
                              image_token=IMAGE, num_additional_image_tokens=0, chat_template=CHAT_TEMPLATE)


def build_model(folder: Path, ids: list[int], start: Path, processor: LlavaNextProcessor
                ) -> LlavaOnevisionForConditionalGeneration:
    """SmolLM2 with the tokens `ids`, behind the vision tower of the mini start; the projector has random weights."""
    text = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False,
                                                use_safetensors=True)
    weights, tokenizer = text.model.state_dict(), processor.tokenizer
    weights["embed_tokens.weight"] = weights["embed_tokens.weight"][ids]
    mini = loading.load_policy(start)[0]
    own = {**text.config.to_dict(), "vocab_size": len(ids), "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id,
           "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**{
        **mini.config.to_dict(), "text_config": own, "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.convert_tokens_to_ids(VIDEO)}))
    model.model.language_model.load_state_dict(weights)
    model.model.vision_tower.load_state_dict(mini.model.vision_tower.state_dict())
    model.tie_weights()
    [newline] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.model.image_newline.copy_(model.get_input_embeddings().weight[newline])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return model


class Lexicon:
    """What a patch may say, in the language model's own word embeddings: a name (the mean of its tokens), a number (its tens as
    a digit and its ones as a word, which can be told apart), or a newline for nothing.

    Attributes:
        places: text -> row of `rows`, (texts, channels), all of the length that an embedding usually has.
    """

    def __init__(self, embedding: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
        def mean(text: str) -> Tensor:
            return embedding[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(dim=0)

        names = dict.fromkeys([*map(english.name_of, chart_tables.LABELS), *map(str, chart_tables.YEARS)])
        rows = {"\n": mean("\n"), **{f"#{value}": (mean(str(value // 10)) + mean(f" {ONES[value % 10]}")) / 2 if value > 9 else
                                      mean(f" {ONES[value]}") for value in range(100)},
                **{name: mean(f" {name}") for name in names}}
        self.places = {text: place for place, text in enumerate(rows)}
        self.rows = F.normalize(torch.stack(list(rows.values())), dim=-1) * embedding.norm(dim=-1).mean()

    def of_chart(self, table: chart_tables.Table, style: chart_images.Style) -> Tensor:
        """(tiles, SIDE * SIDE): a row of patches says what one group of the tile shows, "Nepal 62 36", and the first tile's
        rows the names of the series after it."""
        said = torch.zeros(chart_images.NUM_TILES, SIDE, SIDE, dtype=torch.long)
        for group, (column, _) in enumerate(chart_images.lay_out(table, style).groups):
            tile, row = divmod(column // chart_images.GROUP_CELLS, SIDE)
            texts = [english.name_of(table.groups[group]), *(f"#{values[group]}" for values in table.values)]
            said[tile, row, : len(texts)] = torch.tensor([self.places[text] for text in texts])
        for row, name in enumerate(table.series):
            said[0, row, -1] = self.places[english.name_of(name)]
        return said.flatten(1)


def align(model: LlavaOnevisionForConditionalGeneration, processor: LlavaNextProcessor, steps: int, learning_rate: float,
          batch_size: int) -> dict[str, float]:
    """Train tower and projector, without the language model, to say what a chart shows (`Lexicon`); returns the shares of
    numbers and names that come nearest to the right one on fresh charts."""
    lexicon = Lexicon(model.get_input_embeddings().weight.detach(), processor.tokenizer)
    middle, spread, rng = lexicon.rows.mean(dim=0), lexicon.rows.var(), random.Random("align")
    direction, weight = F.normalize(lexicon.rows - middle, dim=-1), torch.ones(len(lexicon.rows))
    weight[0] = 0.2  # most patches have nothing to say

    def drawn(rng: random.Random, size: int, split: str) -> tuple[Tensor, Tensor]:
        charts = [draw_chart(rng, split) for _ in range(size)]
        tiles = [tile for chart in charts for tile in views(chart_images.render(*chart))[1:]]
        said = model.model.multi_modal_projector(model.model.vision_tower(pixel_values=to_pixels(tiles)).last_hidden_state)
        return said.float(), torch.cat([lexicon.of_chart(*chart) for chart in charts])

    def nearness(said: Tensor) -> Tensor:
        return F.normalize(said - middle, dim=-1) @ direction.T

    def loss_of(_: int) -> Tensor:
        said, wanted = drawn(rng, batch_size, "train")
        with torch.autocast("cpu", enabled=False):
            told = F.cross_entropy(16 * nearness(said).flatten(0, 1), wanted.flatten(), weight=weight)
            return told + F.mse_loss(said, lexicon.rows[wanted]) / spread

    optimise([model.model.vision_tower, model.model.multi_modal_projector], loss_of, steps, learning_rate, "alignment")
    with torch.no_grad():
        said, wanted = drawn(random.Random("align check"), 256, "validation")
        is_right, last_number = nearness(said).argmax(dim=-1) == wanted, lexicon.places["#99"]
    return {"says numbers": is_right[(wanted > 0) & (wanted <= last_number)].float().mean().item(),
            "says names": is_right[wanted > last_number].float().mean().item()}


def teach(model: LlavaOnevisionForConditionalGeneration, processor: LlavaNextProcessor, settings: Smol, name: str, steps: int,
          early_steps: int, learning_rate: float) -> None:
    """Train projector and language model on conversations about charts, sums and prose, vision tower frozen (`curriculum`).

    Args:
        name: draws the conversations.
    """
    loading.freeze_vision(model)
    rng, prose = random.Random(name), prose_rows(processor)[PROSE_KEPT:]

    def loss_of(step: int) -> Tensor:
        talk = conversation_batch(rng, processor, settings.batch_size, step < early_steps, "english")
        plain = padded(processor, rng.sample(prose, settings.prose))
        return (reply_loss(model, talk) + reply_loss(model, sum_batch(rng, processor, settings.sums, "english"))
                + settings.prose_weight * reply_loss(model, plain))

    model.train()
    optimise([model], loss_of, steps, learning_rate, "language", has_muon=False)


def prose_rows(processor: LlavaNextProcessor) -> list[tuple[Tensor, Tensor]]:
    """Token ids, as their own labels, of pieces of Python's manual, the plain English that every machine with Python has."""
    paragraphs = dict.fromkeys(" ".join(text.split()) for topic in topics.topics.values() for text in topic.split("\n\n"))
    ids = processor.tokenizer([text for text in paragraphs if len(text) > 120 and text[0].isupper()],
                              add_special_tokens=False)["input_ids"]
    return [(torch.tensor(own[:PROSE_TOKENS]),) * 2 for own in ids]


@torch.no_grad()
def prose_nll(model: torch.nn.Module, processor: LlavaNextProcessor) -> float:
    """Nats per token of the pieces of prose that no base is trained on."""
    total = count = 0.0
    for ids, _ in prose_rows(processor)[:PROSE_KEPT]:
        log_probs = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(dim=-1)
        total, count = total - log_probs.gather(1, ids[1:, None]).sum().item(), count + len(ids) - 1
    return total / count


def build_start(folder: Path, source: Path, tower: Path, settings: Smol) -> None:
    """Build what all bases start from, into `folder` in 16 bits.

    Args:
        source: SmolLM2's folder (`weights.model_folder`).
        tower: a mini base, whose vision tower is taken.
    """
    began = time.perf_counter()
    stored, ids = prune(source, world_texts())
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(stored, file)
        file.flush()
        processor = build_processor(Path(file.name))
    model = build_model(source, ids, tower, processor)
    metrics = {"prose before (nats per token)": prose_nll(model, processor)}
    metrics |= align(model, processor, settings.align_steps, settings.align_learning_rate, settings.align_batch_size)
    teach(model, processor, settings, "smol start", settings.language_steps, settings.early_steps, settings.learning_rate)
    write(model, processor, folder, {"model": "svlm", "seconds": time.perf_counter() - began, "settings": asdict(settings)},
          metrics | {"prose (nats per token)": prose_nll(model, processor)}, "english")


def build_base(seed: int, threads: int) -> None:
    """Build a seed's base into bases/smol/, and first what all start from, where that is missing.

    Raises:
        weights.LlmMissingError, weights.WeightsError: without SmolLM2's weights.
    """
    torch.set_num_threads(threads)
    paths, settings = config.paths("smol"), Smol()
    start = paths.bases / "svlm-start"
    if not (start / "manifest.json").is_file():
        build_start(start, weights.model_folder(config.paths("llm").runs), config.paths("mini").bases / "svlm-start", settings)
    model, processor = loading.load_policy(start)
    began = time.perf_counter()
    teach(model, processor, settings, f"smol {seed}", settings.own_steps, 0, settings.own_learning_rate)
    write(model, processor, paths.bases / f"svlm-s{seed}",
          {"model": "svlm", "seed": seed, "start": start.name, "seconds": time.perf_counter() - began,
           "settings": asdict(settings)}, {"prose (nats per token)": prose_nll(model, processor)}, "english")
