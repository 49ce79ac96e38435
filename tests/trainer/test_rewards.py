"""Scores of an answer and the rewards of a rollout."""
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyme_core.data import metrics
from dyme_core.trainer import rewards

EDGE_TABLE = [  # docs/evaluation.md, the whole table: prediction, target, common rule
    ("2%", "2", 0), ("0.02", "2%", 1), ("57", "57%", 0), ("57", "0.57", 0), ("1,234", "1234", 0), ("$5", "5", 0),
    ("5 million", "5", 0), ("1e3", "1000", 1), ("2008", "2010", 1), ("3", "3.15", 1), ("0", "0", 1), ("0.0", "0", 0),
    ("Yes.", "Yes", 0), ("[Yes, No]", "[Yes, No]", 1), ("NaN", "NaN", 0), ("-5", "5", 0),
]
GOOD = "Germany has 12 and 6 here .\n<answer>12</answer>"
WRONG = "Germany has 12 and 6 here .\n<answer>13</answer>"
BARE = "<answer>12</answer>"
NO_FLAG = "Germany has 12 and 6 here ."


def as_messages(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def as_parts(text: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]}]


SHAPES = pytest.mark.parametrize("shape", [str, as_messages, as_parts])


@pytest.mark.parametrize(("prediction", "target", "expected"), EDGE_TABLE)
def test_common_rule_on_the_edge_table(prediction: str, target: str, expected: int) -> None:
    assert metrics.relaxed_accuracy(prediction, target) == expected


def test_a_year_must_be_met_exactly_by_the_year_exact_rule_alone() -> None:
    assert metrics.score_answer("2008", "2010") == {"relaxed": 1, "strict": 0, "year_exact": 0}
    assert metrics.score_answer(" 2010 ", "2010") == {"relaxed": 1, "strict": 1, "year_exact": 1}
    assert metrics.score_answer("3", "3.15") == {"relaxed": 1, "strict": 0, "year_exact": 1}


@pytest.mark.parametrize(("target", "near", "is_year"), [("1799", "1798", False), ("1800", "1801", True),
                                                         ("2100", "2099", True), ("2101", "2100", False),
                                                         ("2010.5", "2010", False)])
def test_years_run_from_1800_to_2100(target: str, near: str, is_year: bool) -> None:
    assert metrics.year_exact_accuracy(near, target) == (0 if is_year else 1)


def test_strict_compares_numbers_and_not_spellings() -> None:
    assert metrics.strict_accuracy("26", "26.0") == 1
    assert metrics.strict_accuracy("26.01", "26") == 0
    assert metrics.strict_accuracy("yes ", "Yes") == 1


def test_no_parsed_answer_scores_zero_by_every_rule() -> None:
    assert metrics.score_answer(None, "12") == {"relaxed": 0, "strict": 0, "year_exact": 0}


def test_the_tolerance_is_relative_to_the_target() -> None:
    assert metrics.relaxed_accuracy("105", "100") == 1
    assert metrics.relaxed_accuracy("106", "100") == 0
    assert metrics.relaxed_accuracy("-95", "-100") == 1
    assert metrics.relaxed_accuracy("110", "100", tolerance=0.1) == 1


@pytest.mark.parametrize(("prediction", "target", "expected"), [
    ("1,234", "1234", 1), ("$5", "5", 1), ("-$5", "-5", 1), ("5 million", "5", 1), ("Yes.", "Yes", 1),
    ("5 million", "5 thousand", 0), ("$5", "5 €", 0), ("1,2", "12", 0), ("57", "57%", 1), ("2%", "2", 1), ("6", "5", 0),
    ("no", "yes", 0), ("3.", "3", 1)])
def test_the_lenient_rule_forgives_spelling_and_nothing_else(prediction: str, target: str, expected: int) -> None:
    assert metrics.lenient_accuracy(prediction, target) == expected


@given(st.text(max_size=8), st.text(max_size=8))
def test_strict_implies_year_exact_implies_relaxed_implies_lenient(prediction: str, target: str) -> None:
    scores = metrics.score_answer(prediction, target)
    assert scores["strict"] <= scores["year_exact"] <= scores["relaxed"] <= metrics.lenient_accuracy(prediction, target)


@SHAPES
def test_format_reward_wants_one_flag_with_thinking_before_it(shape) -> None:
    twice = GOOD + BARE
    assert rewards.format_reward([shape(text) for text in (GOOD, WRONG, BARE, NO_FLAG, twice)]) == [1, 1, 0, 0, 0]


@SHAPES
def test_accuracy_reward_reads_the_flag_whatever_the_format(shape) -> None:
    completions = [shape(text) for text in (GOOD, WRONG, BARE, NO_FLAG)]
    assert metrics.accuracy_reward(completions, ["12.0", "12", "12", "12"], item=["a"] * 4) == [1, 0, 1, 0]


