rule train:
    """Train a row: full precision from scratch (or read it, where it is published), or QAT from that checkpoint."""
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
        latents=latents,
    output:
        model=f"{ROW}/model.safetensors",
        curve=f"{ROW}/train.json",
    log:
        "<logs>/{preset}/{recipe}/{variant}/seed{seed}/train.log",
    threads: lambda w: DEVICES_PER_JOB * plan(w).threads
    resources:
        gpu=shared_gpus,
    params:
        code=code("train"),
        settings=settings("data", "latents", "objective", "pretrained", "model", "device"),
        plan=lambda w: plan(w).model_dump_json(),
        method=method,
        start=lambda w, input: f"--start {input.start}" if input.start else "",
        bits=lambda w, input: f"--bits '{input.bits}'" if input.bits else "",
        state=STATE,
        launch=LAUNCH,
        set=SET,
    shell:
        "robuq-bench {params.launch} train --preset {wildcards.preset} {params.set} --recipe '{wildcards.recipe}'"
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
    priority: 1
    params:
        code=code("export"),
    shell:
        "robuq-bench export --model '{input}' --packed '{output}' --log '{log}'"


TRAINER = preset(PRESET).trained_by
OWN, THEIRS = (ROW.replace("{preset}", str(name)) for name in (PRESET, TRAINER))
if TRAINER:

    ruleorder: adopt > train
    ruleorder: adopt_bits > allocate
    ruleorder: adopt_bits > profile

    rule adopt:
        """Take a model that another preset has trained (`trained_by`): this one only draws from it in another way."""
        input:
            model=f"{THEIRS}/model.safetensors",
            curve=f"{THEIRS}/train.json",
        output:
            model=f"{OWN}/model.safetensors",
            curve=f"{OWN}/train.json",
        log:
            f"<logs>/{PRESET}/{{recipe}}/{{variant}}/seed{{seed}}/adopt.log",
        shell:
            "( cp -f '{input.model}' '{output.model}' && cp -f '{input.curve}' '{output.curve}' ) > '{log}' 2>&1"

    rule adopt_bits:
        """The allocation that came with it."""
        input:
            bits=f"{THEIRS}/bits.json",
            profile=f"{THEIRS}/profile.json",
        output:
            bits=f"{OWN}/bits.json",
            profile=f"{OWN}/profile.json",
        log:
            f"<logs>/{PRESET}/{{recipe}}/{{variant}}/seed{{seed}}/adopt_bits.log",
        shell:
            "( cp -f '{input.bits}' '{output.bits}' && cp -f '{input.profile}' '{output.profile}' ) > '{log}' 2>&1"
