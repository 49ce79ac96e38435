"""A scripted model behind the scripted server: it grades and drafts as a test says, and reads requests like a model."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from scripted_server import Act, ScriptedServer, answer

from dyme_core.config import Endpoint
from dyme_core.data.schema import Fact, Item, Record, item_of, write_supervision
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.refiner import RuleRefiner

SHOWN = (Fact("2010", "FAV", 30.0), Fact("2010", "UNF", 10.0), Fact("2012", "FAV", 25.0), Fact("2012", "UNF", 20.0))
ITEM = Item("Which has the greater gap between FAV and UNF, 2010 or 2012?", "2010", SHOWN, SHOWN, ("2010", "2012"),
            "30 - 10 = 20 > 25 - 20 = 5", "the greater gap is in 2010")
GOOD = ("We locate 2010 and 2012. Then, extract 2010 has 30 and 10, 2012 has 25 and 20. Comparing 30 - 10 = 20 > "
        "25 - 20 = 5, the greater gap is in 2010.")
BAD = {  # trace and the score that the guard leaves it, however the model rates it
    "no facts": ("We look at the chart and compare the two years, so it is 2010.", 0.0),
    "a bare answer": ("The greater gap is in 2010.", 0.0),
    "all wrong": ("2010 has 71 and 12, 2012 has 45 and 44, the greater gap is in 2010.", 0.0),
    "one figure altered": (GOOD.replace("2010 has 30", "2010 has 31"), 0.5),
    "series swapped": (GOOD.replace("2010 has 30 and 10", "2010 has 10 and 30"), 0.5),
    "an entity invented": (GOOD.replace("2012 has 25 and 20.", "2012 has 25 and 20, 2013 has 77 and 78."), 0.5),
    "false arithmetic": (GOOD.replace("30 - 10 = 20", "30 - 10 = 26"), 0.5),
    "another conclusion": (GOOD.replace("gap is in 2010", "gap is in 2012"), 0.5),
}


def record_of(item: Item = ITEM, name: str = "chart-7") -> dict:
    return {"item": name, "question": item.question, "answer": item.answer, "supervision": write_supervision(item)}


RECORD = record_of()


def rule_draft(records: Sequence[Record]) -> Callable[[dict], str]:
    """Drafts as the rule refiner writes them, found by question and facts."""
    items = [item_of(record.row) for record in records]
    drafts = {_shown(item.question, map(astuple, item.facts)): RuleRefiner().refine(item) for item in items}
    return lambda asked: drafts[_shown(asked["question"], asked["facts"])]


def _shown(question: str, facts: Iterable[Sequence]) -> str:
    return json.dumps([question, [[entity, attribute, int(value)] for entity, attribute, value, *_ in facts]])


def asked(body: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a request: the JSON object that the user message begins with (the client may ask for JSON behind it)."""
    system, *_, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    return json.JSONDecoder().raw_decode(user["content"])[0]


def is_check(data: Mapping[str, Any]) -> bool:
    return "thinking" in data


def judge(rating: str | Callable[[dict], str] = "high", draft: Callable[[dict], str] = lambda data: "no draft",
          after_s: float = 0.0) -> Callable[[dict[str, Any]], Act]:
    """A script: every check gets `rating`, every refine request `draft(data)`."""
    def script(body: dict[str, Any]) -> Act:
        data = asked(body)
        if not is_check(data):
            return answer(json.dumps({"thinking": draft(data)}), after_s=after_s)
        grade = rating if isinstance(rating, str) else rating(data)
        return answer(json.dumps({"reasons": ["as scripted"], "rating": grade}), after_s=after_s)
    return script


def num_checks(server: ScriptedServer) -> int:
    return sum(is_check(asked(seen.body)) for seen in server.seen)


def num_drafts(server: ScriptedServer) -> int:
    return len(server.seen) - num_checks(server)


def client_of(server: ScriptedServer, recording: Recording | None = None, **settings: object) -> Client:
    defaults = {"model": "m", "total_timeout_s": 5.0, "max_tries": 2, "max_concurrency": 16}
    return Client(Endpoint(base_url=server.base_url, **{**defaults, **settings}), recording)
