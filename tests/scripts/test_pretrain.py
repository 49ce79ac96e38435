"""What the mini base is taught: columns and letters as they stand in the picture, conversations, and never the skill itself."""
from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dyme_core.data import chart_images, chart_tables, prompt_format
from dyme_core.data.chart_tables import facts_of
from dyme_core.data.schema import Fact
from dyme_core.models import loading, tiny_onevision
from dyme_core.supervision.claims import read_trace
from scripts import curriculum, pretrain

PROCESSOR = tiny_onevision.build_processor()
TOKENIZER = PROCESSOR.tokenizer
CHARTS = 12
CELLS_HIGH, CELLS_WIDE = 4, 6  # character cells of a patch: 24 pixels of cells 6 high and 4 wide


def taught(seed: str) -> tuple[list[chart_tables.Table], torch.Tensor, torch.Tensor, np.ndarray]:
    """Tables, pictures as bytes (charts, y, x, colour), columns and letters with tiles beside each other, letters on the
    picture's 16 x 48 cells."""
    rng = random.Random(seed)
    tables = [curriculum.draw_chart(rng, "train")[0] for _ in range(CHARTS)]
    pixels, columns, letters = curriculum.column_batch(random.Random(seed), CHARTS)
    tiles = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8)
    pictures = torch.cat([tiles[0::2], tiles[1::2]], dim=2)
    grid = np.full((CHARTS, 16, 48), " ")
    for tile, patch, cell in np.ndindex(*letters.shape):
        row = patch // 4 * CELLS_HIGH + cell // CELLS_WIDE
        column = tile % 2 * 24 + patch % 4 * CELLS_WIDE + cell % CELLS_WIDE
        grid[tile // 2, row, column] = (*curriculum.LETTERS, " ")[letters[tile, patch, cell]]
    return tables, pictures, torch.cat([columns[0::2], columns[1::2]], dim=2), grid


def texts_of(grid: np.ndarray) -> list[tuple[str, int, int]]:
    """Each text of one chart's grid with its row and first column."""
    found = []
    for row, line in enumerate("".join(cells) for cells in grid):
        column = 0
        for part in line.split(" "):
            found += [(part, row, column)] if part else []
            column += len(part) + 1
    return found


def test_the_letters_taught_are_those_in_the_picture_and_together_all_its_texts() -> None:
    tables, pictures, _, grids = taught("letters")
    for table, picture, grid in zip(tables, pictures, grids, strict=True):
        for row, column in zip(*np.nonzero(grid != " "), strict=True):
            glyph = chart_images._GLYPHS[grid[row, column]]
            ink = torch.tensor([[bool(int(bits) & (4 >> x)) for x in range(3)] for bits in glyph])
            box = picture[row * 6: row * 6 + 5, column * 4: column * 4 + 3].int()
            is_ink = (box == box[ink][0]).all(dim=-1)
            assert is_ink.equal(ink), f"{grid[row, column]} is not in the picture of {table.key} at {row}, {column}"
        written = [*table.groups, *table.series, *(str(value) for values in table.values for value in values)]
        assert Counter(text for text, _, _ in texts_of(grid)) == Counter(written)


def test_the_columns_taught_agree_with_the_table_and_with_where_its_texts_stand() -> None:
    tables, _, columns, grids = taught("columns")
    names = list(curriculum.NAMES)
    assert columns.shape == (CHARTS, 4, 8, 5)
    assert {len(table.series) for table in tables} == {1, 2} and {len(table.groups) for table in tables} <= {4, 5, 6, 7, 8}
    for table, column, grid in zip(tables, columns, grids, strict=True):
        texts = texts_of(grid)
        place_of = {text: start // CELLS_WIDE for text, row, start in texts if text in table.groups}
        label = {place: group for group, place in place_of.items()}
        assert len(label) == len(table.groups)
        for row, place in np.ndindex(4, 8):
            told = [names[number] for number in column[row, place].tolist()]
            assert told[0] == label.get(place, "none")
            assert told[3:] == ([*table.series, "none"] if place < 4 else ["none"] * 2)[:2], "the legend is in the left tile"
            here = {text for text, y, x in texts if y // CELLS_HIGH == row and x // CELLS_WIDE == place and text.isdecimal()}
            assert set(told[1:3]) - {"none"} == here - set(table.groups) - set(table.series)
        for group, place in place_of.items():
            for number, series in enumerate(table.series):
                told = [names[value] for value in column[:, place, 1 + number].tolist()]
                assert sorted(told) == sorted([str(table.value(group, series)), "none", "none", "none"])


def turns_of(ids: list[int]) -> list[tuple[list[int], list[int]]]:
    """Positions of (question, reply with its end token) for each turn of one row."""
    user, assistant, end = TOKENIZER.convert_tokens_to_ids([tiny_onevision.USER, tiny_onevision.ASSISTANT, tiny_onevision.END])
    turns, place = [], 0
    while place < len(ids) and ids[place] == user:
        answer = ids.index(assistant, place)
        stop = ids.index(end, answer)
        assert ids[answer - 1] == end
        turns.append((list(range(place + 1, answer - 1)), list(range(answer + 1, stop + 1))))
        place = stop + 1
    assert set(ids[place:]) <= {TOKENIZER.pad_token_id}
    return turns


def recorded(monkeypatch, name: str) -> list:
    """What the curriculum's function `name` gives from now on, in its order."""
    found, draw = [], getattr(curriculum, name)

    def record(*args, **options):
        found.append(draw(*args, **options))
        return found[-1]

    monkeypatch.setattr(curriculum, name, record)
    return found


@pytest.mark.parametrize("is_early", [True, False])
def test_labels_cover_exactly_the_replies_and_their_end_tokens(is_early: bool) -> None:
    batch = curriculum.conversation_batch(random.Random("labels"), PROCESSOR, 8, is_early)
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        replies = {place for _, reply in turns_of(ids) for place in reply}
        assert labels == [token if place in replies else -100 for place, token in enumerate(ids)]


def test_a_conversation_is_what_the_processor_makes_of_it_with_a_feature_for_each_picture_token(monkeypatch) -> None:
    charts, drawn = recorded(monkeypatch, "draw_chart"), recorded(monkeypatch, "draw_turns")
    batch = curriculum.conversation_batch(random.Random("processor"), PROCESSOR, 4, is_early=False)
    model = tiny_onevision.build_model("svlm", PROCESSOR, 0)
    for place, (ids, chart) in enumerate(zip(batch["input_ids"].tolist(), charts, strict=True)):
        turns = [tuple(TOKENIZER.decode([ids[token] for token in text], skip_special_tokens=True) for text in turn)
                 for turn in turns_of(ids)]
        assert len(turns) > 1 and set(turns) <= {turn for together in drawn for turn in together}
        messages = [{"role": role, "content": text} for turn in turns
                    for role, text in zip(("user", "assistant"), turn, strict=True)]
        messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": turns[0][0]}]
        text = PROCESSOR.apply_chat_template(messages, tokenize=False)
        whole = PROCESSOR(images=[chart_images.render(*chart)], text=[text], return_tensors="pt")
        assert whole["input_ids"][0].tolist() == [token for token in ids if token != TOKENIZER.pad_token_id]
        assert whole["pixel_values"][0].allclose(batch["pixel_values"][place], atol=1e-6)
        assert whole["image_sizes"][0].equal(batch["image_sizes"][place])
    features = model.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"]).pooler_output
    image_tokens = (batch["input_ids"] == TOKENIZER.image_token_id).sum(dim=1).tolist()
    assert image_tokens == [len(feature) for feature in features] == [52] * 4


@pytest.mark.parametrize("kind", ["early", "later", "sums"])
def test_rows_are_nearly_full_and_no_longer_than_their_limit(kind: str) -> None:
    rng = random.Random("full")
    batches = [curriculum.sum_batch(rng, PROCESSOR, 7) if kind == "sums" else
               curriculum.conversation_batch(rng, PROCESSOR, 24, is_early=kind == "early") for _ in range(3)]
    num_padding = sum(int((batch["input_ids"] == TOKENIZER.pad_token_id).sum()) for batch in batches)
    assert num_padding <= 0.15 * sum(batch["input_ids"].numel() for batch in batches)
    assert {batch["input_ids"].shape[1] for batch in batches} == {curriculum.ROW}, "padded to the longest row"


def test_a_row_that_is_longer_than_its_limit_holds_its_first_turns_alone(monkeypatch) -> None:
    monkeypatch.setattr(curriculum, "ROW", 80)  # 52 of them are the picture's
    drawn, longer = recorded(monkeypatch, "draw_turns"), 0
    for seed in range(30):
        drawn.clear()
        [ids] = curriculum.conversation_batch(random.Random(seed), PROCESSOR, 1, is_early=False)["input_ids"].tolist()
        is_longer = sum(token != TOKENIZER.pad_token_id for token in ids) > 80
        assert not is_longer or len(turns_of(ids)) == len(drawn[0])
        longer += is_longer
    assert 0 < longer < 30


def test_no_question_but_a_look_up_is_ever_thought_through_with_figures() -> None:
    rng, thought = random.Random("turns"), Counter()
    for _ in range(4000):
        table, _ = curriculum.draw_chart(rng, "train")
        (question, reply), *more = curriculum.draw_turns(rng, table, is_early=False)
        thinking, answer = prompt_format.split_response(reply)
        if answer is None:  # a description, and perhaps a working with what it said in a reply of its own
            assert question.startswith("Describe") and describes(reply, table)
            assert all(" has " not in work and read_trace(work, facts_of(table)).is_arithmetic_right for _, work in more)
            continue
        assert not more
        is_lookup = question.startswith("What is the value of")
        thought[is_lookup, bool(thinking)] += 1
        if thinking and not is_lookup:
            reading = read_trace(thinking, facts_of(table))
            assert reading.claims == () and reading.working_start is None, (question, reply)
            assert not set("+-<>") & set(thinking), (question, reply)
        if thinking:
            assert prompt_format.THINK_INSTRUCTION in question
    assert min(thought.values()) > 100 and len(thought) == 4, "look-ups and others, with thinking and without"


def describes(reply: str, table: chart_tables.Table) -> bool:
    """True where the reply is "<group> has <value>[ and <value>], ..." of the table's groups, each at most once, and a dot."""
    values = {group: " and ".join(str(table.value(group, series)) for series in table.series) for group in table.groups}
    parts = reply.removesuffix(".").split(", ")
    named = [part.split(" ")[0] for part in parts]
    return reply.endswith(".") and len(set(named)) == len(named) and parts == [f"{name} has {values[name]}" for name in named]


def test_sums_are_right_and_stand_beside_no_picture() -> None:
    rng, kinds = random.Random("sums"), Counter()
    for _ in range(2000):
        question, reply = curriculum.draw_sum(rng)
        stated = re.findall(r"(\w+) has (\d+)(?: and (\d+))?", question)
        kinds[bool(stated)] += 1
        told = tuple(Fact(name, "", float(value)) for name, *values in stated for value in values if value)
        bare = tuple(Fact("", "", float(number)) for number in re.findall(r"\d+", question))
        assert read_trace(reply, told or bare).is_arithmetic_right, (question, reply)
        assert not stated or "What" in question or "Which" in question or "How" in question
    assert min(kinds.values()) > 500
    batch = curriculum.sum_batch(rng, PROCESSOR, size=3)
    assert not (batch["input_ids"] == TOKENIZER.image_token_id).any() and "pixel_values" not in batch
    assert all(len(turns_of(ids)) > 1 for ids in batch["input_ids"].tolist())


def test_early_turns_are_true_descriptions_alone() -> None:
    rng, whole = random.Random("early"), 0
    for _ in range(300):
        table, _ = curriculum.draw_chart(rng, "train")
        [(question, reply)] = curriculum.draw_turns(rng, table, is_early=True)
        assert describes(reply, table)
        whole += question == prompt_format.CAPTION_INSTRUCTION and reply.count(" has ") == len(table.groups)
    assert whole > 50, "whole charts among them"


def test_optimise_lowers_the_loss_of_a_fixed_problem_in_the_steps_it_was_given(caplog) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    wanted = inputs @ torch.randn(8, 1, generator=generator)
    layer, seen = nn.Linear(8, 1), []

    def loss_of(step: int) -> torch.Tensor:
        loss = (layer(inputs) - wanted).square().mean()
        seen.append((step, loss.item()))
        return loss

    with caplog.at_level(logging.INFO, logger="scripts.pretrain"):
        pretrain.optimise([layer], loss_of, 150, 0.1, "problem")
    assert [step for step, _ in seen] == list(range(150))
    assert seen[-1][1] < 0.01 * seen[0][1]
    assert "problem: step 150 of 150, loss" in caplog.text


def test_bases_start_from_one_checkpoint_and_load_with_their_manifests(tmp_path: Path, monkeypatch) -> None:
    settings = pretrain.Base(vision_steps=2, vision_batch_size=2, align_steps=2, language_steps=3, early_steps=1, own_steps=2,
                             batch_size=2, sums=2)
    measure, read = pretrain.measure_base, pretrain.column_batch
    monkeypatch.setattr(pretrain, "measure_base", lambda model, processor, language: measure(model, processor, language, 4))
    monkeypatch.setattr(pretrain, "column_batch", lambda rng, count: read(rng, min(count, 8)))
    monkeypatch.setattr(pretrain, "BASES", {"svlm": settings, "large": settings})
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    (tmp_path / "pyproject.toml").touch()
    pretrain.build_bases(5, ["svlm"], 1)
    made = {name: json.loads((tmp_path / "bases" / name / "manifest.json").read_text()) for name in ("svlm-start", "svlm-s5")}
    assert "reads label" in made["svlm-start"]["metrics"] and "reads label" not in made["svlm-s5"]["metrics"]
    manifest = made["svlm-s5"]
    assert (manifest["model"], manifest["seed"], manifest["start"]) == ("svlm", 5, "svlm-start")
    assert manifest["settings"] == asdict(settings)
    assert {"commit", "dirty", "versions", "cpu", "seconds"} <= manifest.keys()
    assert all(0 <= value <= 1 for value in manifest["metrics"].values())
    monkeypatch.setattr(pretrain, "measure_base", lambda model, processor, language: {})
    pretrain.build_bases(6, ["svlm", "large"], 1)
    weights = {name: loading.load_policy(tmp_path / "bases" / name)[0].state_dict()
               for name in ("svlm-start", "svlm-s5", "svlm-s6", "large-s6")}
    tower = {name: tensor for name, tensor in weights["svlm-start"].items() if "vision_tower" in name}
    assert tower and all(tensor.equal(own[name]) for own in weights.values() for name, tensor in tower.items())
    head = "model.language_model.layers.0.mlp.up_proj.weight"
    assert len({weights[name][head].sum().item() for name in ("svlm-start", "svlm-s5", "svlm-s6")}) == 3
