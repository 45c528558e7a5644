rule table:
    """Collect the rows of a preset into the table: JSON, CSV, Markdown, LaTeX."""
    input:
        table_inputs,
        "<results>/{preset}/reference/floor.json",
    output:
        json="<results>/{preset}/table.json",
        csv=report(
            "<results>/{preset}/table.csv",
            caption="../report/table.rst",
            category="Table",
            labels={"preset": "{preset}", "format": "csv"},
        ),
        md="<results>/{preset}/table.md",
        tex="<results>/{preset}/table.tex",
    log:
        "<logs>/{preset}/table.log",
    params:
        code=code("table"),
        settings=settings("rows", "seeds"),
        recipes=lambda w: [
            checked(load_variant, *row.rsplit("/", 1)).model_dump_json() for row in preset(w.preset).rows
        ],
        results=lambda w, output: Path(output.json).parent,
        stem=lambda w, output: Path(output.json).with_suffix(""),
        set=SET,
    shell:
        "robuq-bench table --preset {wildcards.preset} {params.set} --results '{params.results}'"
        " --out '{params.stem}' --log '{log}'"


rule page:
    """Build the HTML page of a preset from its table, images, curves and the ablations that exist."""
    input:
        table="<results>/{preset}/table.json",
        ablations=lambda w: sorted(str(p) for p in Path(f"results/{w.preset}/ablations").glob("*.json")),
    output:
        report(
            "reports/{preset}/index.html",
            caption="../report/page.rst",
            category="Report",
            labels={"preset": "{preset}", "format": "page"},
        ),
    log:
        "<logs>/{preset}/page.log",
    params:
        code=code("report"),
        settings=settings("title", "rows", "seeds", "sample"),
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
