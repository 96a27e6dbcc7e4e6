"""Plans: TOML read into frozen records before any other work starts. Paths in a plan are relative to the plan file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from xvision import codec
from xvision.errors import ConfigError

OptionValue = Any  # what TOML can hold; checked against the analysis's own signature


@codec.record
class DataPlan:
    """Where the labelled images are and what their columns mean."""

    path: str
    groups: tuple[str, ...] = ()
    """Columns that say who the patient is: sex, age band, ethnicity. Gaps between them are a fairness question."""
    acquisition: tuple[str, ...] = ()
    """Columns that say how the image was taken: site, scanner, view. A decision that follows them is a shortcut."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Standard name → the manifest's own name, e.g. ``mask = "mask_lesion"``."""
    allow_leakage: bool = False
    """Audit although a patient is in two splits; the report then says so."""


@codec.record
class DecisionPlan:
    """The decision that is deployed. Left out, a binary model is judged at 0.5 on its second class, and the report says so."""

    positive: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(f"decision.threshold is {self.threshold}: give a probability above 0 and below 1.")


@codec.record
class ModelPlan:
    """The checkpoint under audit; fine-tuning writes it there."""

    path: str
    device: str = "auto"


@codec.record
class BackbonePlan:
    """How fine-tuning builds the classifier: a tiny preset from scratch, or a pretrained language model."""

    preset: Literal["tiny-qwen3", "tiny-gpt2", "tiny-bert"] = "tiny-qwen3"
    pretrained: str | None = None
    """Folder or hub id of a text model; used instead of the preset."""
    start: str | None = None
    """Folder of an earlier classifier of xvision to train on; its shape replaces the settings below."""
    image_size: int = 64
    patch_size: int = 8
    channels: Literal[1, 3] = 1
    stem: Literal["conv", "linear"] = "conv"
    attention: Literal["causal", "bidirectional"] = "causal"

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ConfigError(
                f"backbone.image_size {self.image_size} is not a multiple of backbone.patch_size {self.patch_size}: change one of them."
            )


@codec.record
class TrainingPlan:
    """The fine-tuning recipe; the defaults were measured on 3,000 images of 64 × 64 pixels on one CPU thread."""

    epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    """Share of all steps."""
    clip: float = 1.0
    label_smoothing: float = 0.0
    class_weights: bool = False
    augment: bool = False
    """Small rotation, shift, scale, brightness, contrast, gamma and noise. Never a flip: the heart has a side."""
    threads: int = 1
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    patience: int = 0
    """Epochs without a better validation AUROC before stopping; 0 trains to the end."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give a whole number of at least 1.")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ConfigError("training.learning_rate and training.clip must be above 0.")


@codec.record
class Plan:
    """Everything that decides the numbers of one audit."""

    data: DataPlan
    model: ModelPlan
    name: str = "audit"
    seed: int = 0
    batch_size: int = 64
    criteria: str | None = None
    """Criteria agreed beforehand; without them the run is not judged."""
    case_images: bool = True
    """Keep pictures of selected cases in the run folder. Patient images: turn off where they must not leave the archive."""
    decision: DecisionPlan = field(default_factory=DecisionPlan)
    backbone: BackbonePlan = field(default_factory=BackbonePlan)
    training: TrainingPlan = field(default_factory=TrainingPlan)
    only: tuple[str, ...] = ()
    """Analyses to run; empty runs all that apply."""
    analysis: Mapping[str, Mapping[str, OptionValue]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}: give a whole number of at least 1.")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as problem:
        raise ConfigError(f"{path}: not a readable TOML file ({problem}).") from None


def load_plan(path: Path) -> Plan:
    """A plan with its paths made absolute."""
    plan = codec.read(Plan, read_toml(path), str(path), ConfigError)
    return resolve_paths(plan, path.resolve().parent)


def resolve_paths(plan: Plan, root: Path) -> Plan:
    """The plan with its file paths made absolute from ``root``; a model that is no local path stays a hub id."""
    from dataclasses import replace

    model = root / plan.model.path
    looks_local = model.exists() or plan.model.path.startswith((".", "/")) or plan.model.path.count("/") != 1
    pretrained = plan.backbone.pretrained
    local_backbone = pretrained is not None and (root / pretrained).exists()
    start = str(root / plan.backbone.start) if plan.backbone.start else None
    return replace(
        plan,
        data=replace(plan.data, path=str(root / plan.data.path)),
        model=replace(plan.model, path=str(model) if looks_local else plan.model.path),
        criteria=str(root / plan.criteria) if plan.criteria else None,
        backbone=replace(
            plan.backbone, start=start, pretrained=str(root / str(pretrained)) if local_backbone else pretrained
        ),
    )
