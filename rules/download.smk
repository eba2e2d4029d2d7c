rule download:
    """A model: weights, tokenizer, chat template, in each form that its source yields.

    INPUTS: the environment that converts or makes the checkpoint, for sources that need one; a local folder
    OUTPUT: manifest: forms of the model, files, hashes, where the bytes lie
    """
    input:
        inputs("download"),
    output:
        result("download"),
    log:
        log_of("download"),
    priority: priority("download")
    params:
        spec=spec("download"),
    message:
        "Fetching the model {wildcards.model}"
    shell:
        'python "$scripts"/download.py --spec {params.spec:q} --log {log:q} --output {output:q}'


rule prompts:
    """The prompts of a workload, chosen by the model's own token counts and the seed.

    INPUTS: the model (its tokenizer), the file of prompts where they do not come from the hub
    OUTPUT: manifest: the chosen prompts, how many were offered, their lengths
    """
    input:
        inputs("prompts"),
    output:
        result("prompts"),
    log:
        log_of("prompts"),
    priority: priority("prompts")
    params:
        spec=spec("prompts"),
    message:
        "Choosing the prompts of {wildcards.workload}"
    shell:
        'python "$scripts"/prompts.py --spec {params.spec:q} --log {log:q} --output {output:q}'
