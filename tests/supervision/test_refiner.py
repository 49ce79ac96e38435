"""The rule refiner and the template bank: what it learns from traces, and the targets written with it."""
from __future__ import annotations

import dataclasses
import json
import random

import pytest
from scripted_judge import GOOD, ITEM

from dyme_core.data import datasets, schema
from dyme_core.data.schema import Fact, item_of
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import (
    CANDIDATES,
    DEFAULT_TEMPLATES,
    FIRST_TEMPLATE,
    RuleRefiner,
    Template,
    TemplateBank,
    TraceRefiner,
    structure_of,
)
from scripts.checker_benchmark import WRITERS


def test_the_bank_puts_the_most_seen_template_first_and_breaks_ties_by_age() -> None:
    bank, item = TemplateBank(), ITEM
    steps = DEFAULT_TEMPLATES[1].fill(item)
    assert bank.best() == FIRST_TEMPLATE
    assert bank.observe(steps, item)
    assert bank.best() == FIRST_TEMPLATE  # one each: the older one stays
    assert bank.observe(steps, item)
    assert bank.best().text == "Step 1 is to extract {facts}. Step 2 is to compute {working}. Therefore, {conclusion}."


def test_the_refiner_writes_what_the_model_says_well() -> None:
    bank, item = TemplateBank(), ITEM
    own = f"So, {schema.write_facts(item.evidence)}. As {item.working}, {item.conclusion}."
    for _ in range(2):
        assert bank.observe(own, item)
    other = next(item_of(record.row) for record in datasets.mini_records("train", 60, 0) if record.kind == "sum")
    target = RuleRefiner(bank).refine(other)
    assert target == f"So, {schema.write_facts(other.evidence)}. As {other.working}, {other.conclusion}."


@pytest.mark.parametrize("thinking", ["", "the greater gap is in 2010", GOOD + " In 1999 it was so.",
                                      GOOD.replace("Comparing", "\ufffd"), GOOD.replace("Comparing", "\x07")])
def test_the_bank_learns_nothing_from_what_is_no_structure(thinking: str) -> None:
    bank = TemplateBank()
    assert not bank.observe(thinking, ITEM)
    assert bank.counts == {FIRST_TEMPLATE.text: 1}


def test_a_bank_restored_goes_on_as_the_one_saved() -> None:
    saved, restored, item = TemplateBank(), TemplateBank(), ITEM
    saved.observe(DEFAULT_TEMPLATES[1].fill(item), item)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert restored == saved
    for bank in (saved, restored):
        bank.observe(DEFAULT_TEMPLATES[1].fill(item), item)
    assert restored.best() == saved.best() == DEFAULT_TEMPLATES[1]
    state = saved.state_dict()
    saved.observe(GOOD, item)
    assert state != saved.state_dict()  # a checkpoint does not change behind its back


@pytest.mark.parametrize("text", ["no slots here", "{facts} only", "{facts} {facts} {conclusion}",
                                  "{facts} {conclusion} {other}"])
def test_a_template_without_its_slots_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a template needs {facts} or {value1}, ... and {conclusion} or {answer} once"):
        Template(text)


@pytest.mark.parametrize(("change", "reason"), [
    ({"answer": "2012"}, "closes on '2010', not on the answer '2012'"),
    ({"working": "30 - 10 = 21 > 25 - 20 = 5"}, "arithmetic does not hold"),
    ({"evidence": (Fact("2010", "FAV", 33.0),)}, "claims are wrong"),
    ({"facts": ()}, "names no fact"),
])
def test_the_refiner_refuses_a_wrong_record(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=f"no target for .* passes the checker: .*{reason}.*; check the record"):
        RuleRefiner().refine(dataclasses.replace(ITEM, **change))


def test_a_trace_of_the_data_set_is_the_target_where_a_response_can_hold_it() -> None:
    stored = ("First add 2 and 3.", "", "Too short here", "It says <answer>5</answer> on the label")
    records = [{"answer": "5", "supervision": schema.known(trace=trace)} for trace in stored]
    assert TraceRefiner().refine_all(records) == ["First add 2 and 3.", None, None, None]


def test_a_trace_that_states_a_part_twice_is_no_template() -> None:
    item, bank = dataclasses.replace(ITEM, answer="yes", conclusion="the answer is yes"), TemplateBank()
    once = GOOD.replace(ITEM.conclusion, item.conclusion)
    assert not bank.observe(f"{once} So the answer is yes.", item), "the second one would conclude for every other question"
    assert bank == TemplateBank() and bank.observe(once, item)


def test_a_structure_may_state_each_fact_in_words_of_its_own() -> None:
    evidence = (Fact("2010", "FAV", 40.0), *ITEM.evidence[1:])
    item = dataclasses.replace(ITEM, facts=evidence, evidence=evidence, working="40 - 10 = 30 > 25 - 20 = 5")
    bank = TemplateBank()
    assert bank.observe("In 2010 FAV is 40 and UNF is 10, in 2012 they are 25 and 20. So 40 - 10 = 30 is more than "
                        "25 - 20 = 5, the answer is 2010.", item)
    assert list(bank.counts)[1] == ("In {entity1} {attribute1} is {value1} and {attribute2} is {value2}, in {entity3} they are "
                                    "{value3} and {value4}. So {value1} - {value2} = {result1} is more than "
                                    "{value3} - {value4} = {result2}, the answer is {answer}.")
    assert bank.best() == FIRST_TEMPLATE and next(bank.suiting(ITEM)) == FIRST_TEMPLATE


@pytest.mark.parametrize("writer", WRITERS)
def test_targets_in_any_wording_that_the_bank_has_read_are_right(writer) -> None:
    rng, items = random.Random(0), [item_of(record.row) for record in datasets.mini_records("train", 160, 0)]
    bank, checker = TemplateBank(counts={}), RuleChecker()
    num_read = 0
    for item in items[:120]:
        is_read, values = bank.observe(writer(item, rng), item), [fact.value for fact in item.evidence]
        assert is_read or len(values) > 2 or len(set(values)) < len(values), "two different values can be told apart"
        num_read += is_read
    assert num_read >= 80 and all("1" in text or "facts" in text for text in bank.counts)
    refiner = RuleRefiner(bank)
    for item in items[120:]:
        found = refiner.candidates(item)
        assert found[0] == refiner.refine(item) and len(set(found)) == len(found) <= CANDIDATES
        assert all(checker.judge(text, item).rating == "high" for text in found)


def test_a_structure_without_working_is_for_look_ups_alone() -> None:
    items = [item_of(record.row) for record in datasets.mini_records("train", 60, 0)]
    lookup, other = next(item for item in items if not item.working), next(item for item in items if item.working)
    bank = TemplateBank()
    for _ in range(3):
        assert bank.observe(FIRST_TEMPLATE.fill(lookup), lookup)
    assert next(bank.suiting(lookup)) != FIRST_TEMPLATE == next(bank.suiting(other))
    assert next(bank.suiting(lookup)).fill(lookup) == FIRST_TEMPLATE.fill(lookup)


def test_the_number_of_a_step_is_no_part_of_the_question() -> None:
    evidence = (Fact("2010", "FAV", 3.0), Fact("2010", "UNF", 1.0))
    item = dataclasses.replace(ITEM, facts=evidence, evidence=evidence, answer="2", working="3 - 1 = 2",
                               conclusion="the difference is 2")
    assert structure_of(DEFAULT_TEMPLATES[1].fill(item), item) == DEFAULT_TEMPLATES[1].text
