# The whole study of a preset: the full table, its ablations, and the folder from which all of it can be rebuilt.
localrules:
    reproduce_study,
    study_page,


rule collect:
    """Gather tables, ablations and records into one small folder, and print the GPU minutes of the study."""
    input:
        [f"<results>/{{preset}}/{name}.json" for name in ("table", "table_full", "study", "ablations/quantizer_error")],
        "<results>/{preset}/study.md",
        inspected,
        lambda w: [f"<results>/{w.preset}/ablations/{name}.json" for name in preset(w.preset).ablations],
    output:
        directory("<results>/{preset}/collected"),
    log:
        "<logs>/{preset}/collect.log",
    params:
        code=code("collect"),
        results=lambda w: f"results/{w.preset}",
    shell:
        "robuq-bench collect --results {params.results} --out '{output}' --log '{log}'"


rule reproduce_study:
    """All rows and seeds of a preset, its ablations, verdicts and pages. Cut it whenever you like: it goes on."""
    input:
        f"<results>/{PRESET}/collected",
        [f"reports/{PRESET}/{page}.html" for page in ("index", "full", "study", "inspect")],
        lambda w: [f"reports/{PRESET}/ablation_{name}.html" for name in preset(PRESET).ablations],


rule study_page_of:
    """The study's page from what was collected, without a GPU and without its weights and images."""
    input:
        study=lambda w: str(left_behind(w) / "study.json"),
        ablations=lambda w: sorted(map(str, left_behind(w).glob("ablations/*.json"))),
        inspection=lambda w: sorted(map(str, left_behind(w).glob("inspect/**/*.json")))[:1],
        engine=[f"{engine_results()}/{name}" for name in ENGINE_FILES],
    output:
        "reports/{preset}/study_collected.html",
    log:
        "<logs>/{preset}/study_page.log",
    params:
        code=code("study-report"),
        ablations=lambda w, input: [f"--ablation {path}" for path in input.ablations],
        inspection=lambda w, input: [f"--inspection '{path}'" for path in input.inspection],
    shell:
        "robuq-bench study-report --study '{input.study}' {params.ablations} {params.inspection}"
        " --kernels '{input.engine[0]}' --table '{input.engine[1]}' --out '{output}' --log '{log}'"


rule study_page:
    """The study's page alone, from the collected folder of this machine or the committed one: no GPU, seconds."""
    input:
        f"reports/{PRESET}/study_collected.html",
