"""Processors of every family, also without torchvision, so that a CPU laptop can train and evaluate real checkpoints."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Idefics3Processor,
    InternVLProcessor,
    LlavaOnevisionProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.utils import is_torchvision_available

PADS = ("<|endoftext|>", "<|fim_pad|>", "<pad>", "<|pad|>")  # padding tokens to try, in this order
NEW_PAD = "<|pad|>"


def without_video(plain: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A class like `plain` that has no video part, which would need torchvision.

    It has the same name, so that AutoProcessor loads its folder as `plain` where torchvision is installed.
    """
    def get_attributes(cls: type[ProcessorMixin]) -> list[str]:
        return [name for name in plain.get_attributes() if name != "video_processor"]

    return type(plain.__name__, (plain,), {"get_attributes": classmethod(get_attributes), "__module__": plain.__module__,
                                           "__doc__": plain.__doc__})


class MiniProcessor(without_video(LlavaOnevisionProcessor)):
    """The mini model's processor: LLaVA-OneVision's without its video part.

    `AutoProcessor` would silently return a bare tokenizer for its folder: load it with `load_processor`.
    """


VIDEO_PROCESSORS = {"llava_onevision": LlavaOnevisionProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor,
                    "internvl": InternVLProcessor}  # by model type: those that come with a video part


def load_processor(source: Path | str, model_type: str, reads_images: bool = True) -> ProcessorMixin | PreTrainedTokenizerBase:
    """The processor of a model, or the tokenizer of one that reads text alone; prompts are padded on the left.

    By AutoProcessor where torchvision is installed; elsewhere the family's own class without the parts that need it.

    Args:
        source: a local folder or hub id.
        model_type: that of its config.json.
    Raises:
        TypeError: if the folder's processor files do not give a processor for pictures.
    """
    if not reads_images:
        processor = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    elif _processor_class(source) == MiniProcessor.__name__:
        processor = MiniProcessor.from_pretrained(source, trust_remote_code=False)
    elif is_torchvision_available():
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    elif model_type == "idefics3":
        processor = _load_idefics3(source)
    elif model_type in VIDEO_PROCESSORS:
        processor = without_video(VIDEO_PROCESSORS[model_type]).from_pretrained(source, trust_remote_code=False)
    else:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    if reads_images and not isinstance(processor, ProcessorMixin):
        raise TypeError(f"expected a processor for pictures in {source}: got a {type(processor).__name__}; copy "
                        "processor_config.json and preprocessor_config.json beside the weights")
    set_padding(tokenizer_of(processor))
    return processor


def processor_of(model: PreTrainedModel) -> ProcessorMixin | PreTrainedTokenizerBase:
    """The processor that lies with a loaded model: in its folder, or under its hub id."""
    model_type = model.config.model_type
    return load_processor(model.config.name_or_path, model_type, model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def _load_idefics3(source: Path | str) -> Idefics3Processor:
    """With the image processor without torchvision, which AutoImageProcessor does not find for this family."""
    parts = [Idefics3ImageProcessorPil.from_pretrained(source), AutoTokenizer.from_pretrained(source, trust_remote_code=False)]
    return Idefics3Processor.from_args_and_dict(parts, Idefics3Processor.get_processor_dict(source)[0])


def tokenizer_of(processor: Any) -> PreTrainedTokenizerBase:
    """A processor's tokenizer, or the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def suppressed_ids(processor: ProcessorMixin | PreTrainedTokenizerBase) -> list[int]:
    """Every special id but the end token: a sampled <image> would break the next forward pass.

    Placeholders of pictures that a tokenizer does not mark as special are among them.
    """
    tokenizer = tokenizer_of(processor)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    placeholders = {getattr(processor, name, None) for name in ("image_token_id", "video_token_id")} - {None}
    return sorted((special | placeholders | set(tokenizer.all_special_ids)) - {tokenizer.eos_token_id})


def _processor_class(source: Path | str) -> str | None:
    return ProcessorMixin.get_processor_dict(source)[0].get("processor_class")


def set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad on the left, as generation needs it, with a token of its own.

    Where the end token is also the padding (Qwen2.5's bases), SFT masks it with the padding, so that the model never learns to
    stop, and a row that ends looks like one that is cut.
    """
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        known = [token for token in PADS if token in tokenizer.get_vocab() and token != tokenizer.eos_token]
        tokenizer.add_special_tokens({"pad_token": known[0] if known else NEW_PAD})
