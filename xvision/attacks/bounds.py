"""Sizes of change that are proved not to break a decision, in the space that a dense network reads.

A dense network is linear layers with ReLUs between them. For most image models that is the last layer alone, which reads an
embedding: a distance there says how far an embedding lies from a boundary, and nothing of how small a change of the pixels
moves it there. Only where the whole model is dense is the space that of the pixels.

One layer: the exact distance |f| / ‖w‖ in the dual norm. More: interval bounds (IBP; Gowal 2018) and linear bounds run backwards
(CROWN; Zhang 2018), each a lower bound of how much the right answer leads. All in float64, so that rounding of float32 models is not
covered. Shapes: B cases, D inputs, H units, K classes, M linear functions of the last layer's inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from xvision.attacks.balls import Norm
from xvision.attacks.goals import ClassGoal
from xvision.errors import ConfigError, ModelError
from xvision.models.finding import FindingView
from xvision.models.protocols import Classifier

Space = Literal["pixels", "embeddings"]
Layer = tuple[torch.Tensor, torch.Tensor]
"""weight (out, in) and bias (out,), float64 on the CPU."""
Box = tuple[torch.Tensor, torch.Tensor]
"""Smallest and largest values (B, H)."""
_SAME = 1e-3
"""Largest difference between a model's logits and its layers' on the same input, relative to the largest logit or 1."""
_HALVINGS = 24


@dataclass(frozen=True, eq=False)
class Dense:
    """Linear layers with a ReLU between each two, as read from a model. space: what the first one reads."""

    layers: tuple[Layer, ...]
    space: Space

    def logits(self, points: torch.Tensor) -> torch.Tensor:
        """(B, K) float64, for points (B, D)."""
        values = points.double().cpu()
        for place, (weight, bias) in enumerate(self.layers):
            values = (values.relu() if place else values) @ weight.T + bias
        return values


class Distances(NamedTuple):
    """size: (B,) float64, no smaller change breaks the decision; 0 where it is broken as it is, infinity where nothing can break
    it. exact: (B,) bool, whether a change hardly larger breaks it, or the size is only a lower bound.
    """

    size: torch.Tensor
    exact: torch.Tensor


def read_dense(model: Classifier, pixels: torch.Tensor) -> Dense:
    """The whole model where it is dense, else its last layer where that is linear and the embeddings before it can be read.

    pixels: (n, C, H, W), images on which the layers found must give the model's own logits. Raises ModelError, with the reason,
    where neither is the case.
    """
    name = str(model.description.get("architecture", "this model"))
    module, chosen = _module(model)
    if module is None:
        raise ModelError(f"{name} is no torch module whose layers can be read")
    with torch.no_grad():
        logits = model.logits(pixels).double().cpu()
        whole = _sequence(module)
        if whole and _agrees(found := Dense(_two_sided(whole, chosen), "pixels"), pixels.flatten(1), logits):
            return found
        if not hasattr(type(model), "embed"):
            raise ModelError(f"{name} has no embeddings that can be read, and is not dense as a whole")
        points = model.embed(pixels)  # type: ignore[attr-defined]  # asked for above
        for part in reversed([part for part in module.modules() if isinstance(part, nn.Linear)]):
            found = Dense(_two_sided([_layer(part)], chosen), "embeddings")
            if _agrees(found, points, logits):
                return found
    raise ModelError(f"{name} has no linear layer that turns its embeddings into its logits")


def _module(model: Classifier) -> tuple[nn.Module | None, int | None]:
    """The torch module behind a model, and the output that is audited where the model decides on several findings."""
    inner, chosen = model, None
    if isinstance(model, FindingView):
        inner, chosen = model.inner, model.inner.classes.index(model.name)
    module = getattr(inner, "module", None)
    return (module if isinstance(module, nn.Module) else None), chosen


def _sequence(module: nn.Module) -> list[Layer]:
    """The layers of a module that is a row of linear layers with one ReLU between each two; empty where it is not."""
    parts = list(module.children()) if isinstance(module, nn.Sequential) else [module]
    parts = [part for part in parts if not isinstance(part, nn.Flatten | nn.Identity | nn.Dropout)]
    kinds = [nn.Linear if place % 2 == 0 else nn.ReLU for place in range(len(parts))]
    fits = len(parts) % 2 == 1 and all(isinstance(part, kind) for part, kind in zip(parts, kinds, strict=True))
    return [_layer(part) for part in parts if isinstance(part, nn.Linear)] if fits else []


def _layer(part: nn.Linear) -> Layer:
    weight = part.weight.detach().double().cpu()
    return weight, weight.new_zeros(len(weight)) if part.bias is None else part.bias.detach().double().cpu()


def _two_sided(layers: list[Layer], chosen: int | None) -> tuple[Layer, ...]:
    """The layers with the last one giving the logits of the audit: (0, z) for one output, or for the chosen one."""
    weight, bias = layers[-1]
    if chosen is not None:
        weight, bias = weight[chosen : chosen + 1], bias[chosen : chosen + 1]
    if len(weight) == 1:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return (*layers[:-1], (weight, bias))


def _agrees(dense: Dense, points: torch.Tensor, logits: torch.Tensor) -> bool:
    first, last = dense.layers[0][0], dense.layers[-1][0]
    if points.ndim != 2 or first.shape[1] != points.shape[1] or len(last) != logits.shape[1]:
        return False
    return bool((dense.logits(points) - logits).abs().max() <= _SAME * logits.abs().max().clamp(min=1.0))


def linear_distance(logits: torch.Tensor, layer: Layer, goal: ClassGoal, norm: Norm) -> Distances:
    """The smallest change of a linear layer's input that breaks the decision, for its logits (B, K).

    f is how far a right class leads a wrong one and w the difference of their weights: the distance to that boundary is
    |f| / ‖w‖ in the dual norm (linf: sum, l2: Euclidean, l1: largest). It is exact where one class is right; where several
    are, all of them must fall behind and the farthest boundary is a lower bound. No bounds on the inputs are considered.

    Raises ConfigError for l0, which has no dual norm.
    """
    if norm == "l0":
        raise ConfigError("a linear layer has no distance in l0: ask for linf, l2 or l1")
    order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    weight = layer[0]
    lead = _leads(goal, logits.double().cpu())
    length = torch.linalg.vector_norm(weight[:, None, :] - weight[None, :, :], order, dim=2)
    distance = torch.where(lead > 0, lead / length, torch.zeros_like(lead))
    wrong = goal.wrong.cpu()
    return Distances(_weakest(distance, goal), ((~wrong).sum(dim=1) == 1) | ~wrong.any(dim=1))


def certified_linf(
    dense: Dense, points: torch.Tensor, goal: ClassGoal, *, low: float, high: float, largest: float
) -> Distances:
    """Lower bounds of the smallest largest-change of a value that breaks the decision, up to ``largest``, for points (B, D).

    Values stay within low and high. Found by halving the interval with ``leads``: a size is given only where the decision
    was proved to hold at it; every smaller change is inside that box.
    """
    centre = points.double().cpu()
    sure, tried = (
        torch.zeros(len(centre), dtype=torch.float64),
        torch.full((len(centre),), largest, dtype=torch.float64),
    )
    step = largest
    for _ in range(_HALVINGS):
        lower, upper = (centre - tried[:, None]).clamp(min=low), (centre + tried[:, None]).clamp(max=high)
        held = _weakest(leads(dense, lower, upper, goal), goal) > 0
        sure = torch.where(held, torch.maximum(sure, tried), sure)
        step = step / 2
        tried = (tried + torch.where(held, step, -step)).clamp(max=largest)
    return Distances(sure, torch.zeros(len(sure), dtype=torch.bool))


def leads(dense: Dense, low: torch.Tensor, high: torch.Tensor, goal: ClassGoal) -> torch.Tensor:
    """(B, K, K) lower bounds of the score of class i less that of class j over the box low to high (B, D).

    The better of IBP and CROWN, which also bound each other's hidden units. The differences are merged into the last layer,
    so that one layer alone is bounded exactly.
    """
    box = low.double().cpu(), high.double().cpu()
    hidden: list[Box] = []
    for weight, bias in dense.layers[:-1]:
        both = _minimum(torch.cat([weight, -weight]), torch.cat([bias, -bias]), dense.layers, hidden, box)
        lower, negative = both.chunk(2, dim=1)
        hidden.append((lower, -negative))
    weight, bias = dense.layers[-1]
    merged, shift = (weight[:, None] - weight[None]).flatten(0, 1), (bias[:, None] - bias[None]).flatten()
    classes = len(weight)
    found = _minimum(merged, shift, dense.layers, hidden, box)
    return found.view(-1, classes, classes) + _offsets(goal, len(low), classes)


def _minimum(
    rows: torch.Tensor, shift: torch.Tensor, layers: Sequence[Layer], hidden: Sequence[Box], box: Box
) -> torch.Tensor:
    """(B, M) lower bounds of rows (M, H) times what the layer after the ``hidden`` ones reads, plus shift (M,).

    hidden: bounds (B, H) of the units before their ReLU, of the layers below, in order.
    """
    by_interval = _over_box(rows, (hidden[-1][0].relu(), hidden[-1][1].relu()) if hidden else box) + shift
    slopes, offset = rows.expand(len(box[0]), -1, -1), shift.expand(len(box[0]), -1)
    for (low, high), (weight, bias) in reversed(list(zip(hidden, layers, strict=False))):
        slopes, offset = _through_relu(slopes, offset, low, high)
        slopes, offset = slopes @ weight, offset + slopes @ bias
    return torch.maximum(by_interval, _over_box(slopes, box) + offset)


def _through_relu(
    slopes: torch.Tensor, offset: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A lower bound that is linear in the units after a ReLU, slopes (B, M, H) and offset (B, M), as one in those before it.

    A unit that may be on or off lies below the line from (low, 0) to (high, high), and above 0 or itself, whichever leaves less.
    """
    on, off = low >= 0, high <= 0
    chord = high / (high - low).clamp(min=torch.finfo(high.dtype).tiny)
    above = torch.where(on, 1.0, torch.where(off, 0.0, chord))
    below = torch.where(on, 1.0, torch.where(off, 0.0, (high > -low).to(high.dtype)))
    lift = torch.where(on | off, 0.0, -low * chord)
    falling = slopes.clamp(max=0)
    passed = slopes.clamp(min=0) * below[:, None] + falling * above[:, None]
    return passed, offset + (falling * lift[:, None]).sum(dim=2)


