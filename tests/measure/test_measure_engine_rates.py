"""The probes of tensor-core rates: they compile for the GPUs they are for, and the arithmetic is what it says."""

import pytest

from robuq_bench import cli
from robuq_bench.engine.kernels import jit
from robuq_bench.measure.engine_rates import INSTRUCTIONS, source_and_macros


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda i: f"{i.unit} {i.name}")
def test_every_probe_compiles_where_it_runs(compiler, instruction):
    oldest = "".join(map(str, instruction.oldest))
    for arch in ("sm_90a",) if instruction.warpgroup else (f"sm_{oldest}", "sm_90a"):
        source, macros = source_and_macros(instruction, 256)
        assert jit.compile_cubin(source, arch, macros).startswith(b"\x7fELF")


def test_names_say_the_shape_that_is_counted():
    for instruction in INSTRUCTIONS:
        shape = f"m{instruction.m}n{instruction.n}k{instruction.k}"
        assert shape in instruction.name and shape in instruction.mnemonic
        assert (instruction.unit == "bf16") == (".bf16" in instruction.mnemonic)
    assert {i.unit for i in INSTRUCTIONS if i.warpgroup} == {i.unit for i in INSTRUCTIONS if not i.warpgroup}


@pytest.mark.parametrize("verb", ["engine-rates", "engine-kernels", "engine-table"])
def test_without_a_gpu_nothing_begins(verb, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    more = ["--rates", str(tmp_path / "rates.json")] if verb == "engine-kernels" else []
    assert cli.main([verb, *more, "--out", str(tmp_path / "out.json")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "need an NVIDIA GPU" in lines[0]
    assert not list(tmp_path.iterdir())
