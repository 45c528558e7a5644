"""Which whole-forward rows the engine's table has: model, method, images of a pass; the most important first.

Rows get ready side by side and wait for the slowest, so those of one model that a compiler takes a minute for stand
together.
"""

SMALL = ("L/2", "B/2", "S/2")
ORDER: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("XL/2", "W1.58A2", (2, 64)),
    ("XL/2", "bf16 compiled", (2, 64)),
    ("XL/2", "fp32 eager", (2, 64)),
    ("XL/2", "W1.58A2", (16, 1, 256)),
    ("XL/2", "bf16 compiled", (16, 1, 256)),
    ("XL/2", "fp16 compiled", (64, 2)),
    ("XL/2", "fp8 compiled", (64, 2)),
    ("XL/2", "int8 compiled", (64, 2)),
    *(("XL/2", method, (64, 2)) for method in ("W1.58A2 mixed", "W1.58A4", "W1.58A3", "W1.58A1")),
    *((size, method, (2, 64)) for size in SMALL for method in ("W1.58A2", "bf16 compiled")),
    ("XL/2", "bf16 eager", (2, 64, 16, 1)),
    ("XL/2", "tf32 eager", (2, 64)),
    ("XL/2", "fp32 eager", (16, 1)),
    *((size, "fp32 eager", (2, 64)) for size in SMALL),
    ("XL/2", "fp8 tuned", (64, 2)),
    ("XL/2", "int8 tuned", (64, 2)),
)
