"""Render what was measured: report.html (one file, no network), report.md and summary.csv."""

from __future__ import annotations

import base64
import csv
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
import yaml
from markupsafe import Markup

import experiment
import job
import planning
from manifest import Manifest
from metrics import quality
from metrics.statistics import mean_interval, needed

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
TEMPLATES = ROOT / "report"
# report/ is no package and needs no installation; its charts are data, kept beside the page that shows them.
sys.path.append(str(TEMPLATES))
import charts  # noqa: E402

log = logging.getLogger(__name__)
STATIC_WIDTH = 560
STAGES = ("environment", "download", "prompts", "texts", "quantize", "build", "reference")


def qualities_of(results: Path, planned: experiment.Experiment) -> dict[tuple[str, ...], dict[str, Any]]:
    """What was judged, by (model, quantization, backend): quality.json, and `reasons` why it is not comparable."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for served in planned.evaluated():
        told = json.loads((results / "assess" / served.path / "quality.json").read_text())
        found[served.model.name, served.quantization.name, served.backend.name] = told | {"reasons": quality.verdict(told, planned.config["evaluation"])}
    return found


def rows_of(results: Path, planned: experiment.Experiment) -> list[dict[str, Any]]:
    """One row a cell: its names, its summary, or its failure, and the quality of what it served, if that was judged."""
    rows = []
    qualities = qualities_of(results, planned)
    for cell in planned.cells():
        summary = json.loads((results / "summarize" / cell.path / "summary.json").read_text())
        names = {"model": cell.model.name, "quantization": cell.quantization.name, "backend": cell.backend.name, "workload": cell.workload.name}
        offered = {"kind": cell.offered.kind, "value": cell.offered.value, "load": loads(cell.offered.kind, cell.offered.value)}
        lengths = f"{'exactly' if cell.workload.output_length == 'forced' else 'at most'} {cell.workload.max_tokens} tokens an answer"
        judged = qualities.get((cell.model.name, cell.quantization.name, cell.backend.name))
        rows.append(names | offered | {"lengths": lengths, "trial": cell.trial, "path": cell.path, "quality": judged, **summary})
    order = list(planned.backends)
    return sorted(rows, key=lambda row: (order.index(row["backend"]), row["value"], row["trial"]))


# What a number of each kind of offered load counts, for one and for others.
UNITS = {"users": ("user", "users"), "rate": ("request/s", "requests/s"), "speed": ("× the trace's speed", "× the trace's speed")}


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
    return [dict(zip(names, key, strict=True)) | {"rows": members} for key, members in groups.items()]


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "metrics" in row]


# What the charts and verdicts compare: the value of one cell, and its interval within that cell's run.
COMPARED: dict[str, Callable[[dict[str, Any]], tuple[float | None, list[float] | None]]] = {
    "rate": lambda metrics: (metrics["output_token_throughput"], metrics["output_token_throughput_interval"]),
    "ttft": lambda metrics: (metrics["ttft"]["p50"], metrics["ttft"]["p50_interval"]),
}


def estimates(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """One estimate for each backend and offered load: {backend, offered, value, low, high}.

    Of one trial, its value and the interval within its run. Of several, the mean of their values, with Student's interval
    over the trials (None for two): what differs from run to run is not seen inside one.
    """
    made = []
    for backend, offered in dict.fromkeys((row["backend"], row["value"]) for row in rows):
        pairs = [COMPARED[name](row["metrics"]) for row in rows if (row["backend"], row["value"]) == (backend, offered)]
        values = [value for value, _ in pairs if value is not None]
        if not values:
            continue
        low, high = (pairs[0][1] if len(pairs) == 1 else mean_interval(values)) or (None, None)
        made.append({"backend": backend, "offered": offered, "value": sum(values) / len(values), "low": low, "high": high})
    return made


def overviews(rows: list[dict[str, Any]], backends: list[str]) -> list[dict[str, Any]]:
    """Speed beside quality, over all quantizations: for each model, workload and kind of load that was judged, a row for each
    backend and quantization with its token rate at each load; and a chart of the largest."""
    made = []
    for key in dict.fromkeys((row["model"], row["workload"], row["kind"]) for row in rows if row["quality"]):
        members = [row for row in rows if (row["model"], row["workload"], row["kind"]) == key]
        loads_of = sorted({(row["value"], row["load"]) for row in members})
        lines = []
        for quantization, backend in sorted({(row["quantization"], row["backend"]) for row in members}, key=lambda pair: (backends.index(pair[1]), pair[0] != "none", pair[0])):
            own = [row for row in members if (row["quantization"], row["backend"]) == (quantization, backend)]
            rates = {entry["offered"]: entry for entry in estimates(measured(own), "rate")}
            form = next((row["cell"]["form"] for row in own if "form" in row["cell"]), "")
            lines.append({"backend": backend, "quantization": quantization, "form": form, "quality": own[0]["quality"], "rates": rates, "failed": len(own) - len(measured(own))})
        made.append(dict(zip(("model", "workload", "kind"), key, strict=True)) | {"loads": loads_of, "rows": lines, "charts": quality_chart(lines, loads_of[-1], backends)})
    return made


def quality_chart(lines: list[dict[str, Any]], load: tuple[float, str], backends: list[str]) -> list[dict[str, Any]]:
    """The picture of an overview, if more than one of its rows has both figures."""
    points = []
    for line in lines:
        change, rate = (line["quality"] or {}).get("perplexity_change"), line["rates"].get(load[0])
        if change and rate:
            low, high = change["interval"] or (None, None)
            names = {"backend": line["backend"], "quantization": line["quantization"], "comparable": "not comparable" if line["quality"]["reasons"] else "comparable"}
            points.append(names | {"change": change["percent"], "change_low": low, "change_high": high, "rate": rate["value"], "low": rate["low"], "high": rate["high"]})
    title = f"Speed and what it cost, {load[1]}"
    return [pictured(f"{title}: up and to the left is better", charts.speed_and_quality(points, backends, title))] if len(points) > 1 else []


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each offered load: who gives most tokens, who answers first. Nothing where there is no one to compare.

    Only cells count whose client kept up, whose answers are sound, and whose model is still comparable.
    """
    fit = [row for row in measured(rows) if row["metrics"]["client"]["valid"] and not row["evaluation"]["broken"] and not (row["quality"] or {}).get("reasons")]
    said = []
    for offered, load in sorted({(row["value"], row["load"]) for row in fit} if len({row["backend"] for row in rows}) > 1 else []):
        rate, ttft = (leaders([entry for entry in estimates(fit, name) if entry["offered"] == offered], best) for name, best in (("rate", max), ("ttft", min)))
        if rate and ttft:
            said.append(f"With {load}: most tokens from {rate}; shortest time to first token from {ttft}.")
    return said


