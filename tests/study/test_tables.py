"""Tables: builders over stored rows, and the three files of each."""
from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from study import tables


def rows_of(model: str, method: str, seed: int, correct: dict[str, list[int]]) -> list[dict]:
    return [{"run": f"{model}-{method}-s{seed}", "model": model, "method": method, "seed": seed, "split": split,
             "item": f"{split}-{index}", "right": score, "strict": 1, "relaxed": 1, "has_format": score,
             "kind": ("gap", "count")[index % 2], "groundedness": 0.5}
            for split, scores in correct.items() for index, score in enumerate(scores)]


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame(rows_of("large", "sft", 0, {"test": [1, 1, 1, 1], "unseen": [1, 1, 1, 0]})
                        + rows_of("svlm", "full_dyme", 0, {"test": [1, 0, 0, 0], "unseen": [0, 0, 0, 0]})
                        + rows_of("svlm", "full_dyme", 1, {"test": [1, 1, 1, 0], "unseen": [0, 0, 0, 0]})
                        + rows_of("svlm", "base", 0, {"test": [0, 0, 0, 1], "unseen": [0, 0, 1, 1]}))


@pytest.fixture
def costs(rows: pd.DataFrame) -> pd.DataFrame:
    seconds = {("full_dyme", 0): [1.0, 3.0], ("full_dyme", 1): [4.0]}
    logs = pd.DataFrame([{"event": "step", "model": "svlm", "method": method, "seed": seed, "seconds": value}
                         for (method, seed), values in seconds.items() for value in values]
                        + [{"event": "eval", "model": "svlm", "method": "full_dyme", "seed": 0, "seconds": None},
                           {"event": "step", "model": "large", "method": "full_dyme", "seed": 0, "seconds": 90.0}])
    manifests = [{"method": "base", "model": "svlm", "settings": {}},
                 *({"method": "full_dyme", "model": "svlm", "settings": {"external_model": "judge-7B"},
                    "rollouts": 64, "tokens": tokens, "cpu_s": 9.6} for tokens in (100, 200, 900)),
                 {"method": "sft", "model": "large", "settings": {}}]
    manifests = [manifest | {"profile": "smoke", "cpu": "this machine"} for manifest in manifests]
    return tables.cost_table(logs, rows, manifests)


def test_the_main_table_has_the_svlm_first_and_its_methods_in_order(rows: pd.DataFrame) -> None:
    table = tables.main_table(rows)
    assert list(zip(table["Model"], table["Method"], strict=True)) == [
        ("SVLM", "Base"), ("SVLM", "Full DyME"), ("Large VLM", "CoT-SFT")]
    assert table["Right answer and thinking (%)"].tolist() == [25, 50, 100]
    assert table["Right answer and thinking, unseen (%)"].tolist() == [50, 0, 75]
    assert table["Answer alone (%)"].tolist() == [100, 100, 100]
    assert table["Format (%)"].tolist() == [25, 50, 100]
    assert table["Seeds"].tolist() == [1, 2, 1]
    value, low, high = (table[f"Right answer and thinking (%){bound}"] for bound in ("", " low", " high"))
    assert (low <= value).all() and (value <= high).all()


def test_the_table_of_kinds_has_luck_beside_both_measures_of_the_svlm(rows: pd.DataFrame) -> None:
    table = tables.kinds_table(rows, {("test", "gap"): 0.25, ("unseen", "count"): 0.5})
    assert list(zip(table["Kind"], table["Method"], table["Items"], strict=True)) == [
        ("count", "Base", 2), ("count", "Full DyME", 2), ("gap", "Base", 2), ("gap", "Full DyME", 2)]
    assert table["Right answer and thinking (%)"].tolist() == [50, 25, 0, 75]
    assert table["Answer alone (%)"].tolist() == [100] * 4
    assert table["Luck (%)"].isna().tolist() == [True, True, False, False] and table["Luck (%)"].max() == 25


def test_the_cost_table_never_mixes_measured_and_reported(costs: pd.DataFrame) -> None:
    measured = costs[costs["Source"] == "measured (smoke, this machine)"]
    reported = costs[costs["Source"] == "reported (poster, ChartQA)"]
    assert len(measured) + len(reported) == len(costs)
    assert measured["Method"].tolist() == ["Base", "Full DyME"]
    # The poster's table, by hand.
    assert reported["Method"].tolist() == ["GRPO", "Pure DyME", "Pure DyME", "Full DyME", "Full DyME"]
    assert reported["Time (s/step)"].tolist() == [14.8, 14.0, 19.1, 21.2, 23.4]
    assert reported["Answer alone (%)"].tolist() == [60.8, 64.9, 68.5, 66.8, 67.5]


