"""Facts by a language model, behind the interface of `fact_extraction.FactBackend`: from a text about the picture, or from the
picture itself, which then travels inside the message.
"""
from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from dyme_core.data.numbers import clean_label
from dyme_core.data.schema import Fact
from dyme_core.supervision.fact_extraction import FactsError, Picture
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.parsing import Request
from dyme_core.supervision.llm.prompts import FACTS_SYSTEM, FactsReply, facts_messages
from dyme_core.utils import hash_json

PARAMETERS = {"temperature": 0.0, "max_tokens": 2000}


class HintFacts:
    """The back end "llm": facts that a text about the picture states.

    Args:
        client: asks the model.
        parameters: sent with each request; they and the prompt are part of the version.
    """

    name = "llm"
    reads: tuple[str, ...] = ("hint",)

    def __init__(self, client: Client, parameters: Mapping[str, Any] = PARAMETERS) -> None:
        self.client, self.parameters = client, dict(parameters)
        self.version = f"{client.endpoint.name}-{hash_json([FACTS_SYSTEM, self.parameters])[:8]}"

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        """Ask for the facts; rows without an entity are left out, for no trace could be held against them.

        Raises:
            SupervisionError: where the model gives no valid reply.
            FactsError: where there is nothing to read.
        """
        request = Request("facts", picture.item, self._messages(picture), FactsReply, self.parameters)
        rows = self.client.submit(request).result().facts
        return tuple(Fact(clean_label(row.entity), clean_label(row.attribute), float(row.value), row.unit.strip())
                     for row in rows if clean_label(row.entity))

    def _messages(self, picture: Picture) -> list[dict[str, Any]]:
        if not picture.hint.strip():
            raise FactsError(f"item {picture.item!r}: expected a text about the picture, got none; give one or use another "
                             "back end")
        return facts_messages(hint=picture.hint)


class ImageFacts(HintFacts):
    """The back end "vlm": facts that a model sees in the picture; arguments as HintFacts."""

    name = "vlm"
    reads = ("image",)

    def _messages(self, picture: Picture) -> list[dict[str, Any]]:
        try:
            kind = Image.open(io.BytesIO(picture.image)).get_format_mimetype()
        except (UnidentifiedImageError, OSError) as error:
            raise FactsError(f"item {picture.item!r}: expected a picture, got {len(picture.image)} bytes that are none; "
                             "restore the file or remove the row") from error
        return facts_messages(image_url=f"data:{kind};base64,{base64.b64encode(picture.image).decode()}")
