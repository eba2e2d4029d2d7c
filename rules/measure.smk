rule measure:
    """One cell: its server up, warm-up, load, server down. Alone on its machine: it takes every core and the GPU.

    REQUIRED INPUTS: the engine, the prompts, the backend's environment
    OUTPUTS: cell.json: the course of the run or the reason of its failure; beside it records.arrow, the raw facts
    """
    input:
        engine=ancient("<results>/build/{model}/{quantization}/{backend}.json"),
        prompts=ancient("<results>/prompts/{model}/{workload}.json"),
        environment=lambda w: ancient(f"<results>/environment/{plan.environment_of(w.backend)}.json"),
        again=lambda w: planning.again(plan.experiment.results, CELL.format(**w)),
    output:
        f"<results>/measure/{CELL}/cell.json",
    log:
        f"<results>/logs/measure/{CELL}/measure.log",
    params:
        spec=lambda w: plan.measure(**w).spec,
        code=lambda w: plan.measure(**w).code,
    threads: workflow.cores
    resources:
        gpu=1,
    message:
        "Measuring {wildcards.backend} with {wildcards.concurrency} users ({wildcards.model}, {wildcards.quantization}, {wildcards.workload}, trial {wildcards.trial})"
    shell:
        "python $scripts/measure.py --spec {params.spec:q} --code {params.code} --engine {input.engine:q} --prompts {input.prompts:q}"
        " --environment {input.environment:q} --log {log:q} --output {output:q}"