def test_training_is_strict_about_numbers() -> None:
    assert metrics.accuracy_reward([GOOD, GOOD], ["12.1", "12"]) == [0, 1]


def test_accuracy_reward_refuses_answers_that_do_not_line_up() -> None:
    with pytest.raises(ValueError):
        metrics.accuracy_reward([GOOD, GOOD], ["12"])


class ScriptedChecker:
    def __init__(self, score: float | None) -> None:
        self.asked, self.early, self.reply = [], [], score

    def prefetch(self, thinkings: list[str], records: list[dict]) -> None:
        self.early += thinkings

    def score_all(self, thinkings: list[str], records: list[dict]) -> list[float | None]:
        self.asked += zip(thinkings, records, strict=True)
        return [self.reply] * len(thinkings)


@SHAPES
def test_thinking_reward_asks_the_checker_about_well_formed_completions_alone(shape) -> None:
    checker = ScriptedChecker(0.5)
    reward = rewards.ThinkingReward(checker)
    scores = reward([shape(GOOD), shape(BARE)], prompts=["p", "p"], item=["a", "b"], facts=[["x"], ["y"]],
                    trainer_state=object())
    assert scores == [0.5, 0.0]
    assert checker.asked == [("Germany has 12 and 6 here .", {"item": "a", "facts": ["x"]})]


@pytest.mark.parametrize("score", [None, -0.1, 1.5])
def test_thinking_reward_refuses_a_score_outside_its_range(score) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        rewards.ThinkingReward(ScriptedChecker(score))([GOOD], item=["a"])


def test_a_failing_checker_is_never_a_reward_of_zero() -> None:
    class Failing:
        def score_all(self, thinkings: list[str], records: list[dict]) -> list[float]:
            raise RuntimeError("server is down")

    with pytest.raises(RuntimeError, match="server is down"):
        rewards.ThinkingReward(Failing())([GOOD])


def test_trl_can_name_each_reward_function() -> None:
    names = [function.__name__ for function in rewards.dyme_rewards(ScriptedChecker(1.0))]
    assert names == ["format_reward", "accuracy_reward", "thinking_reward"]


GROUPS = {  # G = 3: which completions are asked about, with mastered groups skipped and explored
    "mixed": ([GOOD, WRONG, BARE], [True, True, False], [True, True, False]),  # BARE has no thinking to score
    "all wrong": ([WRONG, WRONG, BARE], [False] * 3, [False] * 3),
    "all right": ([GOOD] * 3, [False] * 3, [True] * 3),
    "part": ([WRONG, WRONG], [True] * 2, [True] * 2),  # the rest is on another process, and may be right
}


def thinking_of(names: list[str], **options) -> tuple[list[float], ScriptedChecker, list[dict]]:
    """Scores, checker and the records of all-wrong prompts, for a batch of the named groups."""
    checker, failed = ScriptedChecker(0.5), []
    reward = rewards.ThinkingReward(checker, group_size=3, on_all_wrong=failed.extend, **options)
    texts = [text for name in names for text in GROUPS[name][0]]
    items = [name for name in names for _ in GROUPS[name][0]]
    return reward(texts, item=items, answer=["12"] * len(texts)), checker, failed


@pytest.mark.parametrize("mastered", ["skip", "explore"])
@pytest.mark.parametrize("names", [["mixed", "all wrong", "all right"], ["part", "all right", "mixed"], ["all wrong"]])
def test_only_groups_whose_scores_teach_are_asked_about(names: list[str], mastered: str) -> None:
    scores, checker, failed = thinking_of(names, mastered=mastered)
    wanted = [is_asked for name in names for is_asked in GROUPS[name][2 if mastered == "explore" else 1]]
    texts = [text for name in names for text in GROUPS[name][0]]
    assert len(checker.asked) == sum(wanted)
    for score, is_asked, text in zip(scores, wanted, texts, strict=True):
        assert score == 0.5 if is_asked else score == 0.0 if text == BARE else score != score, "not asked is no 0"
    assert failed == [{"item": "all wrong", "answer": "12"}] * names.count("all wrong")


def test_an_answer_without_thinking_makes_a_group_mixed_only_where_it_counts_as_correct() -> None:
    for needs_format, num_asked in ((True, 0), (False, 2)):
        checker = ScriptedChecker(1.0)
        reward = rewards.ThinkingReward(checker, group_size=3, correct_needs_format=needs_format)
        reward([WRONG, BARE, WRONG], item=["a"] * 3, answer=["12"] * 3)
        assert len(checker.asked) == num_asked


