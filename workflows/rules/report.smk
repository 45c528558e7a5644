rule table:
    """Collect rows into a table: JSON, CSV, Markdown, LaTeX."""
    input:
        table_inputs,
        "<results>/{preset}/reference/floor.json",
    output:
        json="<results>/{preset}/{table}.json",
        csv=report(
            "<results>/{preset}/{table}.csv",
            caption="../report/table.rst",
            category="Table",
            labels={"preset": "{preset}", "format": "csv"},
        ),
        md="<results>/{preset}/{table}.md",
        tex="<results>/{preset}/{table}.tex",
    log:
        "<logs>/{preset}/{table}.log",
    wildcard_constraints:
        table="table|table_full",
    params:
        code=code("table"),
        settings=settings("seeds", "extra_seeds", "seeded", "more_seeds"),
        rows=table_rows,
        recipes=lambda w: [
            checked(load_row, preset(w.preset), *row.rsplit("/", 1)).model_dump_json() for row in table_rows(w)
        ],
        results=lambda w, output: Path(output.json).parent,
        stem=lambda w, output: Path(output.json).with_suffix(""),
        set=SET,
    shell:
        "robuq-bench table --preset {wildcards.preset} {params.set} --results '{params.results}'"
        " --rows {params.rows}"
        " --out '{params.stem}' --log '{log}'"


rule page:
    """Build the HTML page of a preset from its table, images, curves and the ablations that exist."""
    input:
        table=lambda w: f"<results>/{w.preset}/{TABLES[w.page]}.json",
        ablations=lambda w: sorted(str(p) for p in Path(f"results/{w.preset}/ablations").glob("*.json")),
    output:
        report(
            "reports/{preset}/{page}.html",
            caption="../report/page.rst",
            category="Report",
            labels={"preset": "{preset}", "format": "{page}"},
        ),
    log:
        "<logs>/{preset}/{page}.log",
    wildcard_constraints:
        page="|".join(TABLES),
    params:
        code=code("report"),
        settings=settings("title", "seeds", "extra_seeds", "seeded", "more_seeds", "sample", "anchors"),
        results=lambda w, input: Path(input.table).parent,
        ablations=lambda w, input: [f"--ablation {path}" for path in input.ablations],
        set=SET,
    shell:
        "robuq-bench report --preset {wildcards.preset} {params.set} --results '{params.results}'"
        " --table '{input.table}' --out '{output}' {params.ablations} --log '{log}'"


rule ablation_page:
    """A page of one ablation alone: its table, plot and what it shows."""
    input:
        "<results>/{preset}/ablations/{name}.json",
    output:
        "reports/{preset}/ablation_{name}.html",
    log:
        "<logs>/{preset}/ablations/{name}_page.log",
    params:
        code=code("report"),
        set=SET,
    shell:
        "robuq-bench report --preset {wildcards.preset} {params.set} --ablation '{input}' --out '{output}'"
        " --log '{log}'"
