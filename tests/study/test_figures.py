"""Figures: the same rows give the same bytes, nothing overlaps or leaves the page, and runs that do not exist are left out."""
from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scripted_study import points, study_logs, study_manifests, study_rows

from dyme_core.config import METHODS
from study import statistics
from study.figures import comparisons, mechanism, plots, sweeps, theme, traces
from study.statistics import NoRows

WRONG_TRACE = "we locate 2010 and 2012 . 2010 has 12 and 6 , 2012 has 31 and 5 .\n<answer>2010</answer>"
RIGHT_TRACE = "we locate 2010 and 2012 . 2010 has 12 and 6 , 2012 has 25 and 5 .\n<answer>2012</answer>"


def test_figures_are_set_in_the_fonts_that_matplotlib_brings_whatever_the_system_has() -> None:
    own = Path(mpl.get_data_path())
    found = [Path(font.fname) for font in font_manager.fontManager.ttflist if font.name == theme.FAMILY]
    assert len(found) == 4 and all(path.is_relative_to(own) for path in found)
    assert Path(font_manager.findfont(theme.FAMILY)) == own / "fonts" / "ttf" / "DejaVuSans.ttf"


def make_rows(seeds: int = 2) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    runs = [("svlm", method, seed) for method in METHODS for seed in range(1 if method == "base" else seeds)]
    lines = []
    for model, method, seed in [*runs, ("large", "sft", 0)]:
        for split in ("test", "unseen"):
            for item in range(24):
                right = int(generator.random() < (0.9 if model == "large" else 0.3))
                lines.append({"run": f"{model}-{method}-s{seed}", "model": model, "method": method, "seed": seed,
                              "split": split, "item": f"{split}-{item:02d}",
                              "kind": ("look_up", "peak", "mean")[item % 3],
                              "question": "Which year shows a greater divergence?", "target": "2012",
                              "prediction": RIGHT_TRACE if right else WRONG_TRACE, "has_format": 1, "correct": right,
                              "thinking": float(right), "answer": "2012" if right else "2010",
                              "strict": 1 if item % 4 else right,
                              "groundedness": 1.0 if right else 0.75, "wrong_facts": [] if right else ["31"]})
    return statistics.derived(pd.DataFrame(lines))


def failing_rows() -> pd.DataFrame:
    """Rows in which GRPO's traces state nothing right."""
    rows = make_rows()
    return rows.assign(groundedness=rows["groundedness"].where(rows["method"] != "grpo", 0.0))


def make_logs(seeds: int = 2) -> pd.DataFrame:
    lines = []
    for method in METHODS:
        for seed in range(1 if method == "base" else seeds):
            run = {"method": method, "model": "svlm", "seed": seed}
            level = 0.4 + 0.001 * METHODS.index(method) + 0.01 * seed  # all curves end within half a point
            steps = (0,) if method == "base" else (0, 10, 20)
            lines += [run | {"event": "eval", "step": step, "correct": level, "groundedness": level,
                             "has_format": level}
                      for step in steps]
            lines += [run | {"event": "step", "step": step, "memorize": 5, "explore": 3, "mastered": 0,
                             "zero_variance": 0.625, "thinking_tokens": 20 + seed if method != "sft" else None}
                      for step in range(1, 21) if method != "base"]
    return pd.DataFrame(lines)


GRADIENTS = pd.DataFrame([{"group": group, "dtype": dtype, "relative_error": error, "cosine": 1.0}
                          for group in ("vision tower", "language model")
                          for dtype, error in (("float64", 0.0), ("float32", 1e-7))])
SETTINGS = pd.DataFrame({"setting": ["on policy", "dapo"], "scale": [1.0, 1.9], "relative_error": [0.0, 0.9]})
LUCK = {("test", "all"): 0.12, ("unseen", "all"): 0.13, ("test", "look_up"): 0.0, ("test", "peak"): 0.25}
ITEM = {"image": Image.new("RGB", (96, 96), "white"), "question": "Which year?", "trace": WRONG_TRACE, "score": 0.5,
        "right": ["12", "6", "5"], "wrong": ["31"]}
CHANCES = {"sft": 0.65, "grpo": 0.42, "pure_dyme": 0.55, "full_dyme": 0.6}


