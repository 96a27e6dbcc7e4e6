"""Random numbers by place: uniform, normal, unrelated between examples, and equal whatever the batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xvision.training.noise import normal, uniform

CPU = torch.device("cpu")
KEYS = {"seed": 3, "epoch": 5, "purpose": 1, "device": CPU}
_MASK = 2**64 - 1


def scrambled(bits: int) -> int:
    """SplitMix64's finaliser in Python's unbounded integers."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


def test_the_bits_are_those_of_splitmix64() -> None:
    """Known answer: the published generator's first three numbers from the state 1234567."""
    step = 0x9E3779B97F4A7C15
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [scrambled((1234567 + place * step) & _MASK) for place in (1, 2, 3)] == published
    key = 3
    for word in (5, 1, 11):
        key = scrambled((key + step) & _MASK) ^ word
    key = scrambled((key + step) & _MASK)
    expected = [(scrambled((key + place * step) & _MASK) >> 40) / 2**24 for place in (1, 2, 3, 4)]
    assert uniform(4, [11], **KEYS)[0].tolist() == expected


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10_000), example=st.integers(0, 2**40))
def test_rows_differ_in_seed_epoch_purpose_and_example(seed: int, epoch: int, example: int) -> None:
    changed = [
        (seed, epoch, 0, example), (seed + 1, epoch, 0, example), (seed, epoch + 1, 0, example),
        (seed, epoch, 1, example), (seed, epoch, 0, example + 1),
    ]  # fmt: skip
    rows = {tuple(uniform(3, [e], seed=s, epoch=t, purpose=p, device=CPU)[0].tolist()) for s, t, p, e in changed}
    assert len(rows) == len(changed)


def test_a_row_does_not_depend_on_its_batch() -> None:
    whole, alone = normal(7, [4, 9, 2], **KEYS), normal(7, [9], **KEYS)
    assert torch.equal(whole[1:2], alone)


def test_the_distributions_are_the_stated_ones() -> None:
    """Kolmogorov-Smirnov at 40,000 draws, and no correlation between neighbouring examples or places."""
    draws = uniform(200, range(200), **KEYS).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.001
    bells = normal(200, range(200), **KEYS).numpy().astype(np.float64)
    assert stats.kstest(bells.ravel(), "norm").pvalue > 0.001
    for first, second in ((bells[:-1], bells[1:]), (bells[:, :-1], bells[:, 1:]), (bells[:, :100], bells[:, 100:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / np.sqrt(first.size)
