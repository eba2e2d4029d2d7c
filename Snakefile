# LLM Backend Showdown: one workflow from a model revision to a report that says which inference backend to serve it with.
#
# Paths, below the experiment's results folder:
#   environment/{environment}.json                        a backend's Python environment
#   download/{model}.json   prompts/{model}/{workload}.json
#   texts/{model}/{use}.json                              evaluation, or calibration-{quantization}
#   quantize/{model}/{quantization}.json   build/{model}/{quantization}/{backend}.json
#   reference/{model}.json                                what the unquantized model says
#   {stage}/{model}/{quantization}/{backend}/...          probe, assess: one served model
#   {stage}/{model}/{quantization}/{backend}/{workload}/{offered}/t{trial}/...   measure, evaluate, summarize: one cell;
#       offered is c8 (8 users), r2.5 (requests a second) or x1 (a trace at its own speed)
#   calibrate/client.json                                 the load generator's own error and ceiling
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
include: "rules/evaluate.smk"
include: "rules/assess.smk"
include: "rules/summarize.smk"
include: "rules/report.smk"
