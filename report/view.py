"""What the page shows, decided once: cells into rows, groups, charts and tables. The templates only lay it out."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import vl_convert

import charts
from comparison.status import Status, status
from comparison.verdicts import estimates, measured
from config.experiment import Experiment
from pipeline.artifact import Manifest, Unreadable, read_json

STATIC_WIDTH = 560


Results = dict[str, dict[str, Path]]


def rows_of(results: Results, planned: Experiment) -> list[dict[str, Any]]:
    """One row a cell: its names, its summary, or its failure, and the quality and status of what it served.

    `results`: the file of every job, by stage and name.
    """
    limits = planned.config["evaluation"]
    qualities = {name: read_json(path) for name, path in results["assess"].items()}
    statuses = {name: status(quality, limits) for name, quality in qualities.items()}
    rows = []
    for cell in planned.cells():
        served, offered = cell.served.path, cell.offered
        session = results["summarize"][f"{served}/t{cell.trial}"]
        summary = read_json(session.parent / cell.load_path / "summary.json")
        length = "exactly" if cell.workload.output_length == "forced" else "at most"
        names = {
            "model": cell.model.name,
            "quantization": cell.quantization.name,
            "backend": cell.backend.name,
            "workload": cell.workload.name,
            "kind": offered.kind,
            "value": offered.value,
            "load": loads(offered.kind, offered.value),
            "lengths": f"{length} {cell.workload.max_tokens} tokens an answer",
            "trial": cell.trial,
            "path": cell.path,
        }
        judged = {
            "quality": qualities.get(served),
            "status": statuses.get(served, Status("not judged")),
        }
        rows.append(names | judged | summary)
    order = list(planned.backends)
    return sorted(rows, key=lambda row: (order.index(row["backend"]), row["value"], row["trial"]))


# What a number of each kind of offered load counts, for one and for others.
UNITS = {
    "users": ("user", "users"),
    "rate": ("request/s", "requests/s"),
    "speed": ("× the trace's speed", "× the trace's speed"),
}


MODES = {
    "users": "Closed loop: each user sends the next request when the last is answered",
    "rate": "Open loop: requests arrive at a rate, however fast they are answered",
    "speed": "Open loop: requests arrive as they did in a recorded trace",
}


def loads(kind: str, value: float) -> str:
    """An offered load in words: '8 users', '2.5 requests/s'."""
    return f"{value:g} {UNITS[kind][value != 1]}"


def groups_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that belong in one table and one pair of charts: those of one model, quantization, workload and kind of load."""
    names = ("model", "quantization", "workload", "kind", "lengths")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        dict(zip(names, key, strict=True)) | {"rows": members} for key, members in groups.items()
    ]


def overviews(rows: list[dict[str, Any]], backends: list[str]) -> list[dict[str, Any]]:
    """Speed beside quality, over all quantizations: for each model, workload and kind of load that was judged, a row for each
    backend and quantization with its token rate at each load; and a chart of the largest."""
    made = []
    for key in dict.fromkeys(
        (row["model"], row["workload"], row["kind"]) for row in rows if row["quality"]
    ):
        members = [row for row in rows if (row["model"], row["workload"], row["kind"]) == key]
        loads_of = sorted({(row["value"], row["load"]) for row in members})
        lines = []
        for quantization, backend in sorted(
            {(row["quantization"], row["backend"]) for row in members},
            key=lambda pair: (backends.index(pair[1]), pair[0] != "none", pair[0]),
        ):
            own = [
                row
                for row in members
                if (row["quantization"], row["backend"]) == (quantization, backend)
            ]
            rates = {entry["offered"]: entry for entry in estimates(measured(own), "rate")}
            form = next((row["cell"]["form"] for row in own if "form" in row["cell"]), "")
            lines.append(
                {
                    "backend": backend,
                    "quantization": quantization,
                    "form": form,
                    "quality": own[0]["quality"],
                    "status": own[0]["status"],
                    "rates": rates,
                    "failed": len(own) - len(measured(own)),
                }
            )
        made.append(
            dict(zip(("model", "workload", "kind"), key, strict=True))
            | {
                "loads": loads_of,
                "rows": lines,
                "charts": quality_chart(lines, loads_of[-1], backends),
            }
        )
    return made


def quality_chart(
    lines: list[dict[str, Any]], load: tuple[float, str], backends: list[str]
) -> list[dict[str, Any]]:
    """The picture of an overview, if more than one of its rows has both figures."""
    points = []
    for line in lines:
        change, rate = (line["quality"] or {}).get("perplexity_change"), line["rates"].get(load[0])
        if change and rate:
            low, high = change["interval"] or (None, None)
            names = {
                "backend": line["backend"],
                "quantization": line["quantization"],
                "comparable": "not comparable"
                if line["status"].comparable is False
                else "comparable",
            }
            points.append(
                names
                | {
                    "change": change["percent"],
                    "change_low": low,
                    "change_high": high,
                    "rate": rate["value"],
                    "low": rate["low"],
                    "high": rate["high"],
                }
            )
    title = f"Speed and what it cost, {load[1]}"
    return (
        [
            pictured(
                f"{title}: up and to the left is better",
                charts.speed_and_quality(points, backends, title),
            )
        ]
        if len(points) > 1
        else []
    )


