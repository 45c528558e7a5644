# The study's own page: every row of the full table and of the preset's ablations in one JSON, then the verdicts.
rule study_rows:
    """Collect all rows of the study, with all seeds, a few images and thinned curves, into one JSON."""
    input:
        study_inputs,
        "<results>/{preset}/reference/floor.json",
    output:
        "<results>/{preset}/study.json",
    log:
        "<logs>/{preset}/study_rows.log",
    params:
        code=code("study-rows"),
        settings=settings("title", "seeds", "extra_seeds", "seeded", "more_seeds"),
        rows=lambda w: shlex.join(study_plan(w)),
        results=lambda w: f"results/{w.preset}",
        set=SET,
    shell:
        "robuq-bench study-rows --preset {wildcards.preset} {params.set} --results '{params.results}'"
        " --rows {params.rows} --out '{output}' --log '{log}'"


rule study_report:
    """Do the paper's claims hold? The study's page and its summary, from collected JSON alone."""
    input:
        study="<results>/{preset}/study.json",
        ablations=lambda w: [f"<results>/{w.preset}/ablations/{name}.json" for name in preset(w.preset).ablations],
        inspection=inspected,
        kernels=f"{engine_results()}/kernels.json",
        table=f"{engine_results()}/table.json",
    output:
        page="reports/{preset}/study.html",
        markdown="<results>/{preset}/study.md",
    log:
        "<logs>/{preset}/study_report.log",
    params:
        code=code("study-report"),
        ablations=lambda w, input: [f"--ablation {path}" for path in input.ablations],
    shell:
        "robuq-bench study-report --study '{input.study}' {params.ablations} --inspection '{input.inspection}'"
        " --kernels '{input.kernels}' --table '{input.table}' --out '{output.page}' --markdown '{output.markdown}' --log '{log}'"
