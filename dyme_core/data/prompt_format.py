"""The format contract: how a question is asked, and how a response is split into thinking and answer.

A response is `thinking`, a newline, and one answer line `<answer>...</answer>` (the poster's flag).
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
THINK_INSTRUCTION = (f"Output the thinking process and then give the final answer in {ANSWER_OPEN} {ANSWER_CLOSE} tag.")
ANSWER_INSTRUCTION = f"Give the final answer in {ANSWER_OPEN} {ANSWER_CLOSE} tag."
CAPTION_INSTRUCTION = "Describe the chart."
MIN_THINKING_WORDS = 4  # fewer words are no thinking; without this rule lucky bare answers crowd thinking out

Completion = str | Sequence[Mapping[str, Any]]  # as TRL gives it: a text, or messages

_FLAG = re.compile(rf"{re.escape(ANSWER_OPEN)}(.*?){re.escape(ANSWER_CLOSE)}", re.DOTALL)


def question_text(question: str, instruction: str = THINK_INSTRUCTION) -> str:
    """The user's turn: question, then what to output (the poster's wording)."""
    return f"{question.strip()} {instruction}".rstrip()


def messages(question: str, instruction: str = THINK_INSTRUCTION) -> list[dict[str, str]]:
    """The conversation that asks `question`; TRL and `generation` put the picture before its text."""
    return [{"role": "user", "content": question_text(question, instruction)}]


def completion_text(completion: Completion) -> str:
    """Give the text of a completion: a plain string (Unsloth) or messages (TRL), whose content may be parts."""
    if isinstance(completion, str):
        return completion
    contents = (message["content"] for message in completion)
    return "".join(content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
                   for content in contents)


def split_response(text: str) -> tuple[str, str | None]:
    """Split a response into thinking and answer.

    Args:
        text: the completion, special tokens already removed.
    Returns:
        (thinking, answer): `answer` is the text inside the first complete flag, or None where there is none;
        `thinking` is what stands before the first flag, or the whole text without one.
    """
    match = _FLAG.search(text)
    if match is None:
        return text.split(ANSWER_OPEN)[0].strip(), None
    return text[: match.start()].strip(), match.group(1).strip()


def is_well_formed(text: str) -> bool:
    """True where the answer flag occurs exactly once, is not empty, ends the text, and thinking stands before it."""
    thinking, answer = split_response(text)
    has_one_flag = text.count(ANSWER_OPEN) == 1 and text.count(ANSWER_CLOSE) == 1
    ends_there = text.rstrip().endswith(ANSWER_CLOSE)
    return bool(has_one_flag and ends_there and answer and len(thinking.split()) >= MIN_THINKING_WORDS)


def write_response(thinking: str, answer: str) -> str:
    """A target in the contract's form: thinking, newline, answer line (the end token is the tokenizer's)."""
    return f"{thinking.strip()}\n{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
