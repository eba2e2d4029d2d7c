# LLM Backend Showdown: one workflow from a model revision to a report that says which inference backend to serve it with.
#
# What reruns: a result's file carries in its name the key of what it was made from, so a result is there or it is not.
# The jobs, their paths and their keys are stated in scripts/config/plan.py, once; docs/reruns.md says what an edit reruns.
#
# Paths, below the experiment's results folder:
#   {stage}/{names}/{id}.json     what a job wrote; names: model, quantization, backend, t1 ... as far as the stage has them
#   measure/{model}/{quantization}/{backend}/t{trial}/{workload}/{load}/cell.json, records.arrow
#       load is c8 (8 users), r2.5 (requests a second) or x1 (a trace at its own speed)
#   specs/{stage}/{names}/{id}.json   what the job was told
#   logs/{stage}/{names}/{id}.log
#   report.html   report.md   summary.csv
from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/environment.smk"
include: "rules/download.smk"
include: "rules/quantize.smk"
include: "rules/build.smk"
include: "rules/calibrate.smk"
include: "rules/measure.smk"
include: "rules/summarize.smk"
include: "rules/assess.smk"
include: "rules/report.smk"


rule all:
    """The report: what `snakemake --cores 1` makes."""
    input:
        rules.report.output,
