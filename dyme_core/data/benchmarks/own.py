"""Your own data to records: a folder with data.jsonl (or the path of a JSONL file), one JSON object per line.

| field | meaning |
| --- | --- |
| question, answer | text; the answer may be a number |
| image | path of the picture, relative to the file's folder and inside it; absent for a question of text alone |
| id | unique; letters, digits, ".", "_" and "-"; row-<number> by default |
| split | "train" (default), "validation", "test" or "unseen" |
| kind, source | for tables: what sort of question it is ("own" by default), where it is from |
| facts | what the picture shows, a list of {"entity", "attribute", "value", "unit"}: value a number, the others text |
| trace | thinking to memorize, at least four words, without the answer tag |

What `datasets.write_jsonl` writes loads back, too: it calls the id `item`, and has `table_key` and `supervision` (facts,
evidence, labels, working, conclusion) in place of facts and trace. A field of any other name is refused: it would be misspelt.
Texts have at most 20,000 characters, none of them control characters, and no special tokens (bad_rows.py).
"""
from __future__ import annotations

from pathlib import Path

from dyme_core.config import SPLITS
from dyme_core.data.bad_rows import MAX_VALUE, BadRows
from dyme_core.data.benchmarks.rows import Row, list_of, picture_of, read_json, text_of
from dyme_core.data.prompt_format import ANSWER_CLOSE, ANSWER_OPEN, MIN_THINKING_WORDS, is_well_formed, write_response
from dyme_core.data.schema import DataError, Fact, Item, Record, facts_from_rows, write_supervision

FIELDS = ("question", "answer", "image", "id", "split", "kind", "source", "facts", "trace", "item", "table_key", "supervision")
FACT_FIELDS = ("entity", "attribute", "value", "unit")
STORED = {"facts": list, "evidence": list, "labels": list, "working": str, "conclusion": str, "trace": str, "scoring": dict}


def own_records(source: Path | str, split: str = "train", bad: BadRows | None = None) -> list[Record]:
    """Read and check every row, and give those of one split.

    Args:
        source: the folder of data.jsonl, or a JSONL file.
        split: one of config.SPLITS.
        bad: collects the rows that are refused; None raises.
    Raises:
        DataError: naming row and id: what was expected, what came, what to do. Rows of other splits are checked as well.
    """
    file = Path(source) / "data.jsonl" if Path(source).is_dir() else Path(source)
    if not file.is_file():
        raise DataError(f"{source}: expected a folder with data.jsonl, or a JSONL file; found neither; write one object a line")
    bad = bad or BadRows()
    records = bad.records(read_json(file, bad), lambda row, number: _record(row, number, file.parent))
    chosen = [record for record in records if record.split == split]
    if not chosen:
        raise DataError(f"{file}: expected rows of split {split!r}, got "
                        f"{sorted({record.split for record in records})}; correct the field 'split'")
    return chosen


def _record(row: Row, number: int, folder: Path) -> Record:
    named, item = "id" if "id" in row else "item", f"row-{number}"
    item = text_of(row, named, f"{item} (row {number})") if named in row else item
    where = f"{item} (row {number})"
    unknown = [name for name in row if name not in FIELDS]
    if unknown:
        raise DataError.of(where, f"fields out of {', '.join(FIELDS)}", repr(unknown[0]), "rename or remove it")
    question, answer = text_of(row, "question", where), text_of(row, "answer", where)
    if ANSWER_OPEN in answer or ANSWER_CLOSE in answer:
        raise DataError.of(where, "an answer without its tag", repr(answer), f"leave {ANSWER_OPEN} out")
    split = row.get("split", SPLITS[0])
    if split not in SPLITS:
        raise DataError.of(where, f"a split out of {', '.join(SPLITS)}", repr(split), "rename it")
    image = None if row.get("image") is None else picture_of(row["image"], where, folder)
    kind, source, key = (text_of(row, name, where) if row.get(name, "") != "" else row.get(name, default)
                         for name, default in (("kind", "own"), ("source", "own"), ("table_key", "")))
    return Record(item, question, answer, kind, source, split, image, _supervision(row, answer, where), key)


def _supervision(row: Row, answer: str, where: str) -> str:
    stored = row.get("supervision")
    if stored is None:
        stored = {name: row[name] for name in ("facts", "trace") if name in row}
    elif not isinstance(stored, dict) or "facts" in row or "trace" in row:
        raise DataError.of(where, "supervision as an object, or else facts and trace", repr(stored)[:80], "keep one of them")
    elif wrong := _misfit(stored):
        raise DataError.of(where, f"supervision with {', '.join(f'{name} ({kind.__name__})' for name, kind in STORED.items())}",
                           f"{wrong!r} of another name or type", "correct it or remove it")
    facts, evidence = (_facts(stored, name, where) for name in ("facts", "evidence"))
    return write_supervision(Item("", answer, facts, evidence, tuple(stored.get("labels", ())), stored.get("working", ""),
                                  stored.get("conclusion", ""), _trace(stored, answer, where),
                                  scoring=stored.get("scoring", {})))


def _misfit(stored: Row) -> str | None:
    """The first field of another name or type than STORED."""
    wrong = [name for name, value in stored.items() if name not in STORED or not isinstance(value, STORED[name])]
    return wrong[0] if wrong else None if all(isinstance(label, str) for label in stored.get("labels", ())) else "labels"


def _trace(row: Row, answer: str, where: str) -> str:
    trace = row.get("trace", "")
    if trace and not (isinstance(trace, str) and is_well_formed(write_response(trace, answer))):
        raise DataError.of(where, f"a trace of at least {MIN_THINKING_WORDS} words without {ANSWER_OPEN}", repr(trace)[:80],
                           "rewrite it or leave it out")
    return trace or ""


def _facts(row: Row, name: str, where: str) -> tuple[Fact, ...]:
    facts = list_of(row, name, where) if row.get(name) else []
    for fact in facts:
        is_named = isinstance(fact, dict) and not set(fact) - set(FACT_FIELDS) and str(fact.get("entity", "")).strip()
        value = fact.get("value") if is_named and fact["entity"] is not None else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_VALUE:
            raise DataError.of(where, f"{name} with an entity and a number as value, at most {MAX_VALUE:g}, and no field but "
                               f"{', '.join(FACT_FIELDS)}", repr(fact), "correct this fact or remove it")
    return facts_from_rows(facts)
