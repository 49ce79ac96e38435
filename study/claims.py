"""Every claim of poster and paper beside what was measured: `results/CLAIMS.md`, from the stored rows, never written by hand.

A claim is a difference that is above 0 where the claim holds. Its verdict follows only from the difference's 95 %
interval (`judge`), in CLAIMS.md and in the notebooks (`Claim.sentence`).
"""
from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from dyme_core.config import METHOD_NAMES
from study import plan, statistics
from study.statistics import Estimate, NoRows, score_matrix
from study.tables import REPORTED_ABLATION, REPORTED_SWITCHES, markdown_table

MIN_SEEDS = len(plan.SOME_SEEDS)  # fewer show too little of the spread between training runs
REPRODUCED, NOT_REPRODUCED, NOISE = "reproduced", "not reproduced here", "inside the noise"
NOT_TESTABLE, NOT_MEASURED = "not testable here", "not measured yet"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOISE, NOT_TESTABLE, NOT_MEASURED)
METRICS = {"right": "right answer and right thinking", "strict": "answers alone, right or wrong thinking",
           "groundedness": "groundedness", "pseudo": "well-formed traces with a wrong fact",
           "follows": "right, and right again after one value changed"}
LAST_EVALUATIONS = 3  # for a run's restlessness
OF_ROLLOUTS = ("memorize", "explore", "mastered", "zero_variance")  # columns of a log
RUN_METRICS = {  # by column of `run_metrics`: unit, name
    "zero_variance": ("%", "groups whose rewards are all equal"), "step_seconds": ("s", "CPU seconds a step"),
    "memorize_drift": ("points", "memorize groups, first quarter less last"),
    "restlessness": ("points", "standard deviation within a run, trend included"),
    "distance_between_seeds": ("points", "distance from the seeds' median")}
# Reported by the poster (ChartQA) or the paper (second-hand, docs/method.md); never measured here. Percentages and seconds.
POSTER = {"grpo": (60.8, 14.8), "pure_dyme": (64.9, 14.0), "full_dyme": (67.5, 23.4)}
PAPER_SMOLVLM = {"base": 49.9, "sft": 44.1, "grpo": 44.0, "sft_grpo": 45.4, "dyme": 55.6}  # average of its data sets
PAPER_GAINS = "SmolVLM-500M 49.9 to 55.6, LLaVA-OV-0.5B 50.7 to 55.4, InternVL2-1B 56.3 to 58.1"
MOST = 50.0  # per cent: "most groups"
PURE, FULL, GRPO, SFT = "svlm-pure_dyme", "svlm-full_dyme", "svlm-grpo", "svlm-sft"
BASELINES = ("base", "sft", "grpo", "sft_grpo")
RULE = f"""A claim is turned into a difference of means over all seeds, above 0 where the claim holds. Its 95 % interval is for
new seeds and new items (numbers per run: new seeds); settings are compared on the same items and on the seeds that both have.

- Interval above 0: **reproduced**. Interval below 0: **not reproduced here**. 0 inside: **inside the noise**.
- Fewer than {MIN_SEEDS} shared seeds: **not measured yet**. What the mini world cannot decide: **not testable here**, and why.

The differences of the seeds stand beside it, and p, adjusted for the number of claims (Holm): an interval alone would let
about two of 40 true zeros leave the noise. With {MIN_SEEDS} seeds intervals are wide: t is 2.8. Numbers under "Reported" are
poster's and paper's, of real models and data; ours are of the mini world. What counts first is a right answer after right
thinking, which luck does not give. "Answers alone" counts a right answer with or without thinking: the base's thinking is
rarely well-formed, so this is the harder comparison for every method that teaches format."""


@dataclass(frozen=True)
class Measured:
    """The result of one claim, in words, the verdict, and the p-value of "there is no difference" (two-sided)."""

    verdict: str
    measured: str = ""
    by_seed: str = ""
    p: float | None = None
    rests_on: str = ""


