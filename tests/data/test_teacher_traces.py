"""A teacher's traces: right in every wording, the same every time, and what a run's training set holds."""
from __future__ import annotations

import pytest

from dyme_core import config
from dyme_core.data import datasets
from dyme_core.data.schema import item_of
from dyme_core.data.teacher_traces import WRITINGS, with_teacher_traces
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import DEFAULT_TEMPLATES, own_targets

RECORDS = datasets.mini_records("train", 140, seed=0)


@pytest.mark.parametrize("wordings", [1, 3, 8])
def test_every_trace_is_rated_high_and_is_none_of_the_refiner_s_own(wordings: int) -> None:
    for record in with_teacher_traces(RECORDS, wordings):
        item = item_of(record.row)
        assert RuleChecker().judge(item.trace, item).rating == "high", item.trace
        assert item.trace not in [template.fill(item) for template in DEFAULT_TEMPLATES]


def test_a_record_s_trace_depends_on_its_id_alone() -> None:
    some = with_teacher_traces(RECORDS[::2], 8)
    assert some == with_teacher_traces(RECORDS, 8)[::2]
    texts = {item_of(record.row).trace for record in with_teacher_traces(RECORDS, 8)}
    assert len(texts) == len(RECORDS)


@pytest.mark.parametrize("wordings", [0, len(WRITINGS) + 1])
def test_a_number_of_wordings_that_there_is_not_is_refused(wordings: int) -> None:
    with pytest.raises(ValueError, match="wordings must be from 1 to 8"):
        with_teacher_traces(RECORDS, wordings)


def test_the_training_split_of_a_profile_memorizes_them_and_no_other_has_them() -> None:
    profile = config.load_profile("mini", **{"world.teacher_wordings": 8, "world.train_questions": 20,
                                             "world.validation_questions": 20})
    rows = [record.row for record in datasets.of_profile(profile, "train", 0)]
    assert all(target.startswith(item_of(row).trace) for row, target in zip(rows, own_targets(rows), strict=True))
    assert not any(item_of(record.row).trace for record in datasets.of_profile(profile, "validation", 0))
