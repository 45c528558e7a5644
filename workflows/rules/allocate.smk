rule profile:
    """Measure how much each layer minds 1 to 4 activation bits, after a few QAT steps (AMPN)."""
    input:
        start="<results>/{preset}/full_precision/W32A32/seed0/model.safetensors",
        latents=latents,
    output:
        f"{ROW}/profile.json",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/profile.log",
    threads: lambda w: plan(w).threads
    resources:
        gpu=gpus,
    params:
        code=code("profile"),
        settings=settings("data", "model", "device"),
        plan=lambda w: plan(w).model_dump_json(),
        method=method,
        set=SET,
    shell:
        "robuq-bench profile --preset {wildcards.preset} {params.set} --recipe '{wildcards.recipe}'"
        " --variant {wildcards.variant} --seed {wildcards.seed} --start '{input.start}' --profile '{output}'"
        " --record-divergence --log '{log}'"


rule allocate:
    """Choose the activation bits of each layer within the variant's budget, by dynamic programming (AMPN)."""
    input:
        profile=f"{ROW}/profile.json",
        table=latency_table,
    output:
        f"{ROW}/bits.json",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/allocate.log",
    params:
        code=code("allocate"),
        method=method,
    shell:
        "robuq-bench allocate --recipe '{wildcards.recipe}' --variant {wildcards.variant}"
        " --profile '{input.profile}' --bits '{output}' --log '{log}'"
