"""The data that a plan describes, for an audit and for fine-tuning alike."""

from __future__ import annotations

from xvision.config import DataPlan
from xvision.data.dataset import AuditDataset
from xvision.data.manifest import load_data
from xvision.data.splits import make_splits


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
    )
    return data if plan.split is None else make_splits(data, plan.split)
