"""What a model scores when parts of the image are taken away. Shapes: B images, P units, N questions, C H W image.

A removed part is replaced, never cut out: what is put in its place decides what the score means. A constant shows the
outline of the hole, a blur leaves some of the content, an imputed hole does neither but takes longest. No operator is
right, so a result is worth more when two of them agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.attribution import baseline_pixels
from xvision.methods.imputation import linear_imputation
from xvision.methods.randomness import case_generator, case_seed
from xvision.methods.suffixes import LaterTokens, Part, effort_on
from xvision.methods.target import Score, checked, log_odds
from xvision.methods.units import Evaluate, Units

Operator = Literal["mean", "blur", "black", "data mean", "road"]

ROAD_NOISE = 0.01
"""Standard deviation of the noise on imputed pixels: without it a model could tell them by their smoothness."""
CPU_PIXELS = 2**18
"""Pixels of one pass on a CPU: larger passes leave its caches and take longer per image."""
SAME_TOKENS = 1e-5
"""Largest difference, of the largest value or of 1, at which tokens count as made from their own patch alone."""
LIKE_TOKENS = 1e-6
"""Largest difference, of the largest value or of 1, at which a token counts as the same: convolutions round that much."""
FILLED_BYTES = 2**28
"""Tokens of filled images that are held at once."""

_OWN = "each token is made from its own patch"

_Fill = Callable[[np.ndarray, np.ndarray], torch.Tensor]
"""Rows (n,) of images and the units (n, P) bool taken from each: to what the model sees, (n, C, H, W)."""
_Put = Callable[[np.ndarray, torch.Tensor], torch.Tensor]
"""Rows (n,) of images and the pixels (n, H, W) bool taken from each: to what is put there, (n or 1, C, H, W)."""
_Scored = Callable[[np.ndarray, np.ndarray], torch.Tensor]


class Removal(NamedTuple):
    """How parts are taken away from a batch. level: what is exchanged and run again. why: the reason of that choice."""

    evaluate: Evaluate
    level: Literal["later embeddings", "embeddings", "pixels, later tokens", "pixels"]
    why: str


def pixel_evaluator(
    score: Score,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    units: Units,
    operator: Operator,
    *,
    seeds: Sequence[int],
    batch: int = 64,
    references: torch.Tensor | None = None,
) -> Evaluate:
    """Scores of images whose removed units are filled by an operator.

    Args:
        score: what is asked, (B, C, H, W) in [0, 1] and targets (B,) to (B,).
        pixels: (B, C, H, W).
        targets: (B,) class to explain.
        units: of an image of H x W.
        operator: "mean" the image's own mean per channel; "blur" the image blurred by 10 px at a side of 224; "black";
            "data mean" the mean image of ``references``; "road" interpolated from what is left, with noise
            (Rong et al. 2022).
        seeds: one per image, for the noise of "road", which is the same whatever is removed.
        batch: most images in one pass; on a CPU fewer of large ones. Changes memory and speed, not the scores.
        references: (R, C, H, W) images of the data; needed by "data mean" only.

    Raises:
        ConfigError: an unknown operator, or a batch below 1.
        DataError: units, seeds, references or a question that do not fit the images.
    """
    images, explained = checked(pixels, targets)
    _require_fit(images, units, seeds)
    fill = _filler(images, units, operator, seeds, references)

    def scored(rows: np.ndarray, removed: np.ndarray) -> torch.Tensor:
        return score(fill(rows, removed), _picked(explained, rows).expand(len(rows)))

    return _in_passes(scored, len(images), units, _pass_size(images, batch))


def embedding_evaluator(
    model: Any,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    units: Units,
    operator: Operator,
    *,
    seeds: Sequence[int],
    batch: int = 64,
    references: torch.Tensor | None = None,
) -> Removal:
    """The same scores as ``pixel_evaluator``, without the model's stem where that changes nothing.

    Where a token is made from its own patch alone and units are whole patches, a patch filled in the image is a token
    taken from the filled image: image and filling are embedded once, and each question only exchanges tokens. Whether
    the stem is like that is tried on one image of the batch; where it is not, or the filling depends on what else is
    removed, pixels are filled. Either way, a model whose tokens depend on none after them runs only those from the first
    that changes on. ``level`` and ``why`` say what was done.

    Args:
        model: a classifier; for embeddings with ``token_map``, ``embedded`` and ``from_embedded``, for later tokens alone
            with ``prefix`` and ``from_prefix``.

    Other arguments and errors are those of ``pixel_evaluator``.
    """
    images, explained = checked(pixels, targets)
    _require_fit(images, units, seeds)
    reason = _why_pixels(model, images, units, operator)
    if reason is not None:
        evaluate = pixel_evaluator(
            lambda seen, asked: log_odds(model.logits(seen), asked), images, explained, units, operator,
            seeds=seeds, batch=batch, references=references,
        )  # fmt: skip
        later, _ = _later_tokens(model, images, explained, batch)
        if later is None:
            return Removal(evaluate, "pixels", reason)
        fill = _filler(images, units, operator, seeds, references)
        evaluate = _later_filled(later, model, fill, units, _pass_size(images, batch))
        return Removal(evaluate, "pixels, later tokens", f"{reason}; none depends on a later one")
    size = _pass_size(images, batch)
    whole, empty = (_embedded(model, each, size) for each in (images, reference_pixels(images, operator, references)))
    places = _unit_of_token(model.token_map, units, whole.shape[1])
    later, refused = _later_tokens(model, images, explained, batch)
    if later is not None:
        evaluate = _later_exchanged(later, empty, places, units)
        return Removal(evaluate, "later embeddings", f"{_OWN}, and none depends on a later one")

    def scored(rows: np.ndarray, removed: np.ndarray) -> torch.Tensor:
        gone = torch.as_tensor(_gone(removed, places), device=images.device)
        tokens = torch.where(gone.unsqueeze(2), _picked(empty, rows), _picked(whole, rows))
        return log_odds(model.from_embedded(tokens), _picked(explained, rows).expand(len(rows)))

    return Removal(_in_passes(scored, len(images), units, size), "embeddings", "; ".join(filter(None, (_OWN, refused))))


def reference_pixels(pixels: torch.Tensor, operator: Operator, references: torch.Tensor | None = None) -> torch.Tensor:
    """What stands in the place of removed pixels, (B, C, H, W), for the operators that have it before asking."""
    if operator == "road":
        raise ConfigError("road fills from what is left: it has no filling before it is known what is removed")
    if operator not in get_args(Operator):
        raise ConfigError(f"found the operator {operator!r}: known are {', '.join(get_args(Operator))}")
    return baseline_pixels(pixels, operator, references)


def _filler(
    images: torch.Tensor, units: Units, operator: Operator, seeds: Sequence[int], references: torch.Tensor | None
) -> _Fill:
    labels = torch.as_tensor(units.labels.ravel(), device=images.device)
    put = _imputing(images, seeds) if operator == "road" else _constant(reference_pixels(images, operator, references))

    def fill(rows: np.ndarray, removed: np.ndarray) -> torch.Tensor:
        gone = torch.as_tensor(removed, device=images.device).index_select(1, labels).view(-1, *units.labels.shape)
        return torch.where(gone.unsqueeze(1), put(rows, gone), _picked(images, rows))

    return fill


def _constant(filling: torch.Tensor) -> _Put:
    return lambda rows, _: _picked(filling, rows)


def _imputing(images: torch.Tensor, seeds: Sequence[int]) -> _Put:
    """Images imputed where pixels are taken, with their noise, kept in [0, 1]."""
    known = images.double().cpu().numpy()
    noise = torch.stack([_noise(seed, images.shape[1:]) for seed in seeds]).to(images.device)

    def imputed(rows: np.ndarray, gone: torch.Tensor) -> torch.Tensor:
        masks = gone.cpu().numpy()
        solved = [linear_imputation(known[row], mask) for row, mask in zip(rows, masks, strict=True)]
        filled = torch.as_tensor(np.stack(solved), dtype=torch.float32, device=images.device)
        return (filled + _picked(noise, rows)).clamp(0.0, 1.0)

    return imputed


def _noise(seed: int, shape: torch.Size) -> torch.Tensor:
    return ROAD_NOISE * torch.randn(shape, generator=case_generator(case_seed(seed, "imputation noise", "")))


def _picked(values: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """The rows asked for; one row that serves them all where they are the same, which saves a copy of the images."""
    if (rows == rows[0]).all():
        return values[int(rows[0])].unsqueeze(0)
    return values[torch.as_tensor(rows, device=values.device)]


def _in_passes(scored: _Scored, images: int, units: Units, size: int) -> Evaluate:
    @torch.inference_mode()
    def evaluate(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        _require_question(rows, removed, images, units)
        scores = np.empty(len(rows))
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            # Copied, since an array may run backwards or be read-only, which torch does not take.
            scores[part] = scored(rows[part].copy(), removed[part].copy()).double().cpu().numpy()
        return scores

    return evaluate


def _pass_size(images: torch.Tensor, batch: int) -> int:
    if batch < 1:
        raise ConfigError(f"found batch = {batch}: it must be at least 1")
    if images.device.type != "cpu":
        return batch
    return max(1, min(batch, CPU_PIXELS // (images.shape[2] * images.shape[3])))


def _why_pixels(model: Any, images: torch.Tensor, units: Units, operator: Operator) -> str | None:
    """Why tokens cannot stand for patches here; None where they can."""
    if operator == "road":
        return "the filling of a patch depends on what else is removed"
    try:
        tokens = getattr(model, "token_map", None)
        if tokens is None or not hasattr(model, "embedded"):
            return "the model has no sequence of tokens that can be changed"
        if _box_units(tokens.boxes, units) is None:
            return "the parts that are removed are not whole patches of the model"
        return None if _local(model, images[:1], units) else "a token of this model depends on more than its own patch"
    except ModelError as error:  # it has tokens, but not for what is bound to it, or none that can be read
        return str(error)


def _box_units(boxes: np.ndarray, units: Units) -> np.ndarray | None:
    """(P,) the unit in which each box lies; None when one lies in several."""
    found = [np.unique(units.labels[top:bottom, left:right]) for left, top, right, bottom in boxes.astype(int)]
    if any(len(each) != 1 for each in found):
        return None
    return np.concatenate(found)


def _gone(removed: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N, T) bool, the tokens of removed units; a token of none stays."""
    found: np.ndarray = np.pad(removed, ((0, 0), (0, 1)))[:, places]
    return found


