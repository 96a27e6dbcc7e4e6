"""The command line: parse, call, print. Wrong input ends with one sentence on stderr and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from xvision import __version__
from xvision.commands import making, reading, watching
from xvision.errors import XVisionError

Command = Callable[[argparse.Namespace], int]
Adder = Callable[[str, Command, str], argparse.ArgumentParser]
_HOW = ("int8", "int8-dynamic", "bfloat16", "prune-magnitude", "prune-structured", "onnx", "pt2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except XVisionError as problem:
        print(f"xvision: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has read enough: `xvision metrics RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("xvision: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xvision", description="Audit medical image classifiers.")
    parser.add_argument("--version", action="version", version=f"xvision {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(command=command)
        return added

    _add_making(add)
    _add_reading(add)
    _add_watching(add)
    return parser


def _add_making(add: Adder) -> None:
    """The commands that make something: these load torch."""
    demo = add(
        "demo", making.demo, "Train, re-tune badly, re-tune well, audit, PDF: on phantoms, on this machine, in minutes."
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything the demo makes")
    demo.add_argument("--clean", action="store_true", help="switch the planted shortcut off")
    demo.add_argument("--gap", action="store_true", help="plant a gap between groups too: lesions fainter in women")
    demo.add_argument("--seed", type=int, default=0)

    finetune = add("finetune", making.finetune, "Fine-tune the LLM-based classifier as a plan says.")
    finetune.add_argument("plan", type=Path, metavar="PLAN.toml")
    finetune.add_argument("--data", type=Path, help="manifest CSV or image folder, instead of the plan's")
    finetune.add_argument("--out", type=Path, help="checkpoint folder (default: model.path of the plan)")
    finetune.add_argument(
        "--from", type=Path, dest="start", metavar="CKPT", help="re-tune this checkpoint, then audit both and compare"
    )
    finetune.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    finetune.add_argument("--search", action="store_true", help="first look for the best recipe, as [search] says")
    finetune.add_argument("--no-audit", action="store_true", help="after re-tuning, do not audit and compare")
    finetune.add_argument("--ray", type=int, default=0, metavar="N", help="train with N workers of a Ray cluster")

    audit = add("audit", making.audit, "Audit a model on data into a run folder; an unfinished one resumes.")
    audit.add_argument("plan", type=Path, nargs="?", metavar="PLAN.toml")
    audit.add_argument("--model", help="checkpoint folder or hub id, instead of a plan's")
    audit.add_argument("--data", type=Path, help="manifest CSV or image folder, instead of a plan's")
    audit.add_argument("--groups", default="", metavar="COLUMN,…", help="columns that say who the patient is")
    audit.add_argument("--acquisition", default="", metavar="COLUMN,…", help="columns that say how the image was taken")
    audit.add_argument("--criteria", type=Path, help="criteria agreed beforehand")
    audit.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: runs/NAME)")
    audit.add_argument("--only", nargs="+", default=[], metavar="NAME", help="analyses to run")
    audit.add_argument("--engine", choices=["local", "ray"], default="local")
    audit.add_argument("--set", action="append", default=[], dest="settings", metavar="ANALYSIS.OPTION=VALUE")

    _add_audited(add)


def _add_audited(add: Adder) -> None:
    """What is done to a model or asked of it besides an audit."""
    compress = add("compress", making.compress, "Make the plan's model smaller, and audit it before and after.")
    compress.add_argument("plan", type=Path, metavar="PLAN.toml")
    compress.add_argument("--how", required=True, choices=_HOW)
    compress.add_argument("--amount", type=float, default=0.3, help="share that pruning takes away")
    compress.add_argument("--margin", type=float, default=0.02, help="largest difference that does not matter")
    compress.add_argument("--out", type=Path, metavar="DIR", help="default: runs/NAME-HOW")
    compress.add_argument("--engine", choices=["local", "ray"], default="local")

    queue = add(
        "review-queue", making.review_queue, "Which cases a person should look at next, which labels look wrong."
    )
    queue.add_argument("plan", type=Path, metavar="PLAN.toml")
    queue.add_argument("--out", type=Path, metavar="DIR", help="default: runs/NAME-queue")
    queue.add_argument("--size", type=int, default=100, help="cases in the queue")
    queue.add_argument("--stratify", metavar="COLUMN", help="keep the mix of this column in the queue")
    queue.add_argument("--per-patient", type=int, default=2, help="most cases of one patient")
    queue.add_argument("--measure", choices=["entropy", "margin"], default="entropy")
    queue.add_argument("--unlabelled", type=Path, metavar="MANIFEST", help="cases without labels to choose from")
    queue.add_argument(
        "--pseudo-precision", type=float, metavar="P", help="write pseudo-labels where at least the share P is right"
    )
    queue.add_argument("--cleanlab", action="store_true", help="add cleanlab's opinion on the labels")


def _add_reading(add: Adder) -> None:
    """The commands that read what there is."""
    add("analyses", reading.analyses, "What there is, what each needs, what it costs, and its options.").add_argument(
        "--json", action="store_true"
    )
    add(
        "methods", reading.methods, "Methods of explanation: what each needs and costs, and which are refused."
    ).add_argument("--json", action="store_true")
    metrics = add("metrics", reading.metrics, "Every number of a run in one tidy table.")
    metrics.add_argument("run", type=Path, metavar="RUN")
    metrics.add_argument("--json", action="store_true")

    judge = add("judge", reading.judge, "Hold a run against criteria: exit 0 pass, 1 fail, 3 insufficient evidence.")
    judge.add_argument("run", type=Path, metavar="RUN")
    judge.add_argument("--criteria", type=Path, required=True, metavar="CRITERIA.toml")
    judge.add_argument("--json", action="store_true")

    compare = add("compare", reading.compare, "Two runs on the same cases: better, worse, equivalent or not decided.")
    compare.add_argument("run_a", type=Path, metavar="RUN_A")
    compare.add_argument("run_b", type=Path, metavar="RUN_B")
    compare.add_argument("--margin", type=float, default=0.02, help="largest difference that does not matter")
    compare.add_argument("--json", action="store_true")

    report = add("report", reading.report, "Typeset a run as a PDF.")
    report.add_argument("run", type=Path, metavar="RUN")
    report.add_argument("-o", "--out", type=Path, metavar="REPORT.pdf")

    dashboard = add(
        "dashboard", reading.dashboard, "Show a run, or a folder of runs, in the browser (this machine only)."
    )
    dashboard.add_argument("run", type=Path, metavar="RUN_OR_FOLDER")
    dashboard.add_argument("--port", type=int, default=8501)
    dashboard.add_argument("--no-browser", action="store_true")

    add("verify", reading.verify, "Check every file of a run against its hash, and the chain of reviews.").add_argument(
        "run", type=Path, metavar="RUN"
    )
    add("doctor", reading.doctor, "What is installed, which device there is, what is missing and how to get it.")


def _add_watching(add: Adder) -> None:
    """The commands of the time after an audit."""
    keep = add("baseline", watching.baseline, "Keep what later images are compared with, without names or pixels.")
    keep.add_argument("run", type=Path, metavar="RUN")
    keep.add_argument("--out", type=Path, metavar="BASELINE", help="new folder (default: RUN.baseline)")
    keep.add_argument(
        "--alarms", type=float, default=0.01, metavar="P", help="chance of a false alarm, all channels together"
    )
    keep.add_argument(
        "--least", type=float, default=0.1, metavar="D", help="distance below which nothing is an alarm, 0 to 1"
    )
    keep.add_argument("--no-embeddings", action="store_true", help="keep nothing of the model's embeddings")

    watch = add(
        "drift",
        watching.drift,
        "Compare images without labels with a baseline: exit 0 stable, 1 drift, 3 not enough data.",
    )
    watch.add_argument("baseline", type=Path, metavar="BASELINE")
    watch.add_argument("data", type=Path, metavar="NEW_DATA", help="manifest CSV or image folder")
    watch.add_argument("--model", metavar="M", help="where the audited model is now")
    watch.add_argument("--json", action="store_true")
    watch.add_argument("--prometheus", type=Path, metavar="FILE", help="for a node exporter's textfile collector")
    watch.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    sys.exit(main())
