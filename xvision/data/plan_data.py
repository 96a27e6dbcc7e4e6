"""The data that a plan describes, for an audit and for fine-tuning alike."""

from __future__ import annotations

from pathlib import Path

from xvision.config import DataPlan
from xvision.data.dataset import AuditDataset
from xvision.data.manifest import load_data
from xvision.data.splits import make_splits
from xvision.data.unlabelled import load_unlabelled


def load_plan_data(plan: DataPlan, *, images_required: bool = True) -> AuditDataset:
    """Labels, groups, acquisition columns and images as ``[data]`` says, divided where it asks for that.

    images_required: False for models that are known by their scores only. Raises ConfigError and DataError as ``load_data``
    and ``make_splits`` do.
    """
    data = load_data(
        plan.path,
        groups=tuple(dict.fromkeys((*plan.groups, *plan.acquisition))),
        columns=plan.columns,
        images_required=images_required,
        multilabel=plan.multilabel,
        bands=plan.bands,
    )
    return data if plan.split is None else make_splits(data, plan.split)


def load_reference(path: str, plan: DataPlan) -> AuditDataset:
    """Labelled images of the place a model comes from, whose columns are called as ``[data]`` says."""
    return load_data(path, columns=plan.columns, multilabel=plan.multilabel)


def load_outside(path: str) -> AuditDataset:
    """Images that the model was not made for: a folder of images, or a manifest with standard columns and any labels or none."""
    location = Path(path)
    listed = location.is_file() or (location / "manifest.csv").is_file()
    return load_unlabelled(location) if listed else load_data(location)
