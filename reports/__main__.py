"""``python -m reports RUN -o REPORT.pdf``: the PDF of a run folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.build import write_report
from xvision.errors import XVisionError
from xvision.store import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report and prints its path: 0, or 2 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m reports", description="Write the PDF report of a run folder.")
    parser.add_argument("run", type=Path, help="run folder, as `xvision audit` printed it")
    parser.add_argument("-o", "--out", type=Path, help="PDF to write (default: beside the run folder, with its name)")
    parser.add_argument("--lang", choices=["en"], default="en", help="language of the report")
    given = parser.parse_args(arguments)
    folder = given.run.resolve()
    try:
        out = write_report(Run(given.run), given.out or folder.parent / f"{folder.name}.pdf")
    except XVisionError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
