workflow.include("workflows/Snakefile", overwrite_default_target=True)