@dataclass(frozen=True)
class Evidence:
    """The evidence for all claims: rows and logs (`statistics.load_rows`, `load_logs`), manifests, notebook 01's gradients; and
    the fewest shared seeds that a claim is measured on."""

    stored_rows: pd.DataFrame
    stored_logs: pd.DataFrame
    manifests: Sequence[Mapping[str, Any]] = ()
    gradients: pd.DataFrame | None = None  # columns dtype, group, relative_error
    min_seeds: int = MIN_SEEDS

    @cached_property
    def rows(self) -> pd.DataFrame:
        return statistics.with_setting(self.stored_rows)

    @cached_property
    def run_metrics(self) -> pd.DataFrame:
        cpu_s = {made["run"]: made["cpu_s"] / made["steps"] for made in self.manifests if made.get("steps")}
        return run_metrics(statistics.with_setting(self.stored_logs).assign(cpu_s=self.stored_logs["run"].map(cpu_s)))


@dataclass(frozen=True)
class Claim:
    """One claim: in words, where it is made, the numbers reported for it, and how it is measured (or why it cannot be)."""

    words: str
    where: str
    reported: str
    measure: Callable[[Evidence], Measured] | None
    reason: str = ""

    def check(self, evidence: Evidence) -> Measured:
        """What the evidence says; missing runs give "not measured yet" and what is missing."""
        if self.measure is None:
            return Measured(NOT_TESTABLE, self.reason)
        try:
            return self.measure(evidence)
        except NoRows as missing:
            return Measured(NOT_MEASURED, str(missing))

    def sentence(self, evidence: Evidence) -> str:
        """The claim, its verdict, and the numbers the verdict rests on, as notebooks show them."""
        found = self.check(evidence)
        return f"{self.words}: {found.verdict}. {found.measured}."


def judge(estimate: Estimate) -> str:
    """The verdict of a difference whose positive side is the claim."""
    if estimate.low > 0:
        return REPRODUCED
    return NOT_REPRODUCED if estimate.high < 0 else NOISE


def items(evidence: Evidence, first: str, second: str, metric: str = "right", split: str = "test",
          kinds: Sequence[str] = ()) -> Measured:
    """Compare two settings on the same items (of some kinds of question, or all) and seeds: `first` above `second` is the
    claim."""
    rows = evidence.rows[evidence.rows["kind"].isin(kinds)] if kinds else evidence.rows
    matrices, seeds = _matrices(rows, (first, second), metric, split, evidence.min_seeds)
    estimate, (left, right) = statistics.paired(*matrices), (100 * matrix.mean(axis=1) for matrix in matrices)
    where = f"{split}, {' and '.join(kinds)}" if kinds else split
    return Measured(judge(estimate), f"{_interval(estimate, 100, 'points')}: {left.mean():.1f} against {right.mean():.1f} % "
                    f"({METRICS[metric]}, {where})", _by_seed(left - right, 1), statistics.p_value(matrices, [1, -1]),
                    _basis((first, second), seeds, f"{estimate.num_items} items"))


def gains(evidence: Evidence, first: tuple[str, str], second: tuple[str, str]) -> Measured:
    """Compare two gains in answers alone, each (after, before), on the same test items: a larger first gain is the claim."""
    matrices, seeds = _matrices(evidence.rows, (*first, *second), "strict", "test", evidence.min_seeds)
    estimate = statistics.contrast(matrices, [1, -1, -1, 1])
    means = [100 * matrix.mean() for matrix in matrices]
    text = (f"{_interval(estimate, 100, 'points')}: gains of {means[0] - means[1]:+.1f} and {means[2] - means[3]:+.1f} points "
            f"({METRICS['strict']}, test)")
    by_seed = 100 * (matrices[0] - matrices[1] - matrices[2] + matrices[3]).mean(axis=1)
    return Measured(judge(estimate), text, _by_seed(by_seed, 1), statistics.p_value(matrices, [1, -1, -1, 1]),
                    _basis((*first, *second), seeds, f"{estimate.num_items} items"))


