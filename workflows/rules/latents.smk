# Presets that train on latents of photos, with a full-precision model that others published.
localrules:
    latents,
    anchors,


rule encode:
    """Encode the images of the preset once, into memory-mapped shards (as many processes as devices_per_job says)."""
    output:
        "<results>/{preset}/latents.json",
    log:
        "<logs>/{preset}/latents.log",
    threads: lambda w: DEVICES_PER_JOB * preset(w.preset).threads
    resources:
        gpu=shared_gpus,
    params:
        code=code("latents"),
        settings=settings("data", "latents", "device"),
        launch=LAUNCH,
        set=SET,
    shell:
        "robuq-bench {params.launch} latents --preset {wildcards.preset} {params.set} --out '{output}' --log '{log}'"


rule latents:
    """The encoded images alone."""
    input:
        f"<results>/{PRESET}/latents.json",


rule compare_anchors:
    """Published scores of the full-precision model beside ours."""
    input:
        "<results>/{preset}/full_precision/W32A32/seed0/metrics.json",
    output:
        "<results>/{preset}/anchors.json",
    log:
        "<logs>/{preset}/anchors.log",
    params:
        code=code("anchors"),
        settings=settings("anchors"),
        set=SET,
    shell:
        "robuq-bench anchors --preset {wildcards.preset} {params.set} --metrics '{input}' --out '{output}' --log '{log}'"


rule anchors:
    """Is the protocol right? The full-precision row alone, beside published scores, before anything is trained."""
    input:
        f"<results>/{PRESET}/anchors.json",
