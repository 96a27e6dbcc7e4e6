"""No map without its verdict: badges, stamps, the viewer of a case, and the word on the first page."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from dashboards.gallery import picture
from dashboards.stack import stacked
from tests.dashboards.conftest import edit
from tests.dashboards.test_pages import draw, words
from tests.factories import HOSTILE, methods, write_run
from xvision import images
from xvision.errors import RunError
from xvision.store import Run, Writer

WORDS = ("describes the model", "fails randomisation", "no better than a control", "not decided", "not tested")


def spec(driver: AppTest) -> dict[str, Any]:
    """The viewer's figure, as it is sent to the browser."""
    (chart,) = driver.get("plotly_chart")
    return json.loads(chart.proto.spec)


def panels(driver: AppTest) -> list[np.ndarray]:
    """The pictures of the viewer."""
    sources = [trace["source"] for trace in spec(driver)["data"] if trace["type"] == "image"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in sources]


def choose(driver: AppTest, *names: str) -> AppTest:
    """Other maps in the viewer."""
    return driver.multiselect[0].set_value(list(names)).run()


@pytest.fixture
def viewed(runs: dict[str, Path]) -> AppTest:
    return draw(runs["complete"], "cases", case="case-1")


@pytest.mark.parametrize("page", ["cases", "analysis/attribution", "overview"])
def test_every_page_with_maps_says_of_each_method_whether_it_may_be_believed(runs: dict[str, Path], page: str) -> None:
    said = words(draw(runs["complete"], page))
    for word in WORDS:
        assert f"</span>{word}</span>" in said
    assert "Similarity with random weights is 0.970 for lesion. Do not rely on this map." in said
    assert "This run did not test whether these maps describe the model." in said


def test_the_sentence_behind_a_verdict_shows_under_the_pointer(runs: dict[str, Path]) -> None:
    assert 'title="The interval holds both."' in words(draw(runs["complete"], "cases", case="case-1"))
    hostile = words(draw(runs["hostile"], "cases", case="case-1"))
    assert (
        'title="Similarity with random weights is 0.970 for #panic() $x$ [a](http://evil.example/p.png) &lt;script'
        in hostile
    )


def test_maps_that_nothing_tested_say_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", tested=False)
    for page in ("cases", "analysis/attribution", "overview"):
        said = words(draw(path, page))
        assert "</span>not tested</span>" in said
        assert "rely on" not in said
        assert not [word for word in WORDS[:-1] if f"</span>{word}</span>" in said]


