"""Work in parts: resumed, shrunk and distributed without changing a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import xvision
from xvision.audit import Audit
from xvision.engine import Batch, Engine, Rows
from xvision.errors import RunError
from xvision.methods.decision import Decision


def mean_and_logit(batch: Batch) -> Rows:
    pixels = batch.pixels.requires_grad_()
    logits = batch.model.logits(pixels)
    gradient = torch.autograd.grad(logits[:, 1].sum(), pixels)[0]
    return {"mean": batch.pixels.detach().mean((1, 2, 3)).numpy(), "gradient": gradient.abs().sum((1, 2, 3)).numpy()}


@pytest.fixture
def subject(phantoms: Path, checkpoint: Path) -> Audit:
    data = xvision.load_data(phantoms)
    return Audit(xvision.load_model(checkpoint, device="cpu"), data, Decision(1, 0.5, True), 0, Engine(part=8))


def test_passes_are_counted_once_per_image(subject: Audit) -> None:
    subject.map(mean_and_logit)
    assert (subject.engine.meter.forward, subject.engine.meter.backward) == (len(subject.ids), len(subject.ids))


def test_finished_parts_are_not_computed_again(subject: Audit, tmp_path: Path) -> None:
    subject.engine.folder = tmp_path
    seen: list[int] = []

    def counting(batch: Batch) -> Rows:
        seen.append(len(batch.ids))
        return mean_and_logit(batch)

    whole = subject.map(counting)
    parts = sorted(tmp_path.rglob("*.npz"))
    assert len(parts) == -(-len(subject.ids) // 8)
    parts[1].unlink()
    seen.clear()
    again = subject.map(counting)
    assert seen == [8]
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_other_options_are_other_parts(subject: Audit, tmp_path: Path) -> None:
    subject.engine.folder = tmp_path
    subject.map(mean_and_logit, options={"a": 1})
    subject.map(mean_and_logit, options={"a": 2})
    assert len(list(tmp_path.iterdir())) == 2


def test_out_of_memory_halves_the_batch_and_changes_nothing(subject: Audit) -> None:
    def greedy(batch: Batch) -> Rows:
        if len(batch.ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_and_logit(batch)

    expected, found = subject.map(mean_and_logit), subject.map(greedy)
    np.testing.assert_allclose(found["gradient"], expected["gradient"], rtol=1e-4)
    assert np.array_equal(found["mean"], expected["mean"])


def test_out_of_memory_on_one_image_is_an_error_that_names_it(subject: Audit) -> None:
    def hopeless(batch: Batch) -> Rows:
        raise MemoryError

    with pytest.raises(RunError, match=r"memory ran out on the single image 'p"):
        subject.map(hopeless)


def test_a_measure_must_give_one_row_per_case(subject: Audit) -> None:
    with pytest.raises(TypeError, match=r"gave \(1,\) for 'x'"):
        subject.map(lambda batch: {"x": np.zeros(1)})


def test_randomness_is_of_the_name_and_the_seed(subject: Audit) -> None:
    subject.task = "one"
    first = subject.rng("a").random(3)
    assert np.array_equal(first, subject.rng("a").random(3))
    assert not np.array_equal(first, subject.rng("b").random(3))
    subject.task = "other"
    assert not np.array_equal(first, subject.rng("a").random(3))


def test_ray_gives_the_same_rows(subject: Audit) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    expected = subject.map(mean_and_logit)
    subject.engine.kind = "ray"
    found = subject.map(mean_and_logit)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
