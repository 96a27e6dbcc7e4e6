import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from reports.__main__ import main
from reports.build import build_report, write_report
from reports.fonts import clean
from tests.factories import HOSTILE, run_info, write_run
from tests.reports.conftest import report_of, squashed
from xvision import text
from xvision.errors import RunError
from xvision.store import Run, Writer

BLOCKED = """
import sys
for name in ("torch", "transformers", "streamlit", "plotly", "dashboards", "captum", "foolbox", "fairlearn"):
    sys.modules[name] = None
import reports.build
assert not {"matplotlib", "typst"} & sys.modules.keys()
"""


def test_verdict_findings_and_every_analysis_are_in_the_text(plain):
    assert "Fail At least one criterion is broken" in plain.text
    for finding in plain.run.findings:
        assert plain.text.count(finding.title) >= 3, "verdict page, scorecard, details"
        assert finding.rule in plain.text
    for record in plain.run.records:
        assert record.title in plain.text
        assert record.summary in plain.text
        assert record.reason in plain.text
    assert "Attention skipped The model has no attention: lesion" in plain.text
    assert "Corruption failed ValueError: boom" in plain.text
    assert "compliant" not in plain.text.lower()


def test_the_numbers_are_those_of_the_run(plain):
    rows = plain.run.metrics.to_dict("records")
    for row in rows:
        if isinstance(row["reason"], str):
            assert row["reason"] in plain.text
        else:
            interval = text.interval(row["low"], row["high"]) if row["unit"] != "count" else ""
            assert f"{text.number(row['value'], row['unit'])} {interval}".strip() in plain.text
    assert "Sensitivity threshold 0.5 0.820 0.700 to 0.900 30 Wilson" in plain.text
    assert "AUROC of lesion is 0.910. n = 60, DeLong." in plain.text


def test_the_attachment_holds_every_number_exactly(plain):
    ((name, (content,)),) = plain.pdf.attachments.items()
    attached = json.loads(content)
    assert name == "metrics.json"
    assert [row["value"] for row in attached["metrics"]] == [
        metric.value for record in plain.run.records for metric in record.metrics
    ]
    assert attached["fingerprints"]["model"] == "a" * 64


def test_cover_names_model_data_rule_and_signatures(plain):
    cover = plain.pages[0]
    for words in (
        "factory lesion",
        "a" * 64,
        "b" * 64,
        "120 images, 60 patients",
        "at least 0.5",
        "Prepared by",
        "Reviewed by",
    ):
        assert words in cover
    assert "2026-01-02" in cover
    assert "not finished" not in cover


def test_pages_are_numbered_and_carry_run_and_fingerprints(plain):
    last = len(plain.pages)
    for number, page in enumerate(plain.pages[1:], start=2):
        assert f"{number} of {last}" in page
        assert "factory lesion model aaaaaaaa · plan" in page


def test_the_file_is_tagged_titled_dated_and_every_figure_has_words(plain):
    pdf = plain.pdf
    root = pdf.trailer["/Root"]
    assert pdf.metadata.title == "Audit report: factory lesion"
    assert pdf.metadata.creation_date.isoformat().startswith("2026-01-02")
    assert root["/Lang"].lower().startswith("en")
    assert root["/MarkInfo"]["/Marked"]
    marks = root["/Metadata"].get_object().get_data().decode()
    assert "<pdfaid:part>3</pdfaid:part>" in marks
    assert "<pdfuaid:part>1</pdfuaid:part>" in marks
    figures = [item for item in elements(root["/StructTreeRoot"]) if item.get("/S") == "/Figure"]
    assert len(figures) >= 16, "four charts and twelve pictures"
    assert all(item.get("/Alt") for item in figures)
    assert {"The curve rises to 0.9 sensitivity at 0.2 false positive rate.", "Map of case case-2; not tested"} <= {
        item["/Alt"] for item in figures
    }


def test_a_map_that_must_not_be_relied_on_is_stamped_and_its_words_say_so(plain):
    page = next(page for page in plain.pages if "Where it looks" in page)
    assert page.count("do not rely on this map") == 4, "two methods of two cases"
    for line in (
        "✗ saliency: fails randomisation. Similarity with random weights is 0.970 for lesion. Do not rely on this map.",
        "✗ rollout: no better than a control. Deletion is 0.510, that of random maps is 0.500. Do not rely on this map.",
        "? occlusion of lesion: not decided. The interval holds both.",
        "✓ integrated gradients: describes the model. Similarity with random weights is 0.050.",
        "– map: not tested. This run did not test whether these maps describe the model.",
    ):
        assert line in page
    figures = [item for item in elements(plain.pdf.trailer["/Root"]["/StructTreeRoot"]) if item.get("/S") == "/Figure"]
    words = [item["/Alt"] for item in figures]
    assert "Saliency of case case-1; fails randomisation: do not rely on this map" in words
    assert "Integrated gradients of case case-1; describes the model" in words
    front = next(place for place, page in enumerate(plain.pages) if "Table 2 What is known of the maps" in page)
    assert front <= 3, "cover, contents and verdict come before"


def test_maps_that_nothing_tested_say_so_on_paper(tmp_path):
    report = report_of(write_run(tmp_path / "run", tested=False))
    assert report.text.count("This run did not test whether these maps describe the model.") == 10
    assert "Saliency of case case-1; not tested" in {
        item["/Alt"] for item in elements(report.pdf.trailer["/Root"]["/StructTreeRoot"]) if item.get("/S") == "/Figure"
    }
    assert "do not rely on this map" not in report.text.lower()


