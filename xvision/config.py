"""Plans: TOML read into frozen records before any other work starts. Paths in a plan are relative to the plan file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from xvision import codec
from xvision.errors import ConfigError, nearest
from xvision.recipe import BackbonePlan, SearchPlan, TrainingPlan

_MOST_EDGES = 8
OptionValue = Any  # what TOML can hold; checked against the analysis's own signature


Modality = Literal["xray", "ct", "mr", "ultrasound", "dermoscopy", "histology", "fundus", "natural"]


@codec.record
class SplitPlan:
    """How cases without a split are divided: by patient, and alike in the columns named."""

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2
    stratify: tuple[str, ...] = ("label",)
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-6:
            raise ConfigError(f"data.split: the shares {shares} must all be above 0 and add up to 1.")


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
    split: SplitPlan | None = None
    """Make the splits; left out, the data must bring its own where they are needed."""
    multilabel: bool = False
    """A label cell may name several findings, separated by ``|``, or none at all."""
    laterality: bool = True
    """Left and right mean something in these images, so they are never flipped in training."""
    modality: Modality | None = None
    """How the images were made: decides which kinds of damage are tried and how strong each is."""
    bands: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Group or acquisition column of numbers → the edges of its bands, e.g. ``age = [40, 60]``; an edge begins the band above."""

    def __post_init__(self) -> None:
        for column, edges in self.bands.items():
            check_edges(column, edges)


def check_edges(column: str, edges: Sequence[float]) -> None:
    """Raises ConfigError for edges that make no bands."""
    usable = all(math.isfinite(edge) for edge in edges) and list(edges) == sorted(set(edges))
    if not usable or not 1 <= len(edges) <= _MOST_EDGES:
        raise ConfigError(
            f"data.bands: the edges of {column!r} are {list(edges)}: give 1 to {_MOST_EDGES} different numbers in ascending "
            "order, such as [40, 60]."
        )


@codec.record
class RulePlan:
    """How the threshold is chosen, on the images of the split "validation"."""

    target: Literal["sensitivity", "fpr", "net benefit"]
    """sensitivity: the largest threshold that reaches the value. fpr: the smallest one that does not exceed it. net benefit: the
    one with the largest net benefit where a false alarm costs value / (1 - value) of what a found case is worth."""
    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < 1:
            raise ConfigError(f"decision.rule.value is {self.value}: give a share above 0 and below 1.")


@codec.record
class DecisionPlan:
    """The decision that is deployed. Left out, a binary model is judged at 0.5 on its second class, and the report says so."""

    positive: str | None = None
    threshold: float | None = None
    """A number that was fixed beforehand, such as the vendor's."""
    rule: RulePlan | None = None
    """Instead of a number: how it is chosen on the split "validation"."""
    directions: tuple[Literal["any", "missed disease", "false alarm"], ...] = ("any",)
    """Which wrong decisions an attack looks for."""
    off_by: int = 1
    """For classes in order, a grade for instance: how many grades off counts as broken by an attack."""
    no_disease: str | None = None
    """The class without disease. Of two classes it is the one that is not positive, unless it is named here: a model that looks
    for "No Finding" is positive for the healthy. With more classes, directions need it."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.rule is not None:
            raise ConfigError("decision has a threshold and a rule to choose one: keep the one that holds.")
        if self.rule is not None and self.positive is None:
            raise ConfigError("decision.rule needs decision.positive: say which class the decision looks for.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(f"decision.threshold is {self.threshold}: give a probability above 0 and below 1.")


@codec.record
class FairnessPlan:
    """What was agreed about groups before anybody looked at the figures."""

    margin: float | None = None
    """The difference between groups in sensitivity, specificity and other shares that is still acceptable, e.g. 0.05."""
    case_mix: Mapping[str, Literal["confounder", "mediator"]] = field(default_factory=dict)
    """Column → why groups may differ in it. confounder: it came about apart from the group, so compare at an equal mix.
    mediator: the group itself brings it about, such as late diagnosis, so that evening it out would hide harm."""
    suppress_below: int = 0
    """Reports that leave the house show no count of people from 1 to below this number; 0 shows all."""

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 < self.margin < 1:
            raise ConfigError(f"fairness.margin is {self.margin}: give a difference above 0 and below 1.")
        if self.suppress_below < 0:
            raise ConfigError(f"fairness.suppress_below is {self.suppress_below}: give 0 or a count.")


@codec.record
class ShiftPlan:
    """Images from elsewhere, which the audited ones are compared with. Each is a manifest or a folder."""

    reference: str | None = None
    """Where the model comes from. Left out, the split "validation" or else "train" of the data stands for it."""
    near: Mapping[str, str] = field(default_factory=dict)
    """Name → images that a user could mistake for the right ones: another view, another age, another body part."""
    far: Mapping[str, str] = field(default_factory=dict)
    """Name → images that have nothing to do with the task."""

    def __post_init__(self) -> None:
        both = sorted(set(self.near) & set(self.far))
        if both:
            raise ConfigError(f"shift: {both[0]!r} is a near and a far set. Give each set one name and one place.")


@codec.record
class PromptPlan:
    """How a vision-language model is asked for a class."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Class → the words that stand for it, in the order of the classes."""
    template: str = "finding"
    """Name of a template that comes with xvision, or the path of one."""
    normalise: Literal["sum", "mean", "pmi"] = "sum"
    """sum: log-probability of the words. mean: per token. pmi: less that of an image without content (prior correction)."""
    temperature: float = 1.0


@codec.record
class ModelPlan:
    """The checkpoint under audit; fine-tuning writes it there."""

    path: str
    device: str = "auto"
    prompt: PromptPlan | None = None
    """For a vision-language model: what it is asked and which words count as which class."""


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
    shift: ShiftPlan = field(default_factory=ShiftPlan)
    fairness: FairnessPlan = field(default_factory=FairnessPlan)
    backbone: BackbonePlan = field(default_factory=BackbonePlan)
    training: TrainingPlan = field(default_factory=TrainingPlan)
    search: SearchPlan = field(default_factory=SearchPlan)
    only: tuple[str, ...] = ()
    """Analyses to run; empty runs all that apply."""
    analysis: Mapping[str, Mapping[str, OptionValue]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}: give a whole number of at least 1.")
        declared = (*self.data.groups, *self.data.acquisition)
        for name in self.fairness.case_mix:
            if name not in declared:
                raise ConfigError(
                    f"fairness.case_mix: {name!r} is none of the columns in data.groups and data.acquisition."
                    f" {nearest(name, declared)}"
                )


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
    prompt = plan.model.prompt
    if prompt is not None and (prompt.template.endswith(".toml") or "/" in prompt.template):
        prompt = replace(prompt, template=str(root / prompt.template))
    rehearsal = plan.training.rehearsal
    if rehearsal.data:
        rehearsal = replace(rehearsal, data=str(root / rehearsal.data))
    shift = replace(
        plan.shift,
        reference=str(root / plan.shift.reference) if plan.shift.reference else None,
        near={name: str(root / path) for name, path in plan.shift.near.items()},
        far={name: str(root / path) for name, path in plan.shift.far.items()},
    )
    return replace(
        plan,
        shift=shift,
        data=replace(plan.data, path=str(root / plan.data.path)),
        model=replace(plan.model, path=str(model) if looks_local else plan.model.path, prompt=prompt),
        criteria=str(root / plan.criteria) if plan.criteria else None,
        backbone=replace(
            plan.backbone, start=start, pretrained=str(root / str(pretrained)) if local_backbone else pretrained
        ),
        training=replace(plan.training, rehearsal=rehearsal),
    )
