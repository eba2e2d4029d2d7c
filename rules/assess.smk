rule reference:
    """What the unquantized model says in Transformers.

    REQUIRED INPUTS: the model, the texts it is judged by, the environment that has Transformers
    OUTPUTS: manifest: the probabilities of the passages, the greedy answers
    """
    input:
        model=lambda w: upstream(plan.reference(w.model), plan.download(w.model)),
        texts=lambda w: upstream(
            plan.reference(w.model), plan.texts(w.model, planning.EVALUATION)
        ),
        environment=lambda w: upstream(
            plan.reference(w.model), plan.environment(plan.converter.name)
        ),
        again=lambda w: plan.reference(w.model).again,
    output:
        "<results>/reference/{model}.json",
    log:
        "<results>/logs/reference/{model}.log",
    threads: workflow.cores
    resources:
        gpu=int(plan.experiment.server.device == "gpu"),
    params:
        spec=lambda w: plan.reference(w.model).spec,
        code=lambda w: plan.reference(w.model).code,
    message:
        "Asking {wildcards.model} in Transformers, unquantized"
    shell:
        'python "$scripts"/reference.py --spec {params.spec:q} --code {params.code} --model {input.model:q} --texts {input.texts:q}'
        " --environment {input.environment:q} --log {log:q} --output {output:q}"


rule probe:
    """What a served model says: a server of its own, alone on its machine, asked for probabilities and greedy answers.

    REQUIRED INPUTS: the engine, the backend's environment, the model (its tokenizer), the texts, lm-evaluation-harness where tasks are asked for
    OUTPUTS: probe.json: raw answers, or the reason of the failure
    """
    input:
        engine=lambda w: upstream(plan.probe(**w), plan.build(**w)),
        environment=lambda w: upstream(plan.probe(**w), plan.environment_of(w.backend)),
        model=lambda w: upstream(plan.probe(**w), plan.download(w.model)),
        texts=lambda w: upstream(
            plan.probe(**w), plan.texts(w.model, planning.EVALUATION)
        ),
        harness=lambda w: upstream(plan.probe(**w), *plan.harness()),
        again=lambda w: plan.probe(**w).again,
    output:
        f"<results>/probe/{SERVED}/probe.json",
    log:
        f"<results>/logs/probe/{SERVED}/probe.log",
    threads: workflow.cores
    resources:
        gpu=plan.experiment.server.tensor_parallel,
    params:
        spec=lambda w: plan.probe(**w).spec,
        code=lambda w: plan.probe(**w).code,
    message:
        "Asking {wildcards.backend} how good {wildcards.model} still is ({wildcards.quantization})"
    shell:
        'python "$scripts"/probe.py --spec {params.spec:q} --code {params.code} --engine {input.engine:q} --environment {input.environment:q}'
        " --model {input.model:q} --texts {input.texts:q} --harness {input.harness:q} --log {log:q} --output {output:q}"


rule assess:
    """The quality of what is served, against the unquantized model.

    REQUIRED INPUTS: the probe, the reference, the model (its tokenizer)
    OUTPUTS: quality.json: perplexity, agreement, tasks, with their intervals
    """
    input:
        probe=f"<results>/probe/{SERVED}/probe.json",
        reference="<results>/reference/{model}.json",
        model=lambda w: upstream(plan.download(w.model), plan.download(w.model)),
    output:
        f"<results>/assess/{SERVED}/quality.json",
    log:
        f"<results>/logs/assess/{SERVED}.log",
    params:
        spec=to_json({}),
        code=lambda w: plan.code("assess.py"),
    message:
        "Judging {wildcards.backend} ({wildcards.model}, {wildcards.quantization})"
    shell:
        'python "$scripts"/assess.py --spec {params.spec:q} --code {params.code} --probe {input.probe:q} --reference {input.reference:q}'
        " --model {input.model:q} --log {log:q} --output {output:q}"