def test_without_a_group_size_every_well_formed_completion_is_measured() -> None:
    checker = ScriptedChecker(0.5)
    assert rewards.ThinkingReward(checker)([WRONG, WRONG, BARE], item=["a"] * 3, answer=["12"] * 3) == [0.5, 0.5, 0.0]


def test_the_accuracy_that_is_trained_with_decides_which_groups_are_mixed() -> None:
    def lenient(completions, answer, item, **kwargs):
        return [float(text == WRONG) for text in completions]

    checker = ScriptedChecker(0.5)
    functions = rewards.dyme_rewards(checker, lenient, group_size=3)
    assert functions[:2] == [rewards.format_reward, lenient]
    functions[2]([WRONG, NO_FLAG, BARE], item=["a"] * 3, answer=["12"] * 3)
    assert [thinking for thinking, _ in checker.asked] == [NO_FLAG], "only WRONG is right, so that the group is mixed"


def test_targets_are_ordered_before_the_checker_is_waited_for() -> None:
    order = []

    class Slow(ScriptedChecker):
        def score_all(self, thinkings: list[str], records: list[dict]) -> list[float | None]:
            order.append("check")
            return super().score_all(thinkings, records)

    reward = rewards.ThinkingReward(Slow(0.5), group_size=2, on_all_wrong=lambda records: order.append("refine"))
    reward([GOOD, WRONG, WRONG, WRONG], item=["a", "a", "b", "b"], answer=["12"] * 4)
    assert order == ["refine", "check"]


@pytest.mark.parametrize("mastered", ["skip", "explore"])
@pytest.mark.parametrize("size", [3, 4], ids=["whole", "part"])
def test_what_is_asked_early_is_what_is_asked_in_the_end(size: int, mastered: str) -> None:
    """Every group of three rollouts, ending in every order; of a group of four one rollout is on another process."""
    for texts in itertools.product([GOOD, WRONG, BARE], repeat=3):
        for order in itertools.permutations(range(3)):
            checker, failed = ScriptedChecker(0.5), []
            reward = rewards.ThinkingReward(checker, group_size=size, mastered=mastered, on_all_wrong=failed.extend)
            end = reward.watch([{"item": "a", "answer": "12"}] * 3)
            for place in order:
                end({place: texts[place]})
            early, early_failed = sorted(checker.early), bool(failed)
            reward(list(texts), item=["a"] * 3, answer=["12"] * 3)
            assert early == sorted(thinking for thinking, _ in checker.asked), "each once"
            assert early_failed == bool(failed) == (size == 3 and GOOD not in texts)


def test_a_mixed_group_is_known_before_its_last_rollout_ends() -> None:
    checker, scored = ScriptedChecker(0.5), []

    def accuracy(completions, **columns):
        scored.extend(completions)
        return rewards.accuracy_reward(completions, **columns)

    end = rewards.ThinkingReward(checker, group_size=4, accuracy=accuracy).watch([{"item": "a", "answer": "12"}] * 4)
    for ended, num_asked in (({0: GOOD}, 0), ({2: WRONG}, 2), ({1: BARE}, 2), ({3: WRONG}, 3)):
        end(ended)
        assert len(checker.early) == num_asked, "a trace is asked for once"
    assert scored == [GOOD, WRONG, BARE, WRONG], "and scored once"


@pytest.mark.parametrize(("names", "chosen", "roles"), [
    (["format", "accuracy", "thinking"], None, ["format", "accuracy", "thinking"]),
    (["mine", "format", "accuracy"], None, ["accuracy", "format", "other"]),  # nobody says that this accuracy is ours
    (["mine", "accuracy", "thinking"], None, ["other", "accuracy", "thinking"]),
    (["mine", "accuracy", "thinking"], "mine", ["accuracy", "other", "thinking"]),
    (["format", "mine", "yours"], "yours", ["format", "other", "accuracy"])])
def test_one_reward_says_what_is_correct(names: list[str], chosen: str | None, roles: list[str]) -> None:
    functions = dict(zip(["format", "accuracy", "thinking"], rewards.dyme_rewards(ScriptedChecker(1.0)), strict=True))
    functions |= {name: lambda completions, **columns: [0.0] * len(completions) for name in ("mine", "yours")}
    assert rewards.roles_of([functions[name] for name in names], names, chosen) == roles


def test_rewards_that_cannot_say_what_is_correct_are_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"must name one of the reward functions \['format_reward'\]: got 'exact'"):
        rewards.roles_of([rewards.format_reward], ["format_reward"], "exact")
    with pytest.raises(ValueError, match="must say which rollouts are correct: got .*; add one that scores answers"):
        rewards.roles_of([rewards.format_reward], ["format_reward"])


def test_a_score_that_is_not_known_is_passed_on_as_unknown() -> None:
    [score] = rewards.ThinkingReward(ScriptedChecker(float("nan")))([GOOD], item=["a"])
    assert score != score
