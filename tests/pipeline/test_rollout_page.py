"""Pages of rollouts: what stands in them, whatever a model or a data set says."""
from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

from PIL import Image

from dyme_core.data.schema import COLUMNS, Fact, Item, Record, write_supervision
from dyme_core.pipeline.rollout_page import answers_table, page

FACTS = (Fact("2010", "FAV", 62.0), Fact("2012", "FAV", 65.0))
ROW = {"item": "a", "question": "What is the value of FAV in 2010? <script>alert(1)</script>", "answer": "62", "kind": "lookup",
       "supervision": write_supervision(Item("", "", FACTS, FACTS[:1], ("2010",), "", "the value is 62")),
       "image": Image.new("RGB", (1024, 96), "red")}
RIGHT = "We locate 2010. Then, extract 2010 has 62. Therefore, the value is 62.\n<answer>62</answer>"
WRONG = "We locate 2010. Then, extract 2010 has 31. Therefore, the value is 31.\n<answer>31</answer>"


def shown(*rollouts) -> str:
    return page("a run, step 3", ["format", "accuracy", "advantage"], list(rollouts)).decode()


def test_a_page_shows_mode_rewards_groundedness_and_what_is_wrong() -> None:
    text = shown((ROW, RIGHT, (1.0, 1.0, 0.7), True), (ROW, WRONG, (1.0, 0.0, -0.7), False))
    assert "1 of 2 rollouts are correct: explore." in text and text.count("<tr>") == 3
    assert re.findall(r"<td>(-?[\d.]+)</td>", text) == ["1.00", "1.00", "0.70", "1.00", "1.00", "0.00", "-0.70", "0.00"]
    assert re.findall("<mark>(.*?)</mark>", text) == ["31"] and re.findall("<b>(.*?)</b>", text) == ["62"]
    assert "&lt;answer&gt;62&lt;/answer&gt;" in text


def test_groups_have_their_own_mode() -> None:
    other = {**ROW, "item": "b"}
    text = shown((ROW, WRONG, (0.0,) * 3, False), (other, RIGHT, (1.0,) * 3, True))
    assert "0 of 1 rollouts are correct: memorize." in text and "1 of 1 rollouts are correct: mastered." in text


def test_no_text_becomes_markup_and_the_picture_is_inside_and_not_too_wide() -> None:
    text = shown((ROW, "<img src=x onerror=alert(1)> & \"'", (0.0,) * 3, False))
    assert "<script>" not in text and "<img src=x" not in text and "http" not in text
    [picture] = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (512, 48)


def test_a_question_without_picture_or_facts_has_a_page_too() -> None:
    row = {**ROW, "image": None, "supervision": write_supervision(Item("", ""))}
    assert "<td></td>" in shown((row, RIGHT, (1.0,) * 3, True)) and "<img" not in shown((row, RIGHT, (1.0,) * 3, True))


def test_half_of_a_surrogate_pair_is_shown_escaped() -> None:
    assert r"2010 \ud800" in shown(({**ROW, "question": "2010 \ud800"}, RIGHT, (1.0,) * 3, True))


def test_a_table_of_answers_says_what_was_right_before_and_after() -> None:
    record = Record(**{name: ROW[name] for name in COLUMNS}, source="", split="train", image=ROW["image"])
    rows = {name: [{"prediction": said, "correct": correct}] for name, said, correct in
            (("before", WRONG, 0), ("after", RIGHT, 1))}
    text = answers_table([record], **rows)
    assert re.findall("<th>(.*?)</th>", text) == ["picture", "question", "answer", "before", "after"]
    assert re.findall("<td>(right|wrong)<pre>", text) == ["wrong", "right"] and "<mark>31</mark>" in text
    assert "<script>" not in text and text.count("<img") == 1
    assert "<img" not in answers_table([replace(record, image=None)], **rows)
