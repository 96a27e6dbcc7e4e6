"""A network as a row of blocks that together hold every parameter, in the order in which an image meets them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xvision.errors import ModelError, nearest

Parts = Mapping[str, tuple[str, ...]]
"""Part → names of its parameters."""
_OWN, _WHOLE = "own weights", "network"


def parts_of(module: nn.Module, run: Callable[[], object]) -> Parts:
    """The blocks of a network: every member of a list of blocks is one, and so is every module beside such lists.

    Lists are known by what they are or, in an exported program, by the numbers that name their members. A block holds at
    least two matrices or filters; where more than half of all weights would be one part, lists of single ones are split
    too. run: one pass of the module, which shows the order. A tensor with several names has its first.
    """
    sizes = {name: weights.numel() for name, weights in module.named_parameters()}
    found: dict[str, tuple[str, ...]] = {}
    for part, names in _split(module, "", 2):
        known = _of(names, sizes)
        large = 2 * sum(sizes[name] for name in known) > sum(sizes.values())
        pieces = (
            _split(module.get_submodule(part), part, 1) if large and not part.endswith(_OWN) else [(part, list(known))]
        )
        for piece, inside in pieces:
            if own := _of(inside, sizes):
                found[piece or _WHOLE] = own
    if len(found) == 1:  # without lists the modules side by side are the parts
        found = {path or _WHOLE: own for path, names in _side_by_side(module, "") if (own := _of(names, sizes))}
    return _ordered(module, found, run)


def shuffle(module: nn.Module, names: Sequence[str], seed: int) -> None:
    """Puts the numbers of each named parameter into an order of its own, in place.

    The order follows from seed and name, so that a tensor is shuffled alike whatever else is. Tensors of equal numbers,
    such as fresh norms, stay as they are.
    """
    known = dict(module.named_parameters())
    with torch.no_grad():
        for name in names:
            weights = known[name]
            own = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
            order = torch.randperm(weights.numel(), generator=torch.Generator().manual_seed(own)).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))


def parameters_of(parts: Parts, chosen: Sequence[str]) -> list[str]:
    """The parameters of some parts; ModelError for a part that is not there."""
    for name in chosen:
        if name not in parts:
            raise ModelError(f"The model has no part {name!r}. {nearest(name, list(parts))}")
    return [name for part in dict.fromkeys(chosen) for name in parts[part]]


def _split(module: nn.Module, path: str, least: int) -> Iterator[tuple[str, list[str]]]:
    """Path and parameters of each part inside a module, itself if it holds no list of blocks."""
    if not any(_is_blocks(part, least) for part in module.modules()):
        yield path, [name for name, _ in module.named_parameters(path)]
        return
    yield _below(path, _OWN), [name for name, _ in module.named_parameters(path, recurse=False)]
    for name, child in module.named_children():
        yield from _split(child, _below(path, name), least)


def _side_by_side(module: nn.Module, path: str) -> Iterator[tuple[str, list[str]]]:
    """The children that hold parameters, those of an only child where there is no other."""
    children = {name: child for name, child in module.named_children() if next(child.parameters(), None) is not None}
    own = [name for name, _ in module.named_parameters(path, recurse=False)]
    if not children or (len(children) == 1 and own):
        yield path, [name for name, _ in module.named_parameters(path)]
        return
    yield _below(path, _OWN), own
    for name, child in children.items():
        below = _below(path, name)
        alone = len(children) == 1
        yield from (
            _side_by_side(child, below) if alone else [(below, [own for own, _ in child.named_parameters(below)])]
        )


def _of(names: Iterable[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Those that count: a tied tensor is listed under one name only."""
    return tuple(name for name in names if name in sizes)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_blocks(part: nn.Module, least: int) -> bool:
    """Whether a module is a list with at least two members of at least ``least`` matrices or filters each."""
    children = dict(part.named_children())
    listed = isinstance(part, nn.ModuleList | nn.Sequential) or (children and all(name.isdigit() for name in children))
    sizes = [sum(weights.ndim >= 2 for weights in child.parameters()) for child in children.values()]
    return bool(listed) and sum(size >= least for size in sizes) >= 2


def _ordered(module: nn.Module, parts: Mapping[str, tuple[str, ...]], run: Callable[[], object]) -> Parts:
    """The parts by the first use of one of their parameters; a part that is never used follows the one before it."""
    known = dict(module.named_parameters())
    with torch.no_grad(), _Uses({_place(weights): name for name, weights in known.items()}) as uses:
        run()
    ranks, last = {}, -1
    for part, names in parts.items():
        last = min((uses.first[name] for name in names if name in uses.first), default=last)
        ranks[part] = last
    return {part: parts[part] for part in sorted(parts, key=ranks.__getitem__)}


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Uses(TorchDispatchMode):
    """Notes in which order parameters are first used, by where their numbers lie."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.first: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if type(given) in (torch.Tensor, nn.Parameter) and (name := self.names.get(_place(given))):
                self.first.setdefault(name, len(self.first))
        return func(*args, **(kwargs or {}))
