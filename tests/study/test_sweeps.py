"""Figures of the sweeps, on a made-up study: same bytes, nothing overlaps, and what has not been run is left out."""
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scripted_study import points, study_logs, study_manifests, study_rows
from test_figures import drawn_texts, overlap

from study import plan, selection
from study.figures import mechanism, sweeps, theme
from study.statistics import NoRows

CHANCES = {"sft": 0.65, "grpo": 0.42, "pure_dyme": 0.55, "full_dyme": 0.6}


def chance(setting: str) -> float:
    return CHANCES.get(setting.split("-")[1], 0.3) - 0.1 * (setting.count("-") > 1)


@cache
def rows(*experiments: str) -> pd.DataFrame:
    return study_rows(points("main", *experiments), chance, items=40, seeds=3)


DRAW: dict[str, Callable[[], Figure]] = {
    "switches": lambda: sweeps.switches(rows("switch")), "ablation": lambda: sweeps.ablation(rows("ablation")),
    "rollouts": lambda: sweeps.rollouts(rows("rollouts")),
    "prompts": lambda: sweeps.prompts(rows("prompts", "rollouts")), "data": lambda: sweeps.data(rows("data")),
    "supervision": lambda: sweeps.supervision(rows("quality", "corruption")), "length": lambda: sweeps.length(rows("length")),
    "transfer": lambda: mechanism.transfer(rows("kinds", "statistics")),
    "mechanism": lambda: mechanism.mechanism(study_logs(points("main"), chance, 3), study_manifests(points("main"), 3))}
EVERY = pytest.mark.parametrize("name", DRAW)


@EVERY
def test_the_same_rows_give_the_same_bytes_whatever_the_callers_settings(name: str, tmp_path: Path) -> None:
    first = DRAW[name]()
    paths = theme.save_figure(first, first.dyme_frame, name, tmp_path / "a")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        second = DRAW[name]()
        again = theme.save_figure(second, second.dyme_frame, name, tmp_path / "b")
    assert all(path.read_bytes() == again[suffix].read_bytes() for suffix, path in paths.items())


@EVERY
def test_no_text_leaves_the_page_or_covers_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = DRAW[name]()
    texts = drawn_texts(figure, monkeypatch)
    for text in texts:
        box, page = text.get_window_extent(), figure.bbox
        assert page.x0 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 <= box.y0 and box.y1 <= page.y1 + 1, text
    assert not [(a.get_text(), b.get_text()) for a, b in combinations(texts, 2) if overlap(a, b)]


@EVERY
def test_the_caption_says_on_how_many_seeds_the_numbers_rest(name: str) -> None:
    figure = DRAW[name]()
    assert figure.dyme_caption.endswith(" Seeds: 3.") and "{" not in figure.dyme_caption
    assert figure.get_figwidth() in (theme.COLUMN, theme.PAGE)


@pytest.mark.parametrize("draw", [sweeps.switches, sweeps.ablation, sweeps.rollouts, sweeps.prompts, sweeps.data,
                                  sweeps.supervision, sweeps.length, mechanism.transfer])
def test_main_runs_alone_make_no_sweep(draw: Callable[[pd.DataFrame], Figure]) -> None:
    with pytest.raises(NoRows):
        draw(rows())


def test_logs_without_gradients_entropy_or_captions_make_no_mechanism() -> None:
    logs = study_logs(points("main"), chance, 1).drop(columns=["entropy", "memorize_norm", "explore_norm", "cosine"])
    with pytest.raises(NoRows):
        mechanism.mechanism(logs, [])
    only = mechanism.mechanism(logs, study_manifests(points("main"), 1))
    assert set(only.dyme_frame["panel"]) == {"captions"} and "Norm" not in only.dyme_caption


def test_a_point_without_rows_is_left_out() -> None:
    stored = rows("rollouts")
    frame = sweeps.rollouts(stored[~stored["variant"].isin(["g2", "g16"])]).dyme_frame
    assert set(frame["x"]) == {4, 8}
    few = stored[(stored["variant"] != "g4") | (stored["seed"] == 0)]
    assert sweeps.rollouts(few).dyme_caption.endswith(" Seeds: 1 to 3, by point.")


def test_a_sweep_shows_each_points_own_rows() -> None:
    frame = sweeps.rollouts(rows("rollouts")).dyme_frame.set_index(["method", "x"])
    stored = rows("rollouts")
    own = stored[(stored["method"] == "grpo") & (stored["variant"] == "g4") & (stored["split"] == "test")]
    assert frame.loc[("grpo", 4), "value"] == pytest.approx(100 * own["correct"].mean())
    main = stored[(stored["method"] == "grpo") & (stored["variant"] == "") & (stored["split"] == "test")]
    assert frame.loc[("grpo", 8), "value"] == pytest.approx(100 * main["correct"].mean())


def test_transfer_splits_the_test_set_by_kind_and_by_source() -> None:
    frame = mechanism.transfer(rows("kinds", "statistics")).dyme_frame
    stored = rows("kinds", "statistics")
    own = stored[(stored["run"].str.startswith("svlm-sft-no-gap-count")) & (stored["split"] == "test")]
    line = frame[(frame["setting"] == "svlm-sft-no-gap-count")].set_index("part")["value"]
    assert line["gap and count"] == pytest.approx(100 * own[own["kind"].isin(["gap", "count"])]["correct"].mean())
    assert line["other kinds"] == pytest.approx(100 * own[~own["kind"].isin(["gap", "count"])]["correct"].mean())
    assert {"generated tables", "real statistics"} < set(frame["part"])


def test_a_steps_gradients_are_means_over_the_seeds_that_have_them() -> None:
    frame = DRAW["mechanism"]().dyme_frame
    norms = frame[(frame["panel"] == "gradients") & (frame["name"] == "memorize")]
    assert norms["value"].iloc[0] == pytest.approx(2.25) and norms["low"].iloc[0] == 2.0
    assert frame[frame["panel"] == "cosine"]["step"].max() == 28


def test_left_out_kinds_are_the_plans() -> None:
    (point, *_) = plan.points("kinds")
    assert point.settings["world.left_out_kinds"] == mechanism.LEFT_OUT


def test_a_setting_is_a_run_without_its_seed() -> None:
    frame = selection.with_setting(pd.DataFrame({"run": ["svlm-pure_dyme-real1-s12", "large-sft-s0"]}))
    assert frame["setting"].tolist() == ["svlm-pure_dyme-real1", "large-sft"]
    assert all(selection.with_setting(pd.DataFrame({"run": [run.name for run in point.runs()]}))["setting"].unique().tolist()
               == [selection.setting_of(point)] for point in plan.points())
