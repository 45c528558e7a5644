rule inspect_row:
    """Are rotated activations normal, and what do the parts of a trained row carry?"""
    input:
        model="<results>/{preset}/full_precision/W32A32/seed0/model.safetensors",
        trained=f"{ROW}/model.safetensors",
        packed=f"{ROW}/packed.safetensors",
    output:
        "<results>/{preset}/inspect/{recipe}/{variant}/seed{seed}.json",
    log:
        "<logs>/{preset}/inspect/{recipe}/{variant}/seed{seed}.log",
    threads: lambda w: preset(w.preset).threads
    resources:
        gpu=gpus,
    params:
        code=code("inspect"),
        settings=settings("title", "data", "model", "device", "threads"),
        set=SET,
    shell:
        "robuq-bench inspect --preset {wildcards.preset} {params.set} --model '{input.model}'"
        " --trained '{input.trained}' --packed '{input.packed}' --out '{output}' --log '{log}'"


rule inspect_page:
    """The page of an inspection: Q-Q plots, kurtosis, errors against the floor, weights and branch."""
    input:
        inspected,
    output:
        "reports/{preset}/inspect.html",
    log:
        "<logs>/{preset}/inspect/page.log",
    params:
        code=code("inspect-page"),
    shell:
        "robuq-bench inspect-page --inspection '{input}' --out '{output}' --log '{log}'"
