"""Classifiers with 8-bit weights, in memory and on disk: the only door to torchao.

On disk they are plain tensors, ``NAME.weight`` in int8 with one float32 ``NAME.scale`` per row, and config.json has the
key ``quantised``. Loading puts the same bytes back; nothing is rounded a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xvision.errors import MissingExtra, ModelError
from xvision.models.huggingface import HuggingFaceClassifier, adapt
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.llm.text import TextVocabulary
from xvision.models.loading import DAMAGE, quiet, reason
from xvision.models.preprocessing import Preprocessing

QuantisedKind = Literal["int8", "int8-dynamic"]
KEY = "quantised"
"""Of config.json."""
_WEIGHTS = "model.safetensors"
_FLOAT32 = frozenset({"classifier", "lm_head"})
"""The head is a thousandth of the weights, and its rounding errors reach the logits undamped."""


class Int8Linear(nn.Module):
    """A linear layer whose weight (out, in) is int8 with one scale (out, 1) per row, symmetric.

    "int8": inputs stay float32 and gradients pass. "int8-dynamic": inputs are rounded too, row by row, and the product is
    made of integers; it is a step function, so no gradient passes.
    """

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, kind: QuantisedKind
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(bias.detach(), requires_grad=False) if bias is not None else None
        self.out_features, self.in_features = weight.shape
        self.kind: QuantisedKind = kind
        self._make = _tensor_maker(kind)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self._make(self.weight, self.scale), self.bias)


def quantise(module: PreTrainedModel, kind: QuantisedKind) -> PreTrainedModel:
    """Replaces every linear layer but the head by its 8-bit form, in place, and marks the configuration.

    Rounding is torchao's: symmetric, one scale for each output. Convolutions, embeddings and norms stay float32. Raises
    ModelError when there is no linear layer, MissingExtra without torchao.
    """
    found = linear_layers(module)
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no linear layer beside its head: 8-bit weights would change nothing."
        )
    round_weight = _rounding()
    for name, part in found:
        weight, scale = round_weight(_matrix(part))
        module.set_submodule(name, Int8Linear(weight, scale, part.bias, kind))  # type: ignore[arg-type]  # linear_layers holds
    setattr(module.config, KEY, kind)
    return module


def save_quantised(module: PreTrainedModel, folder: Path) -> None:
    """Writes config.json, model.safetensors and, where text is read, tokenizer.json into an existing folder."""
    module.config.save_pretrained(folder)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
    if isinstance(module, LlmImageClassifier) and module.vocabulary is not None:
        module.vocabulary.save(folder)


def load_quantised(
    folder: Path, preprocessing: Callable[[PreTrainedModel], Preprocessing], device: torch.device, *, source: str
) -> HuggingFaceClassifier:
    """The classifier in a folder whose config.json has the key ``quantised``; the same bytes as were saved.

    "int8" is white-box. "int8-dynamic" is black-box and has no attention: no gradient passes its steps, and one that
    passed around them only would be wrong. Raises ModelError for an unknown kind and for weights that do not fit.
    """
    module = _restored(folder)
    kind = getattr(module.config, KEY)
    settings = preprocessing(module)
    module.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
    notes = (f"linear layers but the head have 8-bit weights ({kind})",)
    if kind == "int8":
        return adapt(module, settings, source=source, notes=notes)
    found = HuggingFaceClassifier(module, settings, source=source, notes=notes)
    found.access = "black-box"
    return found


def _restored(folder: Path) -> PreTrainedModel:
    with quiet():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        kind: Any = getattr(config, KEY, None)
        if kind not in get_args(QuantisedKind):
            raise ModelError(
                f"{folder / 'config.json'}: {KEY} is {kind!r}; known are {', '.join(get_args(QuantisedKind))}. "
                "Write the folder again with xvision compress."
            )
        try:
            module = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
            state = load_file(folder / _WEIGHTS)
            _fill(module, state, kind)
        except (*DAMAGE, SafetensorError) as problem:
            raise ModelError(
                f"{folder} cannot be loaded as {kind} ({reason(problem)}): write it again with xvision compress."
            ) from problem
    if isinstance(module, LlmImageClassifier) and module.config.text_tokens:
        module.vocabulary = TextVocabulary.read(folder, module.config.text_ids, module.config.text_tokens)
    built: PreTrainedModel = module
    return built


def _fill(module: PreTrainedModel, state: dict[str, torch.Tensor], kind: QuantisedKind) -> None:
    """The stored tensors in their places: every one, in its own type, and no other."""
    for name, part in list(module.named_modules()):
        weight, scale = state.get(f"{name}.weight"), state.get(f"{name}.scale")
        if weight is None or weight.dtype != torch.int8:
            continue
        if not _is_linear(name, part) or scale is None or weight.shape != _matrix(part).shape:
            raise ModelError(f"{name}.weight is int8 {tuple(weight.shape)}, which fits no linear layer with a scale")
        module.set_submodule(
            name, Int8Linear(torch.zeros_like(weight), torch.zeros_like(scale, dtype=torch.float32), part.bias, kind)
        )
    wrong = [
        name for name, tensor in module.state_dict().items() if name in state and state[name].dtype != tensor.dtype
    ]
    if wrong:
        raise ModelError(f"{wrong[0]} is stored as {state[wrong[0]].dtype}")
    module.load_state_dict(state, strict=True)
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(f"{broken[0]} is not finite")


def linear_layers(module: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Every linear layer but the head, by name; GPT-2's own kind included."""
    return [(name, part) for name, part in module.named_modules() if _is_linear(name, part)]


def _is_linear(name: str, part: nn.Module) -> bool:
    """Linear layers proper: a subclass may be read by its owner in its own way."""
    return type(part) in (nn.Linear, Conv1D) and not _FLOAT32 & set(name.split("."))


def _matrix(part: nn.Module) -> torch.Tensor:
    """The weight as (out, in); GPT-2 keeps it the other way round."""
    weight: torch.Tensor = part.weight.detach()  # type: ignore[operator]  # linear_layers holds
    return weight.t().contiguous() if isinstance(part, Conv1D) else weight


def _rounding() -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise MissingExtra("torchao", "compress", "--how int8") from None

    def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
        stored: Any = layer.weight
        return stored.qdata.detach(), stored.scale.detach()

    return rounded


def _tensor_maker(kind: QuantisedKind) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Weight and scale as the tensor that torchao multiplies with."""
    try:
        from torchao.quantization import Int8Tensor, PerRow
        from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs
    except ImportError:
        raise MissingExtra("torchao", "compress", "a model with 8-bit weights") from None
    inputs = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if kind == "int8-dynamic" else None

    def make(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = Int8Tensor(
            weight.data, scale.data, [1, weight.shape[1]], torch.float32,
            zero_point=torch.zeros_like(scale, dtype=torch.int8), act_quant_kwargs=inputs,
        )  # fmt: skip
        return made

    return make
