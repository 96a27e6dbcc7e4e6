"""Which kinds there are, for which modality, with which values; kinds of a user's own; what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.methods.corruptions.pictures import chest, colourful, flat, one
from xvision.errors import ConfigError, DataError
from xvision.methods.corruptions import (
    ANY,
    CORRUPTIONS,
    MODALITIES,
    Corruption,
    corrupt,
    corruption_of,
    kinds_of,
    register,
    severities_of,
    unregister,
)


def darker(pixels: torch.Tensor, amount: float, seeds: Sequence[int]) -> torch.Tensor:
    return pixels - amount


def test_the_registry_is_complete() -> None:
    assert len(CORRUPTIONS) >= 37
    for name, corruption in CORRUPTIONS.items():
        assert corruption.name == name
        assert all((corruption.title, corruption.parameter, corruption.unit, corruption.source))
    assert len({corruption.title for corruption in CORRUPTIONS.values()}) == len(CORRUPTIONS)


def test_kinds_of_a_modality_are_the_general_ones_and_its_own() -> None:
    general = set(kinds_of(None))
    assert {"gaussian_noise", "jpeg", "burnt_in_text", "rotation"} <= general
    assert not general & {"collimation", "ct_rings", "inversion", "laterality_flip"}
    for modality in MODALITIES:
        assert general <= set(kinds_of(modality))
    assert {"collimation", "grid_lines", "overexposure"} <= set(kinds_of("xray"))
    assert {"ct_rings", "ct_metal", "window_width"} <= set(kinds_of("ct"))
    assert "laterality_flip" not in kinds_of("histology")


def test_values_are_those_of_the_modality_else_the_general_ones_else_the_first() -> None:
    assert severities_of("shot_noise", "ct") == (200, 100, 50, 25, 15)
    assert severities_of("shot_noise", "xray") == severities_of("shot_noise") == (60, 25, 18, 10, 5)
    assert severities_of("collimation") == severities_of("collimation", "xray")
    with pytest.raises(ConfigError, match="'ct_rings' makes no sense for fundus: it is for ct"):
        severities_of("ct_rings", "fundus")
    strong = corrupt(flat(0.5), "shot_noise", 1, ["a"], seed=0, modality="ct")
    assert float(strong.std()) < float(corrupt(flat(0.5), "shot_noise", 1, ["a"], seed=0).std())


def test_a_kind_of_your_own_is_one_function() -> None:
    kind = register(corruption_of(darker, (0.1, 0.2, 0.3, 0.4, 0.5), modalities=("xray",)))
    try:
        assert (kind.name, kind.title, kind.source) == ("darker", "Darker", "user")
        torch.testing.assert_close(one(flat(0.35), "darker", 2), flat(0.15))
        assert float(one(flat(0.35), "darker", 5).max()) == 0.0
        assert "darker" in kinds_of("xray")
        assert "darker" not in kinds_of(None)
        register(corruption_of(darker, (0.2, 0.3, 0.4, 0.5, 0.6)))
        torch.testing.assert_close(one(flat(0.35), "darker", 1), flat(0.15))
    finally:
        unregister("darker")
    assert "darker" not in CORRUPTIONS
    with pytest.raises(ConfigError, match="found no corruption of your own called 'darker'"):
        unregister("darker")
    with pytest.raises(ConfigError, match="'jpeg' is one of xvision's"):
        register(corruption_of(darker, (0.1, 0.2, 0.3, 0.4, 0.5), name="jpeg"))


def test_a_function_that_returns_another_shape_is_named() -> None:
    def cropped(pixels: torch.Tensor, amount: float, seeds: Sequence[int]) -> torch.Tensor:
        return pixels[..., 1:]

    register(corruption_of(cropped, (1, 2, 3, 4, 5)))
    try:
        with pytest.raises(DataError, match=r"cropped returned \(1, 1, 64, 63\) for pixels \(1, 1, 64, 64\)"):
            one(chest(), "cropped", 1)
    finally:
        unregister("cropped")


def test_a_kind_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no severities"):
        Corruption("a", "A", "b", "c", "d", {}, darker)
    with pytest.raises(ConfigError, match=r"names the modality 'xrays'\. Did you mean 'xray'"):
        Corruption("a", "A", "b", "c", "d", {"xrays": (1, 2, 3, 4, 5)}, darker)
    with pytest.raises(ConfigError, match="five different values are needed"):
        corruption_of(darker, (1, 2, 3, 3, 4))


def test_what_cannot_be_corrupted_is_named() -> None:
    with pytest.raises(ConfigError, match=r"found the corruption 'gaussian_nois'\. Did you mean 'gaussian_noise'"):
        one(chest(), "gaussian_nois", 1)
    with pytest.raises(ConfigError, match="found severity 6 of jpeg"):
        one(chest(), "jpeg", 6)
    with pytest.raises(DataError, match="found 1 case keys for 2 images"):
        corrupt(torch.cat([chest()] * 2), "jpeg", 1, ["a"], seed=0)
    with pytest.raises(DataError, match=r"found pixels from 0\.\d+ to 1\.\d+: they must be finite and in \[0, 1\]"):
        one(chest() * 2, "jpeg", 1)
    with pytest.raises(DataError, match="finite"):
        one(chest() * torch.nan, "jpeg", 1)
    with pytest.raises(DataError, match=r"found pixels of shape \(1, 64, 64\)"):
        one(chest()[0], "jpeg", 1)


def test_all_or_nothing_is_told_by_the_modality_and_draws_the_same_at_every_severity() -> None:
    turned = [corrupt(colourful(), "orientation", level, ["a"], seed=4) for level in range(1, 6)]
    assert all(torch.equal(each, turned[0]) for each in turned)
    kind = replace(
        corruption_of(darker, (0.1, 0.2, 0.3, 0.4, 0.5)), severities={ANY: (1, 1, 1, 1, 1), "ct": (1, 2, 3, 4, 5)}
    )
    assert (kind.graded("ct"), kind.graded("xray"), kind.graded(None)) == (True, False, False)
