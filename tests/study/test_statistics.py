"""Aggregates, intervals and paired tests."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from dyme_core import utils
from study import plan, statistics


def rows_of(scores: np.ndarray, method: str = "grpo", split: str = "test") -> pd.DataFrame:
    return pd.DataFrame([{"run": f"svlm-{method}-s{seed}", "model": "svlm", "method": method, "seed": seed,
                          "split": split, "item": f"i{item:04d}", "correct": int(score)}
                         for seed, line in enumerate(scores) for item, score in enumerate(line)])


def test_the_interval_of_one_seed_is_the_binomial_one() -> None:
    scores = np.repeat([0, 1], [280, 120])[None]  # 30 % of 400 items: standard error sqrt(.3 * .7 / 400) = 0.0229
    estimate = statistics.interval(scores)
    assert estimate.value == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == pytest.approx((0.3 - 1.96 * 0.0229, 0.3 + 1.96 * 0.0229), abs=1e-4)
    assert (estimate.num_seeds, estimate.num_items) == (1, 400)


def test_numbers_per_run_have_student_s_interval() -> None:
    values = np.array([4.0, 7.0, 1.0, 6.0])
    low, high = student.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    estimate = statistics.contrast([values[:, None]], [1])
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert statistics.p_value([values[:, None]], [1]) == pytest.approx(ttest_1samp(values, 0).pvalue)


def test_the_bounds_of_shares_are_shares_and_those_of_other_numbers_are_not_cut() -> None:
    table = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    assert statistics.interval(table).high == 1 < statistics.contrast([table], [1]).high
    assert statistics.interval(10 * table).high > 10


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    same = generator.random((5, 400)) < 0.3
    apart = generator.random((5, 400)) < np.array([0.1, 0.2, 0.3, 0.4, 0.5])[:, None]
    widths = [estimate.high - estimate.low for estimate in map(statistics.interval, (same, apart))]
    assert widths[1] > 3 * widths[0]


def test_the_variance_of_the_mean_is_that_of_seeds_and_what_items_add() -> None:
    seeds, items = np.array([-1.0, 0.0, 1.0])[:, None], np.arange(8.0)
    of_seeds, of_items = statistics.variances(seeds + items)  # no noise of its own
    assert (of_seeds, of_items) == pytest.approx((1 / 3, items.var(ddof=1) / 8))


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize(("of_seeds", "of_items"), [(1, 5), (6, 5), (1, 20), (6, 20)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds: int, of_seeds: int, of_items: int) -> None:
    """In points, as in the study: seeds 1 to 6 apart, items 5 to 20, a single answer 40."""
    generator, missed, runs = np.random.default_rng(seeds), 0, 600
    for _ in range(runs):
        table = (generator.normal(0, of_seeds, (seeds, 1)) + generator.normal(0, of_items, 200)
                 + generator.normal(0, 40, (seeds, 200)))
        estimate = statistics.contrast([table], [1])
        missed += not estimate.low <= 0 <= estimate.high
    assert 0.015 <= missed / runs <= 0.075  # 5 %, with a standard error of 0.9; where items matter it is on the safe side


def test_pairing_takes_the_difficulty_of_the_items_out() -> None:
    generator = np.random.default_rng(0)
    first = generator.random(400) < 0.5
    second = first.copy()
    second[np.flatnonzero(first)[:20]] = False  # 20 of 400 items lost: -5 points, standard error sqrt(.05 * .95 / 400)
    estimate = statistics.paired(second, first)
    assert estimate.value == pytest.approx(-0.05)
    assert (estimate.low, estimate.high) == pytest.approx((-0.05 - 1.96 * 0.0109, -0.05 + 1.96 * 0.0109), abs=1e-4)
    assert statistics.paired(first, first).high == 0 and statistics.p_value([first, first], [1, -1]) == 1


def test_pairing_takes_the_strength_of_the_bases_out() -> None:
    generator = np.random.default_rng(1)
    bases = np.array([0.2, 0.35, 0.5, 0.65, 0.8])[:, None]  # what a seed's base is worth, for both methods
    first, second = generator.random((5, 400)) < bases + 0.05, generator.random((5, 400)) < bases
    paired, alone = statistics.paired(first, second), statistics.interval(first)
    assert paired.high - paired.low < 0.15 and alone.high - alone.low > 0.3
    assert paired.low < 0.05 < paired.high


@pytest.mark.parametrize("shape", [(1, 4), (2, 3)])
def test_pairing_refuses_methods_on_different_items_or_seeds(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="share seeds and items"):
        statistics.paired(np.ones((1, 3)), np.ones(shape))


def test_an_interval_that_just_reaches_zero_has_a_p_value_of_five_per_cent() -> None:
    table = np.random.default_rng(3).normal(1, 3, (4, 50))
    estimate = statistics.contrast([table], [1])
    assert statistics.p_value([table - estimate.low], [1]) == pytest.approx(0.05)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == [] and statistics.holm([0.6, 0.9]) == [1.0, 1.0]


def test_the_matrix_is_seeds_by_items_and_refuses_a_missing_cell() -> None:
    rows = rows_of(np.array([[1, 0, 0], [0, 1, 1]])).sample(frac=1, random_state=0)
    np.testing.assert_array_equal(statistics.score_matrix(rows, "correct"), [[1, 0, 0], [0, 1, 1]])
    with pytest.raises(ValueError, match=r"seeds \[1\] lack some"):
        statistics.score_matrix(rows[~((rows["seed"] == 1) & (rows["item"] == "i0002"))], "correct")


def test_a_summary_keeps_the_order_of_the_methods_and_does_not_depend_on_its_neighbours() -> None:
    scores = np.random.default_rng(0).random((2, 40)) < 0.5
    rows = pd.concat([rows_of(scores, method) for method in ("full_dyme", "grpo", "base")])
    summary = statistics.summarise(rows, "correct")
    assert summary["method"].tolist() == ["base", "grpo", "full_dyme"]
    alone = statistics.summarise(rows[rows["method"] == "grpo"], "correct")
    pd.testing.assert_frame_equal(alone, summary.iloc[[1]].reset_index(drop=True))


def write(folder: Path, run: str, rows: list[dict]) -> None:
    utils.write_rows(utils.run_file(folder, run), rows)


def test_rows_are_loaded_as_they_were_written(tmp_path: Path) -> None:
    row = {"run": "svlm-base-s0", "method": "base", "seed": 0, "split": "test", "item": "1e5", "answer": "007",
           "target": "2010", "wrong_facts": ["2010 has 12"], "has_format": 1, "correct": 1, "thinking": 0.5}
    write(tmp_path, "svlm-base-s0", [row, row | {"item": "2010", "wrong_facts": []}])
    loaded = statistics.load_rows(tmp_path)
    assert loaded[list(row)].to_dict("records") == [row, row | {"item": "2010", "wrong_facts": []}]
    assert loaded["right"].tolist() == [0, 0] and loaded["pseudo"].tolist() == [1, 0]


def test_an_altered_chart_is_followed_where_the_answer_was_right_and_is_right_again() -> None:
    def rows(split: str, *said: tuple[str, int]) -> list[dict]:
        return [{"run": "a-s0", "split": split, "item": f"{split}-0-{place}", "answer": answer, "correct": right,
                 "thinking": float(right), "has_format": 1, "wrong_facts": []} for place, (answer, right) in enumerate(said)]

    frame = statistics.derived(pd.DataFrame(rows("test", ("7", 1), ("7", 1), ("3", 0))
                                            + rows("altered", ("9", 1), ("7", 0), ("3", 1))))
    altered = frame[frame["split"] == "altered"]
    assert altered["follows"].tolist() == [1, 0, 0] and altered["stays"].tolist() == [0, 1, 1]
    assert frame[frame["split"] == "test"]["follows"].isna().all()


def test_loading_refuses_an_empty_folder_a_repeated_item_and_an_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train and evaluate first"):
        statistics.load_rows(tmp_path)
    row = {"run": "a", "method": "base", "seed": 0, "split": "test", "item": "x"}
    write(tmp_path, "a", [row, row])
    with pytest.raises(ValueError, match="repeats 'x'"):
        statistics.load_rows(tmp_path)
    write(tmp_path, "a", [row | {"method": "ppo"}])
    with pytest.raises(ValueError, match="unknown methods"):
        statistics.load_rows(tmp_path)


def test_a_difference_between_differences_is_the_signed_sum_of_its_parts() -> None:
    generator = np.random.default_rng(8)
    first, second, third, fourth = (generator.random((3, 400)) < chance for chance in (0.8, 0.5, 0.6, 0.5))
    estimate = statistics.contrast([first, second, third, fourth], [1, -1, -1, 1])
    means = [np.mean(matrix.mean(axis=1)) for matrix in (first, second, third, fourth)]
    assert estimate.value == pytest.approx(means[0] - means[1] - means[2] + means[3])
    assert 0.1 < estimate.low < estimate.value < estimate.high < 0.4  # standard error: 2 * sqrt(0.24 / 1200) = 0.03
    assert statistics.contrast([first, second], [1, -1]) == statistics.paired(first, second)


def test_missing_measurements_are_distinguished_from_faults() -> None:
    with pytest.raises(statistics.NoRows, match="no rows to summarise"):
        statistics.summarise(pd.DataFrame(columns=["model", "method", "split", "seed", "item", "correct"]), "correct")


def test_a_setting_is_a_run_without_its_seed() -> None:
    frame = statistics.with_setting(pd.DataFrame({"run": ["svlm-pure_dyme-real1-s12", "large-sft-s0"]}))
    assert frame["setting"].tolist() == ["svlm-pure_dyme-real1", "large-sft"]
    for point in plan.points():
        assert {statistics.setting_of(run.name) for run in point.runs()} == {point.setting}
