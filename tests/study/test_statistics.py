"""Aggregates, intervals and paired tests."""
from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import trim_mean

from dyme_core import utils
from study import plan, statistics


def rows_of(scores: np.ndarray, method: str = "grpo", split: str = "test") -> pd.DataFrame:
    return pd.DataFrame([{"run": f"svlm-{method}-s{seed}", "model": "svlm", "method": method, "seed": seed,
                          "split": split, "item": f"i{item:04d}", "correct": int(score)}
                         for seed, line in enumerate(scores) for item, score in enumerate(line)])


@pytest.mark.parametrize(("values", "expected"), [
    ([7], 7), ([1, 5], 3), ([0, 3, 9], 4), ([0, 1, 3, 100], 2), ([100, 1, 2, 3, -50], 2),
    ([1, 2, 3, 4, 5, 6, 7, 80], 4.5)])
def test_interquartile_mean_cuts_a_quarter_at_each_end(values, expected) -> None:
    assert statistics.interquartile_mean(np.array(values)) == expected


def test_interquartile_mean_agrees_with_scipy_on_many_runs() -> None:
    values = np.random.default_rng(1).normal(size=(30, 11))
    np.testing.assert_allclose(statistics.interquartile_mean(values), trim_mean(values, 0.25, axis=1))


def test_the_interval_of_one_seed_is_the_binomial_one() -> None:
    scores = np.repeat([0, 1], [280, 120])[None]  # 30 % of 400 items: standard error sqrt(.3 * .7 / 400) = 0.0229
    estimate = statistics.bootstrap(scores, seed=3)
    assert estimate.value == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == pytest.approx((0.3 - 1.96 * 0.0229, 0.3 + 1.96 * 0.0229), abs=0.005)
    assert (estimate.num_seeds, estimate.num_items) == (1, 400)


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    same = generator.random((5, 400)) < 0.3
    apart = generator.random((5, 400)) < np.array([0.1, 0.2, 0.3, 0.4, 0.5])[:, None]
    widths = [estimate.high - estimate.low for estimate in map(statistics.bootstrap, (same, apart))]
    assert widths[1] > 3 * widths[0]


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(5)
    estimates = [statistics.bootstrap(generator.random((1, 200)) < 0.4, seed=index, resamples=400)
                 for index in range(200)]
    covered = np.mean([estimate.low <= 0.4 <= estimate.high for estimate in estimates])
    assert 0.90 <= covered <= 0.985


def test_the_same_seed_gives_the_same_interval_whatever_the_global_generator() -> None:
    scores = np.random.default_rng(2).random((3, 50))
    np.random.seed(0)
    first = statistics.bootstrap(scores, seed=7)
    np.random.seed(1)
    assert statistics.bootstrap(scores, seed=7) == first
    assert statistics.bootstrap(scores, seed=8) != first


def test_six_methods_five_seeds_400_items_take_under_two_seconds() -> None:
    scores = np.random.default_rng(0).random((6, 5, 400)) < 0.4
    start = time.process_time()
    for method in scores:
        statistics.bootstrap(method)
    assert time.process_time() - start < 2


def test_pairing_takes_the_difficulty_of_the_items_out() -> None:
    generator = np.random.default_rng(0)
    first = generator.random(400) < 0.5
    second = first.copy()
    second[np.flatnonzero(first)[:20]] = False  # 20 of 400 items lost: -5 points, standard error sqrt(.05 * .95 / 400)
    estimate = statistics.paired_bootstrap(second, first)
    assert estimate.value == pytest.approx(-0.05)
    assert (estimate.low, estimate.high) == pytest.approx((-0.05 - 1.96 * 0.0109, -0.05 + 1.96 * 0.0109), abs=0.004)
    assert statistics.paired_bootstrap(first, first).high == 0


def test_pairing_takes_the_strength_of_the_bases_out() -> None:
    generator = np.random.default_rng(1)
    bases = np.array([0.2, 0.35, 0.5, 0.65, 0.8])[:, None]  # what a seed's base is worth, for both methods
    first, second = generator.random((5, 400)) < bases + 0.05, generator.random((5, 400)) < bases
    paired, apart = statistics.paired_bootstrap(first, second), statistics.paired_bootstrap(first, second[:4])
    assert paired.high - paired.low < 0.15 and apart.high - apart.low > 0.3
    assert paired.low < 0.05 < paired.high


def test_pairing_refuses_methods_on_different_items() -> None:
    with pytest.raises(ValueError, match="share their items"):
        statistics.paired_bootstrap(np.ones((1, 3)), np.ones((1, 4)))


def test_mcnemar_by_hand() -> None:
    first, second = np.zeros(30), np.zeros(30)
    first[:9], second[9] = 1, 1  # 9 against 1 of 10: p = 2 * (1 + 10) / 2**10
    assert statistics.mcnemar(first, second) == pytest.approx(22 / 1024)
    assert statistics.mcnemar(second, first) == pytest.approx(22 / 1024)
    assert statistics.mcnemar(first, first) == 1.0


def test_probability_of_improvement_counts_a_tie_half() -> None:
    assert statistics.probability_of_improvement([3, 1], [2, 1]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


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
           "target": "2010", "wrong_facts": ["2010 has 12"], "correct": 1}
    write(tmp_path, "svlm-base-s0", [row, row | {"item": "2010", "wrong_facts": []}])
    assert statistics.load_rows(tmp_path).to_dict("records") == [row, row | {"item": "2010", "wrong_facts": []}]


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
    assert vars(statistics.contrast([first, second], [1, -1], 3)) == vars(statistics.paired_bootstrap(first, second, 3))


def test_missing_measurements_are_distinguished_from_faults() -> None:
    with pytest.raises(statistics.NoRows, match="no rows to summarise"):
        statistics.summarise(pd.DataFrame(columns=["model", "method", "split", "seed", "item", "correct"]), "correct")


def test_a_setting_is_a_run_without_its_seed() -> None:
    frame = statistics.with_setting(pd.DataFrame({"run": ["svlm-pure_dyme-real1-s12", "large-sft-s0"]}))
    assert frame["setting"].tolist() == ["svlm-pure_dyme-real1", "large-sft"]
    for point in plan.points():
        assert {statistics.setting_of(run.name) for run in point.runs()} == {point.setting}
