"""Policies of every family: loading (transformers or Unsloth, whole or with LoRA), what is frozen, saving."""
from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dyme_core.models.engine import with_engine
from dyme_core.models.processors import load_processor, set_end_ids, set_padding, tokenizer_of
from dyme_core.utils import PART_SUFFIX


@dataclass(frozen=True)
class Family:
    """What differs between families: a name, the part that is frozen ("": it reads no pictures), and the projector, which
    stays trainable even where it lies inside that part."""

    name: str
    vision: str
    projector: str


FAMILIES = {  # by model_type in config.json
    "llava_onevision": Family("LLaVA-OneVision-0.5B", "vision_tower", "multi_modal_projector"),  # and the mini model
    "idefics3": Family("SmolVLM-500M", "vision_model", "connector"),
    "qwen2_5_vl": Family("Qwen2.5-VL-3B", "visual", "merger"),
    "internvl": Family("InternVL3-1B", "vision_tower", "multi_modal_projector"),  # checkpoints named -hf: others need own code
    "qwen2": Family("Qwen2.5-0.5B", "", "")}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # attention and MLP, where LoRA goes
UNSLOTH_RANK = 16  # as in Unsloth's official recipe for vision models


def load_policy(source: Path | str, backend: str = "transformers", *, engine: bool = True, lora_rank: int | None = None,
                lora_alpha: int | None = None, load_in_4bit: bool = False, dtype: torch.dtype | None = None
                ) -> tuple[torch.nn.Module, ProcessorMixin]:
    """Load a policy and its processor, vision tower frozen: (model, processor); of a text model (model, tokenizer).

    Code that a checkpoint brings along is never run, and only safetensors are read.

    Args:
        source: a local folder (`save_policy`'s, or a hub checkpoint's) or a hub id.
        backend: "transformers", or "unsloth", which needs a CUDA GPU.
        engine: with "transformers", save what rows of a batch that share a picture or a prompt need only once (`with_engine`).
        lora_rank: of LoRA on attention and MLP of the language model, all else frozen; 0 trains all of it and the projector;
            None: 16 with Unsloth, else 0.
        lora_alpha: LoRA's scale times its rank; None: the rank.
        load_in_4bit: the frozen weights in 4 bits; with Unsloth and LoRA only.
        dtype: of the weights; None: bfloat16 with LoRA on a CUDA GPU that has it (LoRA's own stay in 32 bits), else float32:
            in 16 bits most steps of a whole training would be rounded away.
    Raises:
        FileNotFoundError: if the folder holds no model.
        RuntimeError: if Unsloth or 4 bits cannot be used, with what to do.
        ValueError: if the backend has no such name, 4 bits are asked for without LoRA, or weights are missing, torn or of
            another shape.
    """
    if backend not in ("transformers", "unsloth"):
        raise ValueError(f"backend must be 'transformers' or 'unsloth': got {backend!r}")
    rank = (UNSLOTH_RANK if backend == "unsloth" else 0) if lora_rank is None else lora_rank
    alpha = rank if lora_alpha is None else lora_alpha
    if load_in_4bit and backend != "unsloth":
        raise RuntimeError("4 bits need backend 'unsloth' on a CUDA GPU (`pip install -e .[gpu]` there); else leave "
                           "load_in_4bit out")
    if load_in_4bit and not rank:
        raise ValueError("weights in 4 bits cannot be trained: give a lora_rank above 0, or leave load_in_4bit out")
    if backend == "unsloth":
        _check_unsloth()
    source = _found(source)
    model_type = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    reads_images = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    dtype = dtype or (torch.bfloat16 if rank and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
                      else torch.float32)
    if backend == "unsloth":
        model, processor = _load_unsloth(source, reads_images, dtype, load_in_4bit, rank, alpha)
    else:
        loader = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
        model = read_weights(loader, source, dtype)
        processor = load_processor(source, model_type, reads_images)
    _fit_padding(model, tokenizer_of(processor))
    set_end_ids(model, processor)
    freeze_vision(model)
    if backend == "transformers":
        if engine:
            with_engine(model, processor)
        if rank:
            model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=language_layers(model),
                                                     task_type="CAUSAL_LM"))
    return model, processor


def freeze_vision(model: torch.nn.Module) -> None:
    """Freeze the vision tower, as in the paper; the projector and the language model stay as they are.

    Raises:
        RuntimeError: if a family that reads pictures has no part of the name in FAMILIES.
    """
    frozen = [weight for name, weight in model.named_parameters() if is_vision(name)]
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.vision and not frozen:
        raise RuntimeError(f"no part of this {family.name} is called {family.vision!r}: transformers may have renamed it; "
                           "correct loading.FAMILIES")
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


