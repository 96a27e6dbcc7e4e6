"""How a classifier is built and trained, as the plan's ``[backbone]`` and ``[training]`` tables say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from xvision import codec
from xvision.errors import ConfigError

Preset = Literal["tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert"]
Policy = Literal[
    "full", "head", "norms", "fpt", "last_k", "bitfit",
    "lora", "dora", "adalora", "ia3", "prefix", "prompt", "bottleneck",
]  # fmt: skip
ADAPTERS: tuple[Policy, ...] = ("lora", "dora", "adalora", "ia3", "prefix", "prompt", "bottleneck")
"""Policies that add weights to a frozen backbone; all but "bottleneck" need the extra ``peft``."""


@codec.record
class BackbonePlan:
    """How fine-tuning builds the classifier: a tiny preset from scratch, or a pretrained language model."""

    preset: Preset = "tiny-qwen3"
    pretrained: str | None = None
    """Folder or hub id of a text model; used instead of the preset."""
    start: str | None = None
    """Folder of an earlier classifier of xvision to train on; its shape replaces the settings below."""
    image_size: int = 64
    patch_size: int = 8
    channels: Literal[1, 3] = 1
    stem: Literal["conv", "linear"] = "conv"
    attention: Literal["causal", "bidirectional"] = "causal"
    head: Literal["linear", "label words"] = "linear"
    """"label words" reads the language model's own next-word distribution at the read-out, over one word per class."""
    label_words: Mapping[str, str] = field(default_factory=dict)
    """Class → its word, for the head "label words"; left out, the class's own name."""
    text_tokens: int = 0
    """Longest clinical text, in tokens, that is read before the image (the manifest's ``text`` column); 0 reads none."""
    dropout: float = 0.0
    """On the read-out, before the head."""

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ConfigError(
                f"backbone.image_size {self.image_size} is not a multiple of backbone.patch_size {self.patch_size}: change one of them."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"backbone.dropout is {self.dropout}: give a share from 0 to below 1.")
        if self.text_tokens < 0:
            raise ConfigError(f"backbone.text_tokens is {self.text_tokens}: give 0 or the longest text in tokens.")


@codec.record
class AdapterPlan:
    """Small added weights beside a frozen backbone, for the policies that are adapters."""

    rank: int = 8
    """Of LoRA, DoRA; the average that AdaLoRA ends with."""
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Endings of module names; empty takes every linear layer of the backbone."""
    virtual_tokens: int = 8
    """Of prefix and prompt tuning."""
    width: int = 16
    """Of the bottleneck adapter's middle layer."""

    def __post_init__(self) -> None:
        for name in ("rank", "virtual_tokens", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"training.adapter.{name} is {getattr(self, name)}: give a whole number of at least 1."
                )


@codec.record
class AttackPlan:
    """Adversarial training in L∞; epsilon in [0, 1] pixel units."""

    method: Literal["none", "fgsm-rs", "pgd", "trades"] = "none"
    """fgsm-rs: one step from a random start (Wong et al., 2020). pgd: Madry et al., 2018. trades: Zhang et al., 2019."""
    epsilon: float = 4 / 255
    steps: int = 7
    """Of pgd and trades."""
    beta: float = 6.0
    """Weight of the TRADES regulariser."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1 or self.steps < 1 or self.beta < 0:
            raise ConfigError(
                "training.attack: epsilon must be above 0 and at most 1 (4/255 is 0.0157), steps at least 1 and beta not below 0."
            )


@codec.record
class GroupPlan:
    """Training that minds groups of patients."""

    column: str | None = None
    """Group column for worst-group selection and for ``dro``."""
    balance: tuple[str, ...] = ()
    """Columns (``label`` among them) whose cells are drawn equally often."""
    dro: bool = False
    """Group distributionally robust optimisation over label × column cells (Sagawa et al., 2020)."""
    dro_rate: float = 0.01

    def __post_init__(self) -> None:
        if self.dro and self.column is None:
            raise ConfigError("training.groups.dro needs training.groups.column: name the group column.")


@codec.record
class RehearsalPlan:
    """Old images mixed into re-tuning, so that the new site does not erase the old ones."""

    data: str | None = None
    """Manifest or folder of the old data; left out, the data that the earlier checkpoint says it was trained on."""
    share: float = 0.2
    """Of each epoch's images that are old; 0 switches rehearsal off."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"training.rehearsal.share is {self.share}: give a share from 0 to below 1.")


@codec.record
class SearchPlan:
    """A search over the training recipe, by validation score. space: key of ``[training]`` → list of choices, or {low, high, log}."""

    trials: int = 20
    space: Mapping[str, Any] = field(default_factory=dict)


@codec.record
class TrainingPlan:
    """The fine-tuning recipe; the defaults were measured on 3,000 images of 64 × 64 pixels on one CPU thread."""

    epochs: int = 10
    batch_size: int = 32
    """Images of one update, over all processes."""
    accumulate: int = 1
    """Parts that a batch is split into; the update is the same, the memory smaller."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.05
    warmup: float = 0.1
    """Share of all steps."""
    clip: float = 1.0
    loss: Literal["cross entropy", "focal"] = "cross entropy"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: bool = False
    policy: Policy = "full"
    """Which weights are trained."""
    last_k: int = 1
    """Backbone layers trained by the policy "last_k"."""
    adapter: AdapterPlan = field(default_factory=AdapterPlan)
    attack: AttackPlan = field(default_factory=AttackPlan)
    groups: GroupPlan = field(default_factory=GroupPlan)
    rehearsal: RehearsalPlan = field(default_factory=RehearsalPlan)
    augment: bool = False
    """Small rotation, shift, scale, brightness, contrast, gamma and noise; a flip only where ``data.laterality`` is false."""
    ema: float = 0.995
    """Decay of an exponential moving average of the weights, which is then what is validated and saved; 0 keeps none."""
    select: Literal["auroc", "worst group"] = "auroc"
    """What the best epoch is the best in; "worst group" needs ``groups.column``."""
    patience: int = 0
    """Epochs without a better score before stopping; 0 trains to the end."""
    threads: int = 1
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    activation_checkpointing: bool = False
    state_every: int = 0
    """Steps between two saved states that an interrupted training continues from; 0 saves one at the end of each epoch."""
    controls: bool = True
    """Train the honesty controls too: is it the language model that does the work?"""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the curves are shown as well; both stay on this machine unless their own settings say otherwise."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "accumulate", "last_k"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give a whole number of at least 1.")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ConfigError("training.learning_rate and training.clip must be above 0.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"training.ema is {self.ema}: give a decay from 0 to below 1.")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"training.batch_size {self.batch_size} is no multiple of training.accumulate {self.accumulate}: change one of them."
            )
        if self.select == "worst group" and self.groups.column is None:
            raise ConfigError('training.select = "worst group" needs training.groups.column: name the group column.')