def runs(evidence: Evidence, first: str, second: str | float, metric: str, sign: int = 1) -> Measured:
    """Compare a number per run of two settings, seed by seed, or of one setting with a level: `first` above is the claim.

    Args:
        metric: a column of `run_metrics`.
        sign: -1 where `first` below `second` is the claim.
    """
    settings = (first, second) if isinstance(second, str) else (first,)
    values = evidence.run_metrics[metric].dropna().unstack("setting").reindex(columns=[*settings]).dropna()
    seeds = sorted(values.index)
    _need_seeds(seeds, settings, evidence.min_seeds)
    own = values[first].to_numpy()
    other = values[second].to_numpy() if isinstance(second, str) else np.full(len(own), second)
    unit, name = RUN_METRICS[metric]
    gaps = sign * (own - other)[:, None]
    estimate = statistics.contrast([gaps], [1])
    sides = f"{own.mean():.2f} against {other.mean():.2f} {unit} ({name})"
    return Measured(judge(estimate), f"{_interval(estimate, 1, unit, 2)}: {sides}", _by_seed(gaps[:, 0], 2),
                    statistics.p_value([gaps], [1]), _basis(settings, seeds, "logs"))


def gradient_form(evidence: Evidence) -> Measured:
    """Notebook 01's relative errors against their bounds: all below is "reproduced"."""
    if evidence.gradients is None:
        raise NoRows("notebook 01 has not run")
    worst = evidence.gradients.groupby("dtype")["relative_error"].max()
    is_equal = all(worst[dtype] < bound for dtype, bound in plan.GRADIENT_BOUNDS.items())
    text = ", ".join(f"{worst[dtype]:.1e} in {dtype} (bound {bound:.0e})" for dtype, bound in plan.GRADIENT_BOUNDS.items())
    return Measured(REPRODUCED if is_equal else NOT_REPRODUCED, f"largest relative error {text}",
                    rests_on=f"notebook 01, {evidence.gradients['group'].nunique()} groups of parameters")


def run_metrics(logs: pd.DataFrame) -> pd.DataFrame:
    """Numbers of each run, from the logs of all (columns `setting`, and `cpu_s`, seconds a step).

    Returns:
        Index setting, seed. Columns:
        zero_variance: share of groups in which all rewards are equal, in per cent, mean over the run.
        step_seconds: CPU seconds a step, evaluations left out; other work on the machine tells less in them.
        memorize_drift: share of memorize groups in the first quarter of the steps less that in the last, in points.
        restlessness: standard deviation of the last evaluations on validation, in points.
        distance_between_seeds: how far the last evaluation lies from the median of the seeds, in points.
    """
    by = ["setting", "seed"]
    logs = logs.reindex(columns=list(dict.fromkeys([*logs, *OF_ROLLOUTS])))  # base and SFT write no rollouts
    steps = logs[logs["event"] == "step"]
    share = 100 * steps["memorize"] / (steps["memorize"] + steps["explore"] + steps["mastered"])
    share, place = steps[by].assign(share=share), steps["step"] / steps.groupby(by)["step"].transform("max")
    evaluations = logs[logs["event"] == "eval"].sort_values("step", kind="stable").groupby(by)["correct"]
    last = 100 * evaluations.last()
    return pd.DataFrame({
        "zero_variance": 100 * steps.groupby(by)["zero_variance"].mean(),
        "step_seconds": steps.groupby(by)["cpu_s"].first(),
        "memorize_drift": share[place <= 0.25].groupby(by)["share"].mean() - share[place > 0.75].groupby(by)["share"].mean(),
        "restlessness": 100 * evaluations.agg(lambda values: values.iloc[-LAST_EVALUATIONS:].std()),
        "distance_between_seeds": (last - last.groupby("setting").transform("median")).abs()})


def _matrices(rows: pd.DataFrame, settings: Sequence[str], metric: str, split: str, min_seeds: int
              ) -> tuple[list[np.ndarray], list[int]]:
    """(seeds, items) of each setting, on the seeds that all of them have, and those seeds."""
    parts, seeds = statistics.shared(rows, settings, split)
    _need_seeds(seeds, settings, min_seeds)
    return [score_matrix(part, metric) for part in parts], seeds


