rule train:
    """Train a row: full precision from scratch, or QAT from the full-precision checkpoint."""
    input:
        start=lambda w: (
            []
            if variant(w).method.training == "none"
            else f"<results>/{w.preset}/full_precision/W32A32/seed0/model.safetensors"
        ),
        bits=lambda w: (
            f"<results>/{w.preset}/{w.recipe}/{w.variant}/seed{w.seed}/bits.json"
            if variant(w).method.allocation
            else []
        ),
    output:
        model=f"{ROW}/model.safetensors",
        curve=f"{ROW}/train.json",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/train.log",
    threads: lambda w: plan(w).threads
    resources:
        gpu=gpus,
    params:
        code=code("train"),
        settings=settings("data", "model", "device"),
        plan=lambda w: plan(w).model_dump_json(),
        method=method,
        start=lambda w, input: f"--start {input.start}" if input.start else "",
        bits=lambda w, input: f"--bits '{input.bits}'" if input.bits else "",
        state=STATE,
        set=SET,
    shell:
        "robuq-bench train --preset {wildcards.preset} {params.set} --recipe '{wildcards.recipe}'"
        " --variant {wildcards.variant} --seed {wildcards.seed} {params.start} {params.bits} --model '{output.model}'"
        " --curve '{output.curve}' --state '{params.state}' --record-divergence --log '{log}'"


rule export:
    """Pack a trained model into one small file: what is sampled, scored and measured."""
    input:
        f"{ROW}/model.safetensors",
    output:
        f"{ROW}/packed.safetensors",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/export.log",
    params:
        code=code("export"),
    shell:
        "robuq-bench export --model '{input}' --packed '{output}' --log '{log}'"
