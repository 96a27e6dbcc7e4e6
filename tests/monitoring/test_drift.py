"""From an audited run to a baseline and to new images, as a hospital would."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xvision.cli import main
from xvision.data.synthetic import PhantomSettings, write_phantoms
from xvision.models.checkpoint import save_model
from xvision.models.llm.classifier import preset
from xvision.monitoring.channels import Axes
from xvision.store import open_run


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of 300 phantoms, about 60 of them in its test split."""
    return audited(tmp_path_factory.mktemp("hospital"), checkpoint, lambda row: row)


@pytest.fixture(scope="module")
def baseline(run: Path) -> Path:
    assert main(["baseline", str(run)]) == 0
    return Path(f"{run}.baseline")


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the same kind, in a folder without labels."""
    folder = tmp_path_factory.mktemp("later")
    write_phantoms(PhantomSettings(n=80, seed=12), folder / "whole")
    return unlabelled(sorted((folder / "whole").rglob("images/*.png")), folder / "new")


def unlabelled(images: list[Path], folder: Path, change: Callable[[np.ndarray], np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True)
    for image in images:
        pixels = np.asarray(Image.open(image))
        Image.fromarray(pixels if change is None else change(pixels)).save(folder / image.name)
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image"], *([image.name] for image in images)])
    return folder


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_images_of_the_same_kind_are_stable(baseline: Path, later: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, "drift", baseline, later)
    assert code == 0
    assert out.startswith("Stable")
    assert "fails, without a sign" in out  # the note of what is expected without labels


def test_inverted_images_are_found_and_the_channel_is_named(
    baseline: Path, later: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inverted = unlabelled(sorted(later.glob("*.png")), tmp_path / "inverted", lambda pixels: 255 - pixels)
    code, out, _ = asked(capsys, "drift", baseline, inverted, "--json", "--prometheus", tmp_path / "xvision.prom")
    assert code == 1
    found = json.loads(out)
    assert found["verdict"] == "drift"
    assert "image: Mean grey value" in [row["name"] for row in found["channels"] if row["alarm"]]
    assert sum(now for _, now in found["shares"].values()) == pytest.approx(1.0)
    names = metrics_of((tmp_path / "xvision.prom").read_text())
    assert names["xvision_drift_verdict"] == {
        'verdict="stable"': 0.0,
        'verdict="drift"': 1.0,
        'verdict="not enough data"': 0.0,
    }
    assert names["xvision_drift_images"] == {"": 80.0}
    assert len(names["xvision_drift_distance"]) == len(found["channels"])


def metrics_of(text: str) -> dict[str, dict[str, float]]:
    """Prometheus's text format, read strictly."""
    found: dict[str, dict[str, float]] = {}
    declared: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            declared.add(line.split()[2])
        if line.startswith("#"):
            continue
        match = re.fullmatch(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)', line)
        assert match, line
        assert match[1] in declared
        found.setdefault(match[1], {})[match[2] or ""] = float(match[3])
    assert text.endswith("\n")
    return found