def chance(setting: str) -> float:
    return CHANCES.get(setting.split("-")[1], 0.3) - 0.1 * (setting.count("-") > 1)


@cache
def rows_with(*experiments: str) -> pd.DataFrame:
    """Rows of the main runs and of some experiments."""
    return study_rows(points("main", *experiments), chance, items=40, seeds=3)


def manifests_of(*experiments: str) -> list[dict[str, Any]]:
    """CPU seconds: 20 a CoT-SFT run, 80 at four times the steps; 150, 160 and 230 a run of the other methods' three seeds."""
    made = study_manifests(points("main", *experiments), seeds=3)
    return [run | {"cpu_s": (80 if run["variant"] == "960" else 20) if run["method"] == "sft" else (150, 160, 230)[run["seed"]]}
            for run in made]


GAPS = pd.DataFrame([{"model": model, "wordings": wordings, "length": length, "new_words": has_new, "gap": gap}
                     for model in ("svlm", "middle", "large") for wordings, length, has_new, gap in (
                         (1, 1, True, 9.0), (3, 1, True, 10.0), (11, 1, True, 11.0), (40, 1, True, 12.0), (11, 1, False, 5.0),
                         (11, 2, True, 10.5))])
STUDY: dict[str, Callable[[], Figure]] = {
    "switches": lambda: sweeps.switches(rows_with("switch")), "ablation": lambda: sweeps.ablation(rows_with("ablation")),
    "memorized": lambda: sweeps.memorized(rows_with("cost", "refined")),
    "pairs": lambda: comparisons.pairs(rows_with("cost", "refined")),
    "expense": lambda: comparisons.expense(rows_with("cost", "refined"), manifests_of("cost", "refined")),
    "learnability": lambda: comparisons.learnability(rows_with("learnability", "sizes"), GAPS),
    "rollouts": lambda: sweeps.sweep(rows_with("rollouts"), "rollouts"),
    "prompts": lambda: sweeps.sweep(rows_with("prompts", "rollouts"), "prompts"),
    "supervision": lambda: sweeps.supervision(rows_with("quality", "corruption")),
    "transfer": lambda: mechanism.transfer(rows_with("kinds")),
    "gradients": lambda: mechanism.gradients(study_logs(points("main"), chance, 3)),
    "entropy": lambda: mechanism.entropy(study_logs(points("main"), chance, 3)),
    "forgetting": lambda: mechanism.forgetting(study_manifests(points("main"), 3))}
DRAW: dict[str, Callable[[], Figure]] = {
    "gradient_equivalence": lambda: plots.gradient_equivalence(GRADIENTS),
    "off_policy": lambda: plots.off_policy(SETTINGS),
    "stability": lambda: plots.stability(make_logs()), "modes": lambda: plots.modes(make_logs()),
    "thinking": lambda: plots.thinking(make_logs()), "performance": lambda: plots.performance(make_rows(), LUCK),
    "kinds": lambda: plots.kinds(make_rows(), LUCK), "gallery": lambda: traces.gallery([ITEM] * 3),
    "scores": lambda: plots.scores({"base": [0.0] * 17 + [0.5, 1.0, float("nan")], "refiner": [1.0] * 20}),
    "failures": lambda: traces.failures(failing_rows(), lambda item: ITEM["image"]),
    "pseudo_thinking": lambda: traces.pseudo_thinking(make_rows(), lambda item: ITEM["image"]), **STUDY}
EVERY = pytest.mark.parametrize("name", DRAW)


def page_of(figure: Figure) -> bytes:
    file = io.BytesIO()
    with theme.themed():
        figure.savefig(file, dpi=figure.dpi)
    return file.getvalue()


@cache
def printed(name: str) -> tuple[Figure, bytes, list[Text]]:
    """A figure, its page, and the texts there (matplotlib keeps tick labels beyond the limits, but does not draw them)."""
    figure, texts, draw = DRAW[name](), [], Text.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, renderer: (texts.append(text), draw(text, renderer))[1])
        page = page_of(figure)
    return figure, page, [text for text in dict.fromkeys(texts) if text.get_visible() and text.get_text().strip()]


def drawn(name: str) -> Figure:
    return printed(name)[0]


def overlap(first: Text, second: Text) -> bool:
    a, b = (Text.get_window_extent(text) for text in (first, second))  # of an annotation: without its line
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2


