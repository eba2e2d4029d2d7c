rule measure:
    """One session: its server up once, every load of every workload, the quality questions, its server down. Alone on its machine.

    INPUTS: the engine, the prompts, the backend's environment; in trial 1 the texts, the model (its tokenizer), the harness
    OUTPUT: what became of each cell; beside it each cell's cell.json and records.arrow, and quality.json
    """
    input:
        inputs("measure"),
    output:
        result("measure"),
    log:
        log_of("measure"),
    priority: priority("measure")
    threads: workflow.cores
    resources:
        gpu=plan.experiment.server.tensor_parallel,
    params:
        spec=spec("measure"),
    message:
        "Measuring {wildcards.backend} ({wildcards.model}, {wildcards.quantization}), trial {wildcards.trial}"
    shell:
        'python "$scripts"/measure.py --spec {params.spec:q} --log {log:q} --output {output:q}'
