"""Archives of torch.export: what comes in is what went out, and nothing in an archive runs."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.builders import pixels, seeded, vit
from xvision.errors import ModelError
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.models.open import load_model
from xvision.models.preprocessing import Preprocessing
from xvision.models.programs.exported import ExportedClassifier, export_pt2, load_exported
from xvision.models.protocols import InputSpec

SMALL = Preprocessing(InputSpec(3, 16, 16, "bicubic"), 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16}


class Net(nn.Module):
    """A classifier of other people's: 1 × 8 × 8 images, logits for ``outputs`` classes."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(64, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(images).flatten(1))


def small_vit(**changes: Any) -> HuggingFaceClassifier:
    return adapt(seeded(lambda: vit(**{**TINY, **changes})), SMALL, source="here")


def save(module: nn.Module, path: Path, *, batch: int = 2, dim: Any = None, size: tuple[int, ...] = (1, 8, 8)) -> Path:
    program = torch.export.export(
        module.eval(), (torch.rand(batch, *size),), dynamic_shapes=({0: dim},) if dim else None
    )
    torch.export.save(program, path)
    return path


def named(path: Path, content: object = ("normal", "lesion")) -> Path:
    path.with_suffix(".classes.json").write_text(json.dumps(content))
    return path


def load(path: Path) -> ExportedClassifier:
    return load_exported(path, torch.device("cpu"))


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as anyone writes it, with its classes beside it."""
    return named(save(Net(), tmp_path_factory.mktemp("archive") / "net.pt2", dim=torch.export.Dim("batch")))


def altered(archive: Path, out: Path, **members: bytes | Callable[[Any], Any]) -> Path:
    """A copy in which members (dots stand for slashes, twice for once) are replaced, or their JSON is edited."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].split("/")[0]
        left = {name.replace("__", "/"): change for name, change in members.items()}
        for name in old.namelist():
            change = left.pop(name.partition("/")[2], None)
            content = old.read(name)
            if callable(change):
                document = json.loads(content)
                content = json.dumps(change(document) or document).encode()
            new.writestr(name, change if isinstance(change, bytes) else content)
        for name, change in left.items():
            new.writestr(f"{root}/{name}", change if isinstance(change, bytes) else b"")
    return named(out)


def program_with(archive: Path, out: Path, edit: Callable[[Any], Any]) -> Path:
    return altered(archive, out, **{"models__model.json": edit})


# --- ours, out and in -------------------------------------------------------------------------------------------------


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


