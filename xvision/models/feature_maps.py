"""The last spatial feature map of a convolutional network, found by watching a pass: whatever the network is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from xvision.errors import ModelError
from xvision.models.base import ModuleClassifier
from xvision.models.loading import DAMAGE
from xvision.models.protocols import Access, Features

_ATTENTION = frozenset({
    "softmax", "_softmax", "scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention",
})  # fmt: skip
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum", "__matmul__", "__rmatmul__"})
_CONVOLUTIONS = frozenset({"conv2d", "convolution", "_convolution", "conv_transpose2d"})
_TURNS = frozenset({"permute", "transpose", "movedim", "swapaxes"})
_ON_TOKENS = frozenset({"linear", "layer_norm", "rms_norm", "addmm", "conv1d"})
_ELONGATED = 2.0
"""How much longer than the image a map may be: tensors with channels last are longer."""


_TRIED = 64
"""How many maps are tried, from the last on."""


class FeatureMap(NamedTuple):
    """place: which map of a pass is the last, counted from 0; None where there is none, and then the reason why."""

    place: int | None
    reason: str = ""


class FeatureReader(ModuleClassifier):
    """A classifier that may be a convolutional network; also a FeatureClassifier."""

    access: Access
    _map: FeatureMap | None = None

    @property
    def convolutional(self) -> bool:
        """Whether the logits come from a spatial feature map through no attention; found once, with one noisy image.

        Networks that attend, in windows or among other layers, are not, nor are those that mix patches as tokens.
        """
        return self._feature_map().place is not None

    def features(self, pixels: torch.Tensor) -> Features:
        """The last feature map (B, D, h, w), where the graph starts, and the logits; ModelError without such a map."""
        found = self._feature_map()
        if found.place is None:
            name = self.description["architecture"]
            raise ModelError(f"{name} has no convolutional feature map: {found.reason}.")
        watch = _Watch(pixels, start=found.place)
        with torch.no_grad(), watch:  # from the map on, the watch lets gradients through
            logits = self.logits(pixels)
        if watch.started is None or not logits.requires_grad:
            raise ModelError(
                f"The feature map of {self.description['architecture']} was not met again in another pass."
            )
        return Features(watch.started, logits)

    def _feature_map(self) -> FeatureMap:
        if self._map is None:
            spec = self.input
            noise = torch.rand(1, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
            self._map = find_map(self.logits, noise.to(self.device)) if self.access == "white-box" else _NO_GRADIENTS
        return self._map


_NO_GRADIENTS = FeatureMap(None, "no gradient passes through it")


def find_map(logits: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> FeatureMap:
    """Which map of a pass is the last that the logits depend on, from one image (1, C, H, W)."""
    with torch.enable_grad():
        watch = _Watch(pixels)
        with watch:
            logits(pixels.detach().requires_grad_())
        if watch.attends:
            return FeatureMap(None, "it attends, and attention lets every place know of others")
        if not watch.maps:
            return FeatureMap(None, "its layers give no two-dimensional map")
        if watch.on_tokens > watch.maps:
            return FeatureMap(None, "it goes on with patches as a sequence of tokens")
        for place in range(watch.maps - 1, max(watch.maps - 1 - _TRIED, -1), -1):
            if _decides(logits, pixels, place):
                return FeatureMap(place)
    return FeatureMap(None, "the logits depend on no one map alone")


def _decides(logits: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, place: int) -> bool:
    """Whether the logits follow from a map alone, and their gradient reaches it when the graph is started there.

    A map beside which others lead to the logits, as of one branch of several, would explain only a part of them.
    """
    watch = _Watch(pixels, start=place)
    try:
        with torch.no_grad(), watch:
            outputs = logits(pixels)
        if watch.started is None or not outputs.requires_grad:
            return False
        (slope,) = torch.autograd.grad(outputs[:, -1].sum(), watch.started, allow_unused=True)
        with torch.no_grad(), _Watch(pixels, start=place, instead=watch.started.detach()):
            again = logits(1.0 - pixels)
    except DAMAGE:  # a map that is written over later cannot start a graph
        return False
    reached = slope is not None and bool(torch.isfinite(slope).all()) and bool(slope.any())
    return reached and torch.allclose(again, outputs, atol=1e-5, rtol=1e-5)


class _Watch(TorchFunctionMode):
    """Counts the maps of a pass and notes what else was computed.

    start: the map at which the graph shall start. instead: what to go on with in its place.
    """

    def __init__(self, pixels: torch.Tensor, start: int | None = None, instead: torch.Tensor | None = None) -> None:
        super().__init__()
        self._batch, self._aspect = pixels.shape[0], pixels.shape[2] / pixels.shape[3]
        self._start, self._instead, self._convolved = start, instead, False
        self.started: torch.Tensor | None = None
        self.attends = False
        self.maps = 0
        self.on_tokens = 0
        """One more than the maps there were when something was last computed on a sequence of tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        self._note(name, [item for item in args if isinstance(item, torch.Tensor)])
        turned = name in _TURNS and self._is_map(
            args[0]
        )  # from channels first to channels last, if it still looks like one
        if not self._convolved or turned or not self._is_map(output):
            return output
        self.maps += 1
        if self.maps - 1 != self._start:
            return output
        torch.set_grad_enabled(True)
        self.started = (output if self._instead is None else self._instead).detach().requires_grad_()
        return self.started

    def _note(self, name: str, given: list[torch.Tensor]) -> None:
        sequences = [tensor for tensor in given if tensor.ndim >= 3]
        self._convolved = self._convolved or name in _CONVOLUTIONS
        pairs = name in _PRODUCTS and sum(tensor.requires_grad for tensor in sequences) >= 2  # weights are frozen
        self.attends = self.attends or (name in _ATTENTION and bool(sequences)) or pairs
        if name in _ON_TOKENS and given and given[0].ndim == 3 and given[0].shape[1] > 1:
            self.on_tokens = self.maps + 1

    def _is_map(self, output: object) -> bool:
        if not isinstance(output, torch.Tensor) or output.ndim != 4 or not output.is_floating_point():
            return False
        batch, _, high, wide = output.shape
        longer = high / wide / self._aspect if wide else 0.0
        return batch == self._batch and high * wide > 1 and 1 / _ELONGATED < longer < _ELONGATED
