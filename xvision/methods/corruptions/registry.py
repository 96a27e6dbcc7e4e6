"""All kinds by name: those of this package's modules, and those that a program adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from xvision.errors import ConfigError, nearest
from xvision.methods.corruptions import (
    blur,
    colour,
    ct,
    fundus,
    geometry,
    marks,
    mri,
    mri_motion,
    natural,
    noise,
    resolution,
    skin,
    stain,
    tone,
    ultrasound,
    ultrasound_marks,
)
from xvision.methods.corruptions.kind import ANY, Corruption, Severities

_KINDS: tuple[Corruption, ...] = (
    *noise.KINDS,
    *blur.KINDS,
    *tone.KINDS,
    *resolution.KINDS,
    *geometry.KINDS,
    *marks.KINDS,
    *ct.KINDS,
    *colour.KINDS,
    *skin.KINDS,
    *stain.KINDS,
    *fundus.KINDS,
    *natural.KINDS,
    *mri.KINDS,
    *mri_motion.KINDS,
    *ultrasound.KINDS,
    *ultrasound_marks.KINDS,
)
_by_name = {kind.name: kind for kind in _KINDS}
_built_in = frozenset(_by_name)

CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(_by_name)
"""Every kind that is known, by name; ``register`` adds to it."""


def kind_of(name: str) -> Corruption:
    """The kind with this name; raises ConfigError where there is none."""
    if name not in CORRUPTIONS:
        raise ConfigError(f"found the corruption {name!r}. {nearest(name, CORRUPTIONS)}")
    return CORRUPTIONS[name]


def kinds_of(modality: str | None) -> tuple[str, ...]:
    """Names of the kinds that make sense for a modality; for None, of those that make sense for every one."""
    return tuple(name for name, kind in CORRUPTIONS.items() if kind.suits(modality))


def severities_of(kind: str, modality: str | None = None) -> Severities:
    """The five parameter values of a kind, mild to severe.

    Raises ConfigError for an unknown kind and for one that makes no sense for the modality.
    """
    return kind_of(kind).values(modality)


def register(kind: Corruption) -> Corruption:
    """Make a kind of your own known to ``corrupt`` in this process, in place of an earlier one of its name, and return it.

    From Python only: a plan can name it only where the program that runs the plan has registered it first, and so must
    every process that it starts. Raises ConfigError where the name is one of the package's.
    """
    if kind.name in _built_in:
        raise ConfigError(f"the corruption {kind.name!r} is one of xvision's: give yours another name")
    _by_name[kind.name] = kind
    return kind


def unregister(name: str) -> None:
    """Forget a kind of your own; raises ConfigError where there is none of this name."""
    if name in _built_in or name not in _by_name:
        raise ConfigError(f"found no corruption of your own called {name!r}")
    del _by_name[name]


def corruption_of(
    function: Callable[[torch.Tensor, float, Sequence[int]], torch.Tensor],
    severities: Severities,
    *,
    name: str = "",
    title: str = "",
    parameter: str = "strength",
    unit: str = "",
    source: str = "user",
    modalities: Sequence[str] = (),
    label_changing: bool = False,
) -> Corruption:
    """A kind from your own function of pixels (B, C, H, W) in [0, 1], a value and one seed per case; see ``kind.Apply``.

    Args:
        function: returns pixels of the same shape; what leaves [0, 1] is clipped.
        severities: five values, mild to severe.
        name: the function's, without one.
        modalities: those it makes sense for; none for every one.
    """
    called = name or function.__name__
    return Corruption(
        called,
        title or called.replace("_", " ").capitalize(),
        parameter,
        unit,
        source,
        dict.fromkeys(modalities or (ANY,), severities),
        function,
        label_changing,
    )
