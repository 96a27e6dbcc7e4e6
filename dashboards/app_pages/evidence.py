"""What proves the rest: hashes, versions, the plan as resolved, and every file to take away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import inert, markup, runs
from dashboards.parts import Links, data_table
from xvision import text
from xvision.errors import RunError
from xvision.store import Run

_LOG_BYTES = 64 * 1024
_UNITS = ("B", "kB", "MB", "GB")


def show(run: Run, links: Links) -> None:
    markup.show(
        markup.title(
            "Evidence",
            eyebrow="Look closer",
            lead="What was run, on what and with what; and whether the files are as they were written.",
        )
    )
    _integrity(run)
    info = run.info
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True, key="panel-prints"):
        hashes = [
            *info.fingerprints.items(),
            ("criteria before the run", info.criteria_sha256),
            ("criteria of the verdict", run.judgement.criteria_sha256),
        ]
        markup.show(
            markup.subheading("Fingerprints (SHA-256)"),
            markup.facts([(text.label(name), markup.mono(value or "none")) for name, value in hashes]),
        )
    with right, st.container(border=True, key="panel-when"):
        markup.show(
            markup.subheading("Execution"),
            markup.facts(
                [
                    ("Status", info.status),
                    ("Started", info.started),
                    ("Finished", info.finished or "not finished"),
                    ("Seconds", text.number(info.seconds)),
                    ("Seed", str(info.seed)),
                    ("Images passed forward", text.number(info.forward, "count")),
                    ("Images passed backward", text.number(info.backward, "count")),
                ]
            ),
        )
    with left, st.container(border=True, key="panel-versions"):
        markup.show(markup.subheading("Versions"), markup.facts(_plain_pairs(info.versions)))
    with right, st.container(border=True, key="panel-hardware"):
        markup.show(markup.subheading("Hardware"), markup.facts(_plain_pairs(info.hardware)))
        markup.show(
            markup.subheading("Source"), markup.facts(_plain_pairs(info.git) or [("Git", "not in a repository")])
        )
    _again(run)
    _passes(run)
    _numbers(run)
    _files(run)


def _integrity(run: Run) -> None:
    with st.container(border=True, key="panel-integrity"):
        markup.show(markup.subheading("Files"), _state(runs.problems(run.path), run))
        if st.button("Verify every file again", icon=":material/verified_user:", key="verify"):
            found = run.problems()
            said = (
                "Verified just now: every file is as it was written." if not found else "Verified just now: see below."
            )
            markup.show(markup.element("p", said))
            if found:
                markup.show(markup.notes("Found", found))


def _state(found: tuple[str, ...], run: Run) -> markup.Html:
    if run.info.status == "running":
        return markup.alert(
            "The run is still being written; its files are hashed when it ends.", "insufficient evidence"
        )
    if not found:
        return markup.alert(
            "Every file has the hash it was written with, and the chain of reviews is unbroken.", "pass"
        )
    return markup.join(
        [
            markup.alert(f"{text.plural(len(found), 'difference')} from what was written.", "fail"),
            markup.notes("Differences", found),
        ]
    )


def _plain_pairs(values: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [(name.replace("_", " "), str(value)) for name, value in values.items()]


def _again(run: Run) -> None:
    markup.show(markup.heading("To do it again"))
    with st.container(border=True, key="panel-again"):
        markup.show(markup.muted("Command"))
        st.code(inert.plain(run.info.command), language=None, wrap_lines=True)
        with st.expander("Plan as resolved", icon=":material/description:"):
            st.code(_json(run.info.plan), language="json")
        if run.judgement.criteria:
            with st.expander("Criteria of the verdict", icon=":material/rule:"):
                st.code(_json(run.judgement.criteria), language="json")


def _json(value: Mapping[str, Any]) -> str:
    return inert.plain(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str))


def _passes(run: Run) -> None:
    markup.show(markup.heading("What each analysis cost"))
    with st.container(border=True, key="panel-passes"):
        rows = [
            [
                record.title,
                record.status,
                text.number(record.seconds),
                text.number(record.forward, "count"),
                text.number(record.backward, "count"),
                markup.mono(record.key[:16]),
            ]
            for record in run.records
        ]
        markup.show(
            markup.table(["Analysis", "Status", "Seconds", "Forward", "Backward", "Key"], rows, right=(2, 3, 4))
        )


def _numbers(run: Run) -> None:
    markup.show(markup.heading("Every number"))
    with st.container(border=True, key="panel-numbers"):
        rows = run.metrics.copy()
        rows["where"] = [inert.plain(text.condition(where)) for where in rows["where"]]
        for column in ("analysis", "name", "unit", "better", "reason", "interval"):
            rows[column] = [inert.plain(value) if isinstance(value, str) else None for value in rows[column]]
        data_table(
            rows.astype({"value": "float64", "low": "float64", "high": "float64", "n": "Int64"}),
            "metrics",
            alt="Every number of the run",
            height=320,
        )


def _files(run: Run) -> None:
    markup.show(markup.heading("Files of the run"))
    with st.container(border=True, key="panel-files"):
        found = runs.files(run)
        names = sorted(found)
        rows = pd.DataFrame(
            {"File": [inert.plain(name) for name in names], "Size": [_size(found[name]) for name in names]}
        )
        st.dataframe(rows, hide_index=True, height=260, alt="Files of the run with their sizes")
        chosen = st.selectbox("File", names, format_func=inert.plain, key="file")
        if chosen in found:
            st.download_button(
                "Download this file", lambda: _content(run, chosen), chosen.rsplit("/", 1)[-1], "application/octet-stream",
                key="file-download", icon=":material/download:", on_click="ignore",
            )  # fmt: skip
        log = _log(run)
        if log:
            with st.expander("Log", icon=":material/history:"):
                st.code(log, language=None, height=280)
        reviews = run.reviews()
        if reviews:
            with st.expander("Reviews", icon=":material/edit_note:"):
                st.code("\n".join(_json(entry) for entry in reviews), language="json", height=280)


def _content(run: Run, name: str) -> bytes:
    try:
        return run.file(name).read_bytes()
    except OSError as problem:
        raise RunError(f"{name}: cannot be read ({problem.strerror}).") from None


def _log(run: Run) -> str:
    """The end of the log."""
    path = run.file("log.jsonl")
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _LOG_BYTES, 0))
        return inert.plain(file.read().decode("utf-8", errors="replace"))


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
