"""DyMEConfig: GRPO's settings, those that DyME needs fixed, and the switch's own (docs/method.md)."""
from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig

from dyme_core.trainer import switches

# Settings that DyME fixes: name, value, and what any other value would break.
REQUIRED = (
    ("loss_type", "grpo", "dapo, bnpo and dr_grpo weigh a memorize row differently from the SFT step it stands for"),
    ("temperature", 1.0, "a temperature T puts 1/T into the memorize gradient"),
    ("beta", 0.0, "a reference model pulls targets back"),
    ("num_iterations", 1, "a replaced row has no old log-probs"),
    ("mask_truncated_completions", False, "it would mask targets"),
    ("scale_rewards", "group", "advantages are standardised inside each group"),
    ("reward_weights", None, "the switch sums the rewards itself and would not see TRL's weights"),
    ("multi_objective_aggregation", "sum_then_normalize", "the switch standardises the sum"),
    ("top_entropy_quantile", 1.0, "it would mask targets"),
    ("off_policy_mask_threshold", None, "a replaced row has no sampling log-probs"))
LEAST = {"max_completion_length": 1, "num_generations": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
         "learning_rate": 0, "probe_every": 0, "thinking_weight": 0}
CHOICES = {"memorize_weight": ("row", "group"), "mastered": ("skip", "explore"), "reward_gate": ("sum", "gated")}


@dataclass
class RefillConfig(GRPOConfig):
    """GRPO's settings, and how much of a step may be asked again (`refill.Refill`)."""

    refill: float = field(default=0.0, metadata={"help": "share of a step's rollouts that fresh prompts may add in place of "
                                                         "groups that would teach nothing; 0: none"})

    def __post_init__(self) -> None:
        if not self.refill >= 0:
            raise ValueError(f"refill must be at least 0: got {self.refill!r}; give a share of a step's rollouts, such as 1.0")
        super().__post_init__()


@dataclass
class DyMEConfig(RefillConfig):
    """GRPO's settings, those that DyME needs fixed, and the switch's own (the help of each says what it does).

    `correct_reward` names the reward function whose value above 0.5 means that a rollout is correct. None: our accuracy reward
    where there is one, else the first function that scores neither format nor thinking. `correct_needs_format` and
    `reward_gate` apply where a format reward is given.
    """

    switch: str = field(default="binary", metadata={"help": "one of switches.SWITCHES; binary is DyME's"})
    switch_value: float | None = field(default=None, metadata={"help": "the switch's number; None: its default"})
    correct_reward: str | None = field(default=None, metadata={"help": "name of the reward that says what is correct"})
    correct_needs_format: bool = field(default=True, metadata={"help": "an answer without thinking is not correct"})
    thinking_weight: float = field(default=1.0, metadata={"help": "of the thinking reward; 0 is the ablation without checker"})
    reward_gate: str = field(default="sum", metadata={"help": "sum (public code) or gated: 0 where the format fails"})
    memorize_weight: str = field(default="row", metadata={"help": "row: 1 (public code); group: G, a prompt = an SFT example"})
    mastered: str = field(default="skip", metadata={"help": "all-correct groups: skip (advantage 0) or explore"})
    likeliest_target: bool = field(default=False, metadata={"help": "memorize, of all right targets that the refiner and the "
                                                                    "data have, the most probable one under the policy"})
    drop_idle_rows: bool = field(default=True, metadata={"help": "rows of advantage 0 skip the update (same gradient)"})
    probe_every: int = field(default=0, metadata={"help": "steps between measurements of gradients; 0: never"})
    loss_type: str = "grpo"
    beta: float = 0.0
    mask_truncated_completions: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}: got {getattr(self, name)!r}")
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and not value >= least:
                raise ValueError(f"{name} must be at least {least}: got {value!r}; give a larger number")
        if self.max_steps == 0 or self.max_steps < 0 and self.num_train_epochs <= 0:
            raise ValueError("max_steps must be at least 1, or -1 with num_train_epochs above 0: got "
                             f"max_steps={self.max_steps} and num_train_epochs={self.num_train_epochs}; set one of them")
        switches.named(self.switch, self.switch_value)
        super().__post_init__()
        for name, wanted, why in REQUIRED:
            if getattr(self, name) != wanted:
                raise ValueError(f"DyME needs {name}={wanted!r}: got {getattr(self, name)!r}, but {why}")
        if self.steps_per_generation != self.gradient_accumulation_steps:
            raise ValueError(f"DyME needs steps_per_generation unset: got {self.steps_per_generation} with "
                             f"gradient_accumulation_steps={self.gradient_accumulation_steps}; else old log-probs of replaced "
                             "rows would be stale")
