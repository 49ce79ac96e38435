"""Claims: on a synthetic study with known effects, each verdict follows from the data."""
from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from scripted_study import points, study_logs, study_manifests, study_rows

from dyme_core import config
from study import claims, plan, report, statistics, tables
from study.claims import Evidence

CHANCES = {"svlm-base": 0.1, "svlm-sft": 0.75, "svlm-grpo": 0.3, "svlm-sft_grpo": 0.6, "svlm-pure_dyme": 0.6,
           "svlm-full_dyme": 0.6, "svlm-pure_dyme-refined-luffy": 0.8, "svlm-pure_dyme-refined-threshold": 0.3,
           "large-sft": 0.95, "svlm-full_dyme-no-memorize": 0.2, "svlm-full_dyme-no-explore": 0.9}


def chance(setting: str) -> float:
    return CHANCES.get(setting, 0.6)


@cache
def evidence(*experiments: str, seeds: int = 5) -> Evidence:
    chosen = points(*experiments)
    return Evidence(study_rows(chosen, chance, seeds=seeds), study_logs(chosen, chance, seeds), study_manifests(chosen, seeds))


@cache
def verdicts() -> pd.Series:
    """By claim, of a study in which the switch "budget" has not run."""
    found = evidence("main", "sizes", "ablation", "switch")
    rows = found.stored_rows[found.stored_rows["variant"] != "refined-budget"]
    return claims.table(Evidence(rows, found.stored_logs, found.manifests)).set_index("Claim")["Verdict"]


@pytest.mark.parametrize(("words", "verdict"), [
    ("Pure DyME beats GRPO", claims.REPRODUCED), ("DyME beats CoT-SFT", claims.NOT_REPRODUCED),
    ("Full DyME beats Pure DyME", claims.NOISE), ("DyME beats SFT then GRPO", claims.NOISE),
    ("CoT-SFT gives a small VLM more pseudo thinking than a large one", claims.REPRODUCED),
    ("Full DyME beats DyME without memorize", claims.REPRODUCED),
    ("Full DyME beats DyME without explore", claims.NOT_REPRODUCED),
    ("The binary switch beats HPT gate", claims.REPRODUCED),
    ("The binary switch beats SFT budget", claims.NOT_MEASURED),
    ("Advantages collapse: most of GRPO's groups teach nothing", claims.REPRODUCED),
    ("DyME drifts from memorizing to exploring", claims.REPRODUCED),
    ("A step of Pure DyME takes no longer than one of GRPO", claims.REPRODUCED),
    ("DyME helps in medical VQA and geometry", claims.NOT_TESTABLE)])
def test_the_verdict_follows_from_the_truth_of_the_study(words: str, verdict: str) -> None:
    assert verdicts()[words] == verdict


def test_too_few_seeds_are_not_a_measurement() -> None:
    found = evidence("main", seeds=2)
    frame = claims.table(found)
    assert set(frame["Verdict"]) == {claims.NOT_MEASURED, claims.NOT_TESTABLE}
    line = frame.set_index("Claim").loc["Pure DyME beats GRPO"]
    assert line["Measured here"] == "2 of 5 seeds so far of svlm-pure_dyme, svlm-grpo" and line["Rests on"] == ""


def test_another_world_has_its_column_and_no_verdict_from_three_seeds() -> None:
    other = replace(evidence("main", seeds=3), min_seeds=3)
    frame = claims.table(evidence("main"), other).set_index("Claim")["Smol world"]
    assert frame["DyME beats CoT-SFT"].endswith("test); no verdict from 3 seeds") and " points: " in frame["DyME beats CoT-SFT"]
    assert frame["The binary switch beats HPT gate"] == frame["DyME helps a text model on GSM8K"] == "–"
    five = claims.table(evidence("main"), evidence("main")).set_index("Claim").loc["DyME beats CoT-SFT"]
    assert five["Smol world"] == f"{five['Measured here']}; {five['Verdict']}"


def test_runs_without_rollouts_alone_give_a_table_of_claims() -> None:
    chosen = [point for point in points("main") if point.method in ("base", "sft")]
    logs = study_logs(chosen, chance).drop(columns=["memorize", "explore", "mastered", "zero_variance"])
    found = claims.table(Evidence(study_rows(chosen, chance, items=20), logs, study_manifests(chosen))).set_index("Claim")
    assert found.loc["CoT-SFT leaves a small VLM below its base", "Verdict"] == claims.NOT_REPRODUCED
    assert found.loc["DyME drifts from memorizing to exploring", "Verdict"] == claims.NOT_MEASURED


def test_settings_are_compared_on_the_seeds_that_both_have() -> None:
    full = evidence("main", seeds=6)
    rows = full.stored_rows[(full.stored_rows["method"] != "grpo") | (full.stored_rows["seed"] != 1)]
    found = claims.items(Evidence(rows, full.stored_logs), "svlm-pure_dyme", "svlm-grpo")
    assert "seeds 0, 2, 3, 4, 5; 200 items" in found.rests_on and found.rests_on.startswith("main: svlm-pure_dyme, svlm-grpo")


