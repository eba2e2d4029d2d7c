rule environment:
    """A Python environment, installed from its hashed lock, once per lock in the store.

    REQUIRED INPUTS: envs/{environment}.txt, which the specification names by its hash
    OUTPUTS: manifest: the interpreter's path, the installed versions
    """
    input:
        again=lambda w: plan.environment(w.environment).again,
    output:
        "<results>/environment/{environment}.json",
    log:
        "<results>/logs/environment/{environment}.log",
    params:
        spec=lambda w: plan.environment(w.environment).spec,
    message:
        "Installing the environment of {wildcards.environment}"
    shell:
        'python "$scripts"/environment.py --spec {params.spec:q} --log {log:q} --output {output:q}'
