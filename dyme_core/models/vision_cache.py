"""Vision feature cache: a picture is processed once and encoded once by a frozen vision tower.

A GRPO step asks G times about the same picture, in generation and in the update; validation asks about the same pictures
again and again. Names of weights and saved files do not change.
"""
from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, LlavaOnevisionForConditionalGeneration, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

READ = {"output_hidden_states": True, "return_dict": True}  # how LlavaOnevision calls its tower


def cache_vision_features(model: PreTrainedModel, processor: ProcessorMixin, megabytes: int = 128) -> None:
    """Let a LLaVA-OneVision model encode, and its PIL image processor process, each picture once; others stay as they are.

    Features are those of the plain tower up to float rounding: a matrix product may round differently in batches of another
    size (on the CPUs tried here it does not: equal bit for bit). The tower's output then holds only the hidden states that
    the model's config reads (`vision_feature_layer`), None in place of the others and of `last_hidden_state`.

    Args:
        model: the cache is bypassed while its vision tower has a trainable weight or active dropout, under autocast, and where
            gradients with respect to pixels are wanted; features are forgotten when the tower's weights change.
        processor: its calls with one RGB PIL picture for each prompt are cached; other calls go through.
        megabytes: what the features, and as much again what the processed pictures may take (2^20 bytes); those not used
            for longest go first. A view of the mini model takes 1/64, a processed picture 0.32 megabytes.
    """
    if isinstance(model, LlavaOnevisionForConditionalGeneration):
        tower = model.model.vision_tower
        tower.forward = _Tower(tower, model.config.vision_feature_layer, _Memory(megabytes)).forward
    pictures = getattr(processor, "image_processor", None)
    if isinstance(pictures, LlavaOnevisionImageProcessorPil):
        pictures.__class__ = _caching(type(pictures), _Memory(megabytes))


class _Memory:
    """Tuples of tensors or arrays by key, at most so many megabytes; the least recently used go first."""

    def __init__(self, megabytes: int) -> None:
        self.capacity, self.num_bytes = megabytes * 2**20, 0
        self._kept: OrderedDict[Hashable, tuple] = OrderedDict()

    def fetch(self, keys: Sequence[Hashable], make: Callable[[list[int]], Sequence[tuple]]) -> list[tuple]:
        """The value of each key; `make` is called once, with one place of each unknown key, if there is any."""
        places: dict[Hashable, int] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, place)
        found = {key: self._kept[key] for key in places if key in self._kept}
        missing = [key for key in places if key not in found]
        if missing:
            found |= zip(missing, make([places[key] for key in missing]), strict=True)
        for key, value in found.items():
            self._keep(key, value)
        return [found[key] for key in keys]

    def forget(self) -> None:
        self._kept.clear()
        self.num_bytes = 0

    def _keep(self, key: Hashable, value: tuple) -> None:
        if key not in self._kept:
            self.num_bytes += _num_bytes(value)
        self._kept[key] = value
        self._kept.move_to_end(key)
        while self.num_bytes > self.capacity:
            self.num_bytes -= _num_bytes(self._kept.popitem(last=False)[1])


def _num_bytes(value: tuple) -> int:
    return sum(part.nbytes for part in value if hasattr(part, "nbytes"))


class _Tower:
    """A vision tower's forward with a memory; a bound method of it copies along with the tower (copy.deepcopy)."""

    def __init__(self, tower: PreTrainedModel, layers: int | list[int], memory: _Memory) -> None:
        self.tower, self.plain, self.memory = tower, tower.forward, memory
        count = tower.config.num_hidden_layers + 1  # the embeddings come first
        self.layers = sorted({layer % count for layer in ([layers] if isinstance(layers, int) else layers)})
        self._weights: list[tuple[int, int]] = []

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """The tower's output for (views, channels, height, width) pixels."""
        if kwargs != READ or pixel_values.requires_grad or not self._is_constant(pixel_values.device.type):
            return self.plain(pixel_values, **kwargs)
        weights = [(weight.data_ptr(), weight._version) for weight in self.tower.parameters()]
        if weights != self._weights:
            self.memory.forget()
            self._weights = weights
        cached = self.memory.fetch(_view_keys(pixel_values), lambda rows: self._encode(pixel_values[rows]))
        hidden: list[torch.Tensor | None] = [None] * (self.tower.config.num_hidden_layers + 1)
        for layer, features in zip(self.layers, zip(*cached, strict=True), strict=True):
            hidden[layer] = _stack(features)
        return BaseModelOutputWithPooling(hidden_states=tuple(hidden))

    def _is_constant(self, device: str) -> bool:
        has_dropout = self.tower.training and getattr(self.tower.config, "attention_dropout", 0.0) > 0
        return not (has_dropout or torch.is_autocast_enabled(device)
                    or any(weight.requires_grad for weight in self.tower.parameters()))

    @torch.inference_mode(False)  # cached tensors must serve training, too
    @torch.no_grad()
    def _encode(self, pixel_values: torch.Tensor) -> list[tuple]:
        hidden = self.plain(pixel_values.clone(), **READ).hidden_states
        return [tuple(hidden[layer][row].clone() for layer in self.layers) for row in range(len(pixel_values))]


def _stack(views: Sequence[torch.Tensor]) -> torch.Tensor:
    """(views, tokens, channels), with the tower's memory layout: another one would round differently later."""
    return torch.stack(views) if views[0].is_contiguous() else torch.stack([view.mT for view in views]).mT


def _view_keys(pixel_values: torch.Tensor) -> list[Hashable]:
    """A key for each view; equal views are found by comparison, so that each distinct view is hashed once."""
    flat = pixel_values.detach().contiguous().cpu().flatten(1).view(torch.uint8).numpy()
    views = [view.tobytes() for view in flat]
    digests = {view: hashlib.blake2b(view).digest() for view in set(views)}
    return [(digests[view], pixel_values.shape[1:], pixel_values.dtype) for view in views]


def _caching(plain: type[LlavaOnevisionImageProcessorPil], memory: _Memory) -> type[LlavaOnevisionImageProcessorPil]:
    """A class like `plain` that processes a picture once; of the same name, which is saved as every attribute would be."""
    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        if not _is_one_each(images):
            return plain.preprocess(self, images, return_tensors=return_tensors, **kwargs)

        def process(places: list[int]) -> list[tuple]:
            made = plain.preprocess(self, [images[place] for place in places], **{**kwargs, "do_pad": False})
            return list(zip(made["pixel_values"], made["image_sizes"], strict=True))

        settings = self.to_json_string(), repr(sorted(kwargs.items()))
        keys = [(hashlib.blake2b(image.tobytes()).digest(), image.size, *settings) for [image] in images]
        pixels, sizes = (list(parts) for parts in zip(*memory.fetch(keys, process), strict=True))
        if kwargs.get("do_pad", self.do_pad):
            pixels = self._pad_for_batching(pixels)
        fields = {"pixel_values": pixels, "image_sizes": sizes, "batch_num_images": [1] * len(images)}
        return BatchFeature(fields, return_tensors)

    return type(plain.__name__, (plain,), {"preprocess": preprocess, "__module__": plain.__module__})


def _is_one_each(images: Any) -> bool:
    """True for [[picture], [picture], ...], pictures being PIL's and in RGB: their bytes and size then say all."""
    return isinstance(images, list) and len(images) > 0 and all(
        isinstance(row, list) and len(row) == 1 and isinstance(row[0], Image.Image) and row[0].mode == "RGB" for row in images)