def test_a_claim_about_some_kinds_of_question_uses_only_those() -> None:
    full = evidence("main")
    rows = full.stored_rows.assign(right=0)
    rows.loc[(rows["kind"] == "gap") & (rows["method"] == "pure_dyme"), "right"] = 1
    rows.loc[(rows["kind"] != "gap") & (rows["method"] == "sft"), "right"] = 1
    made, settings = Evidence(rows, full.stored_logs), ("svlm-pure_dyme", "svlm-sft")
    assert claims.items(made, *settings).verdict == claims.NOT_REPRODUCED
    found = claims.items(made, *settings, kinds=("gap",))
    assert found.verdict == claims.REPRODUCED and "(right answer and right thinking, test, gap)" in found.measured


def test_the_sentence_of_a_claim_holds_its_verdict_and_numbers_or_what_is_missing() -> None:
    claim = claims.better("DyME is better", "svlm-pure_dyme", "svlm-grpo")
    found = claims.items(evidence("main"), "svlm-pure_dyme", "svlm-grpo")
    assert claim.sentence(evidence("main")) == f"DyME is better: reproduced. {found.measured}."
    assert claim.sentence(evidence("main", seeds=2)) == (
        "DyME is better: not measured yet. 2 of 5 seeds so far of svlm-pure_dyme, svlm-grpo.")


def test_metrics_of_a_run_by_hand() -> None:
    run = {"setting": "a", "seed": 0}
    logs = pd.DataFrame([run | {"event": "step", "step": step, "memorize": memorize, "explore": 4 - memorize, "mastered": 0,
                                "cpu_s": 2.0, "zero_variance": zero}
                         for step, memorize, zero in ((1, 4, 1.0), (2, 3, 0.5), (3, 2, 0.5), (4, 1, 0.0))]
                        + [run | {"event": "eval", "step": step, "correct": correct}
                           for step, correct in ((0, 0.0), (2, 0.5), (3, 0.3), (4, 0.4))])
    found = claims.run_metrics(logs).loc[("a", 0)]
    assert (found["zero_variance"], found["step_seconds"]) == (50, 2)
    assert found["memorize_drift"] == 75  # 100 % of the first quarter, 25 % of the last
    assert found["restlessness"] == pytest.approx(10)
    last = pd.concat([logs, logs.assign(seed=1, correct=0.8), logs.assign(seed=2, correct=0.6)])
    assert claims.run_metrics(last)["distance_between_seeds"].tolist() == pytest.approx([20, 20, 0])


def test_a_smaller_gain_of_the_large_model_is_seen() -> None:
    rows = study_rows([replace(point, seeds=(0, 1, 2, 3, 4)) for point in points("main", "sizes")],
                      lambda setting: {"svlm-base": 0.3, "large-base": 0.6}.get(setting, 0.7))
    found = claims.gains(Evidence(rows, pd.DataFrame()), ("svlm-pure_dyme", "svlm-base"), ("large-pure_dyme", "large-base"))
    assert found.verdict == claims.REPRODUCED


@pytest.mark.parametrize(("error", "verdict"), [(1e-15, claims.REPRODUCED), (1e-3, claims.NOT_REPRODUCED)])
def test_gradients_are_held_to_their_bounds(error: float, verdict: str) -> None:
    frame = pd.DataFrame({"group": "all", "dtype": ["float64", "float32"], "relative_error": [error, 1e-7]})
    assert claims.gradient_form(Evidence(pd.DataFrame(), pd.DataFrame(), (), frame)).verdict == verdict


def test_what_beats_the_binary_switch_on_every_seed_is_a_finding_and_nothing_else() -> None:
    found = claims.findings(evidence("main", "sizes", "ablation", "switch", seeds=5))
    assert {sentence.split(" beats ")[0] for sentence in found} == {"LUFFY", "CoT-SFT"}
    assert len(found) == 4 and all("on each of 5 seeds" in sentence for sentence in found)


def test_one_seed_behind_is_no_finding_though_the_interval_is_above_zero() -> None:
    rows = evidence("main", "sizes", "ablation", "switch", seeds=5).stored_rows.copy()
    binary = rows[rows["run"] == "svlm-pure_dyme-refined-s4"]["right"].to_numpy().copy()
    for split in ("test", "unseen"):
        first_right = next(place for place, row in enumerate(rows[rows["run"] == "svlm-pure_dyme-refined-s4"].itertuples())
                           if row.right and row.split == split)
        binary[first_right] = 0  # one answer less than the binary switch has in this seed
    rows.loc[rows["run"] == "svlm-pure_dyme-refined-luffy-s4", "right"] = binary
    found = Evidence(rows, pd.DataFrame())
    assert claims.items(found, "svlm-pure_dyme-refined-luffy", "svlm-pure_dyme-refined").verdict == claims.REPRODUCED
    assert not any(sentence.startswith("LUFFY") for sentence in claims.findings(found))


