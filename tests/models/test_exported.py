"""Archives of torch.export: what comes in is what went out, and nothing in an archive runs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.archives import Net, altered, load, named, refused, save, small_vit
from tests.models.builders import pixels
from xvision.errors import ModelError
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.models.open import load_model
from xvision.models.programs.exported import export_pt2


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-gpt2", "tiny-bert"])
def test_a_language_model_classifier_comes_back_the_same(name: str, tmp_path: Path) -> None:
    module = preset(name, image_size=16, patch_size=8, seed=0)
    model = adapt(module, preprocessing_of(module.config), source="here")
    export_pt2(model, tmp_path / "model.pt2")
    twin = load_model(tmp_path / "model.pt2", device="cpu")
    assert (twin.classes, twin.task, twin.input, twin.access) == (model.classes, "binary", model.input, "white-box")
    for count in (1, 2, 5):
        images = torch.rand(count, 1, 16, 16)
        assert (twin.logits(images) - model.logits(images)).abs().max() <= 1e-5


def test_gradients_reach_the_pixels_as_in_the_model(tmp_path: Path) -> None:
    model = small_vit()
    export_pt2(model, tmp_path / "model.pt2")
    twin = load(tmp_path / "model.pt2")
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    (ours,) = torch.autograd.grad(model.logits(images)[:, 1].sum(), images)
    (theirs,) = torch.autograd.grad(twin.logits(images)[:, 1].sum(), images)
    assert ours.abs().max() > 1e-3
    assert (ours - theirs).abs().max() <= 1e-6
    assert twin.description["architecture"] == "ViTForImageClassification (.pt2)"
    assert twin.description["parameters"] == model.description["parameters"]
    assert twin.input.resample == "bicubic"


def test_an_archive_of_ours_holds_no_pickle_and_no_source_path(tmp_path: Path) -> None:
    export_pt2(small_vit(), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as found:
        contents = {name: found.read(name) for name in found.namelist()}
    assert contents["model/data/sample_inputs/model.pt"] == b""
    assert not any(content[:2] in (b"\x80\x02", b"PK") for content in contents.values())
    assert b".py" not in contents["model/models/model.json"]
    plain = torch.export.load(tmp_path / "model.pt2").module()(torch.full((2, 3, 16, 16), 0.25))
    assert torch.equal(plain, small_vit().logits(torch.full((2, 3, 16, 16), 0.25)))


def test_equal_models_have_equal_fingerprints_and_bytes(tmp_path: Path) -> None:
    for name, changes in (("a", {}), ("b", {}), ("c", {"id2label": {0: "lesion", 1: "normal"}})):
        export_pt2(small_vit(**changes), tmp_path / f"{name}.pt2")
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
    first, second, third = (load(tmp_path / f"{name}.pt2").fingerprint for name in "abc")
    assert first == second != third


def test_findings_that_occur_together_stay_so(tmp_path: Path) -> None:
    model = small_vit(problem_type="multi_label_classification")
    export_pt2(model, tmp_path / "model.pt2")
    assert load(tmp_path / "model.pt2").task == model.task == "multilabel"


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"give the archive a name that ends in \.pt2"):
        export_pt2(small_vit(), tmp_path / "model.onnx")
    model = small_vit()
    model.module.forward = lambda pixel_values: (_ for _ in ()).throw(RuntimeError("boom"))
    with pytest.raises(
        ModelError, match=r"ViTForImageClassification cannot be exported for any number of images: .*boom"
    ):
        export_pt2(model, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


# --- other people's ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "dim"),
    [(4, None), (1, None), (2, torch.export.Dim("batch", max=3)), (5, torch.export.Dim("batch", min=4))],
)
def test_any_number_of_images_meets_any_batch_size(batch: int, dim: Any, tmp_path: Path) -> None:
    path = named(save(Net(), tmp_path / "net.pt2", batch=batch, dim=dim))
    model, images = load(path), torch.rand(7, 1, 8, 8, requires_grad=True)
    assert model.access == "white-box"
    assert torch.allclose(model.logits(images), Net()(images), atol=1e-6)
    (ours,) = torch.autograd.grad(model.logits(images)[:, 1].sum(), images)
    (theirs,) = torch.autograd.grad(Net()(images)[:, 1].sum(), images)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_classes_beside_the_archive(archive: Path, tmp_path: Path) -> None:
    assert load(archive).classes == ("normal", "lesion")
    assert "bilinear is assumed" in str(load(archive).description["notes"])
    full = altered(archive, tmp_path / "full.pt2")
    named(full, {"classes": ["a", "b"], "resample": "lanczos", "problem_type": "multi_label_classification"})
    model = load(full)
    assert (model.classes, model.input.resample, model.task) == (("a", "b"), "lanczos", "multilabel")
    assert "notes" not in model.description


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["only one"], r"has 2 outputs but the classes are \['only one'\]"),
        (["same", "same"], "give one different name for each output"),
        ({"classes": ["a", "b"], "colour": 1}, "unknown key 'colour'|colour"),
        (
            {"classes": ["a", "b"], "input": [3, 8, 8]},
            r"takes images of \(1, 8, 8\).* but is described with \(3, 8, 8\)",
        ),
        (7, "classes.json"),
    ],
)
def test_classes_that_do_not_fit_are_refused(content: object, message: str, archive: Path, tmp_path: Path) -> None:
    path = altered(archive, tmp_path / "net.pt2")
    named(path, content)
    refused(path, message)


def test_missing_doubled_and_broken_class_names(archive: Path, tmp_path: Path) -> None:
    path = altered(archive, tmp_path / "net.pt2")
    beside = path.with_suffix(".classes.json")
    beside.write_text("{")
    refused(path, "not readable JSON")
    beside.unlink()
    refused(path, r'does not name its 2 outputs: write the class names .* to .*net\.classes\.json, such as \["normal"')
    export_pt2(small_vit(), tmp_path / "ours.pt2")
    refused(named(tmp_path / "ours.pt2"), r"ours\.classes\.json is not needed")


def test_one_output_is_the_log_odds_of_its_class(tmp_path: Path) -> None:
    path = named(save(Net(1), tmp_path / "net.pt2", dim=torch.export.Dim("batch")), ["lesion"])
    model, images = load(path), torch.rand(3, 1, 8, 8)
    assert model.classes == ("not lesion", "lesion")
    assert torch.equal(model.logits(images)[:, 0], torch.zeros(3))
    assert torch.allclose(model.logits(images)[:, 1:], Net(1)(images), atol=1e-6)


def test_a_program_without_gradients_is_a_black_box(tmp_path: Path) -> None:
    class Cut(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward((images * 4).round())

    assert load(named(save(Cut(), tmp_path / "net.pt2"))).access == "black-box"


def test_shuffled_weights_leave_the_original_alone(archive: Path) -> None:
    model, images = load(archive), torch.rand(2, 1, 8, 8)
    before, control = model.logits(images), model.randomised(0)
    assert (control.logits(images) - before).abs().max() > 1e-3
    assert torch.equal(model.logits(images), before)
    assert torch.equal(control.logits(images), model.randomised(0).logits(images))
    assert control.fingerprint != model.fingerprint


def test_an_archive_survives_the_way_to_another_process(archive: Path) -> None:
    import cloudpickle  # what Ray sends models with

    images = torch.rand(3, 1, 8, 8)
    for model in (load(archive), load(archive).randomised(3)):
        there = cloudpickle.loads(cloudpickle.dumps(model))
        assert torch.equal(there.logits(images), model.logits(images))
        assert there.fingerprint == model.fingerprint


def test_pixels_of_another_shape_are_refused(archive: Path) -> None:
    with pytest.raises(ModelError, match=r"shape \(2, 3, 64, 64\); this model takes \(B, 1, 8, 8\)"):
        load(archive).logits(pixels())


class Two(Net):
    def forward(self, images: torch.Tensor, more: torch.Tensor | None = None) -> Any:
        logits = super().forward(images)
        return (logits, logits * 2) if more is None else logits + more.sum()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.seen = Net(), nn.Buffer(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return self.head(images) + self.seen


class Flat(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, 0]


class Free(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)).repeat(1, 2) * torch.tensor([1.0, -1.0])


@pytest.mark.parametrize(
    ("module", "message"),
    [(Two(), "gives 2 outputs"), (Counting(), "other logits for the same image"), (Flat(), "an output with 1 axes")],
)
def test_another_form_than_pixels_to_logits_is_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    refused(named(save(module, tmp_path / "net.pt2")), message)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own
def test_a_program_that_changes_its_own_state_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(Counting(), (torch.rand(2, 1, 8, 8),)).run_decompositions({})
    torch.export.save(program, tmp_path / "net.pt2")
    refused(named(tmp_path / "net.pt2"), "changes its own state while it runs: put the model in eval mode")


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    images = torch.rand(2, 1, 8, 8)
    torch.export.save(torch.export.export(Two(), (images, images)), tmp_path / "two.pt2")
    refused(named(tmp_path / "two.pt2"), "takes 2 inputs")
    torch.export.save(torch.export.export(Net().double(), (images.double(),)), tmp_path / "double.pt2")
    refused(named(tmp_path / "double.pt2"), r"does not take pixels \(B, C, H, W\) in float32")
    refused(named(save(Net(), tmp_path / "five.pt2", size=(4, 4, 4))), "channels must be 1 or 3")


def test_a_free_height_is_stated_beside_the_archive(tmp_path: Path) -> None:
    side = torch.export.Dim("side", min=4, max=64)
    program = torch.export.export(Free(), (torch.rand(1, 1, 8, 8),), dynamic_shapes=({2: side},))
    torch.export.save(program, tmp_path / "free.pt2")
    refused(named(tmp_path / "free.pt2"), r'takes images of \(1, None, 8\).* state "input": \[C, H, W\]')
    model = load(named(tmp_path / "free.pt2", {"classes": ["a", "b"], "input": [1, 12, 8]}))
    images = torch.rand(3, 1, 12, 8)
    assert torch.allclose(model.logits(images), Free()(images))


# --- hostile ----------------------------------------------------------------------------------------------------------
