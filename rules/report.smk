localrules:
    report,
    all,


rule report:
    """Every cell into one page, one Markdown file and one table.

    INPUTS: the summaries of each session, the quality of each served model, the client's calibration
    OUTPUTS: report.html (one file, no network), report.md, summary.csv, and what they were made of
    """
    input:
        inputs("report"),
    output:
        html="<results>/report.html",
        markdown="<results>/report.md",
        table="<results>/summary.csv",
        made_of=str(plan.files[plan.report()]),
    log:
        "<results>/logs/report.log",
    params:
        spec=str(plan.spec_file(plan.report())),
    message:
        "Rendering {output.html}"
    shell:
        'python "$scripts"/report.py --spec {params.spec:q} --log {log:q} --output {output.made_of:q}'
