"""A run folder in, a PDF out: PDF/A-3a and PDF/UA-1, tagged, with the metrics attached, and the same bytes every time."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from reports import back, fonts, front, limits, maps
from reports.blocks import Document, Look
from reports.results import results
from reports.shelf import Shelf
from reports.suppression import shown
from reports.words import moment, plan_sha256
from xvision import codec
from xvision.errors import MissingExtra
from xvision.images import VERDICT_COLOURS, VERDICT_SYMBOLS
from xvision.store import Run, write_atomic

_TEMPLATE = Path(__file__).with_name("report.typ")


def write_report(run: Run, out: Path) -> Path:
    """The report as the file ``out``, whole or not at all. Raises RunError where the run or the disk stands in the way."""
    write_atomic(out, build_report(run))
    return out


def build_report(run: Run) -> bytes:
    """The report as PDF bytes; the same run gives the same bytes in every process.

    Small groups of people are withheld where the plan says so. Raises RunError for a run that cannot be read, and
    MissingExtra when typst or matplotlib is not installed.
    """
    for package in ("typst", "matplotlib"):
        if find_spec(package) is None:
            raise MissingExtra(package, "report", "The PDF report")
    import typst

    run, shelf = shown(run), Shelf()
    content = codec.plain(document(run, shelf))
    with TemporaryDirectory(prefix="xvision-report-") as folder:
        root = Path(folder)
        (root / "report.json").write_text(json.dumps(fonts.clean_all(content), ensure_ascii=False), "utf-8")
        (root / "metrics.json").write_text(metrics_json(run), "utf-8")
        (root / "fonts").mkdir()
        for path in fonts.files():
            shutil.copyfile(path, root / "fonts" / path.name)
        for name, file in shelf.files.items():
            (root / name).write_bytes(file)
        shutil.copyfile(_TEMPLATE, root / "report.typ")
        return typst.compile(
            str(root / "report.typ"),
            root=str(root),
            font_paths=[str(root / "fonts")],
            ignore_system_fonts=True,
            pdf_standards=["a-3a", "ua-1"],
            timestamp=moment(run.info),
            package_path=str(root / "fonts"),  # no packages: the template needs none, and none may be fetched
            package_cache_path=str(root / "fonts"),
        )


def document(run: Run, shelf: Shelf) -> Document:
    """The whole report as data; charts and pictures are put on the shelf."""
    info, problems = run.info, run.problems()
    when = moment(info)
    model = info.fingerprints.get("model", "")[:8]
    return Document(
        title=f"Audit report: {info.name}",
        language="en",
        date=(when.year, when.month, when.day),
        header=(info.name[:70], f"model {model} · plan {plan_sha256(info)[:8]}"),
        footer="xvision audit report",
        cover=front.cover(run, problems),
        guide=front.guide(),
        looks={name: Look(name, VERDICT_SYMBOLS[name], colour) for name, colour in VERDICT_COLOURS.items()}
        | maps.looks(),
        blocks=(
            *front.verdict(run),
            *front.scorecard(run),
            *maps.believed(run),
            *front.audited(run),
            *results(run, shelf),
            *back.without_result(run),
            *limits.limitations(run),
            *back.findings(run),
            *back.notes(run),
            *back.reproduction(run),
            *back.integrity(run, problems),
        ),
    )


def metrics_json(run: Run) -> str:
    """Every number of the run, exact, as the attachment ``metrics.json``."""
    rows = [{"analysis": record.analysis, **codec.plain(metric)} for record in run.records for metric in record.metrics]
    return codec.dumps({"run": run.info.name, "fingerprints": dict(run.info.fingerprints), "metrics": rows})
