"""Responses and pictures as HTML for the pages that readers open: no text of a model is markup, every picture is inside."""
from __future__ import annotations

import base64
from html import escape

from PIL import Image

from dyme_core.data.datasets import png_bytes
from dyme_core.data.prompt_format import split_response
from dyme_core.data.schema import Item
from dyme_core.supervision.checker import Judgement, RuleChecker

WIDEST = 512  # pixels of a shown picture


def judged(response: str, item: Item) -> tuple[str, Judgement | None]:
    """A response as HTML, with the rule checker's judgement of its thinking; None where the item has no facts.

    What the thinking states of the picture stands in <b> where it is right, and in <mark> where it is not.
    """
    thinking = split_response(response)[0]
    judgement = RuleChecker().judge(thinking, item) if item.facts else None
    claims = judgement.reading.claims if judgement else ()
    first, text, at = response.find(thinking), "", 0
    for claim in sorted(claims, key=lambda claim: (claim.start, claim.is_right)):
        start, end, tag = max(at, claim.start + first), claim.end + first, "b" if claim.is_right else "mark"
        if start < end:  # two claims may stand on one number
            text += f"{escape(response[at: start])}<{tag}>{escape(response[start: end])}</{tag}>"
            at = end
    return text + escape(response[at:]), judgement


def picture(image: Image.Image, alt: str = "") -> str:
    """A picture as an <img> that holds its PNG, at most WIDEST wide and high."""
    shown = image.convert("RGB")
    shown.thumbnail((WIDEST, WIDEST))
    return f'<img alt="{escape(alt)}" src="{data_uri(png_bytes(shown))}">'


def data_uri(png: bytes) -> str:
    """A PNG file's bytes as the address of a picture."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