def _need_seeds(seeds: Sequence[int], settings: Sequence[str], fewest: int) -> None:
    if len(seeds) < fewest:
        raise NoRows(f"{len(seeds)} of {fewest} seeds so far of {', '.join(dict.fromkeys(settings))}")


def _by_seed(gaps: Iterable[float], digits: int) -> str:
    return ", ".join(f"{gap + 0:+.{digits}f}" for gap in gaps)


def _interval(estimate: Estimate, scale: float, unit: str, digits: int = 1) -> str:
    value, low, high = (f"{round(scale * number, digits) + 0:+.{digits}f}" for number in
                        (estimate.value, estimate.low, estimate.high))  # + 0 turns -0.0 into 0.0
    return f"{value} [{low}, {high}] {unit}"


def _basis(settings: Iterable[str], seeds: Sequence[int], what: str) -> str:
    """Experiments (of the plan), settings and seeds."""
    experiments = plan.homes()
    named = list(dict.fromkeys(settings))
    found = dict.fromkeys(experiments.get(setting, "own runs") for setting in named)
    return f"{', '.join(found)}: {', '.join(named)}; seeds {', '.join(map(str, seeds))}; {what}"


def better(words: str, first: str, second: str, metric: str = "right", split: str = "test", kinds: Sequence[str] = (),
           where: str = "ours", reported: str = "–") -> Claim:
    """The claim that one setting is above another, judged by `items`."""
    return Claim(words, where, reported, lambda evidence: items(evidence, first, second, metric, split, kinds))


def _per_run(words: str, first: str, second: str | float, metric: str, sign: int = 1, where: str = "poster",
             reported: str = "–") -> Claim:
    return Claim(words, where, reported, lambda evidence: runs(evidence, first, second, metric, sign))


def _performance() -> list[Claim]:
    pure, full, grpo = (POSTER[method][0] for method in ("pure_dyme", "full_dyme", "grpo"))
    found = [better("Pure DyME beats GRPO", PURE, GRPO, where="poster", reported=_against(pure, grpo)),
             better("Full DyME beats Pure DyME", FULL, PURE, where="poster", reported=_against(full, pure))]
    for method in BASELINES:
        found.append(better(f"DyME beats {METHOD_NAMES[method]}", FULL, f"svlm-{method}", fair_metric(method), where="paper",
                            reported=_against(PAPER_SMOLVLM["dyme"], PAPER_SMOLVLM[method])))
    found += [better(f"DyME beats {METHOD_NAMES[method]} in answers alone", FULL, f"svlm-{method}", "strict")
              for method in BASELINES if method != "base"]
    found.append(Claim("DyME is for small VLMs: the larger sibling gains less", "paper", PAPER_GAINS,
                       lambda evidence: gains(evidence, (PURE, "svlm-base"), ("large-pure_dyme", "large-base"))))
    return found + [better(f"DyME beats {METHOD_NAMES[method]}, unseen styles and values", FULL, f"svlm-{method}",
                           fair_metric(method), "unseen") for method in BASELINES]


