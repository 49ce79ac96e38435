"""Shared by the tests of bad input: one row of each data set, texts that no row may hold, and what an error must say."""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks import sources
from dyme_core.data.schema import Record

REMEDY = re.compile(r"; [^;]*\b(?:remove|restore|correct|rename|fill|give|write|take|shorten|shrink|save|keep|name|put|unpack|"
                    r"leave|rewrite|add|set|choose|export|check|move)\b[^;]*\Z", re.DOTALL)
# A row of each data set: its fields, where the picture stands, and the file and form that it is read from.
ROWS: dict[str, dict[str, Any]] = {
    "own": {"question": "Which is taller?", "answer": "May", "image": "1.png", "id": "a"},
    "chartqa": {"imgname": "1.png", "query": "How many?", "label": "3"},
    "aokvqa": {"image_id": 1, "question_id": "a", "question": "What is it?", "choices": ["food", "pipe"],
               "correct_choice_idx": 1, "direct_answers": ["pipe"] * 10, "difficult_direct_answer": False,
               "rationales": ["It has a bowl."]},
    "gsm8k": {"question": "Tom has 2 bags of 3. How many?", "answer": "2 * 3 = 6\n#### 6"},
    "slake": {"img_name": "1.png", "question": "Which organ?", "answer": "Liver", "answer_type": "OPEN", "q_lang": "en"},
    "geo170k": {"image": "1.png", "conversations": [{"from": "human", "value": "<image>\nQuestion: How long is AB?"},
                                                    {"from": "gpt", "value": "It is twice 4.\nAnswer: 8"}]},
    "mathverse": {"sample_index": "1", "problem_index": "1", "problem_version": "Text Lite", "question": "How long?",
                  "image": "1.png", "answer": "8", "question_type": "free-form"}}
FILES = {"own": "data.jsonl", "chartqa": "train_human.json", "aokvqa": "aokvqa_v1p0_train.json", "gsm8k": "train.jsonl",
         "slake": "train.json", "geo170k": "qa_tuning.json", "mathverse": "testmini.json"}
SPLIT = {"geo170k": "qa_tuning", "mathverse": "testmini"}
PICTURES = {"own": "", "chartqa": "png", "aokvqa": "train2017", "slake": "imgs", "geo170k": "images", "mathverse": "images"}
ITEMS = {"own": "a", "chartqa": "train_human-", "aokvqa": "a", "gsm8k": "gsm8k_train-", "slake": "slake_train-",
         "geo170k": "geo170k_qa_tuning-", "mathverse": "mathverse_testmini-1"}
CONTROL = {"NUL": "a\0b", "escape": "a\x1b[2Jb", "bell": "\a x", "delete": "x\x7fy", "C1": "x\x9b31m", "half": "x \ud800",
           "right to left": "x \u202e y", "isolate": "\u2066x"}
SPECIAL = {name: f"a {name} b" for name in ("<image>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<s>", "<pad>",
                                            "<unk>", "<video>", "[INST]", "<start_of_turn>", "<end_of_utterance>",
                                            "<|vision_start|>")}
NOTHING = {"null": None, "empty": "", "blank": " \n\t"}
WRONG = {"true": True, "list": ["x"], "object": {"text": "x"}, "NaN": float("nan"), "infinity": float("inf")}
HUGE = {"huge": "word " * 5000}


def assert_says(error: BaseException, *parts: str) -> None:
    """The message names each of `parts`, what was expected and came, and a remedy; nothing in it commands a terminal."""
    text = str(error)
    assert all(part in text for part in parts), (parts, text)
    assert re.search(r"expected .+(?:, got |: got | got )|must .+: got |unknown .+known: ", text, re.DOTALL), text
    assert REMEDY.search(text) or "; known: " in text, f"no remedy: {text}"
    assert text.replace("\n", "").isprintable() and len(text) < 1500


def folder_of(name: str, rows: list[Any], folder: Path) -> Path:
    """A data set with these rows in its own layout, and one picture."""
    if name in PICTURES:
        pictures = folder / PICTURES[name]
        pictures.mkdir(parents=True, exist_ok=True)
        for file in ("1.png", "000000000001.jpg"):
            Image.new("RGB", (20, 10), "#00aa00").save(pictures / file)
    is_lines = FILES[name].endswith(".jsonl")
    text = "\n".join(map(json.dumps, rows)) if is_lines else json.dumps(rows)
    (folder / FILES[name]).write_text(text)
    return folder


def read(name: str, folder: Path, bad: BadRows | None = None) -> list[Record]:
    options = {"images": folder} if name == "aokvqa" else {}
    return sources.load(name, folder, SPLIT.get(name, "train"), bad=bad, **options)


def with_text(name: str, where: str, value: Any) -> dict[str, Any]:
    """The data set's row with another question or answer."""
    row = json.loads(json.dumps(ROWS[name]))
    if name == "geo170k":
        turn = row["conversations"][where == "answer"]
        turn["value"] = value if not isinstance(value, str) or not value.strip() else \
            f"Question: {value}" if where == "question" else f"It is so.\nAnswer: {value}"
        return row
    if name == "gsm8k" and where == "answer" and isinstance(value, str):
        value = f"2 + 3\n#### {value}"
    if name == "aokvqa" and where == "answer":
        return row | {"direct_answers": [value] if isinstance(value, str) else value}
    field = {("chartqa", "question"): "query", ("chartqa", "answer"): "label"}.get((name, where), where)
    return row | {field: value}


def catch(work: Callable[[], Any], kind: type[BaseException]) -> BaseException:
    """The error of exactly this kind that the work ends in."""
    try:
        work()
    except kind as error:
        assert type(error) is kind
        return error
    raise AssertionError("it was taken")