def read_weights(loader: Any, source: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    """A model by `loader.from_pretrained`, with every weight from safetensors: none keeps its random initialisation.

    Raises:
        ValueError: where weights are missing, torn or of another shape than the config says.
    """
    advice = "the folder is incomplete or was changed; save it or download it again"
    try:
        model, told = loader.from_pretrained(source, dtype=dtype, use_safetensors=True, trust_remote_code=False,
                                             output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"{source}: expected weights in safetensors, got a file that cannot be read ({error}); {advice}"
                         ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(f"{source}: expected weights of the shapes that its config.json says, got others (the report above "
                         f"names them); {advice}") from error
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{source}: expected all of the model's weights, got none for {len(missing)}, {missing[0]} the first; "
                         f"{advice}")
    return model


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights that `save_pretrained` wrote to a folder into a model of the same kind.

    Raises:
        ValueError, RuntimeError: where one is missing or has another shape.
    """
    model.load_state_dict(read_weights(type(model), folder, model.dtype).state_dict())


def _found(source: Path | str) -> str:
    """The local folder, or a hub id: "owner/name" where no folder has the owner's name."""
    folder = Path(source)
    is_hub_id = (isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
                 and not folder.parent.exists())
    if not is_hub_id and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: expected config.json and safetensors; `make base` builds the mini "
                                "bases")
    return str(source)


def _check_unsloth() -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("profile 'gpu' trains with Unsloth and needs a CUDA GPU, and none was found; run with profile "
                           "'mini' on this machine, or on one with a GPU `pip install -e .[gpu]` first")
    if "unsloth" not in sys.modules:
        raise RuntimeError("Unsloth replaces TRL's trainers and must be imported first; put `import unsloth` into the first "
                           "cell, restart the kernel and run again")


def _load_unsloth(name: str, reads_images: bool, dtype: torch.dtype, load_in_4bit: bool, rank: int, alpha: int
                  ) -> tuple[torch.nn.Module, Any]:
    """Through FastVisionModel or FastLanguageModel, by Unsloth's official recipe (docs/gpu.md)."""
    unsloth = sys.modules["unsloth"]
    fast = unsloth.FastVisionModel if reads_images else unsloth.FastLanguageModel
    model, processor = fast.from_pretrained(name, dtype=dtype, load_in_4bit=load_in_4bit, full_finetuning=not rank,
                                            fast_inference=False, use_gradient_checkpointing="unsloth",
                                            trust_remote_code=False, use_safetensors=True)
    set_padding(processor)
    if rank:
        parts = (dict(finetune_vision_layers=False, finetune_language_layers=True, finetune_attention_modules=True,
                      finetune_mlp_modules=True) if reads_images else dict(target_modules=list(LAYERS)))
        model = fast.get_peft_model(model, r=rank, lora_alpha=alpha, use_gradient_checkpointing="unsloth", **parts)
    return model, processor


def _fit_padding(model: torch.nn.Module, tokenizer: Any) -> None:
    """Set the model's padding token, with a new row of embeddings where it is new."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id


def save_policy(model: torch.nn.Module, processor: ProcessorMixin, folder: Path, dtype: torch.dtype | None = None,
                state: dict[str, torch.Tensor] | None = None) -> None:
    """Write model (safetensors) and processor to `folder`, whole or not at all; the model stays as it is.

    LoRA is merged in what is written, in the layout that transformers and vLLM read, so that any saved policy loads in the
    same way.

    Args:
        dtype: of what is written; bfloat16 halves the size.
        state: weights gathered from several cards (`ranks.whole_state`), written as they are.
    Raises:
        ValueError: if the weights are in 4 bits, into which no LoRA can be merged.
    """
    if isinstance(model, PeftModel) and state is None:
        model = model.get_base_model()
        state = _merged_weights(model)
    state = model.state_dict() if state is None else state
    aside = folder.with_name(folder.name + PART_SUFFIX)
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, state_dict={name: tensor.to(dtype) if dtype else tensor for name, tensor in state.items()})
    processor.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _merged_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError("LoRA cannot be merged into weights in 4 bits; save with Unsloth's own "
                         "model.save_pretrained_merged(folder, processor, save_method='merged_16bit')")
    state = {name.replace(".base_layer.", "."): weight for name, weight in model.state_dict().items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.base_layer.weight
            change = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
            state[f"{name}.weight"] = (weight + change).detach().to(weight.dtype)
    return state