def _traces() -> list[Claim]:
    """What is memorized, and at what cost."""
    refined_sft, refined_pure = (_setting("refined", f"{METHOD_NAMES[method]}, refined targets")
                                 for method in ("sft", "pure_dyme"))
    longer, answers = _setting("cost", "CoT-SFT, 960 steps"), _setting("cost", "SFT on answers alone")
    one, forty, known, long = (_setting("learnability", name, "sft") for name in ("w1", "w40", "seen", "x2"))
    return [
        better("A teacher's traces are harder to learn: CoT-SFT on refined targets beats CoT-SFT on them", refined_sft, SFT),
        better("A teacher's traces give a small VLM more pseudo thinking than refined targets", SFT, refined_sft, "pseudo",
               where="poster", reported="examples"),
        better("A teacher with one wording harms less: CoT-SFT on it is better grounded", one, SFT, "groundedness"),
        better("A teacher with forty wordings harms more: CoT-SFT on eleven is better grounded", SFT, forty, "groundedness"),
        better("Words that the base has seen harm less: CoT-SFT on them is better grounded", known, SFT, "groundedness"),
        better("Traces of twice the length harm more: CoT-SFT on short ones is better grounded", SFT, long, "groundedness"),
        better("Full DyME on a teacher's traces beats CoT-SFT on DyME's refined targets", FULL, refined_sft),
        better("Pure DyME beats CoT-SFT where both have refined targets", refined_pure, refined_sft),
        better("Pure DyME beats CoT-SFT at about equal cost (four times the steps)", PURE, longer),
        better("Full DyME beats CoT-SFT at about equal cost (four times the steps)", FULL, longer),
        better("Thinking pays: Full DyME beats SFT on the answers alone, in answers", FULL, answers, "strict"),
        better("Full DyME's thinking is better grounded than CoT-SFT's", FULL, SFT, "groundedness", where="poster",
               reported="examples"),
        better("Full DyME reads the picture: it is right before and after a value changes more often than CoT-SFT", FULL, SFT,
               "follows", "altered"),
        better("Full DyME reads the picture: the same against GRPO", FULL, GRPO, "follows", "altered")]


def fair_metric(baseline: str) -> str:
    """The base's thinking is rarely well-formed: answers alone are the harder comparison."""
    return "strict" if baseline == "base" else "right"


def _against(first: float, second: float) -> str:
    return f"{first} against {second}"


def _setting(experiment: str, label: str, method: str | None = None) -> str:
    """The setting of a declared point, by its label."""
    (found,) = [point for point in plan.points(experiment) if point.label == label and method in (None, point.method)]
    return found.setting


