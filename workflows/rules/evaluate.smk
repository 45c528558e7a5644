rule reference:
    """Moments of the real images, and what held-out real images score against them."""
    input:
        adm_reference,
    output:
        reference=directory("<results>/{preset}/reference/moments"),
        floor="<results>/{preset}/reference/floor.json",
    log:
        "<logs>/{preset}/reference.log",
    priority: 4  # nothing can be scored before
    threads: lambda w: preset(w.preset).threads
    resources:
        gpu=gpus,
    params:
        code=code("reference"),
        settings=settings("data", "evaluate", "device", "threads"),
        n=lambda w: preset(w.preset).sample.n,
        set=SET,
    shell:
        "robuq-bench reference --preset {wildcards.preset} {params.set} --reference '{output.reference}'"
        " --floor '{output.floor}' --log '{log}'"


rule evaluate:
    """Score the images of a row against the real ones."""
    input:
        samples=f"{ROW}/samples.npz",
        reference="<results>/{preset}/reference/moments",
    output:
        f"{ROW}/metrics.json",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/evaluate.log",
    priority: 3  # a row under way is finished before another begins
    threads: lambda w: (DEVICES_PER_JOB if many(w) else 1) * preset(w.preset).threads
    resources:
        gpu=lambda w: shared_gpus(w) if many(w) else 0,  # else work for the CPU, which claims a GPU for seconds
    params:
        code=code("evaluate"),
        settings=settings("evaluate", "device", "threads"),
        features=lambda w: Unwatched(f"--features '{STATES}/{w.preset}/features'" if many(w) else ""),
        launch=lambda w: LAUNCH if many(w) else "",
        set=SET,
    shell:
        "robuq-bench {params.launch} evaluate --preset {wildcards.preset} {params.set} --samples '{input.samples}'"
        " --reference '{input.reference}' --out '{output}' {params.features} --log '{log}'"