def test_the_order_of_the_files_changes_nothing(
    baseline: Path, later: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = unlabelled(sorted(later.glob("*.png"), reverse=True), tmp_path / "turned")
    first, second = (json.loads(asked(capsys, "drift", baseline, folder, "--json")[1]) for folder in (later, turned))
    assert [row["p"] for row in first["channels"]] == [row["p"] for row in second["channels"]]


def test_few_images_and_broken_ones_are_said(
    baseline: Path, later: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = unlabelled(sorted(later.glob("*.png"))[:12], tmp_path / "few")
    code, out, _ = asked(capsys, "drift", baseline, few)
    assert code == 3
    assert "12 images, 30 are needed" in out
    some = unlabelled(sorted(later.glob("*.png")), tmp_path / "some")
    victim = sorted(some.glob("*.png"))[3]
    victim.write_bytes(victim.read_bytes()[:60])
    code, out, _ = asked(capsys, "drift", baseline, some, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["images"] == 79
    assert victim.name in found["unreadable"][0]


def test_a_baseline_holds_no_names_and_is_read_as_written(baseline: Path, run: Path) -> None:
    told = (baseline / "baseline.json").read_text()
    assert "phantom-" not in told
    with np.load(baseline / "reference.npz", allow_pickle=False) as arrays:
        assert arrays["patients"].dtype.kind == "i"
        assert len(arrays["values"]) == json.loads(told)["images"]
    assert {each["name"] for each in json.loads(told)["promised"]} >= {"accuracy", "auroc"}


def test_what_was_changed_or_half_written_is_refused(
    baseline: Path, later: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, harm in (
        ("reference.npz", lambda path: path.write_bytes(path.read_bytes()[:-5])),
        ("baseline.json", lambda path: path.write_text(path.read_text().replace('"least": 0.1', '"least": 0.9'))),
        ("checksums.txt", lambda path: path.unlink()),
    ):
        copy = shutil.copytree(baseline, tmp_path / name)
        harm(copy / name)
        code, _, error = asked(capsys, "drift", copy, later)
        assert code == 2
        assert error.strip().count("\n") == 0
        assert "baseline" in error


def test_another_model_changed_data_and_an_old_folder_are_refused(
    run: Path, baseline: Path, later: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    save_model(preset("tiny-qwen3", seed=1), other)
    code, _, error = asked(capsys, "drift", baseline, later, "--model", other)
    assert code == 2
    assert "is not the model of this baseline" in error
    code, _, error = asked(capsys, "baseline", run)
    assert code == 2
    assert "exists already" in error
    code, _, error = asked(capsys, "baseline", run, "--out", tmp_path / "b", "--alarms", "2")
    assert code == 2
    assert "found alarms 2.0" in error
    assert not (tmp_path / "b").exists()
    code, _, error = asked(capsys, "drift", tmp_path, later)
    assert code == 2
    assert "no complete baseline" in error
    moved = shutil.copytree(run.parent / "data", tmp_path / "data")
    told = json.loads((run / "run.json").read_text())
    told["plan"]["data"]["path"] = str(moved)
    image = next(iter(sorted(moved.rglob("images/*.png"))))
    image.write_bytes(next(iter(sorted(moved.rglob("images/*.png"), reverse=True))).read_bytes())
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "run.json").write_text(json.dumps(told))
    code, _, error = asked(capsys, "baseline", copy)
    assert code == 2
    assert "the data it names has changed" in error


def test_without_embeddings_nothing_of_them_is_kept(run: Path, tmp_path: Path, later: Path) -> None:
    assert main(["baseline", str(run), "--out", str(tmp_path / "b"), "--no-embeddings"]) == 0
    with np.load(tmp_path / "b" / "reference.npz", allow_pickle=False) as arrays:
        assert "directions" not in arrays
    assert "embedding" not in (tmp_path / "b" / "baseline.json").read_text()
    assert main(["drift", str(tmp_path / "b"), str(later)]) == 0


def audited(folder: Path, checkpoint: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """An audit of 300 phantoms whose manifest is changed row by row."""
    write_phantoms(PhantomSettings(n=300, seed=11), folder / "data")
    with (folder / "data" / "manifest.csv").open(newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with (folder / "data" / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = [
        "audit",
        "--model",
        checkpoint,
        "--data",
        folder / "data",
        "--only",
        "performance",
        "--out",
        folder / "run",
    ]
    assert main([str(word) for word in words]) == 0
    return folder / "run"


def test_few_patients_are_too_few_for_a_baseline(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = audited(tmp_path, checkpoint, lambda row: row | {"patient": f"{row['split']} {row['label']}"})
    code, _, error = asked(capsys, "baseline", run)
    assert code == 2
    assert "images of 2 patients are too few" in error


def test_a_figure_that_the_audit_could_not_give_is_not_promised(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    told = json.loads((copy / "results" / "performance.json").read_text())
    for each in told["metrics"]:
        if each["name"] == "auroc":
            each |= {"value": None, "low": None, "high": None, "reason": "too few"}
    (copy / "results" / "performance.json").write_text(json.dumps(told))
    code, _, error = asked(capsys, "baseline", copy)
    assert code == 0, error
    kept = json.loads((tmp_path / "run.baseline" / "baseline.json").read_text())
    assert {each["name"] for each in kept["promised"]} >= {"accuracy"}
    assert "auroc" not in {each["name"] for each in kept["promised"]}


def test_settings_that_can_never_alarm_and_a_bad_seed_are_refused(
    run: Path, baseline: Path, later: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = asked(capsys, "baseline", run, "--out", tmp_path / "b", "--alarms", "0.0005")
    assert code == 2
    assert "give a chance from 0.001" in error
    code, _, error = asked(capsys, "drift", baseline, later, "--seed", "-1")
    assert code == 2
    assert "seed -1" in error


def test_a_model_that_reads_texts_gets_them_as_in_the_audit(
    later: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("dry cough", "high fever today")
    model = tmp_path / "reader"
    save_model(preset("tiny-qwen3", seed=0, text_tokens=4, texts=list(words)), model)
    run = audited(tmp_path, model, lambda row: row | {"text": words[int(row["patient"][1:]) % 2]})
    assert main(["baseline", str(run)]) == 0
    with np.load(f"{run}.baseline/reference.npz", allow_pickle=False) as arrays:
        logits = arrays["logits"]
    stored = open_run(run).predictions
    wanted = stored[[f"logit:{name}" for name in ("normal", "lesion")]].to_numpy()
    assert logits == pytest.approx(wanted, abs=1e-4)
    code, _, error = asked(capsys, "drift", f"{run}.baseline", later)
    assert code == 2
    assert "column text" in error
    with (later / "manifest.csv").open(newline="") as file:
        rows = [[row["image"], words[place % 2]] for place, row in enumerate(csv.DictReader(file))]
    told = unlabelled(sorted(later.glob("*.png")), tmp_path / "told")
    with (told / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "text"], *rows])
    assert asked(capsys, "drift", f"{run}.baseline", told)[0] == 0


@pytest.mark.parametrize(("power", "least"), [(0.0, 0), (1.0, 6)])
def test_axes_of_the_embeddings_are_no_noise_of_the_reference(power: float, least: int) -> None:
    rng = np.random.default_rng(0)
    spread = (1 + np.arange(256)) ** -power
    embeddings, fresh = rng.normal(size=(2, 200, 256)) * spread
    axes = Axes.of(embeddings, np.arange(200))
    assert least <= len(axes.directions) <= (8 if least else 0)
    ratio = axes.places(fresh).std(axis=0) / axes.places(embeddings).std(axis=0)
    assert (ratio > 0.75).all()


def test_one_finding_of_several_is_watched_also_where_the_labels_are_of_it_alone(later: Path, tmp_path: Path) -> None:
    model = tmp_path / "findings"
    save_model(preset("tiny-qwen3", seed=0, classes=("lesion", "scar"), multilabel=True), model)
    write_phantoms(PhantomSettings(n=300, seed=11), tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",normal,", ",no lesion,"))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'only = ["performance"]\n[data]\npath = "data"\n[model]\npath = "findings"\n'
        '[decision]\npositive = "lesion"\nthreshold = 0.5\n'
    )
    assert main(["audit", str(plan), "--out", str(tmp_path / "run")]) == 0
    assert main(["baseline", str(tmp_path / "run")]) == 0
    assert main(["drift", f"{tmp_path / 'run'}.baseline", str(later)]) == 0
