"""Render what was measured: report.html (one file, no network), report.md and summary.csv.

Shows a cell only if its key, and every key on its way, is the plan's; else it fails, and says which cells and why.
"""

from __future__ import annotations

import csv
import json
import logging
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
import yaml
from markupsafe import Markup

from comparison.verdicts import measured, verdicts
from config import experiment
from config.paths import ROOT
from metrics.intervals import needed
from pipeline import results, stage
from pipeline.artifact import Unreadable, read_json
from pipeline.stage import Task

TEMPLATES = ROOT / "report"
# report/ is no package and needs no installation; its view and charts are kept beside the page that shows them.
sys.path.append(str(TEMPLATES))
import charts  # noqa: E402
import view  # noqa: E402

log = logging.getLogger(__name__)


def strangers(job: Task, found: view.Found, sessions: dict[str, Path]) -> list[str]:
    """A line for each result that is not the plan's: it was measured, summarized or judged under another key."""
    lines = []
    for name, cells in job.spec["summaries"].items():
        lines += unplanned(sessions[name], job.spec["sessions"][name], "this session")
        for load, keys in cells.items():
            summary = found.summaries[name] / load / "summary.json"
            lines += unplanned(summary, keys["summary"], "this summary", cell=keys["cell"])
    for name, key in job.spec["qualities"].items():
        lines += unplanned(found.qualities[name], key, "this quality")
    return lines


def unplanned(path: Path, key: str, what: str, cell: str | None = None) -> list[str]:
    try:
        value = read_json(path)
        if value.get("key") != key:
            return [f"{path}: {what} is of key {value.get('key')}, the plan's is {key}"]
        if cell and value["cell"]["key"] != cell:
            return [
                f"{path}: it was made of a cell of key {value['cell']['key']}, the plan's is {cell}"
            ]
    except (Unreadable, KeyError, TypeError) as error:
        return [f"{path}: {error}"]
    return []


def by_name(stage_name: str, paths: list[Path]) -> dict[str, Path]:
    """Results by the name of their job: what stands in their path after the stage."""
    return {str(path.parent).rpartition(f"{stage_name}/")[2]: path for path in paths}


def provenance() -> dict[str, Any]:
    """This program's own versions, and the commit it was run from if that can be told."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return {
        "commit": commit.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        "packages": {
            name: version(name)
            for name in ("snakemake", "uvloop", "httptools", "pandas", "tokenizers")
        },
    }


def write_table(rows: list[dict[str, Any]], target: Path) -> None:
    with target.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def number(value: float | None, digits: int = 0) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def size(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def script_json(value: Any) -> Markup:
    """JSON inside a script element: nothing in it can end the element."""
    return Markup(
        json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )


def render(
    rows: list[dict[str, Any]], planned: experiment.Experiment, facts: dict[str, Any], html: Path
) -> None:
    """Write the three files of a report; `html` names the first, the others lie beside it.

    `facts`: calibration (client.json), config_files, prepared (manifests of what was made first).
    """
    backends = list(planned.backends)
    groups = [
        group | {"charts": view.charts_of(group, backends), "verdicts": verdicts(group["rows"])}
        for group in view.groups_of(rows)
    ]
    overview = view.overviews(rows, backends)
    # Of the page's charts each has its place in one list: those of the overviews come first.
    sections = [*overview, *groups]
    config_files = [
        f"--configfile {name}" for name in facts["config_files"] if name != "config.yaml"
    ]
    order = view.order_of(rows)
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
        "command": " ".join(["snakemake --cores 1", *config_files]),
        "results": planned.results,
        "preparation": view.preparation(facts["prepared"]),
        "starts": view.starts(rows),
        "order": order,
        "disorder": view.disorder(order),
        "audit": view.audit(rows),
        "realised": view.REALISED,
        "calibration": facts["calibration"],
        "hosts": list(
            {
                json.dumps(row["cell"]["host"], sort_keys=True): row["cell"]["host"] for row in rows
            }.values()
        ),
        "versions": {
            row["backend"]: row["cell"]["versions"] for row in rows if "versions" in row["cell"]
        },
        "provenance": provenance(),
        "needed": needed,
        "modes": view.MODES,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
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
    write_table(view.table(rows), html.with_name("summary.csv"))
    log.info("%s: %d cells, %d failed", html, len(rows), len(known["failed"]))


def main() -> None:
    job = stage.task(__doc__)
    planned = experiment.load(job.spec["config"])
    folder = Path(planned.results)
    summaries = {
        name: path.parent for name, path in by_name("summarize", job.inputs["summaries"]).items()
    }
    found = view.Found(summaries, by_name("assess", job.inputs.get("qualities", [])))
    lines = strangers(job, found, by_name("measure", job.inputs["sessions"]))
    if lines:
        folders = sorted({line.partition(":")[0].rpartition("/")[0] for line in lines})
        command = f"rm -r {' '.join(folders)} && snakemake --cores 1"
        raise SystemExit(
            "No report: these results are not those of this configuration.\n"
            + "\n".join(lines)
            + f"\nRemedy: {command}"
        )
    facts = {
        "calibration": read_json(job.inputs["calibration"][0]),
        "config_files": job.spec["config_files"],
        "prepared": job.inputs["prepared"],
    }
    render(view.rows_of(found, planned), planned, facts, folder / "report.html")
    of = [
        path
        for name in ("summaries", "qualities", "calibration")
        for path in job.inputs.get(name, [])
    ]
    results.write(job.output, {"key": job.key, "made_of": results.made_of(*of)})


if __name__ == "__main__":
    main()
