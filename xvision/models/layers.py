"""The layers of a transformer while it runs: what goes in, what comes out, something else in its place, or none of them.

Found by their number and by the fact that they run, never by name: names change from version to version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_FORWARD = "forward"


def layers_name(module: nn.Module, count: int, run: Callable[[], object]) -> str | None:
    """The name of the list whose ``count`` modules all run, one after the other; None where there is none.

    run: one pass of the module. A layer that gives more than its states is none: it could not be left out.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            with outputs_of(list(part)) as states, torch.no_grad():
                run()
            if len(states) == count:
                return name
    return None


@contextmanager
def outputs_of(layers: Sequence[nn.Module], prefix: int = 0) -> Iterator[list[torch.Tensor]]:
    """What each layer passes on (B, T, D), in the order of the pass and as a node of its graph.

    prefix: rows of zeros to put before it, for learned tokens that have no states.
    """
    states: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or output.ndim != 3:
            return None
        states.append(with_rows(output, prefix))
        return states[-1][:, prefix:] if prefix else None

    with _hooked([layer.register_forward_hook(keep) for layer in layers]):
        yield states


def with_rows(states: torch.Tensor, prefix: int) -> torch.Tensor:
    """(B, prefix + T, D): zeros before the states; without a prefix the very same tensor."""
    return nn.functional.pad(states, (0, 0, prefix, 0)) if prefix else states


@contextmanager
def input_of(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a layer reads (B, T, D)."""
    states: list[torch.Tensor] = []
    with _hooked([layer.register_forward_pre_hook(lambda _, given: states.append(given[0]))]):
        yield states


@contextmanager
def fed(layer: nn.Module, tokens: torch.Tensor) -> Iterator[None]:
    """The layer reads these tokens (B, T, D) instead of what comes before it."""
    with _hooked([layer.register_forward_pre_hook(lambda _, given: (tokens, *given[1:]))]):
        yield


@contextmanager
def put_back(layer: nn.Module, places: torch.Tensor, count: int) -> Iterator[None]:
    """What the layer passes on (B, T', D) goes to its places (B, T') among ``count`` tokens; the others are zeros.

    So that a head which reads tokens by their number finds them.
    """

    def widened(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        empty = output.new_zeros(output.shape[0], count, output.shape[2])
        return empty.scatter(1, places[..., None].expand_as(output), output)

    with _hooked([layer.register_forward_hook(widened)]):
        yield


@contextmanager
def skipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The layers pass on what they read."""
    before = [vars(layer).get(_FORWARD) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, _FORWARD, lambda hidden, *_, **__: hidden)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                delattr(layer, _FORWARD)
            else:
                setattr(layer, _FORWARD, own)


@contextmanager
def _hooked(hooks: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
