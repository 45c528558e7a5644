rule sample:
    """Draw the images of a row from its packed model."""
    input:
        f"{ROW}/packed.safetensors",
    output:
        f"{ROW}/samples.npz",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/sample.log",
    priority: 2
    threads: lambda w: DEVICES_PER_JOB * preset(w.preset).threads
    resources:
        gpu=shared_gpus,
    params:
        code=code("sample"),
        settings=settings("sample", "latents", "device", "threads"),
        # Decoded images are large and many: they are kept as they are drawn, and processes share the work.
        state=lambda w: f"--state '{STATE}/images'".format(**w) if preset(w.preset).latents else "",
        launch=LAUNCH,
        set=SET,
    shell:
        "robuq-bench {params.launch} sample --preset {wildcards.preset} {params.set} --packed '{input}' --out '{output}'"
        " {params.state} --log '{log}'"
