rule probe:
    """Error of each activation quantiser on the trained model at 2, 3 and 4 bits, without training."""
    input:
        "<results>/{preset}/full_precision/W32A32/seed0/model.safetensors",
    output:
        "<results>/{preset}/ablations/quantizer.json",
    log:
        "<logs>/{preset}/ablations/quantizer.log",
    threads: lambda w: preset(w.preset).threads
    resources:
        gpu=gpus,
    params:
        code=code("probe"),
        settings=settings("data", "device", "threads"),
        set=SET,
    shell:
        "robuq-bench probe --preset {wildcards.preset} {params.set} --model '{input}' --out '{output}'"
        " --log '{log}'"
