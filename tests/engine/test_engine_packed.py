"""The packed model: the trained integers exactly, the trained function within FP16, damage refused, small."""

import numpy as np
import pytest
import torch

from robuq_bench.engine import packed
from robuq_bench.errors import BenchError
from robuq_bench.models import checkpoint
from robuq_bench.quant.convert import quant_linears
from robuq_bench.quant.formats import Scale


@pytest.fixture
def exported(tmp_path, converted, card):
    """`exported(row)`: (trained model, path of its packed file)."""

    def make(row: str, seed: int = 0):
        model, path = converted(row, seed).eval(), tmp_path / "packed.safetensors"
        packed.export(model, card(row, seed), path)
        return model, path

    return make


def run(model, batch) -> torch.Tensor:
    images, time, labels = batch
    with torch.no_grad():
        return model(images, timestep=time, class_labels=labels).sample


def halved(model: torch.nn.Module, full_precision: bool) -> torch.nn.Module:
    """What the file must mean, computed apart from it: grid values with FP16 scales, all else rounded to FP16."""
    if full_precision:
        return model
    with torch.no_grad():
        for layer in quant_linears(model).values():
            scale = layer.weight_quantiser.scale(layer.weight)
            step = scale.step if layer.gain is None else scale.step * layer.gain
            step, offset = step.half().float(), None if scale.offset is None else scale.offset.half().float()
            codes = layer.weight_quantiser.encode(layer.weight, scale)
            layer.weight.copy_(layer.weight_quantiser.decode(codes, Scale(step, step, offset)))
            layer.weight_quantiser = layer.gain = None
            if layer.down is not None:  # the SVD leaves columns side by side, which changes the order of BLAS sums
                layer.up.data, layer.down.data = layer.up.data.contiguous(), layer.down.data.contiguous()
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not (name.endswith(".weight") and is_quantised(model, name)):
                tensor.copy_(tensor.half().float())
    return model


def is_quantised(model: torch.nn.Module, name: str) -> bool:
    return model.get_submodule(name.rpartition(".")[0]) in quant_linears(model).values()


def test_packed_model_is_the_trained_one_rounded_to_fp16(each_row, exported, converted, batch, card):
    trained, path = exported(each_row)
    loaded, read = packed.load(path)
    assert read.kind == "packed" and read.variant == card(each_row).variant and read.bits == card(each_row).bits
    assert not loaded.training
    for name, layer in quant_linears(trained).items():
        stored, quantiser = quant_linears(loaded)[name], layer.weight_quantiser
        scale = quantiser.scale(layer.weight)
        step = scale.step if layer.gain is None else scale.step * layer.gain
        step, offset = step.half().float(), None if scale.offset is None else scale.offset.half().float()
        codes = quantiser.encode(layer.weight, scale)
        assert torch.equal(stored.weight, quantiser.decode(codes, Scale(step, step, offset))), name
        assert stored.weight_quantiser is None
        assert (layer.signs is None and stored.signs is None) or torch.equal(layer.signs, stored.signs)
        if layer.down is not None:
            assert torch.equal(stored.down, layer.down.half().float())
            assert torch.equal(stored.up, layer.up.half().float())
    expected = run(halved(converted(each_row), each_row.endswith("W32A32")), batch)
    assert torch.equal(run(loaded, batch), expected)


def test_packed_model_computes_nearly_what_was_trained(each_row, exported, batch):
    """FP16 moves few activations over a rounding edge."""
    trained, path = exported(each_row)
    before, after = run(trained, batch), run(packed.load(path)[0], batch)
    assert (after - before).norm() < 0.05 * before.norm()


def test_export_leaves_the_trained_model_alone(exported, converted, batch):
    trained, _ = exported("robuq/W1.58A2")
    assert torch.equal(run(trained, batch), run(converted("robuq/W1.58A2"), batch))


def test_full_precision_is_kept_exactly(exported, batch):
    trained, path = exported("full_precision/W32A32")
    assert torch.equal(run(packed.load(path)[0], batch), run(trained, batch))


