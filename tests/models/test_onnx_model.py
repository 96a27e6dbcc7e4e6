"""ONNX files as classifiers: real exports, files made by hand, and files that must not be run."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from xvision.errors import ModelError
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.models.open import load_model
from xvision.models.programs.card import Card
from xvision.models.programs.onnx_export import export_onnx, write_checked
from xvision.models.programs.onnx_model import load_onnx
from xvision.models.protocols import Classifier, InputSpec

CPU = torch.device("cpu")
WEIGHT = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
CLASSES = ["normal", "lesion"]


def graph(**changes: Any) -> onnx.ModelProto:
    """Flattens 1 × 4 × 4 pixels and multiplies; ``changes`` replace its parts."""
    batch = changes.get("batch", "batch")
    outputs = changes.get("outputs", 2)
    weight = changes.get("weight", numpy_helper.from_array(WEIGHT[:, :outputs].copy(), "weight"))
    nodes = changes.get(
        "nodes",
        [
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
    )
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", changes.get("kind", TensorProto.FLOAT), [batch, 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, changes.get("shape", [batch, outputs]))],
        [weight],
    )
    domains = [helper.make_opsetid("", 20), *(helper.make_opsetid(name, 1) for name in changes.get("domains", ()))]
    return helper.make_model(made, opset_imports=domains, ir_version=10)


def write(folder: Path, model: onnx.ModelProto, classes: object = CLASSES) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    if classes is not None:
        (folder / "model.classes.json").write_text(json.dumps(classes))
    return path


def pixels(count: int, side: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def original() -> HuggingFaceClassifier:
    module = preset("tiny-gpt2", image_size=16, stem="linear", seed=0)
    module.backbone.h = module.backbone.h[:1]
    module.config.text_config.n_layer = 1
    return adapt(module, preprocessing_of(module.config), source="memory")


@pytest.fixture(scope="module")
def exported(original: HuggingFaceClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert export_onnx(original, path) <= 1e-4
    return path


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_exported_model_repeats_the_logits_for_any_number_of_images(
    original: HuggingFaceClassifier, exported: Path, count: int
) -> None:
    found = load_model(exported)
    noise = pixels(count, 16)
    assert torch.allclose(found.logits(noise), original.logits(noise), atol=1e-5)


def test_an_exported_model_brings_its_classes_and_input_and_no_paths(
    original: HuggingFaceClassifier, exported: Path
) -> None:
    found = load_model(exported)
    assert isinstance(found, Classifier)
    assert (found.classes, found.input, found.task) == (original.classes, original.input, "binary")
    assert found.access == "black-box"
    assert found.description["architecture"] == "LlmImageClassifier"
    document = onnx.load(exported)
    assert [item.key for item in document.metadata_props] == ["xvision"]
    assert str(Path(__file__).parents[2]).encode() not in exported.read_bytes()
    assert b"site-packages" not in exported.read_bytes()


def test_a_handmade_file_gives_its_product(tmp_path: Path) -> None:
    found = load_onnx(write(tmp_path, graph()), CPU)
    noise = pixels(3)
    assert torch.allclose(found.logits(noise), noise.flatten(1) @ torch.from_numpy(WEIGHT), atol=1e-6)
    assert found.classes == ("normal", "lesion")
    assert found.input == InputSpec(1, 4, 4, "bilinear")
    assert found.description["parameters"] == 32
    assert "bilinear is assumed" in str(found.description["notes"])


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_a_fixed_number_of_images_is_met_by_cutting_and_padding(tmp_path: Path, count: int) -> None:
    found = load_onnx(write(tmp_path, graph(batch=3)), CPU)
    noise = pixels(count)
    assert torch.allclose(found.logits(noise), noise.flatten(1) @ torch.from_numpy(WEIGHT), atol=1e-6)


def test_one_output_is_the_log_odds_of_its_class(tmp_path: Path) -> None:
    found = load_onnx(write(tmp_path, graph(outputs=1), ["lesion"]), CPU)
    assert found.classes == ("not lesion", "lesion")
    assert (found.logits(pixels(2))[:, 0] == 0).all()


def test_findings_that_occur_together_are_multilabel(tmp_path: Path) -> None:
    card = {"classes": CLASSES, "problem_type": "multi_label_classification", "resample": "bicubic"}
    found = load_onnx(write(tmp_path, graph(), card), CPU)
    assert (found.task, found.input.resample) == ("multilabel", "bicubic")


def test_a_copy_opens_the_file_again_and_weights_stay_put(tmp_path: Path) -> None:
    found = load_onnx(write(tmp_path, graph()), CPU)
    noise = pixels(2)
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):  # noqa: S301  # our own bytes
        assert torch.equal(twin.logits(noise), found.logits(noise))
    with pytest.raises(ModelError, match="weights of an ONNX file cannot be shuffled"):
        found.randomised(0)


def test_fingerprint_follows_the_file(tmp_path: Path) -> None:
    first = load_onnx(write(tmp_path, graph()), CPU).fingerprint
    assert load_onnx(write(tmp_path, graph()), CPU).fingerprint == first
    other = numpy_helper.from_array(WEIGHT + np.float32(1e-3), "weight")
    assert load_onnx(write(tmp_path, graph(weight=other)), CPU).fingerprint != first
    assert load_onnx(write(tmp_path, graph(), CLASSES[::-1]), CPU).fingerprint != first


def test_another_device_is_noted(tmp_path: Path) -> None:
    found = load_onnx(write(tmp_path, graph()), torch.device("cuda"))
    assert found.device.type == "cpu"
    assert "runs on the CPU although cuda was asked for" in str(found.description["notes"])


def external(folder: Path, location: str) -> Path:
    """A file whose weights are said to lie at ``location``."""
    model = graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(WEIGHT.nbytes))
    return write(folder, model)


def test_weights_beside_the_file_are_read_and_count_in_the_fingerprint(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    found = load_onnx(path, CPU)
    noise = pixels(2)
    assert torch.allclose(found.logits(noise), noise.flatten(1) @ torch.from_numpy(WEIGHT), atol=1e-6)
    first = found.fingerprint
    (tmp_path / "weights.bin").write_bytes((WEIGHT + np.float32(1)).tobytes())
    assert load_onnx(path, CPU).fingerprint != first


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(ModelError, match="outside its own folder: do not use this file"):
        load_onnx(external(folder, location), CPU)


def test_a_link_to_weights_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="outside its own folder"):
        load_onnx(external(folder, "weights.bin"), CPU)


def test_weights_inside_a_node_are_looked_at_too(tmp_path: Path) -> None:
    hidden = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[16, 2], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../secret.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=hidden)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [16, 2])],
    )
    truth = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    choice = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
    nodes = [
        truth,
        choice,
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    with pytest.raises(ModelError, match=r"'\.\./secret\.bin', which is outside its own folder"):
        load_onnx(write(tmp_path, graph(nodes=nodes)), CPU)


def test_missing_and_too_large_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path, "weights.bin")
    with pytest.raises(ModelError, match=r"'weights\.bin', which is not beside it: copy it there"):
        load_onnx(path, CPU)
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.setattr("xvision.models.programs.onnx_model.MAX_WEIGHTS", 100)
    with pytest.raises(ModelError, match="of weights; at most"):
        load_onnx(path, CPU)
    monkeypatch.setattr("xvision.models.programs.onnx_model.MAX_BYTES", 100)
    with pytest.raises(ModelError, match="more than 2 GiB, which no ONNX file can have"):
        load_onnx(path, CPU)


def test_operators_from_elsewhere_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Surprise", ["flat"], ["logits"], domain="evil.ops"),
    ]
    with pytest.raises(ModelError, match=r"operator evil\.ops\.Surprise, which is not one of ONNX itself"):
        load_onnx(write(tmp_path, graph(nodes=nodes, domains=("evil.ops",))), CPU)


def test_a_function_defined_in_the_file_is_no_foreign_operator(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Times", ["flat", "weight"], ["logits"], domain="own"),
    ]
    model = graph(nodes=nodes, domains=("own",))
    product = helper.make_node("MatMul", ["a", "b"], ["c"])
    model.functions.append(
        helper.make_function("own", "Times", ["a", "b"], ["c"], [product], [helper.make_opsetid("", 20)])
    )
    noise = pixels(2)
    found = load_onnx(write(tmp_path, model), CPU).logits(noise)
    assert torch.allclose(found, noise.flatten(1) @ torch.from_numpy(WEIGHT), atol=1e-6)


Broken = Callable[[], onnx.ModelProto]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: graph(kind=TensorProto.DOUBLE), "does not take pixels"),
        (lambda: graph(shape=["batch", 2, 1]), "gives an output with 3 axes"),
        (lambda: graph(shape=["batch", "classes"]), "gives an output with 2 axes"),
        (lambda: graph(nodes=[helper.make_node("Flatten", ["pixels"], ["logits"])]), "gives outputs of shape|loaded"),
        (lambda: graph(nodes=[helper.make_node("Nothing", ["pixels"], ["logits"])]), "cannot be loaded by onnxruntime"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, model: Broken, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_onnx(write(tmp_path, model()), CPU)


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    model = graph()
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.INT64, ["batch", 4]))
    with pytest.raises(ModelError, match="has 2 inputs and 1 outputs: export one input of pixels"):
        load_onnx(write(tmp_path, model), CPU)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="no such file"):
        load_onnx(path, CPU)
    for content in (b"", b"not a model", b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not readable as ONNX"):
            load_onnx(path, CPU)


def test_classes_must_be_named_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not name its 2 outputs: write the class names .*model\.classes\.json"):
        load_onnx(write(tmp_path, graph(), None), CPU)
    path = write(tmp_path, graph())
    (tmp_path / "model.classes.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        load_onnx(path, CPU)
    with pytest.raises(ModelError, match=r"has 2 outputs but the classes are \['a', 'b', 'c'\]"):
        load_onnx(write(tmp_path, graph(), ["a", "b", "c"]), CPU)
    with pytest.raises(ModelError, match=r"described with \(1, 8, 8\)"):
        load_onnx(write(tmp_path, graph(), {"classes": CLASSES, "input": [1, 8, 8]}), CPU)
    assert Card(("a", "b")).input is None


def test_export_needs_its_suffix(original: HuggingFaceClassifier, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"give the file a name that ends in \.onnx"):
        export_onnx(original, tmp_path / "model.bin")


def test_a_file_that_differs_from_its_model_is_not_kept(
    original: HuggingFaceClassifier, exported: Path, tmp_path: Path
) -> None:
    other = copy.copy(original)
    other.module = copy.deepcopy(original.module)
    with torch.no_grad():
        other.module.classifier.bias += 1.0
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="differ from the model's by 1; nothing is written"):
        write_checked(exported.read_bytes(), other, path)
    assert not path.exists()
    assert write_checked(exported.read_bytes(), original, path) < 1e-5
