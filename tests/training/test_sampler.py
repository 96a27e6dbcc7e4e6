from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.training.sampler import example_stream, order

seeds, epochs = st.integers(0, 2**63), st.integers(0, 10_000)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 200), seed=seeds, epoch=epochs)
def test_every_example_comes_once_and_always_in_the_same_place(count: int, seed: int, epoch: int) -> None:
    first = order(count, seed, epoch)
    assert sorted(first.tolist()) == list(range(count))
    np.testing.assert_array_equal(first, order(count, seed, epoch))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, epoch=epochs, example=st.integers(0, 2**40))
def test_streams_differ_in_seed_epoch_example_and_purpose(seed: int, epoch: int, example: int) -> None:
    keys = [(seed, epoch, example), (seed + 1, epoch, example), (seed, epoch + 1, example), (seed, epoch, example + 1)]
    draws = {tuple(example_stream(*key).random(4).tolist()) for key in keys}
    assert len(draws) == len(keys)
    assert example_stream(*keys[0]).random(4).tolist() == example_stream(*keys[0]).random(4).tolist()
    assert not np.array_equal(order(100, seed, epoch), example_stream(seed, epoch, 0).permutation(100))


def test_orders_are_uniform() -> None:
    """Chi-square of the first place over 6,000 epochs: 5 degrees of freedom, 20.5 is the 99.9 % point."""
    firsts = np.bincount([order(6, 0, epoch)[0] for epoch in range(6000)], minlength=6)
    assert ((firsts - 1000) ** 2 / 1000).sum() < 20.5
