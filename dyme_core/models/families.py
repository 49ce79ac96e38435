"""Families of small models: what each is called, where it lies, which part of it is frozen, where LoRA goes."""
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Family:
    """What differs between families.

    Attributes:
        name: as people call it; hub_id: the checkpoint it was made for.
        model_type, model_class: in config.json, and in transformers.
        vision: part of the model that is frozen ("": reads no pictures); projector: part that stays trainable, even inside.
        note: what to know.
    """

    name: str
    hub_id: str
    model_type: str
    model_class: str
    vision: str
    projector: str
    note: str


FAMILIES = {family.model_type: family for family in (
    Family("LLaVA-OneVision-0.5B", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision",
           "LlavaOnevisionForConditionalGeneration", "vision_tower", "multi_modal_projector",
           "shares pictures (looks) and prompts (prefixes); the mini model is one"),
    Family("SmolVLM-500M", "HuggingFaceTB/SmolVLM-500M-Instruct", "idefics3", "Idefics3ForConditionalGeneration",
           "vision_model", "connector", "an Idefics3; a picture is cut into tiles of 64 tokens each"),
    Family("Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "visual",
           "merger", "a picture's tokens grow with its size; its projector lies inside the vision part"),
    Family("InternVL3-1B", "OpenGVLab/InternVL3-1B-hf", "internvl", "InternVLForConditionalGeneration", "vision_tower",
           "multi_modal_projector", "checkpoints named -hf alone: the others bring code of their own, which is never run"),
    Family("Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct", "qwen2", "Qwen2ForCausalLM", "", "",
           "text alone (the paper's LLM variant, GSM8K); shares prompts (prefixes)"))}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # attention and MLP, where LoRA goes


def freeze_vision(model: torch.nn.Module) -> None:
    """Freeze the vision tower, as in the paper; the projector and the language model stay as they are.

    Raises:
        RuntimeError: if a family that reads pictures has no part of the name in FAMILIES.
    """
    frozen = [weight for name, weight in model.named_parameters() if is_vision(name)]
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.vision and not frozen:
        raise RuntimeError(f"no part of this {family.name} is called {family.vision!r}: transformers may have renamed it; "
                           "correct models.FAMILIES")
    for weight in frozen:
        weight.requires_grad_(False)


def is_vision(name: str) -> bool:
    """True for a weight or layer of any family's vision tower, its projector left out."""
    parts = set(name.split("."))
    return any(family.vision in parts and family.projector not in parts for family in FAMILIES.values() if family.vision)


def language_layers(model: torch.nn.Module) -> list[str]:
    """Names of the language model's layers that LoRA goes into."""
    projectors = {family.projector for family in FAMILIES.values()}
    return [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)
            and name.split(".")[-1] in LAYERS and not is_vision(name) and not projectors & set(name.split("."))]