def leaders(entries: list[dict[str, Any]], best: Any) -> str:
    """The best backend, with those whose interval overlaps its own: these runs do not tell them apart. Empty if there is none."""
    if not entries:
        return ""
    first = best(entries, key=lambda entry: entry["value"])
    if first["low"] is None:
        return f"{first['backend']} (too few samples for an interval)"
    near = [entry["backend"] for entry in entries if entry is not first and (entry["low"] is None or (entry["low"] <= first["high"] and entry["high"] >= first["low"]))]
    return str(first["backend"]) + (f" (not distinguishable from {' and '.join(near)})" if near else "")


# Titles of the axis of the offered load.
AXES = {"users": "concurrent users", "rate": "requests offered a second", "speed": "speed of the trace"}


def charts_of(group: dict[str, Any], backends: list[str]) -> list[dict[str, Any]]:
    """The charts of a group, each with its specification and its words: the study's two, then the time lines."""
    rows = measured(group["rows"])
    if not rows:
        return []
    rate, ttft = estimates(rows, "rate"), estimates(rows, "ttft")
    axis = AXES[group["kind"]]
    made = [
        ("Time to first token: lower is better", charts.by_load(ttft, backends, axis, "Time to first token, median", "ms")),
        ("Token rate: higher is better", charts.by_load(rate, backends, axis, "Output token rate, all users together", "tokens/s")),
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
            {"backend": row["backend"], "trial": row["trial"], "phase": "", **step, "busy": step.get("gpu_utilization_percent", step["server_cores"])}
            for row in rows
            if row["value"] == offered
            for step in row["machine_line"]
        ]
        made.append((f"Token rate each 5 s, {load}", charts.time_line(steps, backends, "rate", f"Token rate each 5 s, {load}", "tokens/s")))
        made.append((f"TTFT each 5 s, {load}", charts.time_line(steps, backends, "ttft", f"TTFT each 5 s, {load}", "ms, median")))
        if beside:
            what, unit = ("GPU utilisation", "%") if any("gpu_power_w" in step for step in beside) else ("The servers' CPU", "cores")
            made.append((f"{what} each 5 s, {load}", charts.time_line(beside, backends, "busy", f"{what} each 5 s, {load}", unit)))
    return [pictured(alt, spec) for alt, spec in made]


