rule download:
    """A model: weights, tokenizer, chat template, in each form that its source yields.

    REQUIRED INPUTS: the environment that converts or makes the checkpoint, for sources that need one
    OUTPUTS: manifest: forms of the model, files, hashes, where the bytes lie
    """
    input:
        environment=lambda w: upstream(
            plan.download(w.model), *plan.converter_of(w.model)
        ),
        again=lambda w: plan.download(w.model).again,
    output:
        "<results>/download/{model}.json",
    log:
        "<results>/logs/download/{model}.log",
    params:
        spec=lambda w: plan.download(w.model).spec,
        code=lambda w: plan.download(w.model).code,
    message:
        "Fetching the model {wildcards.model}"
    shell:
        'python "$scripts"/download.py --spec {params.spec:q} --code {params.code} --log {log:q} --output {output:q}'
        " --environment {input.environment:q}"


rule prompts:
    """The prompts of a workload, chosen by the model's own token counts and the seed.

    REQUIRED INPUTS: the model (its tokenizer), the file of prompts where they do not come from the hub
    OUTPUTS: manifest: the chosen prompts, how many were offered, their lengths
    """
    input:
        model=lambda w: upstream(
            plan.prompts(w.model, w.workload), plan.download(w.model)
        ),
        source=lambda w: ancient(plan.prompt_file(w.workload)),
        again=lambda w: plan.prompts(w.model, w.workload).again,
    output:
        "<results>/prompts/{model}/{workload}.json",
    log:
        "<results>/logs/prompts/{model}/{workload}.log",
    params:
        spec=lambda w: plan.prompts(w.model, w.workload).spec,
        code=lambda w: plan.prompts(w.model, w.workload).code,
    message:
        "Choosing the prompts of {wildcards.workload}"
    shell:
        'python "$scripts"/prompts.py --spec {params.spec:q} --code {params.code} --model {input.model:q} --source {input.source:q}'
        " --log {log:q} --output {output:q}"
