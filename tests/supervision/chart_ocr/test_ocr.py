"""Facts of real pictures by OCR; without the extra `ocr`, the advice to install it."""
from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dyme_core.supervision.chart_ocr import ocr
from dyme_core.supervision.fact_extraction import FactStore, Picture
from scripts.chart_facts import real_pictures, source_row

SHARED = Path(os.environ.get("DYME_SHARED", Path(__file__).resolve().parents[4] / "shared"))
CHARTQA = SHARED / "data" / "chartqa"
HAS_OCR = all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))
needs_ocr = pytest.mark.skipif(not HAS_OCR, reason="the extra ocr is not installed: pip install -e .[ocr]")
needs_chartqa = pytest.mark.skipif(not CHARTQA.is_dir(), reason=f"real charts are not at {CHARTQA}; set DYME_SHARED")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    ocr._engine.cache_clear()
    with pytest.raises(ocr.OcrMissingError, match=r"pip install -e \.\[ocr\]"):
        ocr.read_texts(np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(ocr, "PACKAGE", "no-such-package")
    with pytest.raises(ocr.OcrMissingError, match=r"pip install -e \.\[ocr\]"):
        ocr.OcrFacts().version  # noqa: B018
    ocr._engine.cache_clear()


@needs_ocr
def test_a_drawn_chart_is_read(tmp_path: Path) -> None:
    image = Image.new("RGB", (500, 300), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    for y, name, value in ((60, "Latvia", 30), (140, "Portugal", 89), (220, "Romania", 62)):
        draw.text((100, y), name, fill="black", font=font, anchor="rm")
        draw.rectangle((110, y - 20, 110 + 3 * value, y + 20), fill="#2876dd")
        draw.text((120 + 3 * value, y), str(value), fill="black", font=font, anchor="lm")
    image.save(tmp_path / "chart.png")
    facts = ocr.OcrFacts().extract(Picture.of_files(tmp_path / "chart.png"))
    assert {(fact.entity, fact.value) for fact in facts} == {("Latvia", 30), ("Portugal", 89), ("Romania", 62)}


@needs_ocr
def test_a_picture_without_text_gives_no_facts(tmp_path: Path) -> None:
    Image.new("RGBA", (60, 40), "white").save(tmp_path / "empty.png")
    assert ocr.OcrFacts().extract(Picture.of_files(tmp_path / "empty.png")) == ()


@needs_ocr
@needs_chartqa
@pytest.mark.exhaustive
def test_printed_values_of_the_gold_charts_are_found(tmp_path: Path) -> None:
    pictures, store = real_pictures(CHARTQA), FactStore(tmp_path)
    total = source_row("real", "development", pictures, store)
    assert (total["num_charts"], total["num_gold"]) == (14, 104)
    assert total["recall"] >= 0.8 and total["precision"] >= 0.8
    assert total["num_right"] >= 0.95 * (total["num_right"] + total["num_contradicted"])
    without = {picture.item for picture in pictures if not store.get(picture, ocr.OcrFacts()).facts}
    assert without == {"multi_col_100815"}, "it prints no values"
