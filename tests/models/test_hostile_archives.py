"""Archives that could run code, hide something or exhaust memory are refused before torch sees them."""

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

from tests.models.archives import altered, load, named, program_with, refused


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
