"""Size of a packed model on disk and latency of one forward pass, labelled as what they are.

On a GPU, where the engine runs the recipe, the deployed model is timed beside the simulated one, if both agree.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from robuq_bench import provenance
from robuq_bench.config.preset import Latency, load_preset, preset_arguments
from robuq_bench.devices import describe, expect, held_seconds, release, use
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.engine.support import unsupported
from robuq_bench.files import sha256_file, write_json
from robuq_bench.measure.agreement import SLACK, relative_error, round_as_deployed
from robuq_bench.measure.latency import random_inputs, time_forward
from robuq_bench.models.checkpoint import Card, read_card
from robuq_bench.models.dit import predict

EXAMPLE = """robuq-bench measure --preset quick --packed results/quick/robuq/W1.58A2/seed0/packed.safetensors \\
    --out measure.json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--packed", type=Path, required=True, help="packed model")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    expect(preset.device, preset.threads)
    card = read_card(args.packed)
    latency, deployed = None, {"latency": None, "reason": "the row diverged"}
    if not card.diverged and preset.latency is None:
        deployed["reason"] = "this preset times nothing"
    elif not card.diverged:
        model, _ = packed.load(args.packed)
        device, plan = use(preset.device, preset.threads), preset.latency
        timing = time_forward(model.to(device), card.shape, plan.batch, plan.repeats, device)
        # Fake quantisation in float32: it says what the simulation costs, nothing about low-bit kernels.
        label = "simulated" if card.variant.method.weight else "float32"
        latency = {**timing.record(), "label": label, "device": describe(device)}
        deployed = measure_deployed(args.packed, card, model, plan, device)
        release()
    record = {
        "status": card.status,
        "reason": card.reason,
        "size": {"bytes": args.packed.stat().st_size, "label": "packed"},
        "latency": latency,
        "deployed": deployed,
        "packed": sha256_file(args.packed),
        "provenance": provenance.collect(describe(preset.device), device_seconds=held_seconds()),
    }
    write_json(args.out, record)


def measure_deployed(path: Path, card: Card, simulated: torch.nn.Module, plan: Latency, device: str) -> dict[str, Any]:
    """Latency of the deployed model and its agreement with the simulated one; or the reason why there is none.

    `simulated` is the same file's evaluated model, and is altered: afterwards it rounds as the deployed model does.
    """
    if reason := unsupported(card):
        return {"latency": None, "reason": f"the engine cannot run it: this model {reason}"}
    if device != "cuda":
        return {"latency": None, "reason": "the engine's kernels need a CUDA GPU"}
    model = deploy(path, device)
    check = agreement(model, simulated, card, plan.batch, device)
    facts = {"check": check, "notes": list(model.notes)}
    if check["error"] > check["bound"]:
        return {**facts, "latency": None, "reason": f"its output differs by {check['error']:.2g} from the simulated"}
    timing = time_forward(model, card.shape, plan.batch, plan.repeats, device)
    latency = {**timing.record(), "label": f"deployed: {describe(device)}", "device": describe(device)}
    return {**facts, "latency": latency, "reason": ""}


@torch.inference_mode()
def agreement(model: Any, simulated: torch.nn.Module, card: Card, batch: int, device: str) -> dict[str, float]:
    """Relative error of the deployed against the simulated output, and its bound: SLACK times what rounding alone does.

    `simulated` rounds afterwards.
    """
    given = next(random_inputs(card.shape, batch, device))
    expected, answer = (predict(each, *given) for each in (simulated, model))
    round_as_deployed(simulated)
    bound = SLACK * relative_error(predict(simulated, *given), expected)
    return {"error": relative_error(answer, expected), "bound": bound}
