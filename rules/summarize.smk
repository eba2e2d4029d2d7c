rule summarize:
    """Records into metrics: per request, per five seconds, per cell.

    REQUIRED INPUTS: the cell with its records, its evaluation, the model (its tokenizer), the client's calibration
    OUTPUTS: summary.json: the cell and its windows; beside it requests.parquet, one row a request
    """
    input:
        cell=f"<results>/measure/{CELL}/cell.json",
        evaluation=f"<results>/evaluate/{CELL}/evaluation.json",
        calibration="<results>/calibrate/client.json",
        model=lambda w: upstream(plan.download(w.model), plan.download(w.model)),
    output:
        f"<results>/summarize/{CELL}/summary.json",
    log:
        f"<results>/logs/summarize/{CELL}.log",
    params:
        spec=lambda w: to_json({"slo": config["slo"]}),
        code=lambda w: plan.code("summarize.py"),
    message:
        "Summarizing {wildcards.backend} at {wildcards.offered}"
    shell:
        'python "$scripts"/summarize.py --spec {params.spec:q} --code {params.code} --cell {input.cell:q} --evaluation {input.evaluation:q}'
        " --model {input.model:q} --calibration {input.calibration:q} --log {log:q} --output {output:q}"
