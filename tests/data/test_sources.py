"""Every data set by its name, from tiny copies in the hub's layout and in the official one."""
from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest
from PIL import Image

from dyme_core.data import metrics, prompt_format
from dyme_core.data.benchmarks import sources
from dyme_core.data.datasets import data_card, to_dataset
from dyme_core.data.schema import DataError, item_of
from dyme_core.supervision.refiner import TraceRefiner, target_writer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real rows are not at {SHARED}")
GREEN, WHITE = Image.new("RGB", (12, 8), "#00aa00"), Image.new("RGB", (12, 8), "white")

CHARTQA = {"image": [WHITE, GREEN], "query": ["How many?", "Which year?"], "label": [["3"], ["2010"]],
           "human_or_machine": [0, 1]}
AOKVQA = {"image": [GREEN], "question_id": ["22jbM6gDxdaMaunuzgrsBB"], "question": ["What is in his mouth?"],
          "choices": [["toothpick", "food", "popsicle", "cigarette"]], "correct_choice_idx": [3],
          "direct_answers": ["['cigarette', 'cigarette', \"smoker's pipe\"]"], "difficult_direct_answer": [False],
          "rationales": [["He smokes.", "A lit cigarette is in his mouth.", ""]]}
GSM8K = {"question": ["Tom has 2 bags of 3 apples. How many has he?"], "answer": ["He has 2*3=<<2*3=6>>6 apples.\n#### 6"]}
SLAKE = {"img_id": [1, 1, 1], "img_name": ["xmlab1/source.jpg"] * 3, "question": ["Which organ?", "Is it MRI?", "器官?"],
         "answer": ["Liver", "Yes", "肝"], "q_lang": ["en", "en", "zh"], "answer_type": ["OPEN", "CLOSED", "OPEN"]}
GEO = "First perform reasoning, then finally select the question from the choices in the following format: Answer: xxx.\n"
GEO170K = {"image": ["geoqa_plus/1.png"] * 5, "conversations": [
    [{"from": "human", "value": f"<image>\n{GEO}Question: Angle 1 is 50°. Angle 2 is ()\nChoices:\nA:50°\nB:65°"},
     {"from": "gpt", "value": "Angle 2 is half of 130°, so it is 65°.\nAnswer:B"}],
    [{"from": "human", "value": "<image>\nQuestion: How long is AB?"},
     {"from": "gpt", "value": "AB is twice the radius of 4. Therefore, the final answer is 8."}],
    [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "A circle with a chord."}],
    [{"from": "human", "value": f"<image>\n{GEO}Question: Angle 3?\nChoices:\nA:50°\nB:65°"},
     {"from": "gpt", "value": "It is 70°.\nAnswer: none of them"}],
    [{"from": "human", "value": f"<image>\n{GEO}Question: Angle 4?\nChoices:\nA:50°\nB:65°"},
     {"from": "gpt", "value": "It is 80°.\nAnswer:C"}]]}  # the last three cannot be asked