def test_the_page_is_the_same_bytes_twice_and_counts_its_verdicts() -> None:
    found = evidence("main", "sizes", "ablation", "switch")
    page, again = (claims.markdown(claims.table(found), claims.findings(found), found.manifests) for _ in range(2))
    assert page == again and page.count("not to be edited") == 1
    assert f"Of {sum(map(len, claims.claims().values()))} claims: " in page
    assert all(f"## {section}\n" in page for section in (*claims.claims(), "Findings of ours"))


def test_reported_numbers_never_stand_in_the_measured_column() -> None:
    empty = Evidence(evidence("main").stored_rows.iloc[:0], evidence("main").stored_logs.iloc[:0])
    frame = claims.table(empty)
    assert set(frame["Verdict"]) == {claims.NOT_MEASURED, claims.NOT_TESTABLE}
    assert frame["Reported"].equals(claims.table(evidence("main"))["Reported"])


def test_tables_of_settings_hold_the_difference_on_shared_seeds_and_the_reported_number() -> None:
    rows = evidence("main", "sizes", "ablation", "switch").stored_rows
    is_missing = (rows["variant"] == "refined-chord") | (rows["variant"] == "refined-luffy") & (rows["seed"] == 0)
    table = tables.switch_table(rows[~is_missing])
    assert table["Setting"].tolist() == [name for name in plan.SWITCH_NAMES.values() if name != "CHORD"]
    line = table.set_index("Setting").loc["LUFFY"]
    shared = rows[(rows["split"] == "test") & (rows["seed"] > 0)].groupby("run")["correct"].mean()
    own = shared.filter(like="pure_dyme-refined-luffy")
    binary = shared[[f"svlm-pure_dyme-refined-s{seed}" for seed in range(1, 5)]]
    expected = 100 * (own.mean() - binary.mean())
    assert line["Difference on test (% points)"] == pytest.approx(expected)
    assert pd.isna(line["Reported (%)"]) and table.set_index("Setting").loc["HPT gate", "Reported (%)"] == 52.4
    with pytest.raises(statistics.NoRows):
        tables.ablation_table(rows[rows["variant"] == ""])


def test_the_tuning_table_marks_what_is_best_and_what_is_used() -> None:
    chosen = points("tuning", "switch_tuning")
    used = f"{config.load_profile(plan.PROFILE).learning_rates['grpo']:g}"
    best = next(point.setting for point in chosen if point.method == "grpo" and f"{point.value:g}" != used)
    table = tables.tuning_table(study_rows(chosen, lambda setting: 0.9 if setting == best else 0.4), study_manifests(chosen))
    assert len(table) == len(chosen)
    grpo = table[table["Grid"] == "GRPO"].set_index("Learning rate")["Chosen"]
    assert grpo[grpo == "best"].index.map(lambda rate: f"svlm-grpo-lr{rate}").tolist() == [best]
    assert grpo[used] == "used"
    assert (table.groupby("Grid")["Chosen"].agg(lambda marks: marks.dropna().str.contains("used").sum()) == 1).all()


def test_a_report_of_a_study_under_way_leaves_out_what_is_missing(tmp_path: Path, monkeypatch, caplog) -> None:
    found = evidence("main", "rollouts", seeds=2)
    rows = found.stored_rows[found.stored_rows["variant"].isin(["", "g2"])]
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    monkeypatch.setenv(config.PUBLISH, "1")
    (tmp_path / "README.md").write_text(f"Before\n\n{report.README_MARK}| old |\n\nAfter\n")
    monkeypatch.setattr(report, "read_manifests", lambda paths: found.manifests)
    monkeypatch.setattr(report.statistics, "load_rows", lambda folder, runs: rows)
    monkeypatch.setattr(report.statistics, "load_logs", lambda folder, runs: found.stored_logs)
    monkeypatch.setattr(report, "FIGURES", {name: report.FIGURES[name] for name in ("rollouts", "switches", "performance")})
    monkeypatch.setattr(report, "TABLES", {name: report.TABLES[name] for name in ("main", "tuning")})
    with caplog.at_level(logging.INFO):
        report.write_all("mini")
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == 2 and lines[0].startswith("tuning left out: ") and lines[1].startswith("switches left out: ")
    assert {path.stem for path in (tmp_path / "paper_figures").glob("*.png")} == {"rollouts", "performance"}
    assert len(pd.read_csv(tmp_path / "results" / "mini" / "tables" / "main.csv")) == len(config.METHODS)
    table = (tmp_path / "results" / "mini" / "tables" / "main.md").read_text().split("\n\n")[0]
    assert (tmp_path / "README.md").read_text() == f"Before\n\n{report.README_MARK}{table}\n\nAfter\n"
    assert (tmp_path / "results" / "CLAIMS.md").read_text().startswith("# Claims\n")
