rule quantiser_error:
    """Error of each activation quantiser on the trained model at 2, 3 and 4 bits, without training."""
    input:
        "<results>/{preset}/full_precision/W32A32/seed0/model.safetensors",
    output:
        "<results>/{preset}/ablations/quantizer_error.json",
    log:
        "<logs>/{preset}/ablations/quantizer_error.log",
    threads: lambda w: preset(w.preset).threads
    resources:
        gpu=gpus,
    params:
        code=code("quantiser-error"),
        settings=settings("data", "device", "threads"),
        set=SET,
    shell:
        "robuq-bench quantiser-error --preset {wildcards.preset} {params.set} --model '{input}' --out '{output}'"
        " --log '{log}'"


rule ablate:
    """Collect the rows of one ablation of workflows/ablations.yaml, or of a sweep."""
    input:
        ablation_inputs,
        "<results>/{preset}/reference/floor.json",
    output:
        "<results>/{preset}/ablations/{name}.json",
    log:
        "<logs>/{preset}/ablations/{name}.log",
    wildcard_constraints:
        name="|".join(COLLECTED),
    params:
        code=code("ablate"),
        settings=settings("seeds", "extra_seeds", "seeded", "more_seeds"),
        ablation=lambda w: fitting(w).model_dump_json(),
        which=lambda w: f"--sweep {shlex.quote(SWEEP)}" if w.name == SWEPT else f"--name {w.name}",
        results=lambda w: f"results/{w.preset}",
        set=SET,
    shell:
        "robuq-bench ablate --preset {wildcards.preset} {params.set} {params.which}"
        " --results {params.results} --out '{output}' --log '{log}'"