def _over_box(rows: torch.Tensor, box: Box) -> torch.Tensor:
    """(B, M) the smallest value of rows (M, H) or (B, M, H) over a box (B, H)."""
    low, high = box
    rising, falling = rows.clamp(min=0), rows.clamp(max=0)
    smallest: torch.Tensor = (rising @ low[:, :, None] + falling @ high[:, :, None]).squeeze(2)
    return smallest


def _leads(goal: ClassGoal, logits: torch.Tensor) -> torch.Tensor:
    """(B, K, K) float64, the score of class i less that of class j."""
    count, classes = logits.shape
    return logits[:, :, None] - logits[:, None, :] + _offsets(goal, count, classes)


def _offsets(goal: ClassGoal, count: int, classes: int) -> torch.Tensor:
    """(B, K, K) what the deployed decision adds to each difference of logits: its threshold."""
    shift = goal.scores(torch.zeros(count, classes, dtype=torch.float64))
    return shift[:, :, None] - shift[:, None, :]


def _weakest(values: torch.Tensor, goal: ClassGoal) -> torch.Tensor:
    """(B,) over the wrong classes j the smallest, over the right classes i the largest, of values (B, i, j)."""
    wrong = goal.wrong.cpu()
    best = values.masked_fill(wrong[:, :, None], -torch.inf).amax(dim=1)
    return best.masked_fill(~wrong, torch.inf).amin(dim=1)
