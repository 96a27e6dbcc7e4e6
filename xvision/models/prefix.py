"""Causal language-model bodies that are asked many questions of one image: what precedes a change is computed once.

A token of a causal body depends on itself and on the tokens before it. Where only tokens from some position on differ,
the keys and values of those before it are the clean ones in every layer, and only the rest has to be run (as text
generation does it). Where the head reads the last token alone, the last layer owes it only that token: of the others it
needs keys and values. Shapes: R images, B questions, T tokens, D width, L layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from xvision.errors import ModelError
from xvision.models.base import two_sided
from xvision.models.layers import fed, input_of, skipped
from xvision.models.llm.adapters import virtual_tokens
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.loading import DAMAGE, reason
from xvision.models.protocols import Prefix

SAME_LOGITS = 1e-4
"""Largest difference, of the largest logit or of 1, at which going on from a prefix counts as one pass of all tokens."""


class _Enough(Exception):
    """Raised inside the last layer as soon as its keys and values are known."""


class _LastLayer(DynamicLayer):
    """The keys and values of the last layer, whose states nobody reads."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *given: Any, **more: Any) -> Any:
        super().update(key_states, value_states, *given, **more)
        raise _Enough


def clean_pass(module: Any, layers: Sequence[nn.Module], tokens: torch.Tensor) -> Prefix:
    """One pass of all tokens (R, T, D) whose keys and values are kept.

    Raises ModelError for a model of which parts cannot be run again: its tokens see later ones, learned tokens come
    before them, or the body does not take keys and values.
    """
    _check(module)
    kept: list[Any] = [DynamicLayer() for _ in layers]
    try:
        with fed(layers[0], tokens):
            hidden = _run(module, Cache(layers=kept), tokens.shape[0], 0, tokens.shape[1])
    except DAMAGE as problem:  # a body with a memory of its own kind
        raise ModelError(f"{_name(module)} does not hand out keys and values: {reason(problem)}") from problem
    if any(layer.get_seq_length() != tokens.shape[1] for layer in kept):
        raise ModelError(f"{_name(module)} does not keep keys and values in every layer.")
    keys, values = (tuple(getattr(layer, each) for layer in kept) for each in ("keys", "values"))
    return Prefix(keys, values, hidden, two_sided(module.decide(hidden)))


def suffix_pass(
    module: Any, layers: Sequence[nn.Module], prefix: Prefix, rows: torch.Tensor, start: int, tokens: torch.Tensor
) -> torch.Tensor:
    """(B, K) what the model says when the tokens from ``start`` on are these (B, T - start, D) in image rows[i].

    Raises ModelError for tokens that are not those of all places from ``start`` on.
    """
    count = prefix.hidden.shape[1]
    if tokens.ndim != 3 or not 0 <= start < count or tokens.shape[1] != count - start:
        raise ModelError(
            f"Found tokens {tuple(tokens.shape)} from {start} on: this model has {count}, so (B, {count} - start, D)."
        )
    past = [
        _layer(DynamicLayer, keys[:, :, :start], values[:, :, :start], rows)
        for keys, values in zip(prefix.keys, prefix.values, strict=True)
    ]
    batch = len(tokens)
    if module.config.readout != "last":
        with fed(layers[0], tokens):
            changed = _run(module, Cache(layers=past), batch, start, count)
        found: torch.Tensor = module.decide(torch.cat((_expanded(prefix.hidden[:, :start], rows), changed), dim=1))
        return found
    past[-1] = _layer(_LastLayer, past[-1].keys, past[-1].values, None)
    with fed(layers[0], tokens), input_of(layers[-1]) as states:
        try:
            _run(module, Cache(layers=past), batch, start, count)
        except _Enough:
            pass
        else:
            raise ModelError(f"{_name(module)} does not keep the keys and values of its last layer.")
    return _last_token(module, layers, past[-1], states[-1][:, -1:])


def require_same(resumed: torch.Tensor, whole: torch.Tensor) -> None:
    """Raises ModelError when logits (B, K) of a pass gone on from a prefix are not those of one pass of all tokens."""
    apart, scale = float((resumed - whole).abs().max()), max(1.0, float(whole.abs().max()))
    if not apart <= SAME_LOGITS * scale:
        raise ModelError(f"going on from kept keys and values moves the logits of this model by {apart:.2g}")


def _last_token(module: Any, layers: Sequence[nn.Module], known: Any, state: torch.Tensor) -> torch.Tensor:
    """(B, K) the last layer and the head on the last token alone (B, 1, D), whose key and value are made once more."""
    count = known.keys.shape[2]
    before = _layer(DynamicLayer, known.keys[:, :, :-1], known.values[:, :, :-1], None)
    with skipped(layers[:-1]), fed(layers[-1], state):
        hidden = _run(module, Cache(layers=[before] * len(layers)), len(state), count - 1, count)
    found: torch.Tensor = module.decide(hidden)
    return found


def _run(module: Any, past: Cache, batch: int, start: int, count: int) -> torch.Tensor:
    """Last states of the body on empty tokens at the places from ``start`` on; a hook puts tokens in their place."""
    words = module.backbone.get_input_embeddings().weight
    places = torch.arange(start, count, device=words.device).expand(batch, -1)
    states: torch.Tensor = module.backbone(
        inputs_embeds=words.new_zeros(1, 1, words.shape[1]).expand(batch, count - start, -1),
        attention_mask=places.new_ones(batch, count), position_ids=places + module.first_position,
        past_key_values=past, use_cache=True,
    ).last_hidden_state  # fmt: skip
    return states


def _check(module: Any) -> None:
    if not isinstance(module, LlmImageClassifier):
        raise ModelError(f"{type(module).__name__} is no language model: every token sees every other.")
    if module.config.attention != "causal":
        raise ModelError("every token of this model sees every other")
    if virtual_tokens(module.config.adapter):
        raise ModelError("learned tokens come before those of this model")
    taken = inspect.signature(module.backbone.forward).parameters
    if not {"past_key_values", "position_ids"} <= set(taken):
        raise ModelError(f"{_name(module)} takes no keys and values")


def _layer(kind: type[DynamicLayer], keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None) -> Any:
    layer = kind()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = (each if rows is None else _expanded(each, rows) for each in (keys, values))
    return layer


def _expanded(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows asked for; a view where there is one row for all."""
    return values.expand(len(rows), *values.shape[1:]) if len(values) == 1 else values[rows]


def _name(module: Any) -> str:
    return type(module.backbone).__name__