@torch.inference_mode()
def _embedded(model: Any, pixels: torch.Tensor, size: int) -> torch.Tensor:
    """(B, T, D) in passes of ``size`` images."""
    return torch.cat([model.embedded(part) for part in torch.split(pixels, size)])


def _later_tokens(
    model: Any, images: torch.Tensor, explained: torch.Tensor, batch: int
) -> tuple[LaterTokens | None, str | None]:
    """What runs later tokens alone; None where the model cannot, with the reason if it has tokens."""
    if not hasattr(model, "prefix"):
        return None, None
    try:
        whole = _embedded(model, images, _pass_size(images, batch))
        return LaterTokens(model, whole, explained, effort_on(images.device, batch)), None
    except ModelError as error:
        return None, str(error)


def _later_filled(later: LaterTokens, model: Any, fill: _Fill, units: Units, size: int) -> Evaluate:
    """Scores of filled images, of which the stem is run whole and the layers from the first token that changed on."""
    whole = later.tokens
    count, block = whole.shape[1], max(1, FILLED_BYTES // whole[0].nbytes)
    least = LIKE_TOKENS * max(1.0, float(whole.abs().max()))

    @torch.inference_mode()
    def evaluate(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        _require_question(rows, removed, len(whole), units)
        scores = np.empty(len(rows))
        for first in range(0, len(rows), block):
            part = slice(first, first + block)
            here, gone = rows[part].copy(), removed[part].copy()
            passes = range(0, len(here), size)
            tokens = torch.cat([model.embedded(fill(here[at : at + size], gone[at : at + size])) for at in passes])
            differs = ((tokens - _picked(whole, here)).abs().amax(dim=2) > least).cpu().numpy()
            starts = np.where(differs.any(axis=1), differs.argmax(axis=1), count)
            scores[part] = later.scores(here, starts, lambda each: tokens[each.questions, each.start :])  # noqa: B023  # called at once
        return scores

    return evaluate


def _later_exchanged(later: LaterTokens, empty: torch.Tensor, places: np.ndarray, units: Units) -> Evaluate:
    """Scores of images with tokens of their filling (B, T, D); a filling equal to the image changes nothing."""
    whole = later.tokens
    differs = (whole != empty).any(dim=2).cpu().numpy()

    def evaluate(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        _require_question(rows, removed, len(whole), units)
        gone = _gone(removed, places) & differs[rows]
        starts = np.where(gone.any(axis=1), gone.argmax(axis=1), gone.shape[1])

        def tokens(part: Part) -> torch.Tensor:
            taken = torch.as_tensor(gone[part.questions, part.start :], device=whole.device)
            return torch.where(taken.unsqueeze(2), empty[part.row, part.start :], whole[part.row, part.start :])

        return later.scores(rows, starts, tokens)

    return evaluate


def _unit_of_token(tokens: Any, units: Units, count: int) -> np.ndarray:
    """(T,) the unit of every token; one past the last for those that are no part of the image."""
    places = np.full(count, units.count)
    places[tokens.image] = _box_units(tokens.boxes, units)
    return places


@torch.inference_mode()
def _local(model: Any, image: torch.Tensor, units: Units) -> bool:
    """Whether the tokens of an image with half its units exchanged are those of the image and of what came in.

    What comes in is noise: a constant image against its own mean would pass whatever the stem.
    """
    generator = case_generator(case_seed(0, "stem check", ""))
    noise = torch.rand(image.shape, generator=generator).to(image.device)
    gone = torch.rand(units.count, generator=generator).numpy() < 0.5
    gone[0], gone[-1] = True, False
    mask = torch.as_tensor(gone[units.labels], device=image.device)
    whole, other, mixed = model.embedded(torch.cat((image, noise, torch.where(mask, noise, image))))
    places = torch.as_tensor(np.append(gone, False)[_unit_of_token(model.token_map, units, len(whole))])
    expected = torch.where(places.to(whole.device).unsqueeze(1), other, whole)
    scale = max(1.0, float(expected.abs().max()))
    return float((mixed - expected).abs().max()) <= SAME_TOKENS * scale


def _require_fit(images: torch.Tensor, units: Units, seeds: Sequence[int]) -> None:
    if units.labels.shape != tuple(images.shape[2:]):
        raise DataError(f"found units of {units.labels.shape} for images of {tuple(images.shape[2:])} pixels")
    if len(seeds) != len(images):
        raise DataError(f"found {len(seeds)} seeds for {len(images)} images: one each")


def _require_question(rows: np.ndarray, removed: np.ndarray, images: int, units: Units) -> None:
    if rows.ndim != 1 or removed.shape != (len(rows), units.count) or removed.dtype != np.bool_:
        raise DataError(
            f"found rows of shape {rows.shape} and removed of shape {removed.shape} {removed.dtype}:"
            f" they must be (N,) and (N, {units.count}) bool"
        )
    if len(rows) and not (rows.min() >= 0 and rows.max() < images):
        raise DataError(f"found the rows {rows.min()} to {rows.max()} of a batch of {images} images")
