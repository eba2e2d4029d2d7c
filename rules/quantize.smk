rule quantize:
    """The weights of a model in one quantization.

    REQUIRED INPUTS: the model
    OUTPUTS: manifest: the quantized weights, or the model itself for the method none
    """
    input:
        model=lambda w: upstream(
            plan.quantize(w.model, w.quantization), plan.download(w.model)
        ),
        again=lambda w: plan.quantize(w.model, w.quantization).again,
    output:
        "<results>/quantize/{model}/{quantization}.json",
    log:
        "<results>/logs/quantize/{model}/{quantization}.log",
    params:
        spec=lambda w: plan.quantize(w.model, w.quantization).spec,
        code=lambda w: plan.quantize(w.model, w.quantization).code,
    message:
        "Quantizing {wildcards.model}: {wildcards.quantization}"
    shell:
        'python "$scripts"/quantize.py --spec {params.spec:q} --code {params.code} --model {input.model:q} --log {log:q} --output {output:q}'
