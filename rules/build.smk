rule build:
    """What a backend serves: an engine, a compiled library, or the weights as they are.

    REQUIRED INPUTS: the weights, the backend's environment
    OUTPUTS: manifest: the engine
    """
    input:
        weights=ancient("<results>/quantize/{model}/{quantization}.json"),
        environment=lambda w: ancient(f"<results>/environment/{plan.environment_of(w.backend)}.json"),
    output:
        "<results>/build/{model}/{quantization}/{backend}.json",
    log:
        "<results>/logs/build/{model}/{quantization}/{backend}.log",
    params:
        spec=lambda w: plan.build(w.model, w.quantization, w.backend).spec,
        code=lambda w: plan.build(w.model, w.quantization, w.backend).code,
    resources:
        gpu=1,
    message:
        "Building what {wildcards.backend} serves"
    shell:
        "python $scripts/build.py --spec {params.spec:q} --code {params.code} --weights {input.weights:q}"
        " --environment {input.environment:q} --log {log:q} --output {output:q}"
