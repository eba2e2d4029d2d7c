rule texts:
    """The texts that a model is calibrated with or judged by, in its own tokens.

    REQUIRED INPUTS: the model (its tokenizer), the files of the texts where they do not come from the hub
    OUTPUTS: manifest: blocks of tokens, or passages and prompts
    """
    input:
        model=lambda w: upstream(plan.texts(w.model, w.use), plan.download(w.model)),
        text=lambda w: ancient(plan.text_files(w.use)["text"]),
        prompts=lambda w: ancient(plan.text_files(w.use)["prompts"]),
        again=lambda w: plan.texts(w.model, w.use).again,
    output:
        "<results>/texts/{model}/{use}.json",
    log:
        "<results>/logs/texts/{model}/{use}.log",
    params:
        spec=lambda w: plan.texts(w.model, w.use).spec,
        code=lambda w: plan.texts(w.model, w.use).code,
    message:
        "Preparing the texts of {wildcards.model} for {wildcards.use}"
    shell:
        'python "$scripts"/texts.py --spec {params.spec:q} --code {params.code} --model {input.model:q} --text {input.text:q}'
        " --prompts {input.prompts:q} --log {log:q} --output {output:q}"


rule quantize:
    """The weights of a model in one quantization.

    REQUIRED INPUTS: the model; the calibration's blocks and the method's environment where it has them
    OUTPUTS: manifest: the quantized weights, or the model itself for the method none
    """
    input:
        model=lambda w: upstream(
            plan.quantize(w.model, w.quantization), plan.download(w.model)
        ),
        samples=lambda w: upstream(
            plan.quantize(w.model, w.quantization),
            *plan.samples(w.model, w.quantization),
        ),
        environment=lambda w: upstream(
            plan.quantize(w.model, w.quantization), *plan.quantizer(w.quantization)
        ),
        again=lambda w: plan.quantize(w.model, w.quantization).again,
    output:
        "<results>/quantize/{model}/{quantization}.json",
    log:
        "<results>/logs/quantize/{model}/{quantization}.log",
    threads: lambda w: workflow.cores if plan.quantizer(w.quantization) else 1
    resources:
        gpu=lambda w: int(
            bool(plan.quantizer(w.quantization))
            and plan.experiment.server.device == "gpu"
        ),
    params:
        spec=lambda w: plan.quantize(w.model, w.quantization).spec,
        code=lambda w: plan.quantize(w.model, w.quantization).code,
    message:
        "Quantizing {wildcards.model}: {wildcards.quantization}"
    shell:
        'python "$scripts"/quantize.py --spec {params.spec:q} --code {params.code} --model {input.model:q} --samples {input.samples:q}'
        " --environment {input.environment:q} --log {log:q} --output {output:q}"
