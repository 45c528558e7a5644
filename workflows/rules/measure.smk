rule measure:
    """Size of the packed model and latency of its forward pass."""
    input:
        f"{ROW}/packed.safetensors",
    output:
        f"{ROW}/measure.json",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/measure.log",
    threads: lambda w: preset(w.preset).threads
    resources:
        gpu=gpus,
    params:
        code=code("measure"),
        settings=settings("latency", "device", "threads"),
        set=SET,
    shell:
        "robuq-bench measure --preset {wildcards.preset} {params.set} --packed '{input}' --out '{output}'"
        " --log '{log}'"
