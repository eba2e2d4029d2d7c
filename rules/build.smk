rule build:
    """What a backend serves: an engine, a compiled library, or the weights as they are.

    INPUTS: the weights, the backend's environment
    OUTPUT: manifest: the engine
    """
    input:
        inputs("build"),
    output:
        result("build"),
    log:
        log_of("build"),
    priority: priority("build")
    resources:
        gpu=plan.experiment.server.tensor_parallel,
    params:
        spec=spec("build"),
    message:
        "Building what {wildcards.backend} serves"
    shell:
        'python "$scripts"/build.py --spec {params.spec:q} --log {log:q} --output {output:q}'
