"""What is given to load_model decides how it is read; and one finding of a model of several."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import xvision
from tests.models.builders import WITHOUT_MAP, pixels, save_folder, seeded, vit
from tests.models.vlm_builders import save_vlm
from xvision.config import PromptPlan
from xvision.errors import ConfigError, ModelError
from xvision.models import checkpoint, open
from xvision.models.finding import FindingView, finding_view
from xvision.models.huggingface import adapt
from xvision.models.llm.classifier import preset
from xvision.models.metered import Meter, MeteredClassifier
from xvision.models.open import load_model
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import AttentionClassifier, Classifier, EmbeddingClassifier, InputSpec
from xvision.models.timm_model import timm_preprocessing

SEVERAL = {
    "id2label": {0: "effusion", 1: "nodule", 2: "lesion"}, "label2id": {"effusion": 0, "nodule": 1, "lesion": 2},
    "problem_type": "multi_label_classification",
}  # fmt: skip
PROMPT = PromptPlan({"normal": "no", "lesion": "yes"})


def test_one_function_under_every_name() -> None:
    assert xvision.load_model is checkpoint.load_model is open.load_model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt2", r"absent\.pt2: no such file. Give a \.pt2 archive"),
        ("absent.csv", r"absent\.csv: no such file. Give a CSV file of predictions"),
        ("absent.pth", r"absent\.pth is a pickle.*convert it with model\.save_pretrained\(folder\), or export it"),
    ],
)
def test_the_name_decides_the_form(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name, device="cpu")


@pytest.mark.parametrize("name", ["a.csv", "a.pt2", "a.onnx"])
def test_a_prompt_is_for_vision_language_models(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"\[model\.prompt\] is for vision-language models, but .* is a \.\w+ file: remove it"
    ):
        load_model(tmp_path / name, prompt=PROMPT)
    folder = save_folder(tmp_path / "model", seeded(vit))
    with pytest.raises(ConfigError, match="is an image classifier: remove it"):
        load_model(folder, device="cpu", prompt=PROMPT)


def config_only(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_vision_language_model_without_a_prompt_says_what_to_write(tmp_path: Path) -> None:
    folder = config_only(tmp_path / "vlm", model_type="llava", architectures=["LlavaForConditionalGeneration"])
    with pytest.raises(ConfigError, match=r"must be asked: write \[model\.prompt\] in the plan, with labels = "):
        load_model(folder, device="cpu")


def test_a_vision_language_model_with_a_prompt_is_a_classifier(tmp_path: Path) -> None:
    folder = save_vlm(tmp_path / "vlm", "llava")
    model = load_model(folder, device="cpu", prompt=PROMPT)
    assert (model.classes, model.task) == (("normal", "lesion"), "binary")
    assert model.description["source"] == str(folder)


def test_a_head_makes_a_classifier_of_a_model_that_could_also_speak(tmp_path: Path) -> None:
    """ShieldGemma 2 is in both of transformers' lists."""
    headed = config_only(
        tmp_path / "headed", model_type="shieldgemma2", architectures=["ShieldGemma2ForImageClassification"]
    )
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(headed, device="cpu")
    spoken = config_only(
        tmp_path / "spoken", model_type="shieldgemma2", architectures=["ShieldGemma2ForConditionalGeneration"]
    )
    with pytest.raises(ConfigError, match="must be asked"):
        load_model(spoken, device="cpu")


# --- timm -------------------------------------------------------------------------------------------------------------

TIMM: dict[str, Any] = {
    "architecture": "resnet10t", "num_classes": 2, "label_names": ["normal", "lesion"], "model_args": {"num_classes": 2},
    "pretrained_cfg": {
        "input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.875, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
    },
}  # fmt: skip


def timm(**changes: Any) -> dict[str, Any]:
    stated = {**TIMM["pretrained_cfg"], **changes.pop("pretrained_cfg", {})}
    return {**TIMM, **changes, "pretrained_cfg": stated}


def test_timm_preprocessing_is_read_as_stated() -> None:
    found = timm_preprocessing(Path("f"), TIMM)
    assert found.input == InputSpec(3, 32, 32, "bicubic")
    assert (found.scale, found.mean, found.std) == (1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert found.notes == ("training cropped the centre; the whole image is resized to 32 × 32 instead",)
    assert timm_preprocessing(Path("f"), timm(pretrained_cfg={"crop_pct": 1.0})).notes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_cfg": {"input_size": None}}, "input_size is None; state"),
        ({"pretrained_cfg": {"input_size": [3, 0, 9]}}, "input_size is"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation is 'random'; state one of"),
        ({"pretrained_cfg": {"mean": None}}, r"pretrained_cfg\.mean is None; state one number per channel"),
        ({"pretrained_cfg": {"std": [1.0]}}, "have 3 and 1 values"),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "has 'checkpoint_path', which is no plain argument"),
        ({"model_args": {"pretrained": True}}, "has 'pretrained'"),
        ({"model_args": {"act_layer": {"a": 1}}}, "has 'act_layer'"),
        ({"model_args": [1]}, "timm writes a table there"),
        ({"num_classes": None, "model_args": None}, "num_classes is None"),
    ],
)
def test_timm_folders_that_cannot_be_used_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(config_only(tmp_path / "timm", **timm(**changes)), device="cpu")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_is_asked_for_only_then_and_its_absence_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is a timm model, which needs timm and a torchvision that fits torch .*\.pt2 archive"
    ):
        load_model(config_only(tmp_path / "timm", **TIMM), device="cpu")