MATHVERSE = {"sample_index": ["1", "5"], "problem_index": ["1", "1"], "problem_version": ["Text Dominant", "Vision Only"],
             "question": ["Angle 2 is ()\nChoices:\nA:50°\nB:65°", ""], "image": [WHITE, GREEN], "answer": ["B", "B"],
             "question_type": ["multi-choice"] * 2, "metadata": [{"subject": "Plane Geometry"}] * 2, "query_wo": ["x", "x"],
             "query_cot": ["x", "x"], "question_for_eval": ["Angle 2 is ()\nChoices:\nA:50°\nB:65°"] * 2}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    """What `datasets` converts goes to a folder of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def save(folder: Path, file: str, columns: dict, split: str, config: str = "default") -> Path:
    """A data set as the hub holds it: a parquet file, and a card that says which split it is."""
    rows = datasets.Dataset.from_dict(columns)
    if isinstance(columns.get("image", [None])[0], Image.Image):
        rows = rows.cast_column("image", datasets.Image())
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / file)
    folder.joinpath("README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n"
                                            f"    path: {file}\n---\n")
    return folder


def save_picture(path: Path) -> None:
    path.parent.mkdir(parents=True)
    GREEN.save(path)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chartqa, aokvqa, gsm8k, slake, geo170k, mathverse, own: got 'chart_qa'"):
        sources.load("chart_qa", tmp_path, "test")


def test_every_data_set_names_rules_that_exist() -> None:
    assert {source.task for source in sources.KNOWN.values()} == set(metrics.SCORERS)


def test_chartqa_is_read_from_the_hub(tmp_path: Path) -> None:
    save(tmp_path, "data/val-00000-of-00001-0f11003c77497969.parquet", CHARTQA, "val")
    human, augmented = sources.load("chartqa", tmp_path, "val")
    assert (human.item, human.question, human.answer, human.kind) == ("val_human-00000", "How many?", "3", "human")
    assert (augmented.item, augmented.answer, augmented.kind) == ("val_augmented-00001", "2010", "augmented")
    assert human.split == "validation"
    assert augmented.load_image().tobytes() == GREEN.tobytes()


def test_pictures_of_the_hub_stay_compressed_until_they_are_used(tmp_path: Path) -> None:
    save(tmp_path, "data/test-00000-of-00001.parquet", CHARTQA, "test")
    records = sources.load("chartqa", tmp_path, "test")
    assert [type(record.image) for record in records] == [bytes, bytes]
    assert to_dataset(records)[1]["image"].tobytes() == GREEN.tobytes()


@pytest.mark.parametrize(("change", "reason"), [
    ({"human_or_machine": [0, 2]}, "test-00001.*human_or_machine 0 or 1, got 2"),
    ({"label": [["3"], []]}, "test_augmented-00001.*'label'"), ({"query": ["", "x"]}, "test_human-00000.*'query'")])
def test_a_faulty_hub_row_is_named(tmp_path: Path, change: dict, reason: str) -> None:
    save(tmp_path, "data/test-00000-of-00001.parquet", CHARTQA | change, "test")
    with pytest.raises(DataError, match=reason):
        sources.load("chartqa", tmp_path, "test")


@pytest.mark.parametrize("name", ["all [ab]", "a*", "a?c", "$HOME", "a::b"])
def test_a_folder_whose_name_the_hubs_library_takes_for_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    """It would find nothing, or read the rows of the folder beside it, too."""
    for folder in (name, "abc"):
        save(tmp_path / folder, "main/test-00000-of-00001.parquet", GSM8K, "test", "main")
    with pytest.raises(DataError, match="for a pattern.*rename the folder"):
        sources.load("gsm8k", tmp_path / name, "test")
    assert len(sources.load("gsm8k", tmp_path / "abc", "test")) == 1


def test_another_data_set_in_its_place_is_seen_by_its_columns(tmp_path: Path) -> None:
    save(tmp_path, "data/test-00000-of-00001.parquet", GSM8K, "test")
    with pytest.raises(DataError, match="columns image, query, label, human_or_machine, got question, answer"):
        sources.load("chartqa", tmp_path, "test")


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    save(tmp_path, "main/train-00000-of-00001.parquet", GSM8K, "train", "main")
    with pytest.raises(DataError, match="split 'test', or a folder with test.jsonl"):
        sources.load("gsm8k", tmp_path, "test")


def test_aokvqa_is_read_from_the_hub(tmp_path: Path) -> None:
    save(tmp_path, "data/validation-00000-of-00001-b2bd0de231b6326a.parquet", AOKVQA, "validation")
    [record] = sources.load("aokvqa", tmp_path, "validation")
    assert (record.item, record.answer, record.kind) == ("22jbM6gDxdaMaunuzgrsBB", "cigarette", "direct")
    assert TraceRefiner().refine_all([record.row]) == ["A lit cigarette is in his mouth."]
    assert metrics.aokvqa_scores("smoker's pipe", record.row)["direct_answer"] == pytest.approx(1 / 3)
    assert record.load_image().tobytes() == GREEN.tobytes()


def test_aokvqa_can_be_asked_with_its_choices(tmp_path: Path) -> None:
    save(tmp_path, "data/validation-00000-of-00001.parquet", AOKVQA, "validation")
    [record] = sources.load("aokvqa", tmp_path, "validation", with_choices=True)
    assert record.question == "What is in his mouth?\nChoices:\nA: toothpick\nB: food\nC: popsicle\nD: cigarette"
    assert (record.answer, record.kind) == ("cigarette", "choice")


@pytest.mark.parametrize(("change", "reason"), [
    ({"direct_answers": ["__import__('os')"]}, "22jbM6gDxdaMaunuzgrsBB.*list in the field 'direct_answers'"),
    ({"direct_answers": [None]}, "direct_answers"), ({"correct_choice_idx": [4]}, "among the 4 choices, got 4")])
def test_a_faulty_aokvqa_row_is_named(tmp_path: Path, change: dict, reason: str) -> None:
    save(tmp_path, "data/validation-00000-of-00001.parquet", AOKVQA | change, "validation")
    with pytest.raises(DataError, match=reason):
        sources.load("aokvqa", tmp_path, "validation")


def test_aokvqa_is_read_from_its_own_files_with_cocos_pictures(tmp_path: Path) -> None:
    row = {name: values[0] for name, values in AOKVQA.items() if name != "image"} | {"image_id": 461751}
    (tmp_path / "aokvqa_v1p0_val.json").write_text(json.dumps([row | {"direct_answers": ["cigarette", "pipe", "pipe"]}]))
    save_picture(tmp_path / "coco" / "val2017" / "000000461751.jpg")
    [record] = sources.load("aokvqa", tmp_path, "val", images=tmp_path / "coco")
    assert (record.answer, record.split, record.table_key) == ("pipe", "validation", "coco 461751")
    assert record.load_image().size == GREEN.size
    with pytest.raises(DataError, match="images=FOLDER"):
        sources.load("aokvqa", tmp_path, "val")


@needs_shared
def test_real_aokvqa_rows_are_read(tmp_path: Path) -> None:
    rows = json.loads((SHARED / "aokvqa" / "aokvqa_v1p0_val_200.json").read_text())
    (tmp_path / "aokvqa_v1p0_val.json").write_text(json.dumps(rows))
    for number in {row["image_id"] for row in rows}:
        (tmp_path / "val2017").mkdir(exist_ok=True)
        (tmp_path / "val2017" / f"{number:012d}.jpg").write_bytes(png(WHITE))
    records = sources.load("aokvqa", tmp_path, "val", images=tmp_path)
    assert len(records) == len({record.item for record in records}) == 200
    scores = [metrics.aokvqa_scores(record.answer, record.row) for record in records]
    assert sum(score["direct_answer"] is None for score in scores) == sum(row["difficult_direct_answer"] for row in rows)
    assert all(score["any_match"] == 1 for score in scores)
    assert sum(target is None for target in TraceRefiner().refine_all([record.row for record in records])) < 5


def test_gsm8k_is_read_from_the_hub_without_pictures_and_without_calculator_notes(tmp_path: Path) -> None:
    save(tmp_path, "main/test-00000-of-00001.parquet", GSM8K, "test", "main")
    [record] = sources.load("gsm8k", tmp_path, "test")
    assert (record.item, record.answer, record.image) == ("gsm8k_test-00000", "6", None)
    assert TraceRefiner().refine_all([record.row]) == ["He has 2*3=6 apples."]


def test_gsm8k_without_a_gold_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "How many?", "answer": "Six."}\n')
    with pytest.raises(DataError, match="gsm8k_test-00000.*#### .*Six"):
        sources.load("gsm8k", tmp_path, "test")


@needs_shared
@pytest.mark.parametrize(("split", "count"), [("train", 300), ("test", 200)])
def test_real_gsm8k_rows_are_read_and_their_solutions_become_targets(split: str, count: int) -> None:
    records = sources.load("gsm8k", SHARED / "gsm8k", split)
    targets = target_writer(TraceRefiner())([record.row for record in records])
    assert len(records) == count
    for record, target in zip(records, targets, strict=True):
        assert "<<" not in target and "####" not in target
        assert prompt_format.split_response(target)[1] == record.answer
        assert metrics.training_accuracy("gsm8k", record.answer, record.row) == 1


def test_slake_is_read_in_one_language_with_the_pictures_beside_it(tmp_path: Path) -> None:
    save(tmp_path, "data/test-00000-of-00001.parquet", SLAKE, "test")
    save_picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    records = sources.load("slake", tmp_path, "test", images=tmp_path / "imgs")
    assert [(record.item, record.kind, record.answer) for record in records] == [
        ("slake_test-00000", "open", "Liver"), ("slake_test-00001", "closed", "Yes")]
    assert records[0].load_image().size == GREEN.size
    assert [record.answer for record in sources.load("slake", tmp_path, "test", language="zh")] == ["肝"]
    with pytest.raises(DataError, match="'de'.*'en' or 'zh'"):
        sources.load("slake", tmp_path, "test", language="de")


def test_slake_is_read_from_its_own_files(tmp_path: Path) -> None:
    rows = [dict(zip(SLAKE, values, strict=True)) for values in zip(*SLAKE.values(), strict=True)]
    (tmp_path / "validate.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="slake_validation-00000.*images=FOLDER"):
        sources.load("slake", tmp_path, "validation")
    save_picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    assert len(sources.load("slake", tmp_path, "validation")) == 2


def test_geo170k_solutions_are_parted_into_trace_and_answer(tmp_path: Path, caplog) -> None:
    save(tmp_path, "data/qa_tuning-00000-of-00001-32a379a503a63173.parquet", GEO170K, "qa_tuning")
    save_picture(tmp_path / "images" / "geoqa_plus" / "1.png")
    choice, value = sources.load("geo170k", tmp_path, "qa_tuning")
    assert "3 of 5 rows are left out: they are no solutions" in caplog.text
    assert (choice.question, choice.answer) == ("Angle 1 is 50°. Angle 2 is ()\nChoices:\nA:50°\nB:65°", "B")
    assert (value.question, value.answer, value.split) == ("How long is AB?", "8", "train")
    assert (choice.kind, value.kind) == ("multi-choice", "free-form")
    assert TraceRefiner().refine_all([choice.row, value.row]) == [
        "Angle 2 is half of 130°, so it is 65°.", "AB is twice the radius of 4."]
    assert choice.load_image().size == GREEN.size


def test_a_split_of_descriptions_has_nothing_to_ask(tmp_path: Path) -> None:
    rows = [{"image": "1.png", "conversations": GEO170K["conversations"][2]}]
    (tmp_path / "alignment.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="qa_tuning"):
        sources.load("geo170k", tmp_path, "alignment")


def test_mathverse_is_read_from_the_hub_in_all_its_versions(tmp_path: Path) -> None:
    save(tmp_path, "testmini.parquet", MATHVERSE, "testmini", "testmini")
    text, vision = sources.load("mathverse", tmp_path, "testmini")
    assert (text.item, text.kind, text.answer) == ("mathverse_testmini-1", "Text Dominant", "B")
    assert vision.kind == "Vision Only" and "picture" in vision.question
    assert text.table_key == vision.table_key == "mathverse 1"
    for record in (text, vision):
        assert metrics.geometry_scores("65 degrees", record.row) == {"rule_accuracy": 1}, "the choice's text counts, too"
    assert vision.load_image().tobytes() == GREEN.tobytes()


def test_mathverse_is_read_from_its_own_file(tmp_path: Path) -> None:
    rows = [dict(zip(MATHVERSE, values, strict=True)) | {"image": "images_version_5/image_2.png"}
            for values in zip(*MATHVERSE.values(), strict=True)]
    (tmp_path / "testmini.json").write_text(json.dumps(rows))
    save_picture(tmp_path / "images" / "images_version_5" / "image_2.png")
    assert Counter(record.split for record in sources.load("mathverse", tmp_path, "testmini")) == {"test": 2}


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "..\\secret.png"])
def test_no_row_reaches_a_picture_outside_its_folder(tmp_path: Path, name: str) -> None:
    GREEN.save(tmp_path / "secret.png")
    (tmp_path / "set" / "images").mkdir(parents=True)
    rows = [{"image": name, "conversations": GEO170K["conversations"][0]}]
    (tmp_path / "set" / "qa_tuning.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="inside its folder"):
        sources.load("geo170k", tmp_path / "set", "qa_tuning")


@pytest.mark.parametrize(("text", "reason"), [("{", "line 2 of test.jsonl"), ("[1]", "line 2 of test.jsonl.*object")])
def test_a_broken_line_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "q", "answer": "#### 1"}) + f"\n{text}\n")
    with pytest.raises(DataError, match=reason):
        sources.load("gsm8k", tmp_path, "test")


def test_facts_of_text_alone_are_empty_and_its_card_counts_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({name: values[0] for name, values in GSM8K.items()}))
    records = sources.load("gsm8k", tmp_path, "test")
    assert item_of(records[0].row).facts == ()
    card = data_card(records)
    assert "1 of them without a picture" in card and "| test | 1 | 0 |" in card and "Cobbe et al. 2021): MIT" in card
