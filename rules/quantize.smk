rule texts:
    """The texts that a model is calibrated with or judged by, in its own tokens.

    INPUTS: the model (its tokenizer), the files of the texts where they do not come from the hub
    OUTPUT: manifest: blocks of tokens, or passages and prompts
    """
    input:
        inputs("texts"),
    output:
        result("texts"),
    log:
        log_of("texts"),
    priority: priority("texts")
    params:
        spec=spec("texts"),
    message:
        "Preparing the texts of {wildcards.model} for {wildcards.use}"
    shell:
        'python "$scripts"/texts.py --spec {params.spec:q} --log {log:q} --output {output:q}'


rule quantize:
    """The weights of a model in one quantization.

    INPUTS: the model; the calibration's blocks and the method's environment where it has them
    OUTPUT: manifest: the quantized weights, or the model itself for the method none
    """
    input:
        inputs("quantize"),
    output:
        result("quantize"),
    log:
        log_of("quantize"),
    priority: priority("quantize")
    threads: lambda w: workflow.cores if plan.quantizes(w.quantization) else 1
    resources:
        gpu=lambda w: int(plan.quantizes(w.quantization) and plan.on_gpu),
    params:
        spec=spec("quantize"),
    message:
        "Quantizing {wildcards.model}: {wildcards.quantization}"
    shell:
        'python "$scripts"/quantize.py --spec {params.spec:q} --log {log:q} --output {output:q}'
