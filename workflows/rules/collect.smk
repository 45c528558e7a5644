# The menu: what a user asks for by name. `--config preset=smoke` runs any of these for another preset.
localrules:
    reproduce_table,
    reproduce_table_full,
    report,
    ablation_quantizer_error,
    ablations,
    sweep,
    inspect,


rule reproduce_table:
    """The main job: every row of the preset, the table and the HTML page."""
    default_target: True
    input:
        f"<results>/{PRESET}/table.json",
        f"reports/{PRESET}/index.html",


rule reproduce_table_full:
    """Every variant of every recipe in one table and page of their own."""
    input:
        f"<results>/{PRESET}/table_full.json",
        f"reports/{PRESET}/full.html",


rule report:
    """The HTML page alone, and whatever it still needs."""
    input:
        f"reports/{PRESET}/index.html",


rule ablation_quantizer_error:
    """Error of every activation quantiser on the trained full-precision model at 2-4 bits: no training, a minute."""
    input:
        f"reports/{PRESET}/ablation_quantizer_error.html",


rule inspect:
    """Is the paper's normality claim true here? A page; `--config row=robuq/W1.58A2` takes another row apart."""
    input:
        f"reports/{PRESET}/inspect.html",


# One target per ablation of workflows/ablations.yaml, and all of them.
for name, ablation in ABLATIONS.items():

    rule:
        name:
            f"ablation_{name}"
        input:
            f"reports/{PRESET}/ablation_{name}.html",

    workflow.get_rule(f"ablation_{name}").docstring = f"{ablation.title}: {ablation.question}"


# One target per setting: `snakemake ablation_rotation_none` runs that value alone.
for name, ablation in ABLATIONS.items():
    for target, rows in ablation.targets().items():

        rule:
            name:
                f"ablation_{name}_{target}"
            input:
                lambda w, rows=rows: scored(rows),

        workflow.get_rule(f"ablation_{name}_{target}").docstring = f"One setting of {name}: {', '.join(rows)}."


rule sweep:
    """Values of any recipe key, as an ablation: `--config sweep='robuq_uniform,low_rank.rank=0|4|16/W1.58A2'`."""
    input:
        sweep_page,


rule ablations:
    """Every ablation."""
    input:
        [f"reports/{PRESET}/ablation_{name}.html" for name in ["quantizer_error", *ABLATIONS]],


# One target per recipe and variant: `snakemake robuq_W1.58A3` runs that row alone, in the table or not.
for target, row in menu():

    rule:
        name:
            target
        input:
            lambda w, row=row: scored([row]),

    workflow.get_rule(target).docstring = f"Row {row}: train, pack, sample, score, measure."
