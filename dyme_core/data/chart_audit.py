"""What keeps a score on the mini charts honest: how much blind guesses get right, and what two splits have in common."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from dyme_core.data.chart_tables import GENERATED
from dyme_core.data.schema import Record, item_of


def luck(records: Sequence[Record], known: Sequence[Record]) -> dict[str, float]:
    """The share of questions that the best guess without a look at any value gets right, by kind; "all" is their mean.

    Guesses tried on each kind: the most common answer; that to the same question, or to questions with a similar limit; the
    group at one place of the axis, counted from either end; a random group.

    Args:
        records: mini questions of one split.
        known: those of the training split, from which the guesses are learned: fitted to `records`, a small split would give
            too high a share.
    """
    shares = {kind: _best_guess(_of_kind(records, kind), _of_kind(known, kind))
              for kind in dict.fromkeys(record.kind for record in records)}
    return {**shares, "all": sum(shares[record.kind] for record in records) / len(records)}


def _of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record.kind == kind]


def _best_guess(records: Sequence[Record], known: Sequence[Record]) -> float:
    axes = [_axis(record) for record in records]
    is_which = all(record.answer in axis for record, axis in zip(records, axes, strict=True))
    random_group = sum(1 / len(axis) for axis in axes) / len(records) if is_which else 0.0
    return max(random_group, *(_share_right(guess, records, known) for guess in (_GUESSES if is_which else _GUESSES[:3])))


def _axis(record: Record) -> list[str]:
    return list(dict.fromkeys(fact.entity for fact in item_of(record.row).facts))


def _tens(record: Record) -> str:
    """The limit that a question names, without its last digit."""
    return "".join(re.findall(r"above (\d*)\d\?", record.question))


# What a guess goes by, and what it guesses: both are the same for questions that it answers alike.
_GUESSES: tuple[Callable[[Record], tuple[str, str | int]], ...] = (
    lambda record: ("", record.answer), lambda record: (record.question, record.answer),
    lambda record: (_tens(record), record.answer), lambda record: ("", _axis(record).index(record.answer)),
    lambda record: ("", _axis(record).index(record.answer) - len(_axis(record))))


def _share_right(guess: Callable[[Record], tuple[str, str | int]], records: Sequence[Record], known: Sequence[Record]) -> float:
    counts: dict[str, Counter] = {}
    for cue, said in map(guess, known):
        counts.setdefault(cue, Counter())[said] += 1
    best = {cue: said.most_common(1)[0][0] for cue, said in counts.items()}
    return sum(best.get(cue) == said for cue, said in map(guess, records)) / len(records)


def overlap(known: Sequence[Record], asked: Sequence[Record]) -> dict[str, int]:
    """How much of `asked` (a held-out split) occurs in `known` (the training split).

    Returns:
        tables: drawn tables, in any order of their groups; cells: values of real statistics with their country (site, source)
        and year; both must be 0. questions: questions that occur word for word, on other tables; "What is the value of FAV in
        2012?" has few different wordings.
    """
    tables, cells, questions = ({*map(_table, known)}, _cells(known), {record.question for record in known})
    return {"tables": len({*map(_table, asked)} & tables), "cells": len(_cells(asked) & cells),
            "questions": sum(record.question in questions for record in asked)}


def audit_tables(records: Sequence[Record]) -> list[str]:
    """Lines of Markdown: luck by kind and split, and what each held-out split shares with the training split."""
    splits: dict[str, list[Record]] = {}
    for record in records:
        splits.setdefault(record.split, []).append(record)
    known = splits.pop("train", [])
    shares = {split: luck(own, known) for split, own in splits.items()} if known else {}
    if not shares:
        return []
    names, line = f"| {' | '.join(shares)} |", f"| --- |{' ---: |' * len(shares)}"
    kinds = dict.fromkeys(kind for own in shares.values() for kind in own if kind != "all")
    both = {split: overlap(known, own) for split, own in splits.items()}
    counted = (("tables", "tables"), ("cells", "cells of real statistics"), ("questions", "questions, word for word"))
    return ["Luck, in percent: what the best guess learned on the training split gets right without a look at any value.", "",
            f"| kind {names}", line,
            *(f"| {kind} | {' | '.join(f'{100 * own[kind]:.1f}' if kind in own else '' for own in shares.values())} |"
              for kind in (*kinds, "all")),
            "", "Shared with the training split:", "", f"| shared {names}", line,
            *(f"| {name} | {' | '.join(str(own[key]) for own in both.values())} |" for key, name in counted)]


def _table(record: Record) -> frozenset:
    return frozenset((fact.entity, fact.attribute, fact.value) for fact in item_of(record.row).facts)


def _cells(records: Sequence[Record]) -> set[tuple[frozenset[str], float]]:
    """Cells of real statistics; country and year may stand on either side."""
    return {(frozenset((fact.entity, fact.attribute)), fact.value) for record in records if record.source != GENERATED
            for fact in item_of(record.row).facts}
