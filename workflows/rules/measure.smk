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
        gpu=lambda w: gpus(w) if preset(w.preset).latency else 0,
    params:
        code=code("measure"),
        settings=settings("latency", "device", "threads"),
        set=SET,
    shell:
        "robuq-bench measure --preset {wildcards.preset} {params.set} --packed '{input}' --out '{output}'"
        " --log '{log}'"


rule step_cost_of:
    """What fake quantisation costs in training, recipe by recipe: DiT-S/2, DiT-XL/2, gpu's model; quick's on a CPU."""
    output:
        "<results>/step_cost/{size}.json",
    log:
        "<logs>/step_cost/{size}.log",
    wildcard_constraints:
        size="quick|(gpu|S-2|XL-2)(-fused)?",
    threads: lambda w: preset(PRESET).threads
    resources:
        gpu=lambda w: int(w.size != "quick"),
    params:
        code=code("step-cost"),
        size=lambda w: w.size.removesuffix("-fused").replace("-", "/"),
        blocks=lambda w: "fused" if w.size.endswith("-fused") else "compiled",
    shell:
        "robuq-bench step-cost --size {params.size} --blocks {params.blocks} --threads {threads} --out '{output}'"
        " --log '{log}'"


rule step_cost:
    """Training cost at the sizes of the preset's device."""
    input:
        lambda w: [
            f"<results>/step_cost/{size}.json"
            for size in (("gpu-fused", "S-2", "XL-2") if preset(PRESET).device == "cuda" else ("quick",))
        ],