def test_trained_gain_is_folded_into_the_scale(tmp_path, converted, card, batch):
    row = "terdit/W1.58A32"
    model = converted(row).eval()
    with torch.no_grad():
        for layer in quant_linears(model).values():
            layer.gain.fill_(1.5)
    packed.export(model, card(row), tmp_path / "p.safetensors")
    before, after = run(model, batch), run(packed.load(tmp_path / "p.safetensors")[0], batch)
    assert (after - before).norm() < 2e-3 * before.norm()


@pytest.mark.parametrize("row", ["robuq/W1.58A2", "bitnet_v2/W1.58A4"])
def test_a_ternary_model_is_as_small_as_stated(row, exported):
    """1.6 bits a weight, FP16 for the rest, one bit a sign; beside them only the header."""
    model, path = exported(row)
    layers = quant_linears(model)
    bytes_ = sum(-(-layer.weight.numel() // 5) for layer in layers.values())
    bytes_ += sum(-(-len(layer.signs) // 8) for layer in layers.values() if layer.signs is not None)
    scales = sum(1 if row.startswith("bitnet") else len(layer.weight) for layer in layers.values())
    others = {id(p): p.numel() for p in model.parameters()}
    rest = sum(others.values()) - sum(layer.weight.numel() for layer in layers.values())
    whole = path.read_bytes()
    assert len(whole) - 8 - int.from_bytes(whole[:8], "little") == bytes_ + 2 * (scales + rest)


def test_any_changed_tensor_byte_is_refused(exported, refused):
    _, path = exported("robuq/W1.58A2")
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in [start, len(whole) - 1, *np.linspace(start, len(whole) - 1, 20, dtype=int)]:
        bad = bytearray(whole)
        bad[position] ^= 1
        path.write_bytes(bad)
        refused(lambda: packed.load(path), path, "content does not match its hash", "export this model again")


def test_a_damaged_header_never_ends_in_a_traceback(exported):
    """A flipped bit in the card or the table of tensors: refused in one line, or of no consequence for loading."""
    _, path = exported("robuq/W1.58A2")
    whole = path.read_bytes()
    faults = []
    for position in range(8, 8 + int.from_bytes(whole[:8], "little"), 31):
        bad = bytearray(whole)
        bad[position] ^= 1
        path.write_bytes(bad)
        try:
            packed.load(path)
        except BenchError as error:
            assert "\n" not in str(error)
        except Exception as error:
            faults.append(f"{whole[position - 20 : position + 5]}: {error!r}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("cut", [0, 8, 100, -1000, -1])
def test_truncated_file_is_refused(exported, refused, cut):
    _, path = exported("robuq/W1.58A2")
    path.write_bytes(path.read_bytes()[:cut])
    refused(lambda: packed.load(path), path, "truncated or damaged")


def test_content_hash_covers_names_types_shapes_and_values():
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"b": torch.zeros(4), "a": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.tensor([0.0, 0.0, 0.0, 1e-45]), "b": torch.ones(2)},
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(4)},
    ]
    digests = [packed.content(tensors) for tensors in (base, *others)]
    assert len(set(digests)) == len(digests)
    assert packed.content(dict(reversed(base.items()))) == digests[0]


def test_values_that_fp16_cannot_hold_are_refused(tmp_path, converted, card, refused):
    model = converted("robuq/W1.58A2")
    with torch.no_grad():
        model.proj_out_2.bias[0] = 1e6
    path = tmp_path / "p.safetensors"
    refused(lambda: packed.export(model, card("robuq/W1.58A2"), path), path, "'proj_out_2.bias'", "FP16")
    assert not path.exists()


def test_a_diverged_row_has_no_model(tmp_path, card, refused):
    path = tmp_path / "p.safetensors"
    own = card("robuq/W1.58A2", kind="packed", status="diverged", reason="loss is nan at step 3")
    checkpoint.save(path, {}, own)
    refused(lambda: packed.load(path), path, "this row diverged (loss is nan at step 3)")


def test_a_trained_checkpoint_is_no_packed_model(tmp_path, converted, card, refused):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, converted("robuq/W1.58A2").state_dict(), card("robuq/W1.58A2"))
    refused(lambda: packed.load(path), "holds a trained model, a packed one is needed")
