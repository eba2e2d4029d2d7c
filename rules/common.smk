"""Reads the configuration, once, and gives the rules their words: the plan, paths, the shell's surroundings."""

import os
import shlex
import sys
from pathlib import Path

SCRIPTS = Path(workflow.basedir) / "scripts"
sys.path.insert(0, str(SCRIPTS))

import experiment
import planning
from spec import to_json

# The embedded one, then those of the command line: the last of them is the experiment.
config_files = [
    os.path.relpath(file)
    for file in (workflow.configfiles[-1], *workflow.overwrite_configfiles)
]


def pin(kind, name, revision):
    """What a branch or tag is locked to; the clients that ask are only loaded where one is used.

    A dry run plans with the word itself where nobody can be asked.
    """
    import lock
    from failure import Failure

    try:
        return lock.pin(lock.path_of(config_files[-1]), kind, name, revision)
    except Failure as error:
        if not workflow.output_settings.dryrun:
            raise
        print(
            f"{kind} {name}: '{revision}' is not resolved in this dry run: {error}",
            file=sys.stderr,
        )
        return revision


plan = planning.Plan(experiment.load(config, config_files[-1], pin), SCRIPTS)
CELL = "{model}/{quantization}/{backend}/{workload}/{offered}/t{trial}"
SERVED = "{model}/{quantization}/{backend}"

# Scripts run in the interpreter that runs snakemake, whatever the PATH says. What changes no result goes this way
# rather than through params: where the store is, where else to look for packages.
surroundings = {
    "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    "scripts": str(SCRIPTS),
    "SHOWDOWN_STORE": config["store"] or os.environ.get("SHOWDOWN_STORE", ""),
    "SHOWDOWN_EXTRA_INDEX_URL": config["extra_index_url"] or "",
}
shell.prefix(
    "set -euo pipefail; export "
    + " ".join(f"{k}={shlex.quote(v)}" for k, v in surroundings.items())
    + "; "
)


def upstream(job, *needed):
    """What a job needs, as its input. A job whose own key stands is run again by none of it, however often that is made."""
    return [ancient(str(n.path)) if job.settled else str(n.path) for n in needed]


if workflow.is_main_process:
    plan.recheck()


pathvars:
    results=plan.experiment.results,


wildcard_constraints:
    environment=planning.any_of(plan.environments),
    model=planning.any_of(plan.experiment.models),
    quantization=planning.any_of(plan.experiment.quantizations),
    use=planning.any_of(plan.uses),
    backend=planning.any_of(plan.experiment.backends),
    workload=planning.any_of(plan.experiment.workloads),
    offered=planning.any_of(plan.experiment.offered),
    trial=r"\d+",