@pytest.mark.exhaustive
@EVERY
def test_the_same_rows_give_the_same_page_whatever_the_callers_settings(name: str) -> None:
    page = printed(name)[1]
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 50}):
        assert page_of(DRAW[name]()) == page


def test_a_figure_is_saved_as_the_same_bytes_whatever_the_callers_settings(tmp_path: Path) -> None:
    first = theme.save_figure(DRAW["off_policy"](), "off_policy", tmp_path / "a")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 50}):
        second = theme.save_figure(DRAW["off_policy"](), "off_policy", tmp_path / "b")
    assert sorted(first) == ["csv", "md", "pdf", "png"]
    assert all(path.read_bytes() == second[suffix].read_bytes() for suffix, path in first.items())
    assert b"CreationDate" not in first["pdf"].read_bytes()


@EVERY
def test_no_text_leaves_the_page_or_covers_another(name: str) -> None:
    figure, _, texts = printed(name)
    assert len(texts) > 5
    page = figure.bbox
    for text in texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 <= box.y0 and box.y1 <= page.y1 + 1, text
    assert not [(a.get_text(), b.get_text()) for a, b in combinations(texts, 2) if overlap(a, b)]


@EVERY
def test_every_figure_carries_its_numbers_and_a_caption_and_fits_a_paper(name: str) -> None:
    figure = drawn(name)
    assert len(figure.dyme_frame) and "{" not in figure.dyme_caption
    assert figure.dyme_caption.endswith(" Seeds: 3." if name in STUDY else ".")
    assert figure.get_figwidth() in (theme.COLUMN, theme.PAGE)
    assert not plt.get_fignums(), "an open figure would be shown twice in a notebook"


def test_all_intervals_lie_inside_their_axes() -> None:
    for figure in (drawn("performance"), drawn("kinds")):
        limits = {axes.get_xlim() for axes in figure.axes}
        assert len(limits) == 1
        assert figure.dyme_frame["high"].max() < limits.pop()[1]


def test_luck_is_a_line_where_it_is_known() -> None:
    lines = {axes.get_title("left"): [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
             for axes in drawn("kinds").axes if axes.get_visible()}
    assert lines == {"look_up (luck 0 %)": [0.0], "mean": [], "peak (luck 25 %)": [25.0]}
    assert [axes.get_title("left") for axes in drawn("performance").axes] == ["test (luck 12 %)", "unseen (luck 13 %)"]


def test_the_main_figure_shows_both_measures_the_first_one_filled() -> None:
    rows = make_rows()
    own = rows[(rows["method"] == "grpo") & (rows["model"] == "svlm") & (rows["split"] == "test")]
    marks = {line.get_markerfacecolor(): line.get_xdata()[0] for line in drawn("performance").axes[0].lines
             if line.get_color() == theme.STYLES["grpo"].color}
    assert marks == {theme.STYLES["grpo"].color: pytest.approx(100 * own["right"].mean()),
                     "white": pytest.approx(100 * own["strict"].mean())}


def test_methods_differ_in_colour_line_and_marker() -> None:
    assert list(theme.STYLES) == list(METHODS)
    assert len({style.color for style in theme.STYLES.values()}) == len(METHODS)
    assert len({(str(style.linestyle), style.marker) for style in theme.STYLES.values()}) == len(METHODS)


def test_a_single_seed_is_admitted_in_the_caption() -> None:
    assert "One seed: the spread between training runs is not shown." in plots.stability(make_logs(1)).dyme_caption
    assert "One seed" not in plots.stability(make_logs(2)).dyme_caption
    assert "lowest to highest seed" in plots.stability(make_logs(2)).dyme_caption
    assert "One seed only for Base." in plots.performance(make_rows(2), LUCK).dyme_caption
    assert "One seed: the spread" in plots.performance(make_rows(1), LUCK).dyme_caption


def test_a_curve_is_the_mean_of_its_seeds_and_its_band_their_range() -> None:
    frame = plots.stability(make_logs()).dyme_frame.set_index(["method", "step"])
    assert frame.loc[("grpo", 10), ["mean", "low", "high"]].tolist() == pytest.approx([40.7, 40.2, 41.2])


def test_modes_are_shares_of_groups() -> None:
    frame = plots.modes(make_logs(), "pure_dyme").dyme_frame
    assert frame.iloc[-1][["memorize", "explore", "mastered", "grpo_zero_variance"]].tolist() == [62.5, 37.5, 0, 62.5]


@pytest.mark.parametrize(("wanted", "expected"), [
    ([5, 20], [5, 20]), ([10, 10], [5, 15]), ([20, 8, 12], [23.333, 3.333, 13.333]), ([0, 0], [0, 10]),
    ([99, 100], [90, 100]), ([50, 1, 2, 3], [50, 0, 10, 20])])
def test_names_are_moved_apart_as_little_as_needed(wanted: list[float], expected: list[float]) -> None:
    assert theme.spread(wanted, 10, 0, 100) == pytest.approx(expected, abs=0.01)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_names_keep_their_order_their_distance_and_the_page(wanted: list[float]) -> None:
    moved = theme.spread(wanted, 10, 0, 100)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(moved[order]) >= 10 - 1e-6).all()
    assert moved.min() >= -1e-9 and moved.max() <= 100 + 1e-9


