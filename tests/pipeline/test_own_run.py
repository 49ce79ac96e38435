"""A run on your own data, from the folder to scores: pictures, facts, traces; and a data set with rules of its own."""
from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from scripted_judge import client_of
from scripted_server import ScriptedServer, answer, status

from dyme_core import config
from dyme_core.data import datasets, schema
from dyme_core.data.schema import item_of
from dyme_core.models import tiny_onevision
from dyme_core.models.generation import Decoded
from dyme_core.pipeline import evaluate, train
from dyme_core.supervision import fact_extraction
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.utils import read_rows


def write_own(folder: Path) -> list[str]:
    """Mini charts as a user would write them: a picture and a trace, half of them with facts; the traces."""
    lines, traces = [], []
    for split, count in (("train", 16), ("validation", 4), ("test", 4)):
        for number, record in enumerate(datasets.mini_records(split, count, seed=0)):
            name = f"charts/{split}{number}.png"
            (folder / "charts").mkdir(parents=True, exist_ok=True)
            record.load_image().save(folder / name)
            traces.append(RuleRefiner().refine(item_of(record.row)))
            facts = [{"entity": fact.entity, "attribute": fact.attribute, "value": fact.value, "unit": fact.unit}
                     for fact in item_of(record.row).facts]
            lines.append({"id": f"{split}-{number}", "image": name, "question": record.question, "answer": record.answer,
                          "split": split, "trace": traces[-1], **({"facts": facts} if number % 2 else {})})
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return traces


@pytest.mark.parametrize("method", ["sft", "pure_dyme", "full_dyme"])
def test_your_own_folder_is_trained_on_and_scored(root: Path, monkeypatch, method: str) -> None:
    torch.set_num_threads(1)
    traces, targets = write_own(root / "my data"), []
    offline = train.Experts.offline
    monkeypatch.setattr(train.Experts, "offline", lambda self, records: targets.extend(
        offline(self, records)([record.row for record in records])) or offline(self, records))
    profile = config.load_profile("smoke", **{
        "data.name": "own", "data.source": str(root / "my data"), "data.held_out": ("validation", "test"),
        "training.steps": 2, "training.evaluate_every": 2, "training.prompts_per_step": 2, "training.num_generations": 4})
    manifest = train.execute(train.Run(profile, method))
    assert manifest["results"].keys() == {"validation", "test"} and manifest["settings"]["data"]["name"] == "own"
    if method != "full_dyme":
        assert len(targets) == 16 and all(target.startswith(trace) for target, trace in zip(targets, traces, strict=False))
    steps = [row for row in read_rows(root / "results" / "local" / "smoke" / "logs" / f"{manifest['run']}.jsonl.xz")
             if row["event"] == "step"]
    assert len(steps) == 2 and sum(row.get("without_target", 0) for row in steps) == 0, "every row has its own target"
    rows = read_rows(root / "results" / "local" / "smoke" / "rows" / f"{manifest['run']}.jsonl.xz")
    assert [row["item"] for row in rows] == [f"{split}-{number}" for split in ("validation", "test") for number in range(4)]
    assert all((row["thinking"] is None) == (number % 2 == 0) for number, row in enumerate(rows)), "rated where facts are known"


def test_rows_of_another_task_have_its_own_scores(monkeypatch) -> None:
    scoring = json.dumps({"facts": [], "evidence": [], "scoring": {
        "direct_answers": ["cat"] * 2 + ["dog"] * 8, "difficult_direct_answer": False, "choices": [], "correct_choice_idx": 0}})
    record = datasets.mini_records("test", 1, seed=0)[0]
    record = schema.Record("q1", "What is it?", "dog", "direct", "A-OKVQA", "test", record.image, scoring)
    processor = tiny_onevision.build_processor(48, 24)
    monkeypatch.setattr(evaluate, "decode", lambda *args, **settings: [
        Decoded(f"It has soft fur and ears.\n<answer>{said}</answer>", 9, False) for said in ("cat", "dog")])
    rows = evaluate.evaluate(None, processor, [record] * 2, task="aokvqa")
    assert [row["scores"]["direct_answer"] for row in rows] == pytest.approx([2 / 3, 1])
    assert [row["correct"] for row in rows] == [1, 1] and [row["strict"] for row in rows] == [0, 1]
    summary = evaluate.summarise(rows)
    assert summary["scores.direct_answer"] == pytest.approx(5 / 6) and summary["scores.multiple_choice"] is None
    assert "direct_answer: 83.3%" in evaluate.score_report(rows) and "multiple_choice" not in evaluate.score_report(rows)


def test_pictures_without_facts_are_read_once_by_a_vision_model(tmp_path: Path, caplog) -> None:
    records = [dataclasses.replace(record, supervision=schema.NO_SUPERVISION if number else record.supervision)
               for number, record in enumerate(datasets.mini_records("train", 3, seed=0))]

    shown: list[int] = []

    def sees(body: dict):
        [part] = [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
        place = next(place for place, record in enumerate(records) if part["image_url"]["url"].endswith(
            base64.b64encode(datasets.png_bytes(record.load_image())).decode()))
        shown.append(place)
        return status(400) if place == 2 else answer(json.dumps({"facts": [
            {"entity": "May", "attribute": "rain", "value": 45, "unit": "mm"}]}))

    with ScriptedServer(sees) as server, client_of(server) as client:
        for _ in range(2):
            seen = fact_extraction.with_facts(records, fact_extraction.backend_of("vlm", client), tmp_path, at_once=2)
    assert seen[0] is records[0] and [fact.value for fact in item_of(seen[1].row).facts] == [45.0]
    assert seen[2] == records[2] and f"{records[2].item}: no facts" in caplog.text
    assert shown.count(1) == 1 and shown.count(2) >= 2 and 0 not in shown, "what was seen is not asked again"
    with pytest.raises(ValueError, match="set supervision.backend='api'"):
        fact_extraction.backend_of("vlm", None)
    with pytest.raises(ValueError, match="data.facts must be 'given', .* or 'vlm': got 'guess'"):
        config.load_profile("smoke", **{"data.facts": "guess"})
