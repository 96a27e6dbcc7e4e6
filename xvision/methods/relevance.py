"""CP-LRP: the score handed back through a transformer, layer by layer, to the tokens it was computed from.

Conservative propagation after Ali et al. (2022), "XAI for transformers: better explanations through conservative
propagation", in the form of a product of input and gradient (Achtibat et al. 2024). Four rules change the backward pass:

- normalisation: what is divided by counts as a constant, x / n(x) as x / n;
- activation: f(z) counts as z times the constant f(z) / z;
- attention: the weights count as constants, so relevance goes through the values alone;
- product of two things that both depend on the tokens (a gated layer): each gets half.

With them everything between tokens and logits is linear in the tokens, up to biases; a step that is neither linear nor
covered is refused. Gates (a sigmoid, or tanh or erf shifted by one) count as constants like attention weights.
Layer-wise relevance propagation is covered by patents of its inventors; see ``NOTE``. Shapes: B batch, T tokens, D
width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from xvision.errors import DataError, ModelError
from xvision.methods.target import Logits, gradients_for_pixels, log_odds

NOTE = "Layer-wise relevance propagation is covered by patents of its inventors: commercial use may need a licence from them."


def token_relevance(logits: Logits, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Signed share of each token in the contrast of the target class to the others, (B, T), in the type of the tokens.

    The contrast is the target's logit minus the mean of the other logits weighted by their probabilities, for two
    classes the log-odds. The shares of all tokens sum to it for a model without biases; a bias keeps its own share, so
    the sum then misses the contrast by what the biases add.

    Args:
        logits: from tokens to logits (B, K). Its parameters must not require gradients.
        tokens: (B, T, D) what the first layer reads.
        targets: (B,) class to explain.

    Raises:
        DataError: tokens and targets that do not match, or a target that is no class.
        ModelError: the model has a step that none of the rules covers, or parameters that require gradients.
    """
    if tokens.ndim != 3 or targets.shape != tokens.shape[:1]:
        raise DataError(
            f"found tokens of shape {tuple(tokens.shape)} and targets of shape {tuple(targets.shape)}: they must be"
            " (B, T, D) and (B,)"
        )
    with gradients_for_pixels():
        start = tokens.detach().clone().requires_grad_()
        with ConservativeRules():
            found = logits(start)
        score = contrast(found, targets.to(start.device, torch.int64))
        _require_linear(score)
        (gradients,) = torch.autograd.grad(score.sum(), start)
    return (start.detach() * gradients).sum(dim=2)


