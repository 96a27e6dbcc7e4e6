"""Vision transformers of timm's whose attention and tokens can be read.

timm has no switch for it, so attention is computed openly while it is read. What a model is like is not known by its name:
its tokens, its read-out and its layers are looked at once, with one image. Windowed and hybrid models fail that look.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xvision.errors import ModelError
from xvision.models.attention_mode import OpenAttention
from xvision.models.layers import fed, input_of, outputs_of, put_back, skipped
from xvision.models.loading import DAMAGE
from xvision.models.network import Facts
from xvision.models.protocols import Attention, InputSpec, TokenMap
from xvision.models.timm_model import TimmClassifier
from xvision.models.token_passes import places_of
from xvision.models.tokens import Layout, Reads, token_map

_READS: dict[object, Reads] = {"token": "cls", "avg": "patches"}
"""timm's ``global_pool`` → what the head is fed."""


class TimmAttentionClassifier(TimmClassifier):
    """A timm model of known tokens; also an AttentionClassifier and a TokenClassifier."""

    def __init__(self, module: nn.Module, facts: Facts, device: torch.device, layout: Layout) -> None:
        super().__init__(module, facts, device)
        self._tokens = token_map(layout)

    @property
    def token_map(self) -> TokenMap:
        return self._tokens

    def attention(self, pixels: torch.Tensor) -> Attention:
        """Post-softmax attention and states of every layer, in the autograd graph; ModelError where a layer yields none."""
        start = pixels if pixels.requires_grad else pixels.detach().requires_grad_()
        mode, layers, count = OpenAttention(), self._layers(), len(self._tokens.names)
        with mode, outputs_of(layers) as states:
            logits = self.logits(start)
        shapes = {tuple(weights.shape[-2:]) for weights in mode.weights}
        if len(mode.weights) != len(layers) or len(states) != len(layers) or shapes != {(count, count)}:
            raise ModelError(
                f"{self.facts.architecture} gave attention {sorted(shapes)} in {len(mode.weights)} of {len(layers)} layers for "
                f"{count} tokens: use gradient methods instead."
            )
        return Attention(tuple(mode.weights), logits, self._tokens, tuple(states))

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, T, D), what the first layer reads, in the graph of the pixels. No layer is run."""
        layers = self._layers()
        with skipped(layers), input_of(layers[0]) as states:
            self.logits(pixels)
        return states[0]

    def from_embedded(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, K) for such tokens, those at ``kept`` only; ModelError where a needed one is left out.

        A model that turns tokens by their position inside its layers takes all of them or none.
        """
        layers, places = self._layers(), places_of(tokens, kept, self._tokens)
        turns = any(getattr(self._network, name, None) is not None for name in ("rope", "rel_pos_bias"))
        if turns and places.shape[1] != len(self._tokens.names):
            raise ModelError(
                f"{self.facts.architecture} has positions inside its layers, so that no token can be left out."
            )
        with fed(layers[0], tokens), put_back(layers[-1], places, len(self._tokens.names)):
            return self.logits(self._grey())

    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the head on states (B, T, D) of any layer. No layer is run."""
        layers = self._layers()
        places_of(hidden, None, self._tokens)
        with skipped(layers), fed(layers[0], hidden):
            return self.logits(self._grey())

    @property
    def _network(self) -> Any:
        return self.module.network

    def _layers(self) -> list[nn.Module]:
        return list(self._network.blocks)


def timm_classifier(module: nn.Module, facts: Facts, device: torch.device) -> TimmClassifier:
    """The classifier for a timm model: with attention and tokens where a look at it confirms what it says of itself."""
    layout = _layout(module.network, facts.input)
    if layout is not None:
        found = TimmAttentionClassifier(module, facts, device, layout)
        if _confirmed(found):
            return found
    return TimmClassifier(module, facts, device)


def _layout(network: Any, spec: InputSpec) -> Layout | None:
    """The tokens that a timm model states, or None for one that is no plain vision transformer."""
    patches, prefix = getattr(network, "patch_embed", None), getattr(network, "num_prefix_tokens", None)
    filters: Any = getattr(patches, "proj", None)
    reads = _READS.get(getattr(network, "global_pool", None))
    plain = (
        isinstance(filters, nn.Conv2d) and filters.kernel_size == filters.stride and not hasattr(patches, "backbone")
    )
    if (
        reads is None
        or not plain
        or type(prefix) is not int
        or not isinstance(getattr(network, "blocks", None), nn.Module)
    ):
        return None
    cls = int(getattr(network, "cls_token", None) is not None)
    before = ("cls",) * cls + ("register",) * (prefix - cls)
    high, wide = filters.stride
    return Layout(before, spec.height // high, spec.width // wide, (high, wide), (), reads)


def _confirmed(model: TimmAttentionClassifier) -> bool:
    """Whether every layer attends over all tokens, the head reads those it should, and a patch is where it should be."""
    spec, tokens = model.input, model.token_map
    noise = torch.rand(1, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
    pixels = noise.to(model.device).requires_grad_()
    try:
        with torch.enable_grad():
            found = model.attention(pixels)
            (read,) = torch.autograd.grad(found.logits[0, -1], found.hidden[-1])
            place = len(tokens.image) > 1
            seen = model.embedded(pixels)[0, tokens.image[int(place)]].abs().sum()
            (reach,) = torch.autograd.grad(seen, pixels)
    except (ModelError, *DAMAGE):
        return False
    left, top, right, bottom = tokens.boxes[int(place)]
    rows, columns = reach[0].abs().sum(0).nonzero().T.tolist()
    inside = left <= min(columns) and max(columns) < right and top <= min(rows) and max(rows) < bottom
    read_tokens = read[0].abs().sum(-1).cpu().numpy() > 0
    return bool(inside and (read_tokens == (tokens.readout > 0)).all())