# Titles of the axis of the offered load.
AXES = {
    "users": "concurrent users",
    "rate": "requests offered a second",
    "speed": "speed of the trace",
}


def charts_of(group: dict[str, Any], backends: list[str]) -> list[dict[str, Any]]:
    """The charts of a group, each with its specification and its words: the study's two, then the time lines."""
    rows = measured(group["rows"])
    if not rows:
        return []
    rate, ttft = estimates(rows, "rate"), estimates(rows, "ttft")
    axis = AXES[group["kind"]]
    made = [
        (
            "Time to first token: lower is better",
            charts.by_load(ttft, backends, axis, "Time to first token, median", "ms"),
        ),
        (
            "Token rate: higher is better",
            charts.by_load(
                rate, backends, axis, "Output token rate, all users together", "tokens/s"
            ),
        ),
    ]
    for offered, load in sorted({(row["value"], row["load"]) for row in rows}):
        steps = [
            {
                "backend": row["backend"],
                "trial": row["trial"],
                "start_s": step["start_s"],
                "phase": step["phase"],
                "rate": step["output_token_throughput"],
                "ttft": step["ttft_p50_ms"],
            }
            for row in rows
            if row["value"] == offered
            for step in row["metrics"]["windows"]
        ]
        beside = [
            {
                "backend": row["backend"],
                "trial": row["trial"],
                "phase": "",
                **step,
                "busy": step.get("gpu_utilization_percent", step["server_cores"]),
            }
            for row in rows
            if row["value"] == offered
            for step in row["machine_line"]
        ]
        made.append(
            (
                f"Token rate each 5 s, {load}",
                charts.time_line(
                    steps, backends, "rate", f"Token rate each 5 s, {load}", "tokens/s"
                ),
            )
        )
        made.append(
            (
                f"TTFT each 5 s, {load}",
                charts.time_line(steps, backends, "ttft", f"TTFT each 5 s, {load}", "ms, median"),
            )
        )
        if beside:
            what, unit = (
                ("GPU utilisation", "%")
                if any("gpu_power_w" in step for step in beside)
                else ("The servers' CPU", "cores")
            )
            made.append(
                (
                    f"{what} each 5 s, {load}",
                    charts.time_line(beside, backends, "busy", f"{what} each 5 s, {load}", unit),
                )
            )
    return [pictured(alt, spec) for alt, spec in made]


def pictured(alt: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "alt": alt,
        "spec": spec,
        "static": {theme: static(spec, theme) for theme in ("light", "dark")},
    }


def static(spec: dict[str, Any], theme: str) -> str:
    """The chart as an SVG data URL, for readers without scripts and for print."""
    svg = vl_convert.vegalite_to_svg(spec | {"width": STATIC_WIDTH}, config=charts.config(theme))
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def preparation(prepared: list[tuple[str, str, Path]]) -> list[dict[str, Any]]:
    """What had to be done before the first request: one row an artefact that is there, of (stage, name, manifest)."""
    found = []
    for stage, name, path in prepared:
        try:
            manifest = Manifest.load(path)
        except Unreadable:  # nobody needed it in this run
            continue
        own = Path(manifest.path).is_relative_to(manifest.entry)
        found.append(
            {
                "stage": stage,
                "name": name,
                "seconds": manifest.duration_s,
                "bytes": manifest.bytes if own else None,
                "reproducible": manifest.facts.get("reproducible"),
                "memory": manifest.peak_memory_bytes,
                "failure": manifest.failure,
            }
        )
    return found


def starts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each backend's starts, each once: seconds until ready and of the first request after that."""
    found = []
    for backend in dict.fromkeys(row["backend"] for row in measured(rows)):
        cells = [row for row in measured(rows) if row["backend"] == backend]
        distinct = {
            (row["model"], row["quantization"], row["trial"], row["cell"]["start"]["number"]): row[
                "cell"
            ]["start"]
            for row in cells
        }
        told = {
            name: [start[name] for start in distinct.values()]
            for name in ("ready_s", "first_answer_s", "compile_cache")
        }
        found.append({"backend": backend, "n": len(distinct), **told})
    return found


