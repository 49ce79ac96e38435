"""Processors of every family, also without torchvision, so that a CPU laptop can train and evaluate real checkpoints."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Idefics3Processor,
    InternVLProcessor,
    LlavaNextProcessor,
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
NEVER = -100.0  # added to a logit


def without_video(plain: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A class like `plain` that has no video part, which would need torchvision.

    It has the same name, so that AutoProcessor loads its folder as `plain` where torchvision is installed.
    """
    def get_attributes(cls: type[ProcessorMixin]) -> list[str]:
        return [name for name in plain.get_attributes() if name != "video_processor"]

    return type(plain.__name__, (plain,), {"get_attributes": classmethod(get_attributes), "__module__": plain.__module__,
                                           "__doc__": plain.__doc__})


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
    elif is_torchvision_available():
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    elif model_type == "idefics3":
        processor = _load_idefics3(source)
    elif model_type in VIDEO_PROCESSORS and _processor_class(source) != LlavaNextProcessor.__name__:  # that has no video part
        processor = without_video(VIDEO_PROCESSORS[model_type]).from_pretrained(source, trust_remote_code=False)
    else:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    if reads_images and not isinstance(processor, ProcessorMixin):
        raise TypeError(f"expected a processor for pictures in {source}: got a {type(processor).__name__}; copy "
                        "processor_config.json and preprocessor_config.json beside the weights")
    set_padding(processor)
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


def turn_end(processor: ProcessorMixin | PreTrainedTokenizerBase) -> int:
    """The id that closes a target: the first added token that the chat template writes after an answer; the tokenizer's end
    token where it writes none, or there is no template.

    Raises:
        ValueError: where there is neither.
    """
    tokenizer, answer = tokenizer_of(processor), "ANSWER"
    ids: list[int] = []
    if getattr(processor, "chat_template", None):
        said = [{"type": "text", "text": answer}] if isinstance(processor, ProcessorMixin) else answer
        turns = [{"role": role, "content": said} for role in ("user", "assistant")]
        tail = processor.apply_chat_template(turns, tokenize=False).rpartition(answer)[2]
        ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    end = next((token_id for token_id in ids if token_id in tokenizer.added_tokens_decoder), tokenizer.eos_token_id)
    if end is None:
        raise ValueError("expected an end token, from the chat template or the tokenizer: got none; set tokenizer.eos_token")
    return end


def target_ids(processor: ProcessorMixin | PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a whole response, closed as the chat template closes an answer."""
    return [*tokenizer_of(processor)(text, add_special_tokens=False)["input_ids"], turn_end(processor)]


def end_ids(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a response: the one that the chat template writes, the tokenizer's and those of generation_config."""
    ids = [turn_end(processor), tokenizer_of(processor).eos_token_id, *_given_end_ids(model)]
    return [token_id for token_id in dict.fromkeys(ids) if token_id is not None]


def set_end_ids(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
    """Let each of `end_ids` end a response in every engine, also when the model is saved, and stand in no decoded text."""
    tokenizer, ids = tokenizer_of(processor), end_ids(model, processor)
    if {*ids} != {*_given_end_ids(model)}:
        model.generation_config.eos_token_id = ids
    added = [token for token_id, token in tokenizer.added_tokens_decoder.items() if token_id in ids and not token.special]
    tokenizer.add_tokens([AddedToken(token.content, special=True, normalized=False) for token in added], special_tokens=True)


def _given_end_ids(model: PreTrainedModel) -> list[int]:
    given = model.generation_config.eos_token_id
    return [] if given is None else [given] if isinstance(given, int) else given


def suppressed_ids(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase) -> list[int]:
    """Every special id that ends no response: a sampled <image> would break the next forward pass.

    Placeholders of pictures that a tokenizer does not mark as special are among them.
    """
    tokenizer = tokenizer_of(processor)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    placeholders = {getattr(processor, name, None) for name in ("image_token_id", "video_token_id")} - {None}
    return sorted((special | placeholders | set(tokenizer.all_special_ids)) - {*end_ids(model, processor)})


def generation_kwargs(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase, use_vllm: bool,
                      given: dict[str, Any] | None = None) -> dict[str, Any]:
    """TRL's `generation_kwargs`, the given ones first, under which no special token is sampled but those that end a rollout."""
    given, forbidden = given or {}, suppressed_ids(model, processor)
    if use_vllm:  # it has no list of suppressed ids
        return {**given, "logit_bias": {**given.get("logit_bias", {}), **dict.fromkeys(forbidden, NEVER)},
                "stop_token_ids": end_ids(model, processor)}
    return {**given, "suppress_tokens": sorted({*(given.get("suppress_tokens") or ()), *forbidden})}


def _processor_class(source: Path | str) -> str | None:
    return ProcessorMixin.get_processor_dict(source)[0].get("processor_class")


def set_padding(processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
    """Pad on the left, as generation needs it, with a token of its own.

    Where the token that closes a target is also the padding (Qwen2.5's bases), SFT masks it with the padding, so that the model
    never learns to stop, and a row that ends looks like one that is cut.
    """
    tokenizer, ends = tokenizer_of(processor), {tokenizer_of(processor).eos_token_id, turn_end(processor)}
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id in {None, *ends}:
        known = [token for token in PADS if tokenizer.get_vocab().get(token, None) not in {None, *ends}]
        tokenizer.add_special_tokens({"pad_token": known[0] if known else NEW_PAD})
