# The engine on this machine's GPU. Without one, each of these stops with one line that says what it needs; the page
# alone is made anywhere, from the measurements of this machine or else the committed ones.
ENGINE = "<results>/engine"


localrules:
    engine_page,
    engine_roofline,


rule engine_rates:
    """Issue rates of the tensor cores and copy bandwidth of this GPU."""
    output:
        f"{ENGINE}/rates.json",
    log:
        "<logs>/engine/rates.log",
    resources:
        gpu=1,
    params:
        code=code("engine-rates"),
    shell:
        "robuq-bench engine-rates --out '{output}' --log '{log}'"


rule engine_kernels:
    """Times of the engine's kernels beside cuBLAS, and the bound that this GPU sets (needs a GPU)."""
    input:
        f"{ENGINE}/rates.json",
    output:
        f"{ENGINE}/kernels.json",
    log:
        "<logs>/engine/kernels.log",
    resources:
        gpu=1,
    params:
        code=code("engine-kernels"),
    shell:
        "robuq-bench engine-kernels --rates '{input}' --state state/engine/kernels.json --out '{output}' --log '{log}'"


rule engine_table:
    """The whole deployed denoiser beside diffusers and torchao: latency, memory, size (needs a GPU)."""
    output:
        f"{ENGINE}/table.json",
    log:
        "<logs>/engine/table.log",
    resources:
        gpu=1,
    params:
        code=code("engine-table"),
    shell:
        "robuq-bench engine-table --state state/engine/table.json --out '{output}' --log '{log}'"


rule engine_roofline:
    """Operations per byte against achieved rate, as a picture (needs a GPU)."""
    input:
        f"{ENGINE}/kernels.json",
    output:
        f"{ENGINE}/roofline.svg",
    log:
        "<logs>/engine/roofline.log",
    params:
        code=code("engine-report"),
    shell:
        "robuq-bench engine-report --kernels '{input}' --roofline '{output}' --log '{log}'"


rule engine_page:
    """The engine's HTML page, on any machine."""
    output:
        report(
            "reports/engine/index.html",
            caption="../report/engine.rst",
            category="Report",
            labels={"preset": "engine", "format": "page"},
        ),
    log:
        "<logs>/engine/page.log",
    params:
        code=code("engine-report"),
        # Not inputs: a page must never start a measurement.
        folder=lambda w: engine_results(),
        digests=lambda w: [checked(sha256_file, engine_results() / name) for name in ENGINE_FILES],
    shell:
        "robuq-bench engine-report --kernels '{params.folder}/kernels.json' --table '{params.folder}/table.json'"
        " --out '{output}' --log '{log}'"
