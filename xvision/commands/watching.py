"""The commands of the time after an audit: what to keep, and whether new images are still like the audited ones."""

from __future__ import annotations

import argparse
from pathlib import Path

_CODES = {"stable": 0, "drift": 1, "not enough data": 3}


def baseline(parsed: argparse.Namespace) -> int:
    from xvision.monitoring.baseline import write_baseline

    out = parsed.out or Path(f"{parsed.run}.baseline")
    found = write_baseline(
        parsed.run, out, alarms=parsed.alarms, least=parsed.least, embeddings=not parsed.no_embeddings
    )
    record = found.record
    print(
        f"Baseline: {out} ({record.images} images of {record.patients} patients, {len(record.channels) + 1} channels)"
    )
    print("It holds numbers of each image without names or pixels; treat it as patient data all the same.")
    print(f"Compare new images with: xvision drift {out} NEW_DATA")
    return 0


def drift(parsed: argparse.Namespace) -> int:
    from xvision import codec
    from xvision.data.plan_data import load_outside
    from xvision.monitoring.baseline import read_baseline
    from xvision.monitoring.drift import drift as compared
    from xvision.monitoring.drift import lines, write_prometheus

    kept = read_baseline(parsed.baseline)
    data = load_outside(str(parsed.data))
    found = compared(kept, kept.open_model(parsed.model), data, seed=parsed.seed)
    if parsed.prometheus:
        write_prometheus(found, parsed.prometheus)
    print(codec.dumps(codec.plain(found)) if parsed.json else "\n".join(lines(found)))
    return _CODES[found.verdict]
