rule environment:
    """What a backend or a method runs in: a Python environment from its hashed lock, or a container image.

    INPUTS: envs/{environment}.txt, which the specification names by its hash
    OUTPUT: manifest: the interpreter's path, the installed versions; the image
    """
    input:
        inputs("environment"),
    output:
        result("environment"),
    log:
        log_of("environment"),
    priority: priority("environment")
    params:
        spec=spec("environment"),
    message:
        "Installing the environment of {wildcards.environment}"
    shell:
        'python "$scripts"/environment.py --spec {params.spec:q} --log {log:q} --output {output:q}'