def elements(node):
    node = node.get_object()
    children = node.get("/K", [])
    for child in children if isinstance(children, list) else [children]:
        item = child.get_object()
        if hasattr(item, "get"):
            yield item
            yield from elements(item)


def test_bytes_are_equal_twice_and_in_another_process_and_folder(plain, tmp_path):
    assert build_report(plain.run) == plain.content
    elsewhere = shutil.copytree(plain.run.path, tmp_path / "other" / "run")
    script = (
        f"{BLOCKED}\nimport hashlib, pathlib\nfrom xvision.store import Run\n"
        f"print(hashlib.sha256(reports.build.build_report(Run(pathlib.Path({str(elsewhere)!r})))).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == hashlib.sha256(plain.content).hexdigest()


def test_hostile_labels_come_out_as_letters(hostile):
    printed = squashed(clean(HOSTILE))
    assert "[U+0000][U+200B][U+FEFF]" in printed
    whole = squashed(hostile.text)
    assert whole.count(printed) >= 15
    assert squashed("A caveat about") + printed in whole
    assert list(hostile.pdf.attachments) == ["metrics.json"]
    links = [note.get_object() for page in hostile.pdf.pages for note in page.get("/Annots", [])]
    assert not [link for link in links if "/URI" in link.get("/A", {})]


def test_characters_of_every_script_compile(tmp_path):
    label = "".join(chr(code) for code in range(0x21, 0x1FFFF, 787) if not 0xD800 <= code < 0xE000)
    assert build_report(Run(write_run(tmp_path / "run", label=label + "\u2d37\u1f04 ًا ि")))


def test_a_run_without_criteria_is_not_judged(tmp_path):
    report = report_of(write_run(tmp_path / "run", judged=False))
    assert "Not judged" in report.pages[0]
    assert "This run was not judged: no criteria were given" in report.text
    assert "No criteria were given: nothing was judged." in report.text


@pytest.mark.parametrize(
    ("status", "said"),
    [("running", "This run has not finished."), ("partial", "This run is partial: Corruption failed and say nothing.")],
)
def test_an_unfinished_run_says_so_on_the_cover(tmp_path, status, said):
    assert said in report_of(write_run(tmp_path / "run", status=status)).pages[0]


def test_criteria_that_were_chosen_afterwards_are_said_to_be(tmp_path):
    folder = write_run(tmp_path / "run")
    Writer(folder).judgement(replace(Run(folder).judgement, declared_before_run=False))
    report = report_of(folder)
    assert "not declared before the run" in report.pages[0]
    assert "A threshold chosen after the numbers are known proves little" in report.text


def test_a_changed_file_is_reported_on_the_cover(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "results" / "fairness.json"
    path.write_text(path.read_text().replace("0.82", "0.92"))
    report = report_of(folder)
    assert "does not match its checksums: results/fairness.json was changed." in report.pages[0]
    assert "When this report was made, the folder did not match:" in report.text


def test_notes_of_the_auditors_are_printed(tmp_path):
    folder = write_run(tmp_path / "run")
    Writer(folder).review({"time": "2026-02-03", "who": "A. Reader", "text": "Seen $x$"})
    report = report_of(folder)
    assert "Time: 2026-02-03; Who: A. Reader; Text: Seen $x$" in report.text
    assert "every file of the run matched its hash" in report.text


def test_an_unreadable_time_is_a_run_error(tmp_path):
    folder = write_run(tmp_path / "run")
    Writer(folder).info(replace(run_info(), finished="yesterday"))
    with pytest.raises(RunError, match=r"the time 'yesterday' is not one"):
        build_report(Run(folder))


def test_write_report_writes_the_whole_file(plain, tmp_path):
    out = write_report(plain.run, tmp_path / "new" / "report.pdf")
    assert out.read_bytes() == plain.content
    assert [path.name for path in out.parent.iterdir()] == ["report.pdf"]


def test_the_command_prints_where_the_report_is(plain, tmp_path, capsys):
    folder = shutil.copytree(plain.run.path, tmp_path / "run.v2")
    assert main([str(folder)]) == 0
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "run.v2.pdf"
    assert (tmp_path / "run.v2.pdf").read_bytes()[:5] == b"%PDF-"


def no_run(folder):
    (folder / "run.json").unlink()


def no_picture(folder):
    next((folder / "cases").rglob("*.png")).unlink()


def broken_picture(folder):
    next((folder / "cases").rglob("*.png")).write_bytes(b"\x89PNG not really")


def broken_record(folder):
    (folder / "results" / "fairness.json").write_text("{")


def broken_chart(folder):
    path = folder / "results" / "performance.json"
    data = json.loads(path.read_text())
    data["charts"][1]["columns"].append("a third")
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_run, "not a run folder"),
        (no_picture, "the picture"),
        (broken_picture, "not a readable PNG"),
        (broken_record, "cannot be read"),
        (broken_chart, "chart 'Confusion matrix': 2 values for 3 columns"),
    ],
)
def test_a_damaged_run_is_one_sentence_and_exit_code_2(tmp_path, capsys, damage, said):
    folder = write_run(tmp_path / "run")
    damage(folder)
    assert main([str(folder), "-o", str(tmp_path / "r.pdf")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.pdf").exists()


def test_without_typst_the_install_line_is_given(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)
    assert main([str(plain.run.path), "-o", str(tmp_path / "r.pdf")]) == 2
    assert "pip install 'xvision[report]'" in capsys.readouterr().err
