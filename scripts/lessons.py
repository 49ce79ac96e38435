"""What the mini base is taught, as texts: captions, look-ups, direct answers, loose prose, and sums without a picture.

It resembles what a small VLM brings along (docs/data_and_models.md): it reads figures off a picture and calculates with
figures that are given, but never does both in one reply. The only traces it learns are those of look-ups.
"""
from __future__ import annotations

import random

from dyme_core.data import chart_images, chart_tables, prompt_format
from dyme_core.data.chart_questions import KINDS, Question, draw_question
from dyme_core.data.chart_tables import facts_of
from dyme_core.data.schema import Item, write_facts
from dyme_core.supervision.refiner import FIRST_TEMPLATE

OTHER_KINDS = tuple(kind for kind in KINDS if kind != "lookup")
LOOSE = ("We look at {labels} and compare the values. Therefore, {conclusion}.",
         "First, we find {labels} in the figure. Then, {conclusion}.",
         "We read the values of {labels} and compare. Therefore, {conclusion}.",
         "We locate {labels} and see the result. Therefore, {conclusion}.")


def item_from(table: chart_tables.Table, question: Question) -> Item:
    """What supervision needs of a question on a table."""
    return Item(question.text, question.answer, facts_of(table), question.evidence, question.labels, question.working,
                question.conclusion)


def draw_chart(rng: random.Random, split: str) -> tuple[chart_tables.Table, chart_images.Style]:
    """A chart to learn reading from: values up to those of the unseen test set (a base reads numbers), never its styles."""
    return chart_tables.draw_table(rng, split, values=(1, chart_tables.UNSEEN_VALUES[1])), chart_images.draw_style(rng)


def draw_turns(rng: random.Random, table: chart_tables.Table, is_early: bool) -> list[tuple[str, str]]:
    """One or two questions and replies of the base's training conversations.

    Early ones are captions of all groups or of named ones, which teach the model to find a group by its name. Where there are
    two turns, the first describes groups and the second calculates with them: thinking needs both, but no reply has both.
    """
    weights = (40, 60, 0, 0, 0) if is_early else (8, 14, 26, 30, 22)
    kind = rng.choices(("caption", "named", "lookup", "other", "described"), weights)[0]
    if kind == "caption":
        return [(prompt_format.CAPTION_INSTRUCTION, write_facts(facts_of(table)) + ".")]
    if kind == "named" or kind == "lookup" and len(table.series) > 1:
        return [_describe(table, rng.sample(table.groups, rng.randint(1, len(table.groups))))]
    if kind == "described":
        question = draw_question(rng, table, OTHER_KINDS)
        return [_describe(table, list(dict.fromkeys(fact.entity for fact in question.evidence))),
                (question.text, _work(question))]
    return [_answer(rng, table, kind)]


def _answer(rng: random.Random, table: chart_tables.Table, kind: str) -> tuple[str, str]:
    """A look-up or another question, answered with or without thinking; only the thinking of a look-up states values."""
    question = draw_question(rng, table, ("lookup",) if kind == "lookup" else OTHER_KINDS)
    answer = f"{prompt_format.ANSWER_OPEN}{question.answer}{prompt_format.ANSWER_CLOSE}"
    if rng.random() < (0.5 if kind == "lookup" else 0.3):
        return prompt_format.question_text(question.text, prompt_format.ANSWER_INSTRUCTION), answer
    if rng.random() < (0.5 if kind == "lookup" else 0.4):
        thinking = (FIRST_TEMPLATE.fill(item_from(table, question)) if kind == "lookup" else
                    rng.choice(LOOSE).format(labels=" and ".join(question.labels), conclusion=question.conclusion))
        return prompt_format.question_text(question.text), prompt_format.write_response(thinking, question.answer)
    return prompt_format.question_text(question.text), answer


def _describe(table: chart_tables.Table, names: list[str]) -> tuple[str, str]:
    facts = facts_of(table)
    return f"Describe {' and '.join(names)}.", write_facts(tuple(f for name in names for f in facts if f.entity == name)) + "."


def _work(question: Question) -> str:
    return f"{question.working}, {question.conclusion}."


def draw_sum(rng: random.Random, split: str = "train") -> tuple[str, str]:
    """A question and reply without a picture: bare arithmetic, or the working of a question whose facts are stated.

    So the base knows both halves of thinking, reading values off a picture and calculating with given values, but has never
    seen them in one reply.
    """
    if rng.random() < 0.5:
        table = chart_tables.draw_table(rng, split, values=(1, chart_tables.UNSEEN_VALUES[1]))
        question = draw_question(rng, table, OTHER_KINDS)
        return f"{write_facts(question.evidence)}. {question.text}", _work(question)
    high, low = sorted((rng.randint(1, 80), rng.randint(1, 80)), reverse=True)
    sign = rng.choices("-+<", (45, 40, 15))[0]
    if sign == "<":
        first, second = rng.sample((high, low), 2)
        return f"Compare {first} and {second}.", f"{first} {'<' if first < second else '>' if first > second else '='} {second}"
    if sign == "+" and rng.random() < 0.5:
        high, low = low, high
    return f"Calculate {high} {sign} {low}.", f"{high} {sign} {low} = {high - low if sign == '-' else high + low}"
