"""Every page of every state, through Streamlit's own test driver."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboards.app import PATH_VARIABLE
from tests.dashboards.conftest import STATES, edit
from tests.factories import write_run
from xvision.store import Writer

APP = str(Path(__file__).parents[2] / "dashboards" / "app.py")
PAGES = (
    "overview", "analysis/performance", "analysis/attention", "analysis/attribution", "analysis/corruption", "analysis/fairness",
    "cases", "evidence",
)  # fmt: skip


def _draw(path: str, key: str) -> None:
    """Runs inside the driver: one page with its links."""
    from pathlib import Path

    import streamlit as st

    from dashboards import markup, navigation, runs
    from xvision.errors import XVisionError

    found = navigation.entries(runs.open_run(Path(path)))
    links = navigation.pages(found)
    st.navigation(list(links.values()), position="hidden")
    try:
        next(entry for entry in found if entry.key == key).draw(links)
    except XVisionError as problem:
        markup.show(markup.alert(problem))


def draw(path: Path, key: str, **query: str) -> AppTest:
    driver = AppTest.from_function(_draw, default_timeout=30, args=(str(path), key))
    for name, value in query.items():
        driver.query_params[name] = value
    return driver.run()


def frame(path: Path, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    driver = AppTest.from_file(APP, default_timeout=30)
    for name, value in query.items():
        driver.query_params[name] = value
    return driver.run()


def words(driver: AppTest) -> str:
    """Everything the page says through HTML."""
    return "\n".join(str(piece.value) for piece in driver.html)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_in_every_state(runs: dict[str, Path], state: str, page: str) -> None:
    driver = draw(runs[state], page)
    assert not driver.exception
    assert 'class="xv"' in words(driver)
    assert not [raw for raw in ("<script", "<a ", "<img", "\x00", "\ufeff") if raw in words(driver)]
    assert not driver.markdown


@pytest.mark.parametrize("state", STATES)
def test_the_frame_opens_in_every_state(runs: dict[str, Path], state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = frame(runs[state], monkeypatch)
    assert not driver.exception
    assert "xv-title" in words(driver)


def test_the_overview_shows_findings_worst_first_with_their_evidence(runs: dict[str, Path]) -> None:
    driver = draw(runs["complete"], "overview")
    said = words(driver)
    places = [said.index(f"lesion {verdict}</h3>") for verdict in ("fail", "warn", "insufficient evidence", "pass")]
    assert places == sorted(places)
    assert "Of 4 criteria: 1 failed, 1 warned, 1 could not be decided, 1 passed." in said
    assert "AUROC: 0.910 (0.860 to 0.950)" in said
    assert "auroc at least 0.85" in said
    assert "The criteria were fixed before the run." in said
    assert "The plan declares no decision" in said
    assert driver.code[0].value == "xvision audit plan.toml --only performance"
    assert len(driver.page_link) == 4 + 2 + 5, "findings, maps, analyses"


def test_facts_of_the_model_are_words(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    info = json.loads((path / "run.json").read_text("utf-8"))
    info["model"] = {"input": {"channels": 1, "height": 64}, "parameters": 128002}
    (path / "run.json").write_text(json.dumps(info), "utf-8")
    said = words(draw(path, "overview"))
    assert "<dd>channels 1, height 64</dd>" in said
    assert "<dd>128 002</dd>" in said


def test_pages_that_judge_the_decision_state_it_and_others_do_not(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    convention = "lesion when its probability is at least 0.5, by convention: the plan declares no operating point"
    assert f"Decision: {convention}." in words(draw(path, "analysis/performance"))
    chosen = {"declared": True, "statement": "lesion from 0.3 on, tuned <b>"}
    info = json.loads((path / "run.json").read_text("utf-8"))
    info["decision"] |= chosen
    (path / "run.json").write_text(json.dumps(info), "utf-8")
    for page in ("performance", "fairness"):
        assert "Decision: lesion from 0.3 on, tuned &lt;b&gt;." in words(draw(path, f"analysis/{page}"))
    assert "Decision:" not in words(draw(path, "analysis/attribution"))
    said = words(draw(path, "overview"))
    assert "lesion from 0.3 on, tuned &lt;b&gt;" in said
    assert "The plan declares no decision" not in said


def test_a_run_without_criteria_is_not_judged_and_never_a_pass(runs: dict[str, Path]) -> None:
    said = words(draw(runs["not judged"], "overview"))
    assert "Not judged" in said
    assert "nothing here is a pass" in said
    assert "Scorecard" not in said


def test_criteria_chosen_afterwards_are_called_exploratory(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    judged = json.loads((path / "findings.json").read_text("utf-8"))
    (path / "findings.json").write_text(json.dumps({**judged, "declared_before_run": False}), "utf-8")
    assert "this verdict is exploratory" in words(draw(path, "overview"))


def test_limits_of_the_criteria_are_drawn(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    judged = json.loads((path / "findings.json").read_text("utf-8"))
    judged["criteria"] = {"criterion": [{"id": "fail", "at_least": 0.85, "within": None}]}
    (path / "findings.json").write_text(json.dumps(judged), "utf-8")
    assert words(draw(path, "overview")).count('xv-limit" style="left:85.00%"') == 2


def test_an_analysis_shows_its_answer_charts_caveats_and_numbers(runs: dict[str, Path]) -> None:
    driver = draw(runs["complete"], "analysis/performance")
    said = words(driver)
    assert "AUROC 0.910 for lesion." in said
    assert "Few positives." in said
    assert "lesion fail</h3>" in said
    assert "It means this, not that." in said
    figures = [json.loads(chart.proto.spec) for chart in driver.get("plotly_chart")]
    assert [figure["data"][-1]["type"] for figure in figures] == ["scatter", "heatmap", "bar"]
    numbers = driver.dataframe[0].value
    assert list(numbers["Result"]) == [
        "0.910 (0.860 to 0.950)",
        "0.820 (0.700 to 0.900)",
        "120",
        "not estimable (no positive cases)",
    ]
    assert numbers["Value"].isna().sum() == 1


@pytest.mark.parametrize(
    ("analysis", "sentence"),
    [
        ("attention", "Skipped. </strong>The model has no attention: lesion"),
        ("corruption", "Failed. </strong>ValueError: boom"),
    ],
)
def test_skipped_and_failed_analyses_say_why(runs: dict[str, Path], analysis: str, sentence: str) -> None:
    assert sentence in words(draw(runs["complete"], f"analysis/{analysis}"))


def test_long_metric_tables_can_be_filtered(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    stored = json.loads((path / "results" / "performance.json").read_text("utf-8"))["metrics"]
    edit(path, "performance", metrics=stored * 3)
    driver = draw(path, "analysis/performance")
    assert len(driver.dataframe[0].value) == 12
    driver.selectbox(key="metric-performance").select("sensitivity").run()
    assert set(driver.dataframe[0].value["Metric"]) == {"Sensitivity"}
    driver.text_input(key="condition-performance").set_value("THRESHOLD").run()
    assert len(driver.dataframe[0].value) == 3


def test_pictures_have_alt_text_and_lead_to_their_case(runs: dict[str, Path]) -> None:
    driver = draw(runs["complete"], "analysis/attribution")
    alts = [image.alt for block in driver.get("image") for image in block.proto.imgs]
    assert alts[:6] == [
        "image of case case-1",
        "map of case case-1; not tested",
        "occlusion of lesion of case case-1; not decided",
        "rollout of case case-1; no better than a control: do not rely on this map",
        "saliency of case case-1; fails randomisation: do not rely on this map",
        "integrated gradients of case case-1; describes the model",
    ]
    assert [alt.replace("case-2", "case-1") for alt in alts[6:]] == alts[:6]
    assert all(image.url.endswith(".png") for block in driver.get("image") for image in block.proto.imgs)  # never lossy
    assert [link.proto.query_string for link in driver.page_link] == ["case=case-1", "case=case-2"]


def test_a_table_chart_keeps_numbers_as_numbers(runs: dict[str, Path]) -> None:
    rows = draw(runs["complete"], "analysis/attribution").dataframe[0].value
    assert list(rows["Mass"]) == [0.25, 0.5]
    assert list(rows["Method"]) == ["lesion", "saliency"]


def test_cases_are_filtered_by_outcome_and_group(runs: dict[str, Path]) -> None:
    driver = draw(runs["complete"], "cases")
    assert list(driver.dataframe[0].value["Case"]) == ["case-1", "case-2"]
    driver.segmented_control(key="case-outcome").set_value("Wrong").run()
    assert list(driver.dataframe[0].value["Case"]) == ["case-2"]
    assert driver.query_params["case"] == "case-2"
    driver.segmented_control(key="case-outcome").set_value("All").run()
    driver.selectbox(key="case-sex").select("F").run()
    assert list(driver.dataframe[0].value["Case"]) == ["case-1"]
    assert driver.query_params["case"] == "case-1"


def test_a_case_can_be_linked_to_and_an_unknown_one_is_said_to_be_unknown(runs: dict[str, Path]) -> None:
    said = words(draw(runs["complete"], "cases", case="case-2"))
    assert 'xv-heading">case-2</h2>' in said
    assert "wrong decision" in said
    unknown = draw(runs["complete"], "cases", case="../../etc/passwd")
    assert "This run has no case" in words(unknown)
    assert not unknown.get("image")


def test_the_same_image_of_two_analyses_is_shown_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    cases = json.loads((path / "results" / "attribution.json").read_text("utf-8"))["cases"]
    edit(path, "fairness", cases=cases)
    driver = draw(path, "cases", case="case-1")
    assert len(driver.get("image")) == 6


def test_evidence_verifies_the_files_and_names_what_changed(runs: dict[str, Path]) -> None:
    intact = draw(runs["complete"], "evidence")
    assert "Every file has the hash it was written with" in words(intact)
    intact.button(key="verify").click().run()
    assert "Verified just now: every file is as it was written." in words(intact)
    altered = draw(runs["tampered"], "evidence")
    assert "results/performance.json was changed." in words(altered)
    assert len(altered.get("download_button")) == 2


def test_reviews_are_shown_and_a_damaged_one_is_found(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    Writer(path).review({"author": "<b>A. Auditor</b>", "note": "Accepted for site B only."})
    driver = draw(path, "evidence")
    assert any("Accepted for site B only." in block.value for block in driver.code)
    assert "Every file has the hash it was written with" in words(driver)
    (path / "review.jsonl").write_bytes(b"\xff{\n")
    damaged = draw(path, "evidence")
    assert not damaged.exception
    assert "review.jsonl was changed." in words(damaged)


def test_an_altered_run_says_so_on_every_page(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was altered after it was written" in words(frame(runs["tampered"], monkeypatch))
    assert "was altered" not in words(frame(runs["complete"], monkeypatch))


def test_a_run_in_progress_says_so(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said = words(frame(runs["running"], monkeypatch))
    assert "still being written" in said
    assert "was altered" not in said


def test_damaged_tables_and_pictures_cost_one_sentence(runs: dict[str, Path]) -> None:
    assert "predictions.parquet: cannot be read" in words(draw(runs["tampered"], "cases"))
    assert "is not a PNG picture" in words(draw(runs["tampered"], "analysis/attribution"))


@pytest.mark.parametrize("name", ["results/performance.json", "findings.json", "run.json"])
def test_a_damaged_file_is_named_instead_of_a_traceback(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path / "run")
    (path / name).write_text("{", "utf-8")
    driver = frame(path, monkeypatch)
    assert not driver.exception
    assert f"{name}: cannot be read" in words(driver)


def test_a_picture_path_that_leads_out_of_the_run_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    cases = json.loads((path / "results" / "attribution.json").read_text("utf-8"))["cases"]
    cases[0]["pictures"]["image"] = "../../secret.png"
    edit(path, "attribution", cases=cases)
    assert "leads out of the run folder" in words(draw(path, "analysis/attribution"))
    assert "leads out of the run folder" in words(draw(path, "cases", case="case-1"))


def test_a_folder_of_runs_offers_a_choice(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("complete", "running"):
        shutil.copytree(runs[name], tmp_path / name)
    library = frame(tmp_path, monkeypatch)
    assert library.selectbox(key="run").options == ["complete", "running"]
    assert words(library).count("factory lesion") == 2
    library.button(key="open-complete").click().run()
    assert "Scorecard" in words(library)


def test_a_run_outside_the_folder_cannot_be_asked_for(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(runs["complete"], tmp_path / "inside" / name)
    driver = frame(tmp_path / "inside", monkeypatch, run="../../elsewhere")
    assert not driver.exception
    assert "Choose one." in words(driver)


def test_an_empty_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = frame(tmp_path, monkeypatch)
    assert not driver.exception
    assert "no run in this folder" in words(driver)