def contrast(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Target logit minus the mean of the others weighted by their probabilities, which count as constants, (B,)."""
    log_odds(logits, targets)  # refuses what is no (B, K) or no class
    chosen = F.one_hot(targets, logits.shape[1]).bool()
    others = logits.detach().masked_fill(chosen, -torch.inf).softmax(dim=1)
    return (logits * (chosen.to(logits) - others)).sum(dim=1)


class ConservativeRules(TorchFunctionMode):
    """Within this context what is computed stays as it is, and gradients follow the four rules; nothing else changes."""

    def __init__(self) -> None:
        super().__init__()
        self._bent: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Outputs of tanh: shifted by one they are a gate, as in the tanh form of GELU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        _require_frozen((*args, *options.values()))
        rule = _RULES.get(func)
        result = func(*args, **options) if rule is None else rule(func, *args, **options)
        if func in _TANH:
            self._bent[result] = True
        return result.detach() if func in _ADDITION and self._makes_a_gate(args) else result

    def _makes_a_gate(self, added: tuple[Any, ...]) -> bool:
        bent = any(isinstance(each, torch.Tensor) and each in self._bent for each in added)
        return bent and any(isinstance(each, int | float) for each in added)


def _constant(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return function(*args, **options).detach()


def _scaled(function: Callable[..., Any], states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """states × (f(states) / states); nothing goes back through a state of 0."""
    fixed = states.detach()
    values = function(fixed.clone(), *args, **options)  # a copy, for functions that may write in place
    return states * torch.where(fixed == 0.0, 0.0, values / fixed)


def _shared(function: Callable[..., Any], first: Any, second: Any, **options: Any) -> Any:
    """Half of a product's relevance to each factor, where both depend on the tokens."""
    if not (_depends(first) and _depends(second)):
        return function(first, second, **options)
    return (function(first, second.detach(), **options) + function(first.detach(), second, **options)) / 2


def _divided(function: Callable[..., Any], first: Any, second: Any, **options: Any) -> Any:
    return function(first, second.detach() if isinstance(second, torch.Tensor) else second, **options)


def _raised(function: Callable[..., Any], base: Any, exponent: Any, **options: Any) -> Any:
    """A negative power is what something is divided by."""
    raised = function(base, exponent, **options)
    return raised.detach() if isinstance(exponent, int | float) and exponent < 0 else raised


def _layer_norm(
    _: Callable[..., Any],
    states: torch.Tensor,
    normalized_shape: Iterable[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *__: Any,
) -> torch.Tensor:
    axes = _last_axes(normalized_shape)
    centred = states - states.mean(dim=axes, keepdim=True)
    scale = (centred.detach().square().mean(dim=axes, keepdim=True) + eps).rsqrt()
    normal = centred * scale if weight is None else centred * scale * weight
    return normal if bias is None else normal + bias


def _rms_norm(
    _: Callable[..., Any],
    states: torch.Tensor,
    normalized_shape: Iterable[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    smallest = torch.finfo(states.dtype).eps if eps is None else eps
    scale = (states.detach().square().mean(dim=_last_axes(normalized_shape), keepdim=True) + smallest).rsqrt()
    return states * scale if weight is None else states * scale * weight


def _attention(
    function: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **options: Any,
) -> Any:
    return function(query.detach(), key.detach(), value, *args, **options)


def _last_axes(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(range(-len(tuple(shape)), 0))


def _depends(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


_TANH = frozenset({torch.tanh, torch.Tensor.tanh, F.tanh})
_ADDITION = frozenset({torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__})
_GROUPS: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
    (_layer_norm, (F.layer_norm, torch.layer_norm)),
    (_rms_norm, (F.rms_norm, torch.rms_norm)),
    (_constant, (torch.rsqrt, torch.Tensor.rsqrt, torch.reciprocal, torch.Tensor.reciprocal, torch.Tensor.__rdiv__)),
    (_raised, (torch.pow, torch.Tensor.pow, torch.Tensor.__pow__)),
    (_divided, (torch.div, torch.true_divide, torch.Tensor.div, torch.Tensor.true_divide, torch.Tensor.__truediv__)),
    (_scaled, (F.silu, F.gelu, F.mish, F.hardswish, F.elu, *_TANH)),
    # Squashed to a range, they weigh something else: attention weights and gates.
    (_constant, (F.softmax, torch.softmax, torch.Tensor.softmax, torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid)),
    (_constant, (torch.erf, torch.Tensor.erf)),
    (_attention, (F.scaled_dot_product_attention,)),
    (_shared, (torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__)),
)
_RULES: Mapping[Any, Callable[..., Any]] = {function: rule for rule, functions in _GROUPS for function in functions}

# Steps of a graph that hand everything on as it came, by the names that autograd gives them.
_LINEAR = frozenset({
    "AccumulateGrad", "Add", "Sub", "Rsub", "Neg", "Mean", "Sum", "Cumsum", "View", "UnsafeView", "ViewAs",
    "ReshapeAlias", "Transpose", "Permute", "T", "Mt", "Expand", "Slice", "Select", "Narrow", "Index", "IndexSelect",
    "Gather", "Scatter", "Cat", "Stack", "Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "Unsqueeze", "Squeeze",
    "Clone", "ToCopy", "Alias", "Repeat", "Flip", "Roll", "MaskedFill", "Where", "ConstantPadNd", "CopySlices",
    "AsStrided", "Unfold", "Tril", "Triu", "Diagonal", "Relu", "LeakyRelu",
})  # fmt: skip
_PRODUCTS = frozenset({"Mul", "Mm", "Bmm", "Addmm", "Baddbmm", "Mv", "Dot", "Linear", "Convolution"})
"""Linear as long as only one factor depends on the tokens."""
_WEIGHTED = "ScaledDotProduct"


def _require_linear(score: torch.Tensor) -> None:
    """ModelError unless only the tokens' linear paths are left between them and the score: no step was overlooked."""
    if score.grad_fn is None:
        raise ModelError("no gradient of the logits reaches the tokens: explain the model by removing tokens")
    seen, ahead = {score.grad_fn}, [score.grad_fn]
    while ahead:
        node = ahead.pop()
        before = [edge for edge, _ in node.next_functions]
        _require_covered(node.name(), before)
        new = {edge for edge in before if edge is not None} - seen
        seen |= new
        ahead.extend(new)


def _require_covered(full: str, before: list[Any]) -> None:
    name = full.rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
    needed = [place for place, edge in enumerate(before) if edge is not None]
    if name in _LINEAR or (name in _PRODUCTS and len(needed) <= 1) or (name == "Div" and needed == [0]):
        return
    if name.startswith(_WEIGHTED) and needed == [2]:
        return
    raise ModelError(
        f"CP-LRP has no rule for a step of this model ({full}), so that its relevances would not add up: use"
        " integrated_gradients"
    )


def _require_frozen(given: tuple[Any, ...]) -> None:
    if any(isinstance(each, torch.nn.Parameter) and each.requires_grad for each in given):
        raise ModelError("CP-LRP needs parameters without gradients: call requires_grad_(False) on the model first")
