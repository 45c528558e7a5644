rule sample:
    """Draw the images of a row from its packed model."""
    input:
        f"{ROW}/packed.safetensors",
    output:
        f"{ROW}/samples.npz",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/sample.log",
    threads: lambda w: preset(w.preset).threads
    resources:
        gpu=gpus,
    params:
        code=code("sample"),
        settings=settings("sample", "device", "threads"),
        set=SET,
    shell:
        "robuq-bench sample --preset {wildcards.preset} {params.set} --packed '{input}' --out '{output}'"
        " --log '{log}'"
