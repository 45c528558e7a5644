# How fast this machine's GPU is at what the paper's run consists of: what `robuq-bench plan --throughput` reads.
rule probe:
    """Throughput of this machine's GPU, part by part, in about a minute (needs a GPU); then: robuq-bench plan."""
    output:
        "<results>/probe/probe.json",
    log:
        "<logs>/probe/probe.log",
    resources:
        gpu=1,
    params:
        code=code("probe"),
    shell:
        "robuq-bench probe --out '{output}' --log '{log}'"