# --- one finding of several -------------------------------------------------------------------------------------------


def test_a_finding_keeps_what_the_model_offers(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", seeded(lambda: vit(**SEVERAL)))
    model = load_model(folder, device="cpu")
    assert model.task == "multilabel"
    view = finding_view(model, "nodule")
    assert isinstance(view, AttentionClassifier)
    assert isinstance(view, EmbeddingClassifier)
    assert (view.classes, view.task, view.access, view.input) == (
        ("no nodule", "nodule"),
        "binary",
        "white-box",
        model.input,
    )
    images = pixels(3)
    with torch.no_grad():
        every = model.logits(images)
    assert torch.equal(view.logits(images), torch.stack((torch.zeros(3), every[:, 1]), dim=1))
    assert torch.equal(view.embed(images), model.embed(images))
    seen = view.attention(images)
    assert torch.allclose(seen.logits, view.logits(images), atol=1e-5)
    assert all(layer.requires_grad for layer in seen.weights)
    assert view.description["finding"] == "nodule"


def test_a_finding_has_the_gradient_of_its_own_logit(tmp_path: Path) -> None:
    model = adapt(
        seeded(lambda: vit(**SEVERAL)), Preprocessing(InputSpec(3, 64, 64), 1.0, (0.5,) * 3, (0.5,) * 3), source="x"
    )
    images = pixels(2).requires_grad_()
    (expected,) = torch.autograd.grad(model.logits(images)[:, 2].sum(), images)
    (found,) = torch.autograd.grad(finding_view(model, "lesion").logits(images)[:, 1].sum(), images)
    assert torch.equal(found, expected)
    assert found.abs().max() > 0


def test_shuffled_weights_of_a_finding(tmp_path: Path) -> None:
    model = load_model(save_folder(tmp_path / "model", seeded(lambda: vit(**SEVERAL))), device="cpu")
    meter = Meter()
    metered = MeteredClassifier(finding_view(model, "nodule"), meter)
    control = metered.randomised(0)
    images = pixels(2)
    assert (control.logits(images) - metered.logits(images)).abs().max() > 1e-3
    assert meter.forward == 4
    assert torch.equal(control.logits(images)[:, 1], model.randomised(0).logits(images)[:, 1])


def test_findings_differ_in_their_fingerprint_and_offer_nothing_in_vain(tmp_path: Path) -> None:
    module = seeded(WITHOUT_MAP["resnet"])
    module.config.update({"id2label": SEVERAL["id2label"], "problem_type": SEVERAL["problem_type"]})
    module.classifier[-1] = torch.nn.Linear(16, 3)
    model = adapt(module, Preprocessing(InputSpec(3, 64, 64), 1.0, (0.5,) * 3, (0.5,) * 3), source="x")
    views = [finding_view(model, name) for name in model.classes]
    assert len({view.fingerprint for view in views}) == 3
    assert not isinstance(views[0], AttentionClassifier)
    assert isinstance(views[0], EmbeddingClassifier)


def test_a_finding_reads_the_text_that_the_model_reads() -> None:
    view = finding_view(_Reading(), "nodule")
    assert isinstance(view, FindingView)
    assert isinstance(view, Classifier)
    assert view.takes_text
    assert view.with_text(["a"]).logits(torch.zeros(1, 1, 2, 2))[0].tolist() == [0.0, 1.0]
    assert view.cut_texts(["a", "b"]) == 2


class _Reading:
    """A model of two findings whose logits are the number of texts it was given."""

    classes, task, bounds, access = ("effusion", "nodule"), "multilabel", (0.0, 1.0), "black-box"
    input, device, fingerprint, takes_text = InputSpec(1, 2, 2), torch.device("cpu"), "f", True

    def __init__(self, texts: int = 0) -> None:
        self.texts = texts
        self.description: dict[str, str | int] = {}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(pixels), 2), float(self.texts))

    def with_text(self, texts: list[str]) -> _Reading:
        return _Reading(len(texts))

    def cut_texts(self, texts: list[str]) -> int:
        return len(texts)


def test_a_classifier_of_ours_with_several_findings(tmp_path: Path) -> None:
    module = preset("tiny-qwen3", image_size=16, patch_size=8, classes=("a", "b", "c"), seed=0)
    module.config.problem_type = "multi_label_classification"
    checkpoint.save_model(module, tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(finding_view(model, "c").logits(images)[:, 1], model.logits(images)[:, 2])