def test_a_fact_is_marked_where_it_stands_and_nowhere_else() -> None:
    text = "2012 has 31 and 3 , 31"
    kinds = traces.kinds_of(text, right=["3"], wrong=["31"])
    assert "".join(character for character, kind in zip(text, kinds, strict=True) if kind == "wrong") == "31"
    assert [index for index, kind in enumerate(kinds) if kind == "wrong"] == [9, 10]
    assert [index for index, kind in enumerate(kinds) if kind == "right"] == [16]
    assert traces.kinds_of(text, wrong=["31", "31"])[20:] == ["wrong", "wrong"]
    assert traces.kinds_of(text, wrong=[(20, 22)])[9] == ""


def test_a_fact_that_is_not_in_the_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="is not written in the trace"):
        traces.kinds_of("2012 has 31", wrong=["32"])


def test_wrapped_lines_fit_their_width_and_lose_no_word() -> None:
    pieces = traces.wrap(WRONG_TRACE, traces.kinds_of(WRONG_TRACE, wrong=["31"]), 1.4)
    assert max(piece.x + piece.width for piece in pieces) <= 1.4
    assert "".join("".join(piece.text for piece in pieces).split()) == "".join(WRONG_TRACE.split())
    assert [piece.text for piece in pieces if piece.kind == "wrong"] == ["31"]
    assert not any(piece.x == 0 and piece.text in {".", ","} for piece in pieces)


def test_the_shown_chart_is_the_first_that_fits_the_captions_rule() -> None:
    rows = make_rows()
    figure = drawn("pseudo_thinking")
    pairs = rows[(rows["method"] == "sft") & (rows["split"] == "test") & (rows["seed"] == 0)].pivot(
        index="item", columns="model", values="correct")
    fits = pairs.index[(pairs["large"] == 1) & (pairs["svlm"] == 0)]
    assert set(figure.dyme_frame["item"].dropna()) == {fits[0]}
    assert f"({len(fits)} of 24 charts)" in figure.dyme_caption


def test_a_missing_contrast_is_admitted_in_the_caption() -> None:
    rows = make_rows()
    figure = traces.pseudo_thinking(statistics.derived(rows.assign(wrong_facts=[[]] * len(rows))), lambda item: ITEM["image"])
    assert "On none of the 24 test charts" in figure.dyme_caption


def test_failures_are_shown_on_the_first_chart_that_fits_with_the_rates_of_all() -> None:
    rows, figure = failing_rows(), drawn("failures")
    test = rows[(rows["model"] == "svlm") & (rows["split"] == "test")]
    first = test[test["seed"] == 0].pivot(index="item", columns="method", values="correct")
    fits = first.index[(first["sft"] == 0) & (first["full_dyme"] == 1)]
    assert set(figure.dyme_frame["item"].dropna()) == {fits[0]} and f"({len(fits)} of 24 charts)" in figure.dyme_caption
    heads = [text.get_text() for text in figure.axes[0].texts if " of traces, " in text.get_text()]
    right = {method: 100 * part["right"].mean() for method, part in test.groupby("method")}
    assert [head.rpartition("thinking ")[2] for head in heads] == [
        f"{right[method]:.0f} %" for method in ("sft", "grpo", "full_dyme")]


