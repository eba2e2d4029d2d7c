"""Render what was measured: report.html (one file, no network), report.md and summary.csv.

Shows a cell only if its key, and every key on its way, is the plan's; else it fails, and says which cells and why.
"""

from __future__ import annotations

import csv
import json
import logging
import platform
import shlex
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
from config.jobs import RESULTS
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


def strangers(job: Task) -> list[tuple[Path, str]]:
    """Each file whose content is not the plan's, and why: it was measured, summarized or judged under another key."""
    found: list[tuple[Path, str]] = []
    spec, sessions = job.spec, job.results["measure"]
    for name, cells in spec["summaries"].items():
        session = sessions[name]
        found += unplanned(session, ("key",), spec["sessions"][name])
        for load, keys in cells.items():
            found += unplanned(session, ("outcomes", load, "key"), keys["cell"])
            summary = job.results["summarize"][name].parent / load / "summary.json"
            found += unplanned(summary, ("key",), keys["summary"])
            found += unplanned(summary, ("cell", "key"), keys["cell"])
    for name, key in spec["qualities"].items():
        quality = job.results["assess"][name]
        found += unplanned(quality, ("key",), key)
        found += unplanned(quality, ("questions",), spec["questions"][name])
    found += unplanned(job.results["calibrate"]["client"], ("key",), spec["calibration"])
    return found


def unplanned(path: Path, place: tuple[str, ...], key: str) -> list[tuple[Path, str]]:
    """The file and why it is not the plan's, if at this place of it there is not this key."""
    try:
        value: Any = read_json(path)
        for step in place:
            value = value[step]
    except (Unreadable, KeyError, TypeError) as error:
        return [(path, str(error))]
    told = f"its {' '.join(place)} is {value}, the plan's is {key}"
    return [] if value == key else [(path, told)]


def refuse(found: list[tuple[Path, str]], command: str) -> None:
    """End, naming each file once and how to have it made again."""
    paths = dict.fromkeys(path for path, _ in found)
    lines = [f"{path}: {why}" for path, why in found]
    remedy = f"Remedy: rm {shlex.join(map(str, paths))} && {command}"
    words = "No report: these results are not those of this configuration."
    raise SystemExit("\n".join([words, *lines, remedy]))


def command_of(config_files: list[str]) -> str:
    """What makes this report."""
    extra = [
        part for name in config_files if name != "config.yaml" for part in ("--configfile", name)
    ]
    return shlex.join(["snakemake", "--cores", "1", *extra])


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

    `facts`: the client's calibration, config_files, and prepared: stage, name and manifest of what was made first.
    """
    backends = list(planned.backends)
    groups = [
        group | {"charts": view.charts_of(group, backends), "verdicts": verdicts(group["rows"])}
        for group in view.groups_of(rows)
    ]
    overview = view.overviews(rows, backends)
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
        "command": command_of(facts["config_files"]),
        "results": planned.results,
        "preparation": view.preparation(facts["prepared"]),
        "starts": view.starts(rows),
        "order": view.order_of(rows),
        "disorder": view.disorder(rows),
        "died_after": [row for row in rows if row["cell"].get("died_after")],
        "primed": sorted({row["backend"] for row in rows if row["cell"].get("cache") == "primed"}),
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
    found = strangers(job)
    if found:
        refuse(found, command_of(job.spec["config_files"]))
    planned = experiment.load(job.spec["config"])
    facts = {
        "calibration": read_json(job.results["calibrate"]["client"]),
        "config_files": job.spec["config_files"],
        "prepared": [
            (stage_name, name, path)
            for stage_name, files in job.results.items()
            for name, path in files.items()
            if stage_name not in RESULTS
        ],
    }
    html = Path(planned.results) / "report.html"
    render(view.rows_of(job.results, planned), planned, facts, html)
    parts = {
        f"../../{path.name}": results.part(path)
        for path in (html, html.with_suffix(".md"), html.with_name("summary.csv"))
    }
    of = [
        path
        for name in ("summaries", "qualities", "calibration")
        for path in job.inputs.get(name, [])
    ]
    made_of = results.made_of(*of)
    results.write(job.output, {"key": job.key, "made_of": made_of, "parts": parts})


if __name__ == "__main__":
    main()
