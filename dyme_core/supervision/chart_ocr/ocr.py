"""Facts of a picture offline, by OCR: RapidOCR reads the printed texts, `layout` and `series` join them.

The optional extra `ocr` brings RapidOCR and ONNX Runtime; its models come with the package, nothing is downloaded. OCR
cannot read what a chart does not print: bars without numbers give no facts.
"""
from __future__ import annotations

import functools
import io
from importlib import metadata
from typing import Any

import numpy as np
from PIL import Image

from dyme_core.data.schema import Fact
from dyme_core.supervision.chart_ocr.layout import read_chart
from dyme_core.supervision.chart_ocr.series import chart_facts
from dyme_core.supervision.chart_ocr.tokens import Token
from dyme_core.supervision.fact_extraction import Picture

PACKAGE = "rapidocr"
LAYOUT_VERSION = 2  # raise it when `tokens`, `layout` or `series` read a chart differently: facts are then extracted again
SETTINGS = {"Det.box_thresh": 0.3, "Global.text_score": 0.3,  # low, because charts print small and pale; `tokens` filters
            "Global.use_cls": False,  # no chart prints upside down, and turned digits read as others ("90" as "06")
            "Global.log_level": "critical", "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1}


class OcrMissingError(ImportError):
    """The extra `ocr` is not installed."""

    def __init__(self) -> None:
        super().__init__("reading facts from pictures needs RapidOCR and ONNX Runtime; install them with: "
                         "pip install -e .[ocr]")


class OcrFacts:
    """The back end "ocr": facts that the picture prints."""

    name = "ocr"
    reads = ("image",)

    @property
    def version(self) -> str:
        """RapidOCR's version and that of the layout rules.

        Raises:
            OcrMissingError: without the extra.
        """
        try:
            return f"{PACKAGE} {metadata.version(PACKAGE)}, layout {LAYOUT_VERSION}"
        except metadata.PackageNotFoundError as error:
            raise OcrMissingError from error

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        """Facts as printed, of the numbers whose name and series are certain."""
        pixels = np.asarray(Image.open(io.BytesIO(picture.image)).convert("RGB"))
        return chart_facts(read_chart(read_texts(pixels)), pixels)


def read_texts(pixels: np.ndarray) -> list[Token]:
    """The texts of a picture with their boxes.

    Args:
        pixels: (height, width, 3) RGB, 8 bits.
    Raises:
        OcrMissingError: without the extra.
    """
    found = _engine()(np.ascontiguousarray(pixels[:, :, ::-1]))  # RapidOCR takes OpenCV's BGR
    if found.boxes is None:
        return []
    return [Token(text, *box.min(axis=0).tolist(), *box.max(axis=0).tolist(), float(score))
            for box, text, score in zip(np.asarray(found.boxes), found.txts, found.scores, strict=True)]


@functools.cache
def _engine() -> Any:
    """One engine per process: loading its models takes a second."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise OcrMissingError from error
    return RapidOCR(params=SETTINGS)
