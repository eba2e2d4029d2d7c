localrules:
    report,


rule report:
    """Every cell into one page, one Markdown file and one table.

    REQUIRED INPUTS: the summary of each cell, the quality of each served model, the template and style of the page
    OUTPUTS: report.html (one file, no network), report.md, summary.csv
    """
    input:
        summaries=[
            f"<results>/summarize/{cell.path}/summary.json"
            for cell in plan.experiment.cells()
        ],
        qualities=[
            f"<results>/assess/{served.path}/quality.json"
            for served in plan.experiment.evaluated()
        ],
        pages=[
            str(SCRIPTS.parent / "report" / name)
            for name in ("report.html.j2", "report.md.j2", "style.css")
        ],
    output:
        html="<results>/report.html",
        markdown="<results>/report.md",
        table="<results>/summary.csv",
    log:
        "<results>/logs/report.log",
    params:
        spec=to_json({"config": config, "config_files": config_files}),
        code=plan.code("report.py", "../report/charts.py"),
    message:
        "Rendering {output.html}"
    shell:
        'python "$scripts"/report.py --spec {params.spec:q} --log {log:q} --output {output.html:q}'