def pictured(alt: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"alt": alt, "spec": spec, "static": {theme: static(spec, theme) for theme in ("light", "dark")}}


def static(spec: dict[str, Any], theme: str) -> str:
    """The chart as an SVG data URL, for readers without scripts and for print."""
    svg = vl_convert.vegalite_to_svg(spec | {"width": STATIC_WIDTH}, config=charts.config(theme))
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def preparation(planned: experiment.Experiment) -> list[dict[str, Any]]:
    """What had to be done before the first request: one row an artefact that a cell rests on."""
    plan = planning.Plan(planned, SCRIPTS)
    jobs = [*(job for cell in planned.cells() for job in plan.prepared_for(cell)), *(job for served in planned.evaluated() for job in plan.prepared_to_judge(served))]
    paths = dict.fromkeys(job.path for job in jobs)
    found = []
    for path in sorted(paths, key=lambda path: STAGES.index(path.relative_to(plan.results).parts[0])):
        manifest, (stage, *name) = Manifest.load(path), path.relative_to(plan.results).with_suffix("").parts
        own = Path(manifest.path).is_relative_to(manifest.entry)
        entry = {
            "stage": stage,
            "name": "/".join(name),
            "seconds": manifest.duration_s,
            "bytes": manifest.bytes if own else None,
            "reproducible": manifest.facts.get("reproducible"),
        }
        found.append(entry | {"memory": manifest.peak_memory_bytes, "failure": manifest.failure})
    return found


def starts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each backend's starts: seconds until ready and of the first request after that, one of each a cell."""
    found = []
    for backend in dict.fromkeys(row["backend"] for row in measured(rows)):
        cells = [row["cell"] for row in measured(rows) if row["backend"] == backend]
        told = {name: [cell[name] for cell in cells] for name in ("ready_s", "first_answer_s", "start")}
        found.append({"backend": backend, "n": len(cells), **told})
    return found


# What is told to every backend alike, and what its server may say that it made of it.
ASKED = ("max_sequences", "context_length", "dtype", "prefix_caching")
REALISED = (*ASKED, "quantization", "kv_cache_tokens", "kernel", "version")


def audit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each backend what its servers were asked for and say they run with; `other` names what differs from what was asked."""
    found = []
    for row in {(row["model"], row["quantization"], row["backend"]): row for row in measured(rows)}.values():
        server, told = row["cell"]["spec"]["cell"]["server"], row["cell"]["realised"]
        asked = {name: server[name] for name in ASKED} if server["policy"] == "equal" else {"context_length": server["context_length"]}
        other = [name for name, value in asked.items() if name in told and told[name] != value and value != "auto"]
        found.append({name: row[name] for name in ("model", "quantization", "backend")} | {"asked": asked, "told": told, "other": other})
    return found


def provenance() -> dict[str, Any]:
    """This program's own versions, and the commit it was run from if that can be told."""
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("snakemake", "uvloop", "httptools", "pandas", "tokenizers")},
    }


def table(rows: list[dict[str, Any]], target: Path) -> None:
    """summary.csv: one row a cell, failed ones too; times in ms, rates in tokens/s."""
    flat = []
    for row in rows:
        metrics, failure = row.get("metrics", {}), row["cell"]["failure"] or {}
        low, high = metrics.get("output_token_throughput_interval") or (None, None)
        entry = {name: row[name] for name in ("model", "quantization", "backend", "workload", "kind", "value", "trial")}
        entry |= {"outcome": failure.get("kind", "measured"), "reason": failure.get("reason", ""), "weights": row["cell"].get("form", "")}
        entry |= {"output_token_throughput": metrics.get("output_token_throughput"), "output_token_throughput_low": low, "output_token_throughput_high": high}
        for name in ("ttft", "ttft_scheduled", "tpot", "itl", "e2e_latency"):
            entry |= {f"{name}_{part}_ms": metrics.get(name, {}).get(part) for part in ("p50", "p90", "p99")}
        entry |= {name: metrics.get(name) for name in ("user_rate", "request_throughput", "goodput", "requests", "isl", "osl", "full_length", "in_flight")}
        entry |= {
            "failed": sum(metrics.get("failures", {}).values()) if metrics else None,
            **{f"client_{name}": metrics.get("client", {}).get(name) for name in ("valid", "cpu_share", "ceiling_share", "ttft_error_ms", "gap_error_ms")},
            "answers_broken": row["evaluation"]["broken"],
            **quality_columns(row["quality"] or {}),
        }
        entry |= {"ready_s": row["cell"].get("ready_s"), "first_answer_s": row["cell"].get("first_answer_s")}
        flat.append(entry)
    with target.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, flat[0])
        writer.writeheader()
        writer.writerows(flat)