class Canary:
    """Unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_sample_inputs_are_never_read(archive: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save(Canary(tmp_path / "canary"), content)
    path = altered(archive, tmp_path / "net.pt2", **{"data__sample_inputs__model.pt": content.getvalue()})
    assert load(path).classes == ("normal", "lesion")
    assert not (tmp_path / "canary").exists()
    with pytest.raises((AssertionError, TypeError)):  # after the harm was done
        torch.export.load(path)
    assert (tmp_path / "canary").exists(), "the canary must show that plain torch would have run it"


def pickled(document: Any) -> None:
    for entry in document["config"].values():
        entry["use_pickle"] = True


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"data__weights__model_weights_config.json": pickled}, r"'head\.\w+' is pickled, which can run code"),
        ({"data__weights__model.pt": b"x"}, r"holds data/weights/model\.pt, a pickled object"),
        ({"data__constants__custom_obj_0": b"x"}, "holds data/constants/custom_obj_0, a pickled object"),
        ({"data__constants__opaque_obj_0": b"x"}, "holds data/constants/opaque_obj_0, a pickled object"),
        ({"data__aotinductor__model__a.so": b"x"}, "a compiled library, which would run"),
        ({"models__other.json": b"{}"}, "a second program"),
        ({"..__escape": b"x"}, "outside its one folder or twice"),
        ({"surprise.bin": b"x"}, "holds 'surprise.bin', which is no part of an exported program"),
        ({"models__model.json": b"{"}, r"model\.json is not readable JSON"),
        ({"models__model.json": b"[" * 100_000}, r"model\.json is not readable JSON"),
        ({"models__model.json": b"[]"}, "holds a list, not an object"),
        ({"models__model.json": b"{}"}, "holds no program as torch.export writes it .KeyError"),
        ({"data__weights__weight_0": b"1234"}, "needs .* bytes but has 4: the archive is damaged"),
        (
            {"data__weights__model_weights_config.json": b'{"config": {"a": {}}}'},
            "model_weights_config.json is damaged",
        ),
        ({"byteorder": b"x" * 300}, "byteorder has 300 bytes"),
    ],
)
def test_members_that_could_run_or_do_not_belong_are_refused(
    members: dict[str, Any], message: str, archive: Path, tmp_path: Path
) -> None:
    refused(altered(archive, tmp_path / "net.pt2", **members), message)


def nodes(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"]


def target(name: str) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        nodes(document)[0]["target"] = name

    return edit


def argument(value: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        nodes(document)[0]["inputs"].append({"name": "x", "arg": value, "kind": 1})

    return edit


def size(text: str) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        sizes = next(iter(document["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
        sizes[0] = {"as_expr": {"expr_str": text, "hint": None}}

    return edit


def renamed(document: Any) -> None:
    nodes(document)[0]["name"] = "x = __import__('os').mkdir('canary') #"


def attribute(document: Any) -> None:
    document["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = "head.__class__.weight"


def symbol(document: Any) -> None:
    document["range_constraints"] = {"__import__('os')": {"min_val": 0, "max_val": None}}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (target("torch.os.system"), r"calls 'torch\.os\.system', which is no operator on tensors"),
        (target("torch.hub.load"), r"calls 'torch\.hub\.load'"),
        (target("torch.ops.load_library"), "calls"),
        (target("torch.ops.aten.from_file.default"), "calls .*from_file"),
        (target("torch.ops.aten.save.default"), "calls .*save"),
        (target("torch.ops.aten.nothing.default"), "calls .*nothing"),
        (target("_operator.attrgetter"), "calls '_operator.attrgetter'"),
        (target("#extension:x"), "calls '#extension:x'"),
        (argument({"as_operator": "torch.os.system"}), r"an object or a function of its own \(as_operator\)"),
        (argument({"as_custom_obj": {"name": "a", "class_fqn": "b"}}), r"of its own \(as_custom_obj\)"),
        (argument({"as_string": "/etc/passwd"}), "holds the text '/etc/passwd' where a name belongs"),
        (size("__import__('os').mkdir('canary')"), "is no plain arithmetic and could run as code"),
        (size("Integer(9)**Integer(9)"), "is no plain arithmetic"),
        (size("Integer(99999999999999)"), "is no plain arithmetic"),
        (renamed, "holds the text .* where a name belongs, which torch could run as code"),
        (attribute, "head.__class__.weight"),
        (symbol, "__import__"),
    ],
)
def test_programs_that_could_run_code_are_refused(
    edit: Callable[[Any], None], message: str, archive: Path, tmp_path: Path
) -> None:
    refused(program_with(archive, tmp_path / "net.pt2", edit), message)
    assert not Path("canary").exists()


def test_guards_tree_specifications_and_metadata_are_left_out(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    statement = f"__import__('os').mkdir({str(canary)!r}) is None"

    def edit(document: Any) -> None:
        document["guards_code"] = [statement]
        call = document["graph_module"]["module_call_graph"][0]["signature"]
        call["out_spec"] = json.dumps([1, {"type": "evil.Type", "context": "null", "children_spec": []}])
        nodes(document)[0]["metadata"] = {"source_fn_stack": "a,torch.os.system"}

    model = load(program_with(archive, tmp_path / "net.pt2", edit))
    assert model.logits(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    assert not canary.exists()


def test_zip_tricks_are_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    bomb, twice, roots = tmp_path / "bomb.pt2", tmp_path / "twice.pt2", tmp_path / "roots.pt2"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in contents.items():
            new.writestr(name, content)
    refused(named(bomb), "compressed or encrypted, which torch never writes")
    with zipfile.ZipFile(twice, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, content in (*contents.items(), *contents.items()):
            new.writestr(name, content)
    refused(named(twice), "outside its one folder or twice")
    with zipfile.ZipFile(roots, "w") as new:
        for place, (name, content) in enumerate(contents.items()):
            new.writestr(f"{place}{name}", content)
    refused(named(roots), "outside its one folder")


def test_files_that_are_no_archive_are_refused(archive: Path, tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", os.urandom(200), archive.read_bytes()[:-300]):
        (tmp_path / "net.pt2").write_bytes(content)
        refused(named(tmp_path / "net.pt2"), "is no readable .pt2 archive|is no part of an exported program")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as new:
        new.writestr("serialized_exported_program.json", "{}")
    (tmp_path / "net.pt2").write_bytes(stream.getvalue())
    refused(tmp_path / "net.pt2", "of the layout before torch 2.8, which holds pickles")
    refused(tmp_path / "absent.pt2", "no such file. Give a .pt2 archive")
    (tmp_path / "folder.pt2").mkdir()
    refused(tmp_path / "folder.pt2", r"folder\.pt2 cannot be read")


@pytest.mark.parametrize("key", ["inputs", "outputs", "nodes", "tensor_values"])
def test_a_program_with_a_part_missing_is_refused(key: str, archive: Path, tmp_path: Path) -> None:
    path = program_with(
        archive, tmp_path / "net.pt2", lambda document: document["graph_module"]["graph"].pop(key) and None
    )
    refused(path, r"net\.pt2 (holds no program|cannot be loaded)")