def claims() -> dict[str, list[Claim]]:
    """All claims, by section."""
    binary = plan.SWITCH_NAMES["binary"]
    switches = [label for label in REPORTED_SWITCHES if label != binary]
    smol, unlike = PAPER_SMOLVLM, "without gaps and counts"
    return {
        "Preliminary study": [
            Claim("SFT and RL have one gradient form: the memorize row's gradient is the SFT gradient", "poster, paper",
                  "proof", gradient_form)],
        "The two failures": [
            better("CoT-SFT gives a small VLM more pseudo thinking than a large one", SFT, "large-sft", "pseudo",
                   where="poster", reported="examples"),
            better("After CoT-SFT the large VLM's thinking is better grounded than the small one's", "large-sft", SFT,
                   "groundedness", where="poster", reported="examples"),
            better("The middle VLM's is better grounded than the small one's", "middle-sft", SFT, "groundedness"),
            better("CoT-SFT leaves a small VLM below its base", "svlm-base", SFT, "strict", where="paper",
                   reported=_against(smol["sft"], smol["base"])),
            better("GRPO leaves a small VLM below its base", "svlm-base", GRPO, "strict", where="paper",
                   reported=_against(smol["grpo"], smol["base"])),
            _per_run("Advantages collapse: most of GRPO's groups teach nothing", GRPO, MOST, "zero_variance"),
            better("Under GRPO the thinking is not grounded; under DyME it is", PURE, GRPO, "groundedness", where="poster",
                   reported="examples")],
        "Better performance": _performance(),
        "What is memorized, and at what cost": _traces(),
        "Stable training": [
            _per_run(f"A DyME run is steadier than a GRPO run over its last {LAST_EVALUATIONS} evaluations", PURE, GRPO,
                     "restlessness", -1, reported="figure"),
            _per_run("DyME's seeds differ less than GRPO's", PURE, GRPO, "distance_between_seeds", -1, where="ours"),
            _per_run("DyME drifts from memorizing to exploring", PURE, 0.0, "memorize_drift", where="paper",
                     reported="figure")],
        "Lower costs": [
            _per_run("A step of Pure DyME takes no longer than one of GRPO", PURE, GRPO, "step_seconds", -1,
                     reported=f"{POSTER['pure_dyme'][1]} s against {POSTER['grpo'][1]} s"),
            Claim("Full DyME's step costs more than Pure DyME's", "poster",
                  f"{POSTER['full_dyme'][1]} s against {POSTER['pure_dyme'][1]} s", None,
                  "the difference is the external model's time; here rule experts answer at once, in both")],
        "Ablation": [
            better(f"Full DyME beats DyME {label}", FULL, _setting("ablation", label), where="paper",
                   reported=_against(REPORTED_ABLATION["Full DyME"], REPORTED_ABLATION[label]))
            for label in ("without memorize", "without explore", "without checker")],  # without refiner: Pure DyME, above
        "Switches, on refined targets": [
            better(f"The binary switch beats {label}", _setting("switch", binary), _setting("switch", label), where="paper",
                   reported=_against(REPORTED_SWITCHES[binary], REPORTED_SWITCHES[label])) for label in switches],
        "Rollouts and supervision, on refined targets": [
            better("More rollouts a prompt help DyME (G = 16 against 2)", _setting("rollouts", "G = 16", "pure_dyme"),
                   _setting("rollouts", "G = 2", "pure_dyme"), where="paper", reported="figure"),
            better("More rollouts a prompt help DyME at as many prompts (G = 8 against 2)",
                   _setting("rollouts", "G = 8", "pure_dyme"), _setting("prompts", "4 prompts", "pure_dyme")),
            better("DyME with two rollouts a prompt beats CoT-SFT on as many prompts (16 a step)",
                   *(_setting("prompts", "16 prompts", method) for method in ("pure_dyme", "sft"))),
            better("Better targets help DyME (high against low)", _setting("quality", "high", "pure_dyme"),
                   _setting("quality", "low", "pure_dyme"), where="poster",
                   reported="68.5 (GPT-4o) against 64.9 (Qwen2.5-14B)"),
            better("Right facts help DyME (none wrong against half)",
                   *(_setting("corruption", share, "pure_dyme") for share in ("0%", "50%")))],
        "Kinds of question that training left out (gap and count), on refined targets": [
            better(f"{METHOD_NAMES[method]} is above {METHOD_NAMES[other]} there", _setting("kinds", unlike, method),
                   _setting("kinds", unlike, other), kinds=plan.LEFT_OUT_KINDS)
            for method, other in (("pure_dyme", "sft"), ("pure_dyme", "grpo"), ("grpo", "sft"))],
        "Real models and data": [
            Claim("DyME raises LLaVA-OV-0.5B, SmolVLM-500M and InternVL2-1B on charts", "paper", PAPER_GAINS, None,
                  "needs their weights, ChartQA and a GPU (profile gpu, not run)"),
            Claim("DyME helps in medical VQA and geometry", "paper", "in the averages above", None,
                  "needs those data sets, real weights and a GPU"),
            Claim("DyME helps a text model on GSM8K", "paper", "Qwen2.5-0.5B: +5.8", None, "needs its weights and a GPU"),
            Claim("Full DyME with a 7B supervisor comes close to a 14B one", "poster", "66.8 against 67.5", None,
                  "needs language models that can judge; rule experts stand in")]}


def table(evidence: Evidence, smol: Evidence | None = None) -> pd.DataFrame:
    """One line per claim: Section, Claim, Where, Reported, Measured here, By seed, p (Holm), Verdict, Rests on.

    The p-values are adjusted for the number of claims that have one (`statistics.holm`).

    Args:
        smol: the smol world's evidence; its differences then have a column of their own, before the last.
    """
    checked = [(section, claim, claim.check(evidence)) for section, group in claims().items() for claim in group]
    tested = [number for number, (_, _, found) in enumerate(checked) if found.p is not None]
    adjusted = dict(zip(tested, statistics.holm([checked[number][2].p for number in tested]), strict=True))
    frame = pd.DataFrame([
        {"Section": section, "Claim": claim.words, "Where": claim.where, "Reported": claim.reported,
         "Measured here": found.measured, "By seed": found.by_seed or "–",
         "p (Holm)": f"{adjusted[number]:.2g}" if number in adjusted else "–", "Verdict": found.verdict,
         "Rests on": found.rests_on} for number, (section, claim, found) in enumerate(checked)])
    if smol is not None:
        frame.insert(len(frame.columns) - 1, "Smol world", [_elsewhere(claim.check(smol)) for _, claim, _ in checked])
    return frame


