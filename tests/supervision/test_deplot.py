"""Facts by DePlot: its text read, and a tiny checkpoint in its layout."""
from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    Pix2StructImageProcessorPil,
    Pix2StructProcessor,
    T5Tokenizer,
)
from transformers.models.pix2struct import image_processing_pil_pix2struct as pictures

from dyme_core import config
from dyme_core.data.schema import Fact
from dyme_core.supervision.deplot import DePlotFacts, parse_table
from dyme_core.supervision.fact_extraction import FactsError, Picture, backend_of

WORDS = ("TITLE", "|", "<0x0A>", "Year", "FAV", "UNF", "2010", "62", "36")
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def test_the_table_of_a_model_card_becomes_facts() -> None:
    text = ("TITLE |  <0x0A> AGE RANGE | MAL | FEMALE <0x0A> <50 | 0.70 | 1.10 <0x0A> 50-64 | 6.10 | 8 <0x0A> "
            "85+ | 42.50 | 31.60")  # what DePlot wrote, documented for Spark OCR's chart_to_text_deplot_jsl
    assert parse_table(text) == (
        Fact("<50", "MAL", 0.7), Fact("<50", "FEMALE", 1.1), Fact("50-64", "MAL", 6.1), Fact("50-64", "FEMALE", 8),
        Fact("85+", "MAL", 42.5), Fact("85+", "FEMALE", 31.6))


@pytest.mark.parametrize(("text", "facts"), [
    ("TITLE | Sales\nYear | FAV\n2010 | 62%", [("2010", "FAV", 62, "%")]),  # a tokenizer that decodes bytes
    ("Entity | FAV <0x0A> New<0x0A>Consumers | 44.4%", [("New Consumers", "FAV", 44.4, "%")]),  # a line break in a cell
    ("TITLE |  <0x0A>  | % <0x0A> Eli | 55.1", [("Eli", "%", 55.1, "%")]),  # a column named by its unit alone
    ("TITLE |  <0x0A> North | 12 <0x0A> South | 7.5", [("North", "", 12, ""), ("South", "", 7.5, "")]),  # no header
    ("Entity | A | B <0x0A> x | 1 | 2 <0x0A> y | 3 <0x0A> z | 4 | 5 | 6", [("x", "A", 1, ""), ("x", "B", 2, "")]),  # ragged
    ("Entity | A <0x0A> x | 1 <0x0A> x | 2 <0x0A> y | 3 <0x0A> y | 3", [("y", "A", 3, "")]),  # contradicts itself; repeats
    ("Entity | A <0x0A> x | nan", []), ("", []), ("no table", []), ("TITLE | nothing else", [])])
def test_what_the_text_does_not_state_with_certainty_is_left_out(text: str, facts: list[tuple]) -> None:
    assert parse_table(text) == tuple(Fact(*fact) for fact in facts)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch) -> Path:
    """A tiny random Pix2Struct in google/deplot's layout; the font of its header, which the hub has, is Matplotlib's."""
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    tokenizer = T5Tokenizer([*special, *((f"\u2581{word}", -2.0) for word in WORDS)], extra_ids=0)
    size = {"hidden_size": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = Pix2StructForConditionalGeneration(Pix2StructConfig(
        text_config={**size, "vocab_size": len(tokenizer), "encoder_hidden_size": 8, "decoder_start_token_id": 0,
                     "eos_token_id": 1, "pad_token_id": 0},
        vision_config={"hidden_size": 8, "patch_embed_hidden_size": 768, "d_ff": 8, "d_kv": 4, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "seq_len": 64},
        is_vqa=True))
    model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    model.save_pretrained(tmp_path)
    Pix2StructProcessor(Pix2StructImageProcessorPil(is_vqa=True, max_patches=64), tokenizer).save_pretrained(tmp_path)
    monkeypatch.setattr(pictures, "hf_api", lambda: SimpleNamespace(hf_hub_download=lambda *asked: str(FONT)))
    return tmp_path


def picture() -> Picture:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), "navy").save(file, "png")
    return Picture("chart", file.getvalue())


def test_a_checkpoint_in_deplots_layout_reads_a_picture_by_the_name_of_its_folder(checkpoint: Path, monkeypatch) -> None:
    backend, asked = backend_of(f"deplot:{checkpoint}", None), {}
    table = "TITLE | <0x0A> Year | FAV | UNF <0x0A> 2010 | 62 | 36"

    def writes(**inputs) -> torch.Tensor:
        asked.update(inputs)
        return torch.tensor([[0, *backend.processor.tokenizer(table).input_ids]])

    monkeypatch.setattr(backend.model, "generate", writes)
    assert backend.extract(picture()) == (Fact("2010", "FAV", 62), Fact("2010", "UNF", 36))
    assert asked["flattened_patches"].shape[2] == 16 * 16 * 3 + 2 and asked["do_sample"] is False
    assert DePlotFacts(str(checkpoint)).version == backend.version, "the version follows from the files"


def test_a_model_that_writes_no_table_gives_an_error_and_never_facts(checkpoint: Path) -> None:
    backend = DePlotFacts(str(checkpoint))
    with pytest.raises(FactsError, match="expected a table"):
        backend.extract(picture())
    with pytest.raises(FactsError, match="expected a picture, got 3 bytes"):
        backend.extract(Picture("chart", b"png"))


def test_the_setting_takes_a_folder() -> None:
    assert config.load_profile("smoke", **{"data.facts": "deplot:my/folder"}).data.facts == "deplot:my/folder"
