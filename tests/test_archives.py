"""The maps of a case, read from a run folder of somebody else: every defect is one sentence, and none takes memory."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tests.factories import write_run
from xvision.errors import RunError
from xvision.result import StoredCase
from xvision.store import Run

CASE = StoredCase("case-9", {}, {}, "cases/attribution/maps.npz")
VALUES = np.arange(6.0).reshape(2, 3) - 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(write_run(tmp_path_factory.mktemp("archives") / "run"))


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def zipped(members: list[tuple[str, bytes]], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def stored(run: Run, content: bytes) -> Run:
    (run.path / str(CASE.maps)).write_bytes(content)
    return run


def refusal(run: Run, content: bytes) -> str:
    with pytest.raises(RunError) as caught:
        stored(run, content).maps(CASE)
    said = str(caught.value)
    assert said.startswith(f"{run.path / str(CASE.maps)}: the maps of case 'case-9' cannot be read (")
    assert said.endswith(f"). Run `xvision verify {run.path}`.")
    return said


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_maps_read_back_as_numbers_whatever_they_were_stored_as(run: Run, packing: int) -> None:
    members = [
        ("map/a.npy", npy(VALUES)), ("b.npy", npy(VALUES.astype(np.float32))), ("mask.npy", npy(VALUES > 0)),
        ("turned.npy", npy(np.asfortranarray(VALUES))),
    ]  # fmt: skip
    found = stored(run, zipped(members, packing)).maps(CASE)
    assert list(found) == ["map/a", "b", "mask", "turned"]
    assert all(values.dtype == np.float64 for values in found.values())
    assert all(np.array_equal(found[name], VALUES) for name in ("map/a", "b", "turned"))
    assert np.array_equal(found["mask"], [[0, 0, 0], [1, 1, 1]])


def test_a_case_without_maps_has_none(run: Run) -> None:
    assert run.maps(StoredCase("x", {}, {})) == {}


MANY = [(f"{place}.npy", npy(VALUES)) for place in range(65)]
WIDE = (4097, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it does not end as an archive of maps does"),
        (b"x" * 100, "it does not end as an archive of maps does"),
        (zipped([("a.npy", npy(VALUES))])[:-2] + b"\x01\x00", "it does not end as an archive of maps does"),
        (zipped(MANY), "it holds 65 arrays, more than 64"),
        (zipped([("a.txt", npy(VALUES))]), "'a.txt' is no array, encrypted, or packed in an unusual way"),
        (zipped([("a.npy", npy(VALUES))], zipfile.ZIP_BZIP2), "'a.npy' is no array, encrypted, or packed in an unusual"),
        (zipped([("a.npy", b"not an array")]), "'a.npy' has no header of an array"),
        (zipped([("a.npy", npy(np.zeros(WIDE)))]), "'a.npy' is float64 of shape (4097, 1), but a map is"),
        (zipped([("a.npy", npy(np.zeros((2, 3, 4))))]), "'a.npy' is float64 of shape (2, 3, 4)"),
        (zipped([("a.npy", npy(np.zeros((0, 3))))]), "'a.npy' is float64 of shape (0, 3)"),
        (zipped([("a.npy", npy(VALUES.astype(np.int64)))]), "'a.npy' is int64 of shape (2, 3)"),
        (zipped([("a.npy", npy(VALUES.astype(">f8")))]), "'a.npy' is >f8 of shape (2, 3)"),
        (zipped([("a.npy", npy(VALUES.astype(object)))]), "'a.npy' is object of shape (2, 3)"),
        (zipped([("a.npy", header((4096, 4096)))]), "'a.npy' has 128 bytes, but its header promises 67108992"),
        (zipped([("a.npy", npy(VALUES) + b"x")]), "'a.npy' has 177 bytes, but its header promises 176"),
        (zipped([("a.npy", header((-1, 3)))]), "'a.npy' has no header of an array (the shape (-1, 3))"),
        (zipped([("a.npy", npy(VALUES).replace(b"NUMPY\x01", b"NUMPY\x09", 1))]), "array format 9.0"),
        (zipped([("a.npy", npy(np.array([[1.0, np.nan]])))]), "'a.npy' holds a value that is not finite"),
        (zipped([("a.npy", npy(np.array([[1.0, np.inf]])))]), "'a.npy' holds a value that is not finite"),
    ],
)  # fmt: skip
def test_every_defect_is_named(run: Run, content: bytes, said: str) -> None:
    assert said in refusal(run, content)


def test_an_encrypted_map_is_refused(run: Run) -> None:
    content = bytearray(zipped([("a.npy", npy(VALUES))]))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "'a.npy' is no array, encrypted, or packed" in refusal(run, bytes(content))


def test_a_repeated_name_is_refused(run: Run) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = zipped([("a.npy", npy(VALUES)), ("a.npy", npy(VALUES + 1))])
    assert "it holds 'a' more than once" in refusal(run, content)


def test_a_wrong_checksum_is_found(run: Run) -> None:
    content = bytearray(zipped([("a.npy", npy(VALUES))], zipfile.ZIP_STORED))
    content[content.index(np.float64(-1).tobytes())] ^= 1
    assert "BadZipFile" in refusal(run, bytes(content))


def test_a_list_of_arrays_that_is_too_long_is_not_read(run: Run) -> None:
    content = bytearray(zipped([("a.npy", npy(VALUES))]))
    struct.pack_into("<I", content, len(content) - 10, 2**31)
    assert "its list of arrays has 2147483648 bytes, more than 65536" in refusal(run, bytes(content))
    elsewhere = zipped([("a.npy", npy(VALUES))])
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 1)
    assert "does not end as an archive of maps does" in refusal(run, elsewhere[:-22] + locator + elsewhere[-22:])


def test_what_is_no_file_is_not_opened(run: Run) -> None:
    path = run.path / str(CASE.maps)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    try:
        with pytest.raises(RunError, match="it is no file of at most 536870912 bytes"):
            run.maps(CASE)
    finally:
        path.unlink()
    with pytest.raises(RunError, match="FileNotFoundError"):
        run.maps(CASE)
    with pytest.raises(RunError, match="leads out of the run folder"):
        run.maps(StoredCase("x", {}, {}, "../../secret.npz"))


def test_a_bomb_takes_no_memory(run: Run) -> None:
    """Five maps of 4096 × 4096 pack into 90 KB and would fill 640 MB; the reader is given 100 MB beyond what it has."""
    zeros = npy(np.zeros((4096, 4096), np.bool_))
    content = zipped([(f"{place}.npy", zeros) for place in range(5)])
    assert len(content) < 200_000
    stored(run, content)
    script = (
        "import resource, sys; from pathlib import Path; from xvision.archives import read_maps\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)\n"
        "read_maps(Path(sys.argv[1]))"
    )
    path = str(run.path / str(CASE.maps))
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert "ValueError: its arrays hold more than 67108864 pixels" in done.stderr
    assert "its arrays hold more than 67108864 pixels" in refusal(run, content)


def test_random_damage_is_a_run_error_or_a_map(run: Run) -> None:
    content = zipped([("a.npy", npy(VALUES)), ("mask.npy", npy(VALUES > 0))])
    rng = np.random.default_rng(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for trial in range(300):
        hurt = bytearray(content if trial % 2 else content[: rng.integers(1, len(content))])
        for place in rng.integers(0, len(hurt), 6):
            hurt[place] = rng.integers(0, 256)
        stored(run, bytes(hurt))
        try:
            found = run.maps(CASE)
        except RunError:
            continue
        assert all(values.shape == (2, 3) for values in found.values())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