def test_a_run_without_maps_does_not_ask_whether_they_may_be_believed(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", tested=False)
    edit(path, "attribution", cases=[])
    assert "believed" not in words(draw(path, "overview"))


def _shown(path: str, case: str, name: str) -> None:
    from pathlib import Path

    from dashboards.gallery import picture
    from xvision.store import Run

    run = Run(Path(path))
    picture(run, run.cases[case]["attribution"], name)


def test_a_map_that_must_not_be_relied_on_is_stamped_in_its_pixels(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sent = Run(runs["complete"]), []
    monkeypatch.setattr("streamlit.image", lambda content, **_: sent.append(content))
    case = run.cases["case-1"]["attribution"]
    for name in ("saliency", "integrated gradients"):
        picture(run, case, name)
    stamped, kept = sent
    plain = images.read_png(run.picture(case, "saliency"), 4096)
    assert np.array_equal(images.read_png(stamped, 4096), images.stamped(plain, "do not rely on this map"))
    assert kept == run.picture(case, "integrated gradients")


def test_a_picture_that_cannot_be_stamped_is_not_shown(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    run = Run(path)
    file = run.file(run.cases["case-1"]["attribution"].pictures["saliency"])
    file.write_bytes(file.read_bytes()[:80])
    driver = AppTest.from_function(_shown, default_timeout=30, args=(str(path), "case-1", "saliency")).run()
    assert not driver.exception
    assert not driver.get("image")
    assert "is not a PNG picture" in words(driver)


def test_the_viewer_begins_with_the_best_map(viewed: AppTest) -> None:
    assert viewed.multiselect[0].value == ["integrated gradients"]
    assert len(panels(viewed)) == 2
    titles = [note["text"] for note in spec(viewed)["layout"]["annotations"]]
    assert titles[0].startswith("<b>image</b>")
    assert titles[1] == "<b>integrated gradients</b><br>✓ describes the model"
    assert "do not rely" not in json.dumps(spec(viewed))


def test_maps_that_fail_are_stamped_in_the_viewer_and_untested_ones_say_so(viewed: AppTest) -> None:
    driver = choose(viewed, "saliency", "rollout", "map")
    assert not driver.exception
    notes = [note["text"] for note in spec(driver)["layout"]["annotations"]]
    assert len([note for note in notes if "do not rely on this map" in note]) == 2
    assert "<b>map</b><br>– not tested" in notes
    (chart,) = driver.get("plotly_chart")
    assert "saliency: fails randomisation: do not rely on this map; rollout:" in chart.proto.alt
    assert "map: not tested" in chart.proto.alt


def test_no_map_at_all_leaves_the_image(viewed: AppTest) -> None:
    driver = choose(viewed)
    assert not driver.exception
    assert len(panels(driver)) == 1


def test_opacity_and_threshold_change_the_maps_only(viewed: AppTest) -> None:
    image, opaque = panels(viewed)
    driver = viewed.slider(key="viewer-opacity").set_value(0).run()
    assert np.array_equal(panels(driver)[1], image), "a map without opacity is the image"
    driver = driver.slider(key="viewer-opacity").set_value(75).run()
    driver = driver.slider(key="viewer-share").set_value(1).run()
    again, few = panels(driver)
    assert np.array_equal(again, image)
    assert (few != image).any(axis=2).sum() == (opaque != image).any(axis=2).sum() == 16 + 6, "equals stay together"
    driver = choose(driver, "rollout")
    assert (panels(driver)[1] != image).any(axis=2).sum() <= 3, "1 % of 256 pixels"


def test_window_and_level_change_the_grey_values_under_the_maps(viewed: AppTest) -> None:
    before = panels(viewed)[0]
    driver = viewed.slider(key="viewer-level").set_value(0.2).run()
    driver = driver.slider(key="viewer-window").set_value(0.4).run()
    assert not driver.exception
    expected = np.clip(before[..., 0] / 255 / 0.4, 0, 1) * 255
    assert np.abs(panels(driver)[0][..., 0] - expected).max() <= 2


def test_outlines_can_be_turned_off(viewed: AppTest) -> None:
    lines = [trace for trace in spec(viewed)["data"] if trace["type"] == "scatter"]
    assert len(lines) == 2 * (1 + 1 + 2), "with a halo: the mask on both pictures, evidence for and against on the map"
    driver = viewed.toggle(key="viewer-evidence").set_value(False).run()
    assert "What speaks against" not in words(driver)
    driver = driver.toggle(key="viewer-mask").set_value(False).run()
    assert [trace["type"] for trace in spec(driver)["data"]] == ["image", "image"]


def test_counter_evidence_is_listed_with_its_place_and_share(viewed: AppTest) -> None:
    said = words(viewed)
    row = "<td>integrated gradients</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>"
    against = row.format("−1", "speaks against it", "2 to 4", "3 to 4")
    supporting = row.format("+1", "speaks for it", "9 to 12", "10 to 13")
    assert said.index(against) < said.index(supporting)
    assert said.count("100.0 %") == 2
    unsigned = words(choose(viewed, "saliency"))
    assert "matters, for or against" in unsigned
    assert "speaks against it" not in unsigned


def test_image_and_mask_come_from_numbers_where_they_are_kept_else_from_the_picture(runs: dict[str, Path]) -> None:
    run = Run(runs["complete"])
    kept, drawn = (stacked(run, run.cases[name]) for name in ("case-1", "case-2"))
    assert kept is not None
    assert drawn is not None
    assert kept.pixels.shape == (1, 16, 16)
    assert drawn.pixels.shape == (3, 16, 16), "no numbers are kept of case-2"
    stored = images.read_png(run.picture(run.cases["case-1"]["attribution"], "image"), 4096)
    assert np.array_equal(images.photograph(kept.pixels), images.reduced(stored, 16, 16))
    assert kept.mask is not None
    assert kept.mask.sum() == 6 * 7
    assert set(kept.maps) == set(methods("lesion"))


def rewritten(path: Path, analysis: str, changes: dict[str, np.ndarray]) -> Run:
    """The run with an analysis that keeps the maps of the first case, some of them changed."""
    run = Run(path)
    case = run.cases["case-1"]["attribution"]
    arrays = {**run.maps(case), **changes}
    np.savez_compressed(
        path / "cases" / "other.npz", **{name: values.astype(np.float32) for name, values in arrays.items()}
    )
    stored = json.loads((path / "results" / "attribution.json").read_text("utf-8"))["cases"][0]
    edit(path, analysis, cases=[{**stored, "maps": "cases/other.npz"}])
    return Run(path)


def test_another_map_of_the_same_method_carries_the_analysis_it_comes_from(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    run = rewritten(path, "fairness", {"rollout": np.ones((16, 16))})
    found = stacked(run, run.cases["case-1"])
    assert found is not None
    assert list(found.maps) == [*methods("lesion"), "rollout (Fairness)"]
    assert found.maps["rollout (Fairness)"].verdict.word == "no better than a control"
    assert not draw(path, "cases", case="case-1").exception


def test_a_map_of_another_size_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    run = rewritten(
        path, "attribution", {"rollout": np.ones((8, 8)), "mask": np.ones((3, 3)), "pixels": np.ones((3, 3))}
    )
    found = stacked(run, run.cases["case-1"])
    assert found is not None
    assert "rollout" not in found.maps
    assert found.mask is None
    assert found.pixels.shape == (3, 16, 16)
    assert "rollout has another size than the other maps" in words(draw(path, "cases", case="case-1"))


def test_a_large_map_is_thinned_out_and_said_to_be(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    large = np.zeros((1500, 1100))
    run = rewritten(path, "attribution", dict.fromkeys([*methods("lesion"), "pixels", "mask"], large))
    found = stacked(run, run.cases["case-1"])
    assert found is not None
    assert found.pixels.shape == (1, 750, 550)
    assert found.maps["map"].values.shape == (750, 550)
    assert found.remarks == ("Of 1500 × 1100 pixels, one in 2 of every row and column is shown.",)


def test_an_all_zero_map_says_that_it_says_nothing(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    rewritten(path, "attribution", {"integrated gradients": np.zeros((16, 16))})
    assert "says nothing: the map is zero" in words(draw(path, "cases", case="case-1"))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive"])
def test_damaged_maps_cost_the_viewer_and_not_the_page(tmp_path: Path, damage: bytes) -> None:
    path = write_run(tmp_path / "run")
    (path / str(Run(path).cases["case-1"]["attribution"].maps)).write_bytes(damage)
    driver = draw(path, "cases", case="case-1")
    assert not driver.exception
    assert "the maps of case &#x27;case-1&#x27; cannot be read" in words(driver)
    assert not driver.get("plotly_chart")
    assert len(driver.get("image")) == 6


def test_an_image_that_is_no_picture_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    run = Run(path)
    case = run.cases["case-2"]["attribution"]
    run.file(case.pictures["image"]).write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"png: not a readable PNG. Run `xvision verify"):
        stacked(run, run.cases["case-2"])


def test_the_viewer_survives_hostile_names(runs: dict[str, Path]) -> None:
    driver = draw(runs["hostile"], "cases", case="case-1")
    hostile = next(name for name in methods(HOSTILE) if name.startswith("occlusion"))
    driver = choose(driver, hostile, "saliency")
    assert not driver.exception
    assert "<script" not in json.dumps(spec(driver))
    assert "<script" not in words(driver)


def test_a_verdict_given_later_reaches_every_map(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", tested=False)
    assert "rely on" not in words(draw(path, "cases", case="case-1"))
    verdict = {"word": "fails randomisation", "sentence": "Told by another analysis."}
    edit(path, "fairness", map_verdicts={"map": verdict})
    Writer(path).checksums()
    driver = draw(path, "cases", case="case-1")
    assert "Told by another analysis. Do not rely on this map." in words(driver)
    alts = [image.alt for block in driver.get("image") for image in block.proto.imgs]
    assert "map of case case-1; fails randomisation: do not rely on this map" in alts
