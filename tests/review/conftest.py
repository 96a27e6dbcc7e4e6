"""Made once for every test of the queue."""

from __future__ import annotations

import numpy as np
import pytest

from tests.review.making import World, fitted_checkpoint, write_images
from xvision.config import DataPlan, DecisionPlan, ModelPlan, Plan


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("few-labels")
    table = write_images(root / "known", 700, 0, "k")
    people = table["patient"].unique()
    split = dict(zip(people, np.repeat(["train", "validation", "test"], [100, 200, 50]), strict=True))
    table["split"] = table["patient"].map(split)
    table.to_csv(root / "known" / "manifest.csv", index=False)
    fitted_checkpoint(root / "model", table, root / "known" / "manifest.csv")
    waiting = write_images(root / "waiting", 200, 1, "w")
    truth = dict(zip(waiting["image"], waiting["label"], strict=True))
    waiting.drop(columns="label").to_csv(root / "waiting" / "manifest.csv", index=False)
    plan = Plan(
        DataPlan(str(root / "known" / "manifest.csv"), groups=("sex",), acquisition=("site",)),
        ModelPlan(str(root / "model"), device="cpu"),
        decision=DecisionPlan("spot", 0.5),
        batch_size=128,
    )
    return World(plan, root / "waiting" / "manifest.csv", truth)
