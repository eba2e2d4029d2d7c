"""Reads the configuration, once, and gives the rules their words: paths, inputs, the shell's environment."""

import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

SCRIPTS = Path(workflow.basedir) / "scripts"
sys.path.insert(0, str(SCRIPTS))

from config import experiment, pins, schema
from config import plan as planning
from pipeline.artifact import read_json
from pipeline.failure import Failure

# The embedded one, then those of the command line: the last of them is the experiment.
config_files = [
    os.path.relpath(file)
    for file in (workflow.configfiles[-1], *workflow.overwrite_configfiles)
]


def pin(kind, name, revision):
    """What a branch or tag is pinned to. A dry run plans with the word itself where nobody can be asked."""
    try:
        return lock.pin(kind, name, revision)
    except Failure as error:
        if not workflow.output_settings.dryrun:
            raise
        print(
            f"{kind} {name}: '{revision}' is not resolved in this dry run: {error}",
            file=sys.stderr,
        )
        return revision


try:
    for file in config_files:
        for problem in schema.repeated_keys(Path(file)):
            raise experiment.ConfigError(f"{file}: {problem}")
    lock = pins.Pins(pins.path_of(config_files[-1]))
    plan = planning.Plan(
        experiment.load(config, config_files[-1], pin),
        SCRIPTS,
        config_files,
    )
except (experiment.ConfigError, Failure) as error:
    raise WorkflowError(str(error)) from None

# Scripts run in the interpreter that runs snakemake, whatever the PATH says. What changes no result goes this way
# rather than through a specification: where the store is, where else to look for packages.
shell_environment = {
    "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    "scripts": str(SCRIPTS),
    "SHOWDOWN_STORE": config["store"] or os.environ.get("SHOWDOWN_STORE", ""),
    "SHOWDOWN_EXTRA_INDEX_URL": config["extra_index_url"] or "",
    # No job outlives the Snakemake that started it.
    "SHOWDOWN_PARENT": str(os.getpid()),
}
shell.prefix(
    "set -euo pipefail; export "
    + " ".join(f"{k}={shlex.quote(v)}" for k, v in shell_environment.items())
    + "; "
)


onstart:
    if workflow.dag_settings.forcerun or workflow.dag_settings.forceall:
        raise WorkflowError(
            "--forcerun and --forceall would do nothing: what stands is kept. Remedy: to measure a cell again, remove its"
            " folder below <results>/measure; to make anything else again, remove its file below <results>/<stage>."
        )
    # Not while planning, so that a dry run writes nothing.
    lock.save()
    plan.write_specs()


def job(stage, wildcards):
    return plan.jobs[stage, planning.STAGES[stage].format(**wildcards)]


def result(stage):
    """The path of what a stage's job writes."""
    return f"<results>/{stage}/{planning.STAGES[stage]}/{{id}}.json"


def log_of(stage):
    return f"<results>/logs/{stage}/{planning.STAGES[stage]}/{{id}}.log"


def inputs(stage):
    """What a stage's job reads, by name; nothing where its result stands.

    So no job that stands lies between two that do not, and none of these is passed over: Snakemake does not look at what is
    below a job that it runs again for a reason of its own. Where a single job runs on a cluster's node, its task says what
    was decided before.
    """

    def by_name(wildcards):
        wanted = job(stage, wildcards)
        if not workflow.is_main_process:
            found = read_json(Path(spec(stage)(wildcards)))["inputs"]
        else:
            found = {} if wanted in plan.standing else plan.task(wanted)["inputs"]
        return {name.replace(" ", "_"): paths for name, paths in found.items()}

    return unpack(by_name)


def spec(stage):
    """The file that says what a stage's job is to make."""
    path = f"{plan.folder}/specs/{stage}/{planning.STAGES[stage]}/{{id}}.json"
    return lambda wildcards: path.format(**wildcards)


def priority(stage):
    return lambda wildcards: plan.priority(stage, job(stage, wildcards).name)


pathvars:
    results=plan.experiment.results,


wildcard_constraints:
    id=r"[0-9a-f]{20}(-\d+)?",
    environment=planning.any_of(plan.environments),
    model=planning.any_of(plan.experiment.models),
    quantization=planning.any_of(plan.experiment.quantizations),
    use=planning.any_of(plan.uses),
    backend=planning.any_of(plan.experiment.backends),
    workload=planning.any_of(plan.experiment.workloads),
    trial=r"\d+",
