"""How a machine does the work, and which questions it is done on: settings that change no method."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dyme_core.settings import check

BAD_ROWS = ("raise", "skip")
FACTS = ("given", "ocr", "vlm")
HELD_OUT = ("validation", "test", "unseen")


@dataclass(frozen=True)
class Engine:
    """How one training run uses its machine; the defaults are one CPU's.

    Attributes:
        micro_batches: parts of a step's rollouts that go through the update one after another, on each card.
        bf16: mixed precision; needs a card of NVIDIA's Ampere generation or later (a Colab T4 has none).
        gradient_checkpointing: keep one activation a layer and compute the rest again: about a third more time.
        lora_rank: of adapters on the language model; None trains every weight but the vision tower's.
        lora_alpha: adapters are scaled by lora_alpha / lora_rank.
        load_in_4bit: frozen weights in 4 bits, adapters only.
        use_vllm: rollouts by vLLM in the same processes (TRL's "colocate").
        vllm_memory_share: of the card's memory, for vLLM's weights and cache; TRL's default.
    """

    micro_batches: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    lora_alpha: int = 16
    load_in_4bit: bool = False
    use_vllm: bool = False
    vllm_memory_share: float = 0.3

    def __post_init__(self) -> None:
        check(self, "engine", micro_batches=(1, None), lora_rank=(1, None), lora_alpha=(1, None))
        if self.load_in_4bit and self.lora_rank is None:
            raise ValueError("engine.load_in_4bit freezes the weights, so engine.lora_rank must be a number: got None; set it, "
                             "or train in 16 bits")
        if not 0 < self.vllm_memory_share < 1:
            raise ValueError(f"engine.vllm_memory_share must be a share in (0, 1): got {self.vllm_memory_share!r}; give "
                             "one, or leave it out for 0.3")

    def batch(self, rows: int, processes: int) -> dict[str, int]:
        """The trainer's two numbers for a step of `rows` over `processes`, as TRL calls them.

        Fewer micro-batches are made where a step has not rows enough (SFT has one row a prompt).

        Raises:
            ValueError: where the rows cannot be dealt evenly.
        """
        if rows % processes:
            raise ValueError(f"{rows} rows a step cannot be dealt to {processes} processes evenly; change "
                             "training.prompts_per_step or training.num_generations")
        own = rows // processes
        parts = min(self.micro_batches, own)
        if own % parts:
            raise ValueError(f"{own} rows a step and process cannot be dealt to engine.micro_batches={parts} evenly")
        return {"per_device_train_batch_size": own // parts, "gradient_accumulation_steps": parts}


@dataclass(frozen=True)
class DataSource:
    """Which questions are trained and scored on.

    Attributes:
        name: "mini", the charts that are drawn here, or a data set's, for example "chartqa".
        source: a folder, or a hub id; "" for "mini".
        held_out: splits that are answered, of HELD_OUT; the first one is watched during training.
        on_bad_row: what a row that is refused comes to: "raise" stops, "skip" leaves it out and counts it (bad_rows.py).
        options: of the data set's reader (`sources.load`), such as the folder of pictures.
        facts: of training questions that have none: "given" leaves it so, "ocr" reads what the picture prints, "vlm" asks the
            supervising model, which must see pictures (fact_extraction.py).
        test_name, test_source: another data set for the test split, as MathVerse is for Geo170K; "": the same one.
    """

    name: str = "mini"
    source: str = ""
    held_out: tuple[str, ...] = ("validation", "test", "unseen")
    on_bad_row: str = "raise"
    options: dict[str, Any] = field(default_factory=dict)
    facts: str = "given"
    test_name: str = ""
    test_source: str = ""

    def __post_init__(self) -> None:
        check(self, "data", held_out=HELD_OUT, on_bad_row=BAD_ROWS, facts=FACTS)
        if not self.held_out or len(set(self.held_out)) < len(self.held_out):
            raise ValueError(f"data.held_out must name at least one split, none twice: got {self.held_out!r}; name some of "
                             f"{HELD_OUT}")
        if bool(self.test_name) != bool(self.test_source):
            raise ValueError("data.test_name and data.test_source must be given together: got "
                             f"{self.test_name!r} and {self.test_source!r}; give both, or leave both out")

    def place(self, split: str) -> tuple[str, str, str]:
        """(name, source, split) of a split's questions."""
        name, source = (self.test_name, self.test_source) if split == "test" and self.test_name else (self.name, self.source)
        return name, source, split