def test_failures_need_all_three_methods_and_a_chart_that_shows_them() -> None:
    rows = failing_rows()
    for part in (rows[rows["method"] != "grpo"], make_rows()):
        with pytest.raises(NoRows):
            traces.failures(part, lambda item: ITEM["image"])


def test_the_large_models_rows_must_be_there() -> None:
    rows = make_rows()
    with pytest.raises(ValueError, match="evaluate both"):
        traces.pseudo_thinking(rows[rows["model"] == "svlm"], lambda item: ITEM["image"])


def test_scores_are_shared_out_over_the_traces_that_have_one() -> None:
    frame = plots.scores({"base": [0.0, 0.0, 1.0, float("nan")], "refiner": [1.0]}).dyme_frame
    base = frame[frame["source"] == "base"].set_index("score")
    assert base["share"].round(6).to_dict() == {0.0: 66.666667, 0.5: 0.0, 1.0: 33.333333}
    assert frame.groupby("source")["num_traces"].first().to_dict() == {"base": 3, "refiner": 1}


@pytest.mark.parametrize("draw", [sweeps.switches, sweeps.ablation, sweeps.supervision, mechanism.transfer,
                                  partial(comparisons.expense, manifests=manifests_of()),
                                  partial(comparisons.learnability, gaps=GAPS),
                                  *(partial(sweeps.sweep, experiment=name) for name in sweeps.AXES)])
def test_main_runs_alone_make_no_sweep(draw: Callable[[pd.DataFrame], Figure]) -> None:
    with pytest.raises(NoRows):
        draw(rows_with())


def test_logs_without_gradients_entropy_or_captions_make_no_figure() -> None:
    logs = study_logs(points("main"), chance, 1)
    bare, alone = logs.drop(columns=["entropy", "memorize_norm", "explore_norm", "cosine"]), logs.drop(columns="cosine")
    for draw in (partial(mechanism.gradients, bare), partial(mechanism.gradients, alone), partial(mechanism.entropy, bare),
                 partial(mechanism.forgetting, [])):
        with pytest.raises(NoRows):
            draw()


@pytest.mark.parametrize("draw", [sweeps.switches, sweeps.ablation, sweeps.supervision, mechanism.transfer])
def test_nothing_is_drawn_of_runs_that_an_experiment_only_shares(draw: Callable[[pd.DataFrame], Figure]) -> None:
    with pytest.raises(NoRows, match="has been made"):
        draw(rows_with("refined"))


def test_a_point_without_rows_is_left_out() -> None:
    stored = rows_with("rollouts")
    frame = sweeps.sweep(stored[~stored["variant"].str.endswith("g16")], "rollouts").dyme_frame
    assert set(frame["x"]) == {2, 8}
    few = stored[~stored["variant"].str.endswith("g2") | (stored["seed"] == 0)]
    assert sweeps.sweep(few, "rollouts").dyme_caption.endswith(" Seeds: 1 to 3, by point.")


def test_a_sweep_shows_each_points_own_rows() -> None:
    frame = drawn("rollouts").dyme_frame.set_index(["method", "x"])
    stored = rows_with("rollouts")
    own = stored[(stored["method"] == "grpo") & (stored["variant"] == "g2") & (stored["split"] == "test")]
    assert frame.loc[("grpo", 2), "value"] == pytest.approx(100 * own["right"].mean())
    main = stored[(stored["method"] == "grpo") & (stored["variant"] == "") & (stored["split"] == "test")]
    assert frame.loc[("grpo", 8), "value"] == pytest.approx(100 * main["correct"].mean())


def test_a_pair_s_dots_are_the_differences_of_its_seeds_and_their_mean_stands_above() -> None:
    frame, stored = drawn("pairs").dyme_frame, rows_with("cost", "refined")
    own = frame[(frame["metric"] == "right") & (frame["label"] == "SFT then GRPO") & (frame["traces"] == "refined")]
    means = stored[stored["split"] == "test"].groupby("run")["right"].mean()
    gaps = [100 * (means[f"svlm-full_dyme-refined-s{seed}"] - means[f"svlm-sft_grpo-refined-s{seed}"]) for seed in range(3)]
    assert own.dropna(subset="seed")["value"].tolist() == pytest.approx(gaps)
    assert own[own["seed"].isna()]["value"].item() == pytest.approx(np.mean(gaps))