def _elsewhere(found: Measured) -> str:
    """What another world says of a claim: the difference, with a verdict where it has seeds enough."""
    if found.verdict in (NOT_MEASURED, NOT_TESTABLE):
        return "–"
    seeds = len(found.by_seed.split(", "))
    return f"{found.measured}; {found.verdict if seeds >= MIN_SEEDS else f'no verdict from {seeds} seeds'}"


def findings(evidence: Evidence) -> list[str]:
    """A sentence for each switch or trained baseline that beats the binary switch on the same targets, by `judge` and on every
    shared seed."""
    binary, *switches = plan.points("switch")
    refined, taught = plan.points("refined", methods=BASELINES[1:]), plan.points("main", methods=BASELINES[1:])
    pairs = [(point, binary.setting) for point in switches + refined] + [(point, PURE) for point in taught]
    found = []
    for (point, rival), split in itertools.product(pairs, ("test", "unseen")):
        parts, seeds = statistics.shared(evidence.rows, (point.setting, rival), split)
        if len(seeds) < MIN_SEEDS:
            continue
        first, second = (score_matrix(part, "right") for part in parts)
        estimate, gaps = statistics.paired(first, second), 100 * (first.mean(axis=1) - second.mean(axis=1))
        if judge(estimate) == REPRODUCED and gaps.min() > 0:
            found.append(f"{point.label} beats the binary switch (Pure DyME) on {split} by {100 * estimate.value:.1f} points "
                         f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}], on each of {len(seeds)} seeds "
                         f"({gaps.min():.1f} to {gaps.max():.1f}).")
    return found


def tally(frame: pd.DataFrame) -> list[str]:
    """How many claims of a `table` have which verdict, in two sentences."""
    counts = Counter(frame["Verdict"])
    stay = (frame["Verdict"] == REPRODUCED) & (frame["p (Holm)"].replace("–", "0").astype(float) < 0.05)
    return ["Of {} claims: {}.".format(len(frame), ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)),
            f"Of those reproduced {stay.sum()} stay so at p = 0.05, adjusted for all of them."]


def versions(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Which runs are of which version of the results and of which commits, in a sentence each."""
    sentences = []
    for version in sorted({run.get("results_version", 1) for run in manifests}, reverse=True):
        runs = [run for run in manifests if run.get("results_version", 1) == version]
        commits = sorted({(run.get("commit") or "unknown")[:7] for run in runs})
        main = sum(not run["variant"] for run in runs)
        sentences.append(f"Version {version} of the results: {len(runs)} runs, {main} of them the main table's; "
                         f"commits {', '.join(commits)}.")
    return " ".join(sentences)


def markdown(frame: pd.DataFrame, sentences: Sequence[str], manifests: Sequence[Mapping[str, Any]]) -> str:
    """The whole of CLAIMS.md, from `table`, `findings` and the manifests of all runs; the same rows give the same bytes."""
    parts = ["# Claims", "Generated by `make figures` from the stored rows; not to be edited.", RULE, *tally(frame),
             f"{versions(manifests)} `registry.csv` has the commit of each run."]
    for section, group in frame.groupby("Section", sort=False):
        parts += [f"## {section}", markdown_table(group.drop(columns="Section"))]
    parts += ["## Findings of ours", "Switches and baselines that beat the paper's binary switch: 95 % interval above 0, and "
              "ahead on every shared seed.", "\n".join(f"- {sentence}" for sentence in sentences) or "None so far."]
    return "\n\n".join(parts) + "\n"
