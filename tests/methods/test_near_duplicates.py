"""Near duplicates: known copies are found, different patients are not, and the search equals brute force."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import cdist

from xvision.data.synthetic import PhantomSettings, generate
from xvision.errors import DataError
from xvision.methods import near_duplicates
from xvision.methods.near_duplicates import (
    BITS,
    Neighbours,
    difference_hashes,
    hash_distances,
    nearest_embeddings,
    nearest_hashes,
    shifted_hashes,
    threshold,
)

Phantom = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """Pixels (300, 1, 64, 64) and patients (300,)."""
    made = generate(PhantomSettings(n=300, seed=5))
    return made.pixels, made.table["patient"].to_numpy(dtype=str)


def hashed(pixels: np.ndarray) -> np.ndarray:
    return difference_hashes(torch.from_numpy(pixels))


def through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * pixels[0]).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32)[None] / 255


def test_bits_say_where_brightness_rises() -> None:
    ramp = np.tile(np.linspace(0, 1, 34, dtype=np.float32), (1, 1, 34, 1))
    right = np.unpackbits(hashed(ramp), axis=1)
    assert right.shape == (1, BITS)
    assert right[0, :256].all()
    assert not right[0, 256:].any()
    turned = np.unpackbits(hashed(np.ascontiguousarray(ramp.swapaxes(2, 3))), axis=1)
    assert np.array_equal(turned[0], np.roll(right[0], 256))


def test_identical_images_differ_in_no_bit_and_their_brightness_does_not_matter(phantom: Phantom) -> None:
    pixels = phantom[0][:20]
    assert (hash_distances(hashed(pixels), hashed(pixels.copy())) == 0).all()
    dimmed = hash_distances(hashed(pixels), hashed((0.25 + 0.5 * pixels).astype(np.float32)))
    assert dimmed.max() <= 2
    colour = np.repeat(pixels, 3, axis=1)
    assert hash_distances(hashed(pixels), hashed(colour)).max() <= 2


def test_copies_are_found_and_other_patients_are_not(phantom: Phantom) -> None:
    pixels, patients = phantom
    copies = [
        *(through_jpeg(image, 75) for image in pixels[:20]),
        *(np.roll(image, 1, axis=2) for image in pixels[20:40]),
        *(np.roll(image, -1, axis=1) for image in pixels[40:60]),
    ]
    everything = np.concatenate([pixels, np.stack(copies)])
    owners = np.concatenate([patients, [f"copy-{place}" for place in range(60)]])
    moved = shifted_hashes(torch.from_numpy(everything))
    found = nearest_hashes(moved, moved[:, 0], np.arange(360))
    limit = threshold(found, owners, owners, finest=1)
    assert limit.value is not None
    close = found.distances[:, 0] <= limit.value
    assert np.array_equal(np.flatnonzero(close), [*range(60), *range(300, 360)])
    assert found.places[300:, 0].tolist() == list(range(60))
    without = nearest_hashes(moved[:300], moved[:300, 0], np.arange(300))
    clean = threshold(without, patients, patients, finest=1)
    assert clean.value == pytest.approx(limit.value, rel=0.25)
    assert not (without.distances <= (clean.value or 0)).any()


def test_chests_of_different_people_defeat_the_usual_hash_but_not_this_one(phantom: Phantom) -> None:
    # The 64-bit hash by cosine transform puts different phantoms 2 to 6 bits apart; here the nearest are tens apart.
    pixels, patients = phantom
    moved = shifted_hashes(torch.from_numpy(pixels))
    null = threshold(nearest_hashes(moved, moved[:, 0], np.arange(300)), patients, patients, finest=1).null
    assert null.min() > 40


@pytest.mark.parametrize("kind", ["hash", "embedding"])
@pytest.mark.parametrize("cells", [150, 4_000_000])
def test_search_in_blocks_equals_brute_force(kind: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_CELLS", cells)
    rng = np.random.default_rng(0)
    own = np.array([0, 3, 7, -1, 39])
    if kind == "hash":
        searched = rng.integers(0, 256, (40, 64), dtype=np.uint8)
        queries = np.repeat(searched[np.maximum(own, 0)][:, None], 5, axis=1)
        found = nearest_hashes(queries, searched, own, most=39)
        bits = [np.unpackbits(each, axis=1).astype(float) for each in (queries[:, 0], searched)]
        expected = cdist(*bits, "cityblock")
    else:
        searched = rng.normal(size=(40, 8)).astype(np.float32) + 3
        found = nearest_embeddings(searched[np.maximum(own, 0)], searched, own, most=39)
        centred = searched - searched.mean(axis=0)
        expected = cdist(centred[np.maximum(own, 0)], centred, "cosine")
    expected[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
    order = np.sort(expected, axis=1)[:, :39]
    assert found.distances == pytest.approx(order, abs=1e-5)
    for row, places in enumerate(found.places):
        assert own[row] not in places
        assert expected[row, places] == pytest.approx(order[row], abs=1e-5)


def test_alarms_among_different_patients_are_as_rare_as_promised() -> None:
    # Nearest of many points in 6 dimensions: no copy is among them, so every pair below the threshold is a false alarm.
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(60):
        points = rng.normal(size=(200, 7))
        found = nearest_embeddings(points, points, np.arange(200), most=3)
        limit = threshold(found, np.arange(200), np.arange(200), finest=1e-6)
        alarms.append((found.distances[:, 0] <= (limit.value or 0)).sum())
    assert np.mean(np.array(alarms) > 0) <= 0.15


def test_copies_of_two_in_five_do_not_hide_themselves() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 7))
    points[300:380] = points[:80] + 1e-5 * rng.normal(size=(80, 7))
    found = nearest_embeddings(points, points, np.arange(400), most=3)
    limit = threshold(found, np.arange(400), np.arange(400), finest=1e-6).value
    assert limit is not None
    assert set(np.flatnonzero(found.distances[:, 0] <= limit)) == {*range(80), *range(300, 380)}


def test_images_of_the_same_patient_are_no_evidence_of_chance() -> None:
    patients = np.repeat(np.arange(30), 2)
    places = (
        np.arange(60).reshape(30, 2)[:, ::-1].reshape(60, 1)
    )  # the nearest is always the other image of the patient
    same = threshold(Neighbours(places, np.ones((60, 1))), patients, patients, finest=1)
    assert same.value is None
    assert same.reason == "0 cases have a neighbour of another patient, 20 are needed"
    alike = threshold(Neighbours(np.roll(places, 2, axis=0), np.ones((60, 1))), patients, patients, finest=1)
    assert alike.reason == "different patients look so alike that copies cannot be told from them"


def test_few_images_and_odd_shapes() -> None:
    lonely = shifted_hashes(torch.zeros(1, 1, 20, 20))
    found = nearest_hashes(lonely, lonely[:, 0], np.array([0]))
    assert found.places.tolist() == [[-1]]
    assert threshold(found, np.array(["a"]), np.array(["a"]), finest=1).value is None
    nothing = nearest_hashes(lonely[:0], lonely[:0, 0], np.array([], int))
    assert threshold(nothing, np.array([]), np.array([]), finest=1).value is None
    with pytest.raises(DataError, match=r"found pixels of shape \(2, 4, 5, 5\)"):
        difference_hashes(torch.zeros(2, 4, 5, 5))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_the_order_of_images_changes_no_distance_and_no_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes, patients, order = (
        rng.integers(0, 256, (50, 64), dtype=np.uint8),
        rng.integers(0, 30, 50),
        rng.permutation(50),
    )
    moved = np.repeat(hashes[:, None], 5, axis=1)
    first = nearest_hashes(moved, hashes, np.arange(50))
    second = nearest_hashes(moved[order], hashes[order], np.arange(50))
    assert np.array_equal(first.distances[order], second.distances)
    limits = (
        threshold(first, patients, patients, finest=1),
        threshold(second, patients[order], patients[order], finest=1),
    )
    assert limits[0].value == pytest.approx(limits[1].value)
