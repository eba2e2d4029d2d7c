rule evaluate:
    """Is what was timed any good? Sanity of the timed answers of one cell.

    REQUIRED INPUTS: the cell, with its records
    OUTPUTS: evaluation.json
    """
    input:
        cell=f"<results>/measure/{CELL}/cell.json",
    output:
        f"<results>/evaluate/{CELL}/evaluation.json",
    log:
        f"<results>/logs/evaluate/{CELL}.log",
    params:
        spec=to_json({}),
        code=lambda w: plan.code("evaluate.py"),
    message:
        "Reading the answers of {wildcards.backend} at {wildcards.offered}"
    shell:
        'python "$scripts"/evaluate.py --spec {params.spec:q} --code {params.code} --cell {input.cell:q} --log {log:q} --output {output:q}'