def test_full_dyme_is_compared_with_methods_that_have_the_same_kind_of_traces_or_none() -> None:
    labels = drawn("pairs").dyme_frame.groupby("traces")["label"].unique()
    assert labels["teacher"].tolist() == ["Base", "CoT-SFT", "CoT-SFT, 960 steps", "SFT on answers alone", "GRPO",
                                          "SFT then GRPO", "Pure DyME"]
    assert labels["refined"].tolist() == ["Base", "SFT on answers alone", "CoT-SFT", "GRPO", "SFT then GRPO", "Pure DyME"]


def test_what_a_run_costs_is_the_median_over_its_seeds() -> None:
    frame = drawn("expense").dyme_frame.set_index(["traces", "setting"])["x"]
    assert frame["teacher", "svlm-full_dyme"] == frame["refined", "svlm-grpo"] == 160
    assert [frame["teacher", name] for name in ("svlm-sft", "svlm-sft-960")] == [20, 80]
    assert "svlm-sft-answers" not in frame["teacher"] and "svlm-base" not in frame["teacher"]


def test_a_name_is_joined_to_its_mark_where_another_panel_widens_the_axis() -> None:
    made = [run | {"cpu_s": (9 if run["variant"] == "refined" else 1) * run["cpu_s"]}
            for run in manifests_of("cost", "refined")]
    figure = comparisons.expense(rows_with("cost", "refined"), made)
    for axes in figure.axes:
        shown = {tuple(axes.transData.inverted().transform(axes.transAxes.transform(name.xy)).round(6)) for name in axes.texts}
        assert shown == {(round(line.get_xdata()[-1], 6), round(line.get_ydata()[-1], 6)) for line in axes.lines}


def test_sets_of_traces_stand_by_one_dial_with_their_gaps_and_what_is_missing_is_said() -> None:
    by_wording, by_words = ([tick.get_text().replace("\n", " ") for tick in axes.get_xticklabels()]
                            for axes in drawn("learnability").axes[3:5])
    assert by_wording == ["1 9.0", "3 10.0", "11 11.0", "40 12.0"]
    assert by_words == ["known words 5.0", "2 x as long 10.5", "new words 11.0"]
    stored = rows_with("learnability", "sizes")
    figure = comparisons.learnability(stored[stored["run"] != "svlm-sft-w3-s0"], GAPS[GAPS["wordings"] != 40])
    assert "Not measured yet: svlm-sft-w40." in figure.dyme_caption
    by_count = figure.dyme_frame[figure.dyme_frame["x"] >= 64]
    assert set(by_count["setting"]) == {"middle-sft", "large-sft", "svlm-sft-n512", *(
        f"svlm-{method}{count}" for method in ("sft", "full_dyme") for count in ("", "-n64"))}
    assert set(figure.dyme_frame.query("setting == 'svlm-sft-w3'")["num_seeds"]) == {2}
    with pytest.raises(NoRows, match=r"python -m scripts\.learnability"):
        comparisons.learnability(stored, GAPS[:0])


def test_transfer_splits_the_test_set_by_kind() -> None:
    frame = drawn("transfer").dyme_frame
    stored = rows_with("kinds")
    own = stored[(stored["run"].str.startswith("svlm-sft-refined-no-gap-count")) & (stored["split"] == "test")]
    line = frame[(frame["setting"] == "svlm-sft-refined-no-gap-count")].set_index("part")["value"]
    assert line["gap and count"] == pytest.approx(100 * own[own["kind"].isin(["gap", "count"])]["right"].mean())
    assert line["other kinds"] == pytest.approx(100 * own[~own["kind"].isin(["gap", "count"])]["right"].mean())


def test_a_steps_gradients_are_means_over_the_seeds_that_have_them() -> None:
    frame = drawn("gradients").dyme_frame
    norms = frame[(frame["panel"] == "norm") & (frame["name"] == "memorize")]
    assert norms["value"].iloc[0] == pytest.approx(2.25) and norms["low"].iloc[0] == 2.0
    assert frame[frame["panel"] == "cosine"]["step"].max() == 28
