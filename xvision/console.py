"""What the terminal shows: progress with the time left, and the short tables of the commands. The only rich door."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence

import rich.console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from xvision import codec
from xvision.engine import Progress
from xvision.explain.method import Method
from xvision.registry import Analysis
from xvision.result import Judgement, Record

_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "insufficient evidence": "blue", "not judged": "dim"}


class Console:
    """A listener that draws one bar per task on a terminal and one line per task elsewhere."""

    def __init__(self) -> None:
        self.console = rich.console.Console(stderr=True)
        self._bar: Bar | None = None
        self._title = ""

    def say(self, sentence: str) -> None:
        self.console.print(escape(sentence), highlight=False, soft_wrap=True)

    def started(self, title: str) -> None:
        self._title = title

    def progress(self, progress: Progress) -> None:
        self.update(self._title, progress.done, progress.total)

    def update(self, title: str, done: float, total: float, note: str = "") -> None:
        """Moves the bar of a task; draws nothing where the output is no terminal."""
        if not self.console.is_terminal:
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Bar(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(escape(title), total=total, note=note)
        self._bar.update(self._task, description=escape(title), completed=done, total=total, note=escape(note))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def finished(self, record: Record, *, reused: bool) -> None:
        self.close()
        how = "kept from before" if reused else f"{record.seconds:.1f} s" if record.status == "ok" else record.reason
        style = {"ok": "green", "skipped": "yellow", "failed": "bold red"}[record.status]
        self.console.print(
            f"[{style}]{record.status:>7}[/] {escape(record.title)} [dim]{escape(how)}[/]", highlight=False
        )


def print_findings(judgement: Judgement) -> None:
    """The verdict and one line per finding."""
    console = rich.console.Console()
    console.print(f"Verdict: [{_STYLES[judgement.verdict]}]{judgement.verdict}[/]", highlight=False)
    for finding in judgement.findings:
        style = _STYLES[finding.verdict]
        console.print(
            f"  [{style}]{finding.verdict:<21}[/] {escape(finding.title)}: {escape(finding.sentence)}",
            highlight=False,
            soft_wrap=True,
        )


def print_analyses(found: Sequence[Analysis]) -> None:
    """Name, question, need, cost and options of every analysis."""
    table = Table("Analysis", "Question", "Needs", "Passes per image", "Options (default)", show_lines=True)
    for item in found:
        options = "\n".join(f"{option.name} = {codec.plain(option.default)}" for option in item.options)
        table.add_row(*(escape(text) for text in (item.name, item.question, item.need, item.passes, options)))
    rich.console.Console().print(table)


def print_methods(found: Sequence[Method], refused: Mapping[str, str]) -> None:
    """Name, family, cost and source of every method of explanation, then those that are refused whatever the model."""
    table = Table("Method", "Family", "Passes per image", "Source", "Note")
    table.columns[0].no_wrap = True
    for item in found:
        taken = "taken by default where it fits" if item.chosen is not None else ""
        note = "; ".join(part for part in (taken, item.note) if part)
        table.add_row(*(escape(text) for text in (item.name, item.family, item.passes, item.source, note)))
    console = rich.console.Console()
    console.print(table)
    for name, reason in refused.items():
        console.print(f"refused  {name}: {escape(reason)}.", highlight=False)


def print_doctor() -> int:
    """What is installed and the line that installs what is missing."""
    import torch

    console = rich.console.Console()
    for name, value in _doctor_lines(torch.__version__, torch.cuda.is_available()):
        console.print(f"{name:<14} {escape(value)}", highlight=False)
    return 0


def _doctor_lines(torch_version: str, cuda: bool) -> Iterator[tuple[str, str]]:
    yield "torch", f"{torch_version}, {'CUDA device found' if cuda else 'CPU only'}"
    for name in ("transformers", "captum", "foolbox", "fairlearn"):
        yield name, importlib.metadata.version(name)
    for name, extra in (
        ("streamlit", "dashboard"),
        ("plotly", "dashboard"),
        ("typst", "report"),
        ("matplotlib", "report"),
        ("ray", "ray"),
        ("peft", "peft"),
        ("optuna", "search"),
        ("tensorboard", "tracking"),
        ("wandb", "tracking"),
        ("torchao", "compress"),
        ("onnx", "compress"),
        ("onnxruntime", "compress"),
        ("datasets", "datasets"),
        ("cleanlab", "labels"),
    ):
        found = importlib.util.find_spec(name) is not None
        yield name, importlib.metadata.version(name) if found else f"missing: pip install 'xvision[{extra}]'"
    if importlib.util.find_spec("torchvision") is not None:
        yield (
            "torchvision",
            "installed: must be the build that belongs to this torch, or transformers cannot be imported",
        )
