from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.training.sampler import Sampler, order

seeds, epochs = st.integers(0, 2**63), st.integers(0, 10_000)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 200), seed=seeds, epoch=epochs)
def test_every_example_comes_once_and_always_in_the_same_place(count: int, seed: int, epoch: int) -> None:
    first = Sampler(count, seed).order(epoch)
    assert sorted(first.tolist()) == list(range(count))
    np.testing.assert_array_equal(first, Sampler(count, seed).order(epoch))
    if count > 20:
        assert first.tolist() != Sampler(count, seed).order(epoch + 1).tolist()
        assert first.tolist() != Sampler(count, seed + 1).order(epoch).tolist()


def test_orders_are_uniform() -> None:
    """Chi-square of the first place over 6,000 epochs: 5 degrees of freedom, 20.5 is the 99.9 % point."""
    firsts = np.bincount([order(6, 0, epoch)[0] for epoch in range(6000)], minlength=6)
    assert ((firsts - 1000) ** 2 / 1000).sum() < 20.5


@settings(deadline=None, max_examples=30)
@given(cells=st.lists(st.integers(0, 3), min_size=1, max_size=80), seed=seeds, epoch=epochs)
def test_balanced_cells_are_drawn_equally_often_and_gone_through_evenly(
    cells: list[int], seed: int, epoch: int
) -> None:
    codes = np.array(cells)
    drawn = Sampler(len(codes), seed, codes).order(epoch)
    assert len(drawn) == len(codes)
    per_cell = np.bincount(codes[drawn], minlength=4)[np.unique(codes)]
    assert per_cell.max() - per_cell.min() <= 1
    for cell in np.unique(codes):
        times = np.bincount(drawn, minlength=len(codes))[codes == cell]
        assert times.max() - times.min() <= 1


@settings(deadline=None, max_examples=30)
@given(new=st.integers(1, 90), old=st.integers(1, 40), share=st.floats(0.0, 0.8), seed=seeds)
def test_the_stated_share_of_an_epoch_is_old(new: int, old: int, share: float, seed: int) -> None:
    sampler = Sampler(new, seed, None, old, share)
    drawn = sampler.order(0)
    rehearsed = drawn >= new
    assert len(drawn) == len(sampler)
    assert sorted(drawn[~rehearsed].tolist()) == list(range(new))
    assert abs(rehearsed.sum() - share * len(drawn)) <= 1
    times = np.bincount(drawn[rehearsed] - new, minlength=old)
    assert times.max() - times.min() <= 1


def test_old_images_are_mixed_in_and_others_come_next_epoch() -> None:
    sampler = Sampler(400, 0, None, 400, 0.2)
    first, second = sampler.order(0), sampler.order(1)
    places = np.flatnonzero(first >= 400) / len(first)
    assert 0.4 < places.mean() < 0.6
    assert set(first[first >= 400].tolist()) != set(second[second >= 400].tolist())
