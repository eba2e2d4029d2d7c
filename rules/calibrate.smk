rule calibrate:
    """The client against a server that does no work: the error of its times, and its ceiling. Alone on its machine.

    OUTPUT: the error at several numbers of streams, reads and requests a second at most
    """
    input:
        inputs("calibrate"),
    output:
        result("calibrate"),
    log:
        log_of("calibrate"),
    priority: priority("calibrate")
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        spec=spec("calibrate"),
    message:
        "Calibrating the client against a server that does no work"
    shell:
        'python "$scripts"/calibrate.py --spec {params.spec:q} --log {log:q} --output {output:q}'
