"""The claims of poster and paper, declared: in words, with the numbers reported for them and how each is measured here."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dyme_core.config import METHOD_NAMES
from study import plan, selection, verdicts
from study.contrasts import REPORTED_ABLATION, REPORTED_SWITCHES
from study.figures.mechanism import LEFT_OUT
from study.statistics import NoRows
from study.verdicts import NOT_MEASURED, NOT_TESTABLE, Evidence, Measured

# Reported by the poster (ChartQA) or the paper (second-hand, docs/method.md); never measured here. Percentages and seconds.
POSTER = {"grpo": (60.8, 14.8), "pure_dyme": (64.9, 14.0), "full_dyme": (67.5, 23.4)}
PAPER_SMOLVLM = {"base": 49.9, "sft": 44.1, "grpo": 44.0, "sft_grpo": 45.4, "dyme": 55.6}  # average of its data sets
PAPER_GAINS = "SmolVLM-500M 49.9 to 55.6, LLaVA-OV-0.5B 50.7 to 55.4, InternVL2-1B 56.3 to 58.1"
MOST = 50.0  # per cent: "most groups"
PURE, FULL, GRPO, SFT = "svlm-pure_dyme", "svlm-full_dyme", "svlm-grpo", "svlm-sft"


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


def _beats(words: str, where: str, reported: str, first: str, second: str, metric: str = "correct",
           split: str = "test", kinds: Sequence[str] = ()) -> Claim:
    return Claim(words, where, reported, lambda evidence: verdicts.items(evidence, first, second, metric, split, kinds))


def _per_run(words: str, where: str, first: str, second: str | float, measure: Callable, unit: str, what: str, sign: int = 1,
             reported: str = "–") -> Claim:
    return Claim(words, where, reported,
                 lambda evidence: verdicts.runs(evidence, first, second, measure, unit, what, sign))


def _performance() -> list[Claim]:
    pure, full, grpo = (POSTER[method][0] for method in ("pure_dyme", "full_dyme", "grpo"))
    found = [_beats("Pure DyME beats GRPO", "poster", _against(pure, grpo), PURE, GRPO),
             _beats("Full DyME beats Pure DyME", "poster", _against(full, pure), FULL, PURE)]
    for split, addition in (("test", ""), ("unseen", ", unseen styles and values")):
        for method in ("base", "sft", "grpo", "sft_grpo"):
            reported = _against(PAPER_SMOLVLM["dyme"], PAPER_SMOLVLM[method]) if split == "test" else "–"
            found.append(_beats(f"DyME beats {METHOD_NAMES[method]}{addition}", "paper" if split == "test" else "ours",
                                reported, FULL, f"svlm-{method}", "strict" if method == "base" else "correct", split))
    return found


def _against(first: float, second: float) -> str:
    return f"{first} against {second}"


def _variant(experiment: str, label: str, method: str | None = None) -> str:
    """The setting of a declared point, by its label."""
    (found,) = [point for point in selection.points(experiment, method and (method,)) if point.label == label]
    return selection.setting_of(found)


def claims() -> dict[str, list[Claim]]:
    """All claims, by section."""
    switches = [label for label in REPORTED_SWITCHES if label != plan.SWITCH_NAMES["binary"]]
    return {
        "Preliminary study": [
            Claim("SFT and RL have one gradient form: the memorize row's gradient is the SFT gradient", "poster, paper",
                  "proof", verdicts.gradient_form)],
        "The two failures": [
            _beats("CoT-SFT gives a small VLM more pseudo thinking than a large one", "poster", "examples", SFT,
                   "large-sft", "pseudo"),
            _beats("After CoT-SFT the large VLM's thinking is better grounded than the small one's", "poster", "examples",
                   "large-sft", SFT, "groundedness"),
            _beats("CoT-SFT leaves a small VLM below its base", "paper", _against(PAPER_SMOLVLM["sft"], PAPER_SMOLVLM["base"]),
                   "svlm-base", SFT, "strict"),
            _beats("GRPO leaves a small VLM below its base", "paper", _against(PAPER_SMOLVLM["grpo"], PAPER_SMOLVLM["base"]),
                   "svlm-base", GRPO, "strict"),
            _per_run("Advantages collapse: most of GRPO's groups teach nothing", "poster", GRPO, MOST,
                     verdicts.zero_variance, "%", "groups whose rewards are all equal"),
            _beats("Under GRPO the thinking is not grounded; under DyME it is", "poster", "examples", PURE, GRPO,
                   "groundedness")],
        "Better performance": _performance(),
        "Stable training": [
            _per_run(f"A DyME run is steadier than a GRPO run over its last {verdicts.LAST_EVALUATIONS} evaluations", "poster",
                     PURE, GRPO, verdicts.restlessness, "points", "standard deviation within a run, trend included", -1,
                     "figure"),
            _per_run("DyME falls less from its best evaluation than GRPO", "poster", PURE, GRPO, verdicts.drop_from_best,
                     "points", "best less last", -1, "figure"),
            _per_run("DyME's seeds differ less than GRPO's", "ours", PURE, GRPO, verdicts.distance_between_seeds, "points",
                     "distance from the seeds' median", -1),
            _per_run("DyME drifts from memorizing to exploring", "paper", PURE, 0.0, verdicts.memorize_drift, "points",
                     "memorize groups, first quarter less last", 1, "figure")],
        "Lower costs": [
            _per_run("A step of Pure DyME takes no longer than one of GRPO", "poster", PURE, GRPO, verdicts.step_seconds,
                     "s", "CPU seconds a step", -1, f"{POSTER['pure_dyme'][1]} s against {POSTER['grpo'][1]} s"),
            Claim("Full DyME's step costs more than Pure DyME's", "poster",
                  f"{POSTER['full_dyme'][1]} s against {POSTER['pure_dyme'][1]} s", None,
                  "the difference is the external model's time; here rule experts answer at once, in both")],
        "Ablation": [
            _beats(f"Full DyME beats DyME {label}", "paper", _against(REPORTED_ABLATION["Full DyME"], number), FULL,
                   _variant("ablation", label)) for label, number in REPORTED_ABLATION.items() if label != "Full DyME"],
        "Switches": [
            *(_beats(f"The binary switch beats {label}", "paper",
                     _against(REPORTED_SWITCHES[plan.SWITCH_NAMES["binary"]], REPORTED_SWITCHES[label]), PURE,
                     _variant("switch", label)) for label in switches),
            *(_beats(f"Full DyME beats {label}", "paper", _against(POSTER["full_dyme"][0], REPORTED_SWITCHES[label]), FULL,
                     _variant("switch", label)) for label in switches)],
        "Rollouts and supervision": [
            _beats("More rollouts a prompt help DyME (G = 16 against 2)", "paper", "figure",
                   _variant("rollouts", "G = 16", "pure_dyme"), _variant("rollouts", "G = 2", "pure_dyme")),
            _beats("More rollouts a prompt help DyME at as many prompts (G = 8 against 2)", "ours", "–", PURE,
                   _variant("prompts", "4 prompts", "pure_dyme")),
            _beats("DyME with two rollouts a prompt beats CoT-SFT on as many prompts (16 a step)", "ours", "–",
                   _variant("prompts", "16 prompts", "pure_dyme"), _variant("prompts", "16 prompts", "sft")),
            _beats("Better targets help DyME (high against low)", "poster", "68.5 (GPT-4o) against 64.9 (Qwen2.5-14B)",
                   _variant("quality", "high", "pure_dyme"), _variant("quality", "low", "pure_dyme")),
            _beats("Right facts help DyME (none wrong against half)", "ours", "–", PURE,
                   _variant("corruption", "50.0%", "pure_dyme")),
            Claim("DyME is for small VLMs: the larger sibling gains less", "paper", PAPER_GAINS,
                  lambda evidence: verdicts.gains(evidence, (PURE, "svlm-base"), ("large-pure_dyme", "large-base")))],
        "Kinds of question that training left out (gap and count)": [
            _beats(f"{METHOD_NAMES[method]} is above {METHOD_NAMES[other]} there", "ours", "–",
                   *(_variant("kinds", "without gaps and counts", each) for each in (method, other)), kinds=LEFT_OUT)
            for method, other in (("pure_dyme", "sft"), ("pure_dyme", "grpo"), ("grpo", "sft"))],
        "Real models and data": [
            Claim("DyME raises LLaVA-OV-0.5B, SmolVLM-500M and InternVL2-1B on charts", "paper", PAPER_GAINS, None,
                  "needs their weights, ChartQA and a GPU (profile gpu, not run)"),
            Claim("DyME helps in medical VQA and geometry", "paper", "in the averages above", None,
                  "needs those data sets, real weights and a GPU"),
            Claim("DyME helps a text model on GSM8K", "paper", "Qwen2.5-0.5B: +5.8", None, "needs its weights and a GPU"),
            Claim("Full DyME with a 7B supervisor comes close to a 14B one", "poster", "66.8 against 67.5", None,
                  "needs language models that can judge; rule experts stand in")]}
