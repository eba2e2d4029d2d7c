rule summarize:
    """The records of a session into metrics: per request, per five seconds, per cell; the sanity of the answers.

    INPUTS: the session, the model (its tokenizer), the client's calibration
    OUTPUT: which summaries there are; beside it each cell's summary.json and requests.parquet
    """
    input:
        inputs("summarize"),
    output:
        result("summarize"),
    log:
        log_of("summarize"),
    priority: priority("summarize")
    params:
        spec=spec("summarize"),
    message:
        "Summarizing {wildcards.backend} ({wildcards.model}, {wildcards.quantization}), trial {wildcards.trial}"
    shell:
        'python "$scripts"/summarize.py --spec {params.spec:q} --log {log:q} --output {output:q}'