def quality_columns(judged: dict[str, Any]) -> dict[str, Any]:
    """What summary.csv says of the quality of what a cell served; empty where it was not judged."""
    perplexity, change, agreed = (judged.get(name) or {} for name in ("perplexity", "perplexity_change", "agreement"))
    columns: dict[str, Any] = {}
    for name, value, interval in (
        ("perplexity", perplexity.get("value"), perplexity.get("interval")),
        ("perplexity_change_percent", change.get("percent"), change.get("interval")),
    ):
        columns |= {name: value, f"{name}_low": (interval or [None, None])[0], f"{name}_high": (interval or [None, None])[1]}
    columns |= {"answers_compared": agreed.get("answers"), "answers_identical": agreed.get("identical"), "common_prefix_tokens": agreed.get("prefix_mean")}
    return columns | {"comparable": None if not (change or agreed) else not judged["reasons"]}


def number(value: float | None, digits: int = 0) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def size(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def script_json(value: Any) -> Markup:
    """JSON inside a script element: nothing in it can end the element."""
    return Markup(json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def render(results: Path, planned: experiment.Experiment, config_files: list[str], html: Path) -> None:
    """Write the three files of a report; `html` names the first, the others lie beside it."""
    rows = rows_of(results, planned)
    backends = list(planned.backends)
    groups = [group | {"charts": charts_of(group, backends), "verdicts": verdicts(group["rows"])} for group in groups_of(rows)]
    overview = overviews(rows, backends)
    # Of the page's charts each has its place in one list: those of the overviews come first.
    sections = [*overview, *groups]
    known = {
        "groups": groups,
        "overviews": overview,
        "sections": sections,
        "limits": planned.config["evaluation"],
        "rows": rows,
        "failed": [row for row in rows if row["cell"]["failure"]],
        "measured": measured(rows),
        "models": planned.config["models"],
        "config": planned.config,
        "config_text": yaml.safe_dump(planned.config, sort_keys=False, allow_unicode=True),
        "command": " ".join(["snakemake --cores 1 report", *(f"--configfile {name}" for name in config_files if name != "config.yaml")]),
        "preparation": preparation(planned),
        "starts": starts(rows),
        "audit": audit(rows),
        "realised": REALISED,
        "calibration": json.loads((results / "calibrate/client.json").read_text()),
        "hosts": list({json.dumps(row["cell"]["host"], sort_keys=True): row["cell"]["host"] for row in rows}.values()),
        "versions": {row["backend"]: row["cell"]["versions"] for row in rows if "versions" in row["cell"]},
        "provenance": provenance(),
        "needed": needed,
        "modes": MODES,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=jinja2.select_autoescape(["html", "html.j2"]), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "size": size, "script_json": script_json}
    vega = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub asks for an argument that has a default
    page = {
        "style": Markup((TEMPLATES / "style.css").read_text()),
        "vega": Markup(vega.replace("</script", "<\\/script")),
        "themes": {theme: charts.config(theme) for theme in ("light", "dark")},
        "specs": [[chart["spec"] for chart in section["charts"]] for section in sections],
    }
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(environment.get_template("report.html.j2").render(**known, **page))
    html.with_suffix(".md").write_text(environment.get_template("report.md.j2").render(**known))
    table(rows, html.with_name("summary.csv"))
    log.info("%s: %d cells, %d failed", html, len(rows), len(known["failed"]))


def main() -> None:
    args = job.arguments(__doc__)
    config = args.spec["config"]
    planned = experiment.load(config)
    render(Path(planned.results), planned, args.spec["config_files"], args.output)


if __name__ == "__main__":
    main()
