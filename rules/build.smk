rule build:
    """What a backend serves: an engine, a compiled library, or the weights as they are.

    REQUIRED INPUTS: the weights, the backend's environment
    OUTPUTS: manifest: the engine
    """
    input:
        weights=lambda w: upstream(
            plan.build(**w), plan.quantize(w.model, w.quantization)
        ),
        environment=lambda w: upstream(plan.build(**w), plan.environment_of(w.backend)),
        again=lambda w: plan.build(**w).again,
    output:
        "<results>/build/{model}/{quantization}/{backend}.json",
    log:
        "<results>/logs/build/{model}/{quantization}/{backend}.log",
    resources:
        gpu=plan.experiment.server.tensor_parallel,
    params:
        spec=lambda w: plan.build(w.model, w.quantization, w.backend).spec,
        code=lambda w: plan.build(w.model, w.quantization, w.backend).code,
    message:
        "Building what {wildcards.backend} serves"
    shell:
        'python "$scripts"/build.py --spec {params.spec:q} --code {params.code} --weights {input.weights:q}'
        " --environment {input.environment:q} --log {log:q} --output {output:q}"
