rule calibrate:
    """The client against a server that does no work: the error of its times, and its ceiling. Alone on its machine, as a cell is.

    OUTPUTS: client.json: the error at several numbers of streams, reads and requests a second at most
    """
    output:
        "<results>/calibrate/client.json",
    log:
        "<results>/logs/calibrate.log",
    priority: 1
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        spec=plan.calibrate().spec,
        code=plan.calibrate().code,
    message:
        "Calibrating the client against a server that does no work"
    shell:
        'python "$scripts"/calibrate.py --spec {params.spec:q} --code {params.code} --log {log:q} --output {output:q}'
