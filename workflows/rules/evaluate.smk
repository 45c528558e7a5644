rule reference:
    """Moments of the real images, and what held-out real images score against them."""
    output:
        reference="<results>/{preset}/reference/reference.safetensors",
        floor="<results>/{preset}/reference/floor.json",
    log:
        "<logs>/{preset}/reference.log",
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
        reference="<results>/{preset}/reference/reference.safetensors",
    output:
        f"{ROW}/metrics.json",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/evaluate.log",
    threads: lambda w: preset(w.preset).threads
    resources:
        gpu=gpus,
    params:
        code=code("evaluate"),
        settings=settings("evaluate", "device", "threads"),
        set=SET,
    shell:
        "robuq-bench evaluate --preset {wildcards.preset} {params.set} --samples '{input.samples}'"
        " --reference '{input.reference}' --out '{output}' --log '{log}'"
