"""The program inside a .pt2 archive, held to what an image classifier needs before torch may read it.

Reading an exported program is not passive: torch evaluates its size expressions and guards as Python, imports what its
tree specifications name, looks its operators up by any dotted name under ``torch``, and turns its node names into source
code. So every string of the document must be harmless by its form, and what is not needed is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from xvision.errors import ModelError

_IDENTIFIER = re.compile(r"([A-Za-z_]\w{0,511})?")
_PATH = re.compile(r"(?!__)\w+(\.(?!__)\w+)*")
_OPTION = re.compile(r"[a-z_]{0,32}|[A-Za-z., ]{1,64}->[A-Za-z. ]{0,32}")  # "tanh", "constant", or an einsum equation
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|\S")
_ARITHMETIC = frozenset({
    "Symbol", "Integer", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "ModularIndexing",
    "Eq", "Ne", "Equality", "Unequality", "GreaterThan", "StrictGreaterThan", "LessThan", "StrictLessThan", "And", "Or",
    "Not", "true", "false", "True", "False", "positive", "nonnegative", "integer", *"()+-*,='",
})  # fmt: skip
_ON_SIZES = frozenset(
    f"_operator.{name}"
    for name in (
        "add",
        "sub",
        "mul",
        "floordiv",
        "mod",
        "neg",
        "pos",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and_",
        "or_",
    )
) | {
    "math.trunc",
    "torch.sym_int",
    "torch.sym_float",
    "torch.sym_max",
    "torch.sym_min",
    "torch.sym_not",
    "torch.sym_ite",
}
_BLOCKS = frozenset({
    "torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast",
})  # fmt: skip
_NAMESPACES = frozenset({"aten", "prims", "quantized_decomposed", "torchao"})
# Operators that take no tensor: these make one, or state a fact about a size. All others without a tensor are refused,
# because those that read and write files are among them.
_WITHOUT_TENSOR = frozenset({
    "arange", "empty", "eye", "full", "linspace", "ones", "scalar_tensor", "tril_indices", "triu_indices", "zeros",
    "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size",
})  # fmt: skip
_LEAF = '{"type": null, "context": null, "children_spec": []}'
_TUPLE = '{"type": "builtins.tuple", "context": "null", "children_spec": [%s]}'
_NO_KEYWORDS = '{"type": "builtins.dict", "context": "[]", "children_spec": []}'
_IN_SPEC = f"[1, {_TUPLE % f'{_TUPLE % _LEAF}, {_NO_KEYWORDS}'}]"
_WEIGHTS = frozenset({"parameter", "buffer", "tensor_constant"})


class Program(NamedTuple):
    """document: what torch may read. sides: (C, H, W), None where free. batch: smallest and largest number of images
    (None: any). outputs: K."""

    document: dict[str, Any]
    sides: tuple[int | None, int | None, int | None]
    batch: tuple[int, int | None]
    outputs: int


def checked_program(document: dict[str, Any], where: str) -> Program:
    """The program in the form (B, C, H, W) → (B, K), without metadata, guards and module names.

    Raises ModelError for anything that could run, import or read something, and for another number of inputs or outputs.
    """
    try:
        return _program(document, where)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as problem:
        raise ModelError(
            f"{where} holds no program as torch.export writes it ({type(problem).__name__}: {problem}): export it again."
        ) from None


def _program(document: dict[str, Any], where: str) -> Program:
    module = document["graph_module"]
    graph, signature = _harmless(module["graph"], "", where), _harmless(module["signature"], "", where)
    name, result = _ends(signature, where)
    ranges = {_symbol(key, where): _range(value) for key, value in document["range_constraints"].items()}
    sizes = _sizes(graph["tensor_values"][name])
    if len(sizes) != 4 or graph["tensor_values"][name]["dtype"] != 7:
        raise ModelError(f"{where} does not take pixels (B, C, H, W) in float32: export it with such an input.")
    outputs = _sizes(graph["tensor_values"][result])
    if len(outputs) != 2 or not isinstance(outputs[1], int):
        raise ModelError(f"{where} gives an output with {len(outputs)} axes; a classifier gives logits (B, K).")
    sides = tuple(size if isinstance(size, int) else None for size in sizes[1:])
    call = {"inputs": [], "outputs": [], "in_spec": _IN_SPEC, "out_spec": f"[1, {_LEAF}]", "forward_arg_names": [name]}
    cleaned = {
        "graph_module": {
            "graph": graph, "signature": signature, "module_call_graph": [{"fqn": "", "signature": call}],
            "metadata": {}, "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": int(document["opset_version"]["aten"])},
        "range_constraints": ranges,
        "schema_version": {key: int(document["schema_version"][key]) for key in ("major", "minor")},
        "verifiers": [_matching(item, _IDENTIFIER, where) for item in document["verifiers"]],
        "torch_version": "<2.8" if document.get("torch_version") == "<2.8" else "checked",
        "guards_code": [],
    }  # fmt: skip
    return Program(cleaned, (sides[0], sides[1], sides[2]), _batch(sizes[0], ranges, where), outputs[1])


def _ends(signature: dict[str, Any], where: str) -> tuple[str, str]:
    """Names of the one input and the one output; ModelError for more, and for a program that changes its own state."""
    kinds = [next(iter(spec)) for spec in signature["input_specs"]]
    given = [spec["user_input"]["arg"] for spec in signature["input_specs"] if "user_input" in spec]
    if strange := set(kinds) - _WEIGHTS - {"user_input"}:
        raise ModelError(f"{where} takes {sorted(strange)[0]} as an input: export it with pixels as its only input.")
    if len(given) != 1 or "as_tensor" not in given[0]:
        raise ModelError(f"{where} takes {len(given)} inputs: export it with one, pixels (B, C, H, W).")
    taken = [next(iter(spec)) for spec in signature["output_specs"]]
    if any(kind.endswith("_mutation") for kind in taken):
        raise ModelError(
            f"{where} changes its own state while it runs: put the model in eval mode and export it again."
        )
    if taken != ["user_output"] or "as_tensor" not in signature["output_specs"][0]["user_output"]["arg"]:
        raise ModelError(f"{where} gives {len(taken)} outputs: export it with one, the logits (B, K).")
    return given[0]["as_tensor"]["name"], signature["output_specs"][0]["user_output"]["arg"]["as_tensor"]["name"]


def _harmless(value: Any, key: str, where: str) -> Any:
    """``value`` with every string checked by what ``key`` makes of it; numbers and truth values pass."""
    if isinstance(value, dict):
        if value.get("name") == "assert_msg":  # free text, only ever printed
            return {"name": "assert_msg", "arg": {"as_string": ""}, "kind": value.get("kind")}
        if value.keys() == {"type", "index"}:  # a device: the one that the archive was made on may not be here
            return {"type": "cpu", "index": None}
        return {
            name: {} if name == "metadata" else _harmless(item, name, where) for name, item in _entries(value, where)
        }
    if isinstance(value, list):
        return [_harmless(item, key, where) for item in value]
    return _text(value, key, where) if isinstance(value, str) else value


def _entries(value: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if name in {"as_operator", "as_custom_obj"} or (name == "custom_obj_values" and item):
            raise ModelError(f"{where} holds an object or a function of its own ({name}), which could run code.")
        yield _matching(name, _IDENTIFIER, where), item


def _text(value: str, key: str, where: str) -> str:
    if key == "target":
        return _operator(value, where)
    if key == "expr_str":
        return _expression(value, where)
    if key == "as_string":
        return _matching(value, _OPTION, where)
    return _matching(value, _PATH if key.endswith("_name") and key != "as_name" else _IDENTIFIER, where)


def _matching(value: str, form: re.Pattern[str], where: str) -> str:
    if not form.fullmatch(value):
        raise ModelError(f"{where} holds the text {value[:60]!r} where a name belongs, which torch could run as code.")
    return value


def _symbol(value: str, where: str) -> str:
    return _matching(value, _SYMBOL, where)


def _expression(value: str, where: str) -> str:
    """Sums, products and comparisons of whole numbers and named sizes; no attributes, powers or other functions."""
    tokens = _TOKEN.findall(value)
    strange = [item for item in tokens if not (item in _ARITHMETIC or item.isdecimal() or _SYMBOL.fullmatch(item))]
    if strange or "**" in value or len(value) > 4096 or any(len(item) > 12 and item.isdecimal() for item in tokens):
        raise ModelError(f"{where} holds the size {value[:60]!r}, which is no plain arithmetic and could run as code.")
    return value


def _operator(target: str, where: str) -> str:
    if target in _ON_SIZES or target in _BLOCKS:
        return target
    parts = target.split(".")
    if len(parts) == 5 and parts[:2] == ["torch", "ops"] and parts[2] in _NAMESPACES:
        found = getattr(getattr(getattr(torch.ops, parts[2]), parts[3], None), parts[4], None)
        if isinstance(found, torch._ops.OpOverload) and _computes(found, parts[3]):
            return target
    raise ModelError(
        f"{where} calls {target[:80]!r}, which is no operator on tensors that xvision knows: export the model with plain "
        "torch operators only."
    )


def _computes(operator: torch._ops.OpOverload, name: str) -> bool:
    """Whether an operator computes on tensors, or makes one out of numbers."""
    return name in _WITHOUT_TENSOR or any("Tensor" in str(item.type) for item in operator._schema.arguments)


def _range(value: dict[str, Any]) -> dict[str, int | None]:
    return {key: None if value[key] is None else int(value[key]) for key in ("min_val", "max_val")}


def _sizes(tensor: dict[str, Any]) -> list[int | str]:
    """One number per axis, or the expression of a free one."""
    return [int(size["as_int"]) if "as_int" in size else str(size["as_expr"]["expr_str"]) for size in tensor["sizes"]]


def _batch(size: int | str, ranges: dict[str, dict[str, int | None]], where: str) -> tuple[int, int | None]:
    if isinstance(size, int):
        return size, size
    found = re.fullmatch(rf"Symbol\('({_SYMBOL.pattern})'[^()]*\)|({_SYMBOL.pattern})", size)
    if not found:
        raise ModelError(f"{where} takes {size} images at once: export it with a free number of images (B, …).")
    span = ranges.get(found[1] or found[2], {})
    low = span.get("min_val") or 1
    return (1 if low == 2 else low), span.get("max_val")  # torch writes 2 for every size that is not fixed at 0 or 1
