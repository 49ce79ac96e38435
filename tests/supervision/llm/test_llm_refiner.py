"""The refiner that asks a language model: which drafts become targets, what replaces the others, and prefetching."""
from __future__ import annotations

import dataclasses

import pytest
from scripted_judge import BAD, GOOD, ITEM, RECORD, asked, client_of, judge, record_of
from scripted_server import ScriptedServer

from dyme_core.supervision.llm.judge import LLMChecker
from dyme_core.supervision.llm.parsing import SupervisionError
from dyme_core.supervision.llm.refiner import LLMRefiner
from dyme_core.supervision.refiner import FIRST_TEMPLATE, LearningChecker, RuleRefiner, TemplateBank


def test_a_good_draft_is_the_target_word_for_word() -> None:
    own = "First 2010 has 30 and 10, then 2012 has 25 and 20. As 30 - 10 = 20 > 25 - 20 = 5,\n the greater gap is in 2010."
    with ScriptedServer(judge(draft=lambda data: own)) as server, client_of(server) as client:
        refiner = LLMRefiner(client)
        assert refiner.refine_all([RECORD]) == [" ".join(own.split())]
        assert refiner.counts() == {"asked": 1, "drafts": 1, "retried": 0, "replaced": 0, "fell_back": 0, "skipped": 0}


@pytest.mark.parametrize(("draft", "reason"), [
    (GOOD.replace("2010 has 30", "2010 has 31"), "1 of 4 claims are wrong"),
    (GOOD.replace("is in 2010", "is in 2012"), "closes on '2012', not on the answer '2010'"),
    (GOOD.replace(", 2012 has 25 and 20", ""), "leaves out 2012 has 25 and 20"),
    (f"{GOOD}\n<answer>2010</answer>", "plain prose"), (f"<image> {GOOD}", "plain prose"), ("", "plain prose"),
    (f"{GOOD}\0", "plain prose"), (f"\u202e{GOOD}", "plain prose"), (f"[THINK] {GOOD}", "plain prose"),
    ("So long. " * 50 + GOOD, "be shorter"),
])
def test_a_faulty_draft_is_asked_for_once_more_with_the_reasons_then_replaced(draft: str, reason: str) -> None:
    def objection(response: str) -> str | None:
        assert response.endswith("\n<answer>2010</answer>")
        return "too many words; be shorter" if len(response.split()) > 60 else None

    for second, target, counted in ((GOOD, GOOD, "retried"), (draft, FIRST_TEMPLATE.fill(ITEM), "replaced")):
        with ScriptedServer(judge(draft=lambda data, second=second: second if "reasons" in data else draft)) as server:
            with client_of(server) as client:
                refiner = LLMRefiner(client, objection=objection)
                assert refiner.refine_all([RECORD]) == [target]
        assert len(server.seen) == 2 and refiner.counts()["retried"] == refiner.counts()[counted] == 1
        again = asked(server.seen[1].body)
        assert again["rejected"] == " ".join(draft.split()) and any(reason in found for found in again["reasons"])


def test_a_signed_comparison_is_no_markup() -> None:
    draft = GOOD.replace("30 - 10 = 20 > 25 - 20 = 5", "25 - 20 = 5 < 30 - 10 = 20")
    with ScriptedServer(judge(draft=lambda data: draft)) as server, client_of(server) as client:
        assert LLMRefiner(client).refine_all([RECORD]) == [draft]


def test_a_record_without_steps_gets_a_draft_or_what_the_policy_says() -> None:
    bare = record_of(dataclasses.replace(ITEM, working="", conclusion="", labels=()))
    with ScriptedServer(judge(draft=lambda data: GOOD)) as server, client_of(server) as client:
        assert LLMRefiner(client).refine_all([bare]) == [GOOD]
    with ScriptedServer(judge(draft=lambda data: "no")) as server, client_of(server) as client:
        for policy in ("rule", "skip"):
            refiner = LLMRefiner(client, policy=policy)
            assert refiner.refine_all([bare]) == [None] and refiner.counts()["skipped"] == 1
        with pytest.raises(SupervisionError, match="refine of item 'chart-7': no usable draft .* the rules have no target"):
            LLMRefiner(client, policy="raise").refine_all([bare])


def test_without_facts_there_is_nothing_to_check_by_and_nothing_is_asked() -> None:
    empty = record_of(dataclasses.replace(ITEM, facts=(), evidence=()))
    with ScriptedServer(judge("high", lambda data: GOOD)) as server, client_of(server) as client:
        refiner = LLMRefiner(client, policy="raise")
        assert refiner.refine_all([empty]) == [None] and refiner.counts()["skipped"] == 1
        assert LLMChecker(client).score_all([GOOD], [empty]) == [0.0]
        assert server.seen == []
    assert RuleRefiner().refine_all([empty, RECORD]) == [None, GOOD]


def test_a_refine_request_holds_the_banks_best_template() -> None:
    bank = TemplateBank()
    own = "So, 2010 has 30 and 10, 2012 has 25 and 20. As 30 - 10 = 20 > 25 - 20 = 5, the greater gap is in 2010."
    with ScriptedServer(judge("high", lambda data: GOOD)) as server, client_of(server) as client:
        checker, refiner = LearningChecker(LLMChecker(client), bank), LLMRefiner(client, bank)
        assert checker.score_all([own, own, BAD["no facts"][0]], [RECORD] * 3) == [1.0, 1.0, 0.0]
        refiner.refine_all([RECORD])
    assert asked(server.seen[-1].body)["template"] == "So, {facts}. As {working}, {conclusion}."


def test_prefetched_drafts_come_while_others_are_waited_for_and_are_not_asked_twice() -> None:
    with ScriptedServer(judge("high", lambda data: GOOD, after_s=0.5)) as server, client_of(server) as client:
        checker, refiner = LLMChecker(client), LLMRefiner(client)
        refiner.prefetch([RECORD, record_of(name="same question")])
        refiner.prefetch([RECORD])
        assert checker.score_all([GOOD], [RECORD]) == [1.0]
        assert server.most_at_once == 2, "the check and the draft that two records share"
        assert refiner.refine_all([RECORD, record_of(name="same question")]) == [GOOD] * 2
        assert len(server.seen) == 2
        refiner.refine_all([RECORD])
        assert refiner.counts()["asked"] == 3, "a draft is used once: the template may be another by then"


def test_the_bank_learns_from_traces_rated_high_alone() -> None:
    bank = TemplateBank()
    with ScriptedServer(judge("medium")) as server, client_of(server) as client:
        assert LearningChecker(LLMChecker(client), bank).score_all([GOOD], [RECORD]) == [0.5]
    assert bank == TemplateBank()