def order_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The server starts in the order in which they were made: {trial, served, started, ended, loads}."""
    starts: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        names = (row["trial"], row["model"], row["quantization"], row["backend"])
        starts.setdefault((*names, row["cell"].get("start", {}).get("number")), []).append(row)
    found = []
    for (trial, model, quantization, backend, _), members in starts.items():
        members.sort(key=began)
        told = {
            "trial": trial,
            "served": f"{model}/{quantization}/{backend}",
            "started": clock(began(members[0])),
        }
        told |= {"ended": clock(ended(members[-1])), "at": began(members[0])}
        loads_of = [f"{row['workload']}, {row['load']}" for row in members]
        found.append(told | {"loads": loads_of})
    return sorted(found, key=lambda start: start["at"])


def began(row: dict[str, Any]) -> float:
    """When a cell was begun, seconds since 1970."""
    return float(row["cell"]["clock"]["unix_ns"]) / 1e9


def ended(row: dict[str, Any]) -> float:
    return began(row) + float(row["cell"].get("seconds", 0))


def clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def disorder(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each load and trial that began before the trial before had ended with that load."""
    found = []
    for load in dict.fromkeys((row["workload"], row["load"]) for row in rows):
        own = [row for row in rows if (row["workload"], row["load"]) == load]
        for trial in sorted({row["trial"] for row in own})[1:]:
            before = max(ended(row) for row in own if row["trial"] < trial)
            early = sum(began(row) < before for row in own if row["trial"] == trial)
            if early:
                what = "cells began" if early > 1 else "cell began"
                found.append(
                    f"{load[0]}, {load[1]}: {early} {what} in trial {trial} before the trial before had ended"
                )
    return found


# What is told to every backend alike, and what its server may say that it made of it.
ASKED = ("max_sequences", "context_length", "dtype", "prefix_caching")
REALISED = (*ASKED, "quantization", "kv_cache_tokens", "kernel", "version")


def audit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each backend what its servers were asked for and say they run with; `other` names what differs from what was asked."""
    found = []
    for row in {
        (row["model"], row["quantization"], row["backend"]): row for row in measured(rows)
    }.values():
        server, told = row["cell"]["spec"]["cell"]["server"], row["cell"]["realised"]
        asked = (
            {name: server[name] for name in ASKED}
            if server["policy"] == "equal"
            else {"context_length": server["context_length"]}
        )
        other = [
            name
            for name, value in asked.items()
            if name in told and told[name] != value and value != "auto"
        ]
        found.append(
            {name: row[name] for name in ("model", "quantization", "backend")}
            | {"asked": asked, "told": told, "other": other}
        )
    return found


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """summary.csv: one row a cell, failed ones too; times in ms, rates in tokens/s."""
    flat = []
    for row in rows:
        metrics, failure = row.get("metrics", {}), row["cell"]["failure"] or {}
        low, high = metrics.get("output_token_throughput_interval") or (None, None)
        entry = {
            name: row[name]
            for name in ("model", "quantization", "backend", "workload", "kind", "value", "trial")
        }
        entry |= {
            "outcome": failure.get("kind", "measured"),
            "reason": failure.get("reason", ""),
            "weights": row["cell"].get("form", ""),
        }
        entry |= {
            "output_token_throughput": metrics.get("output_token_throughput"),
            "output_token_throughput_low": low,
            "output_token_throughput_high": high,
        }
        for name in ("ttft", "ttft_scheduled", "tpot", "itl", "e2e_latency"):
            entry |= {
                f"{name}_{part}_ms": metrics.get(name, {}).get(part)
                for part in ("p50", "p90", "p99")
            }
        entry |= {
            name: metrics.get(name)
            for name in (
                "user_rate",
                "request_throughput",
                "goodput",
                "requests",
                "isl",
                "osl",
                "full_length",
                "in_flight",
            )
        }
        entry |= {
            "failed": sum(metrics.get("failures", {}).values()) if metrics else None,
            **{
                f"client_{name}": metrics.get("client", {}).get(name)
                for name in ("valid", "cpu_share", "ceiling_share", "ttft_error_ms", "gap_error_ms")
            },
            "answers_broken": row["evaluation"]["broken"],
            **quality_columns(row["quality"] or {}),
            "comparable": row["status"].comparable,
        }
        start = row["cell"].get("start", {})
        entry |= {
            "ready_s": start.get("ready_s"),
            "first_answer_s": start.get("first_answer_s"),
            "start": start.get("number"),
            "cache": row["cell"].get("cache"),
        }
        flat.append(entry)
    return flat


def quality_columns(judged: dict[str, Any]) -> dict[str, Any]:
    """What summary.csv says of the quality of what a cell served; empty where it was not judged."""
    perplexity, change, agreed = (
        judged.get(name) or {} for name in ("perplexity", "perplexity_change", "agreement")
    )
    columns: dict[str, Any] = {}
    for name, value, interval in (
        ("perplexity", perplexity.get("value"), perplexity.get("interval")),
        ("perplexity_change_percent", change.get("percent"), change.get("interval")),
    ):
        columns |= {
            name: value,
            f"{name}_low": (interval or [None, None])[0],
            f"{name}_high": (interval or [None, None])[1],
        }
    columns |= {
        "answers_compared": agreed.get("answers"),
        "answers_identical": agreed.get("identical"),
        "common_prefix_tokens": agreed.get("prefix_mean"),
    }
    return columns