def test_costs_are_medians_over_the_seeds_and_the_base_has_no_step(costs: pd.DataFrame) -> None:
    base, full = costs.iloc[0], costs.iloc[1]
    assert full["Time (s/step)"] == pytest.approx((2.0 + 4.0) / 2)
    assert full[["Rollouts a run", "Tokens a run", "CPU (s) a run"]].tolist() == [64, 200, 10]
    assert pd.isna(base["Tokens a run"]) and costs["Tokens a run"].notna().sum() == 1
    assert pd.isna(base["Time (s/step)"])
    assert (base["External model"], full["External model"]) == ("none", "judge-7B")


FRAME = pd.DataFrame({"Method": ["a_b & c", "x|y"], "Time (s/step)": [0.0824, None], "Share (%)": [21.46, 5.0],
                      "Share (%) low": [19.0, None], "Share (%) high": [24.14, None], "Seeds": [3, 1]})


def test_markdown_joins_intervals_and_escapes_bars(tmp_path: Path) -> None:
    text = tables.write_table(FRAME, tmp_path, "name", "The caption.")["md"].read_text(encoding="utf-8")
    assert text.splitlines() == [
        "| Method | Time (s/step) | Share (%) | Seeds |", "| --- | --- | --- | --- |",
        "| a_b & c | 0.0824 | 21.5 [19.0, 24.1] | 3 |", "| x\\|y | – | 5.0 | 1 |", "", "The caption."]


def test_latex_is_escaped(tmp_path: Path) -> None:
    text = tables.write_table(FRAME, tmp_path, "name", "95 % of $x_1$.")["tex"].read_text(encoding="utf-8")
    assert r"a\_b \& c & 0.0824 & 21.5 [19.0, 24.1] & 3 \\" in text
    assert r"Method & Time (s/step) & Share (\%) & Seeds \\" in text
    assert r"\caption{95 \% of \$x\_1\$.}" in text
    assert r"\begin{tabular}{lrrr}" in text


def test_each_special_character_of_latex_is_escaped() -> None:
    assert tables.escape_latex(r"\&%$#_{}~^<>") == (r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}"
                                                    r"\textless{}\textgreater{}")


def test_the_csv_keeps_every_column_and_is_read_back(tmp_path: Path) -> None:
    path = tables.write_table(FRAME, tmp_path, "name", "")["csv"]
    pd.testing.assert_frame_equal(pd.read_csv(path), FRAME, check_dtype=False)


def test_the_same_rows_give_the_same_bytes(rows: pd.DataFrame, tmp_path: Path) -> None:
    first = tables.write_table(tables.main_table(rows), tmp_path / "a", "main", "c")
    shuffled = rows.sample(frac=1, random_state=1)
    second = tables.write_table(tables.main_table(shuffled), tmp_path / "b", "main", "c")
    assert [path.read_bytes() for path in first.values()] == [path.read_bytes() for path in second.values()]
    assert b"\r" not in first["csv"].read_bytes()


def test_the_cost_of_supervision_counts_recorded_tokens_but_only_the_seconds_and_dollars_of_calls() -> None:
    row = {"purpose": "check", "item": "a", "model": "m", "tokens_in": 100, "tokens_out": 10, "seconds": 2.0, "hit": False,
           "retries": 0, "repairs": 1, "outcome": "ok", "cost_usd": 0.004}
    ledger = [row, row | {"hit": True, "seconds": 0.0, "cost_usd": 0.0, "repairs": 0},
              row | {"purpose": "refine", "outcome": "InvalidReply", "tokens_in": None, "tokens_out": None, "cost_usd": None}]
    check, refine = tables.supervision_table(ledger).to_dict("records")
    assert check == {"Purpose": "check", "Requests": 2, "Calls": 1, "Repaired": 1, "Without a usable reply": 0,
                     "Tokens in per 1,000": 100_000, "Tokens out per 1,000": 10_000, "Seconds per 1,000 calls": 2000,
                     "Dollars per 1,000 calls": 4}
    assert (refine["Without a usable reply"], refine["Seconds per 1,000 calls"]) == (1, 2000)
    assert math.isnan(refine["Tokens in per 1,000"]) and math.isnan(refine["Dollars per 1,000 calls"])


def test_large_whole_numbers_have_their_thousands_apart_and_years_have_not() -> None:
    shown = tables.readable(pd.DataFrame({"Tokens": [137916, 0], "Year": [2010, 1952], "Name": ["99999", "x"]}))
    assert shown.to_numpy().tolist() == [["137,916", "2010", "99999"], ["0", "1952", "x"]]
