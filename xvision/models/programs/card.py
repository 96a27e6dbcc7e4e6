"""What an exported program does not say of itself: written into the file by our own exports, beside it for foreign ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from xvision import codec
from xvision.errors import ModelError
from xvision.models.folder import MAX_JSON_BYTES
from xvision.models.protocols import InputSpec


@codec.record
class Card:
    """Class names in the order of the outputs, and how images become pixels."""

    classes: tuple[str, ...]
    problem_type: Literal["single_label_classification", "multi_label_classification"] = "single_label_classification"
    resample: Literal["bilinear", "bicubic", "lanczos", "nearest"] | None = None
    input: tuple[int, int, int] | None = None
    """Channels, height and width, where the program leaves them free."""
    architecture: str = "program"


def card_of(path: Path, inside: str | None, outputs: int) -> tuple[Card, tuple[str, ...]]:
    """What the file (``inside``) or ``NAME.classes.json`` beside it says, and what has to be assumed.

    Raises ModelError when neither or both say something, or what they say is no card.
    """
    beside = path.with_suffix(".classes.json")
    if inside is not None:
        if beside.exists():
            raise ModelError(f"{beside} is not needed: {path} names its classes itself. Remove the one that is wrong.")
        return _read(inside, f"{path}: its description"), ()
    if not beside.is_file() or beside.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(
            f"{path} does not name its {outputs} outputs: write the class names in the order of the outputs to {beside}, "
            'such as ["normal", "pneumonia"].'
        )
    card = _read(beside.read_text(encoding="utf-8", errors="replace"), str(beside))
    return card, () if card.resample else ("the filter that resized the images is not stated: bilinear is assumed",)


def input_of(where: str, card: Card, sides: Sequence[int | None]) -> InputSpec:
    """Channels, height and width of the pixels. sides: what the program fixes, None for what it leaves free."""
    stated = card.input or tuple(sides)
    if None in stated or any(ours not in (None, given) for ours, given in zip(sides, stated, strict=True)):
        raise ModelError(
            f"{where} takes images of {tuple(sides)} (channels, height, width; None is free) but is described with {card.input}: "
            'state "input": [C, H, W] where the classes are named.'
        )
    channels, height, width = (int(side or 0) for side in stated)
    if channels not in (1, 3) or min(height, width) < 1:
        raise ModelError(f"{where} takes images of {tuple(stated)}: channels must be 1 or 3.")
    return InputSpec(channels, height, width, card.resample or "bilinear")


def _read(text: str, where: str) -> Card:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{where} is not readable JSON ({problem}): write a list of class names.") from None
    return codec.read(Card, {"classes": data} if isinstance(data, list) else data, where, ModelError)
