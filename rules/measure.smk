rule measure:
    """One cell: its server up, warm-up, load, server down. Alone on its machine: it takes every core and the GPU.

    REQUIRED INPUTS: the engine, the prompts, the backend's environment
    OUTPUTS: cell.json: the course of the run or the reason of its failure; beside it records.arrow, the raw facts
    """
    input:
        engine=lambda w: upstream(
            plan.measure(**w), plan.build(w.model, w.quantization, w.backend)
        ),
        prompts=lambda w: upstream(plan.measure(**w), plan.prompts(w.model, w.workload)),
        environment=lambda w: upstream(
            plan.measure(**w), plan.environment_of(w.backend)
        ),
        again=lambda w: plan.measure(**w).again,
    output:
        f"<results>/measure/{CELL}/cell.json",
    log:
        f"<results>/logs/measure/{CELL}/measure.log",
    threads: workflow.cores
    resources:
        gpu=plan.experiment.server.tensor_parallel,
    params:
        spec=lambda w: plan.measure(**w).spec,
        code=lambda w: plan.measure(**w).code,
    message:
        "Measuring {wildcards.backend} at {wildcards.offered} ({wildcards.model}, {wildcards.quantization}, {wildcards.workload}, trial {wildcards.trial})"
    shell:
        'python "$scripts"/measure.py --spec {params.spec:q} --code {params.code} --engine {input.engine:q} --prompts {input.prompts:q}'
        " --environment {input.environment:q} --log {log:q} --output {output:q}"
