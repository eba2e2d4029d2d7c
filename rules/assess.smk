rule reference:
    """What the unquantized model says in Transformers.

    INPUTS: the model, the texts it is judged by, the environment that has Transformers
    OUTPUT: manifest: the probabilities of the passages, the greedy answers
    """
    input:
        inputs("reference"),
    output:
        result("reference"),
    log:
        log_of("reference"),
    priority: priority("reference")
    threads: workflow.cores
    resources:
        gpu=int(plan.on_gpu),
    params:
        spec=spec("reference"),
    message:
        "Asking {wildcards.model} in Transformers, unquantized"
    shell:
        'python "$scripts"/reference.py --spec {params.spec:q} --log {log:q} --output {output:q}'


rule assess:
    """The quality of what is served, against the unquantized model.

    INPUTS: the session that asked it, the reference, the model (its tokenizer)
    OUTPUT: perplexity, agreement, tasks, with their intervals
    """
    input:
        inputs("assess"),
    output:
        result("assess"),
    log:
        log_of("assess"),
    priority: priority("assess")
    params:
        spec=spec("assess"),
    message:
        "Judging {wildcards.backend} ({wildcards.model}, {wildcards.quantization})"
    shell:
        'python "$scripts"/assess.py --spec {params.spec:q} --log {log:q} --output {output:q}'
