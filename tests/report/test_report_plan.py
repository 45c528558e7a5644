"""A preset's cost, from throughputs made up so that hours can be reckoned by hand."""

import json

import pytest

from robuq_bench import cli, provenance
from robuq_bench.config.base import parse_overrides
from robuq_bench.config.preset import DiT, load_preset
from robuq_bench.config.row import load_row
from robuq_bench.files import write_json
from robuq_bench.measure import step_cost
from robuq_bench.measure.engine_methods import SIZES
from robuq_bench.measure.engine_records import Hardware, Times
from robuq_bench.measure.probe_records import Probe, Throughput
from robuq_bench.models.dit import Shape
from robuq_bench.report import plan as plans
from robuq_bench.report import plan_stage
from robuq_bench.report.plan import Estimate, Job, Plan, StepRatio, makespan, work

XL = SIZES["XL/2"]
SPEEDS = {  # images a second
    "train full precision": 100,
    "train quantised": 50,
    "denoise full precision float32": 200,
    "denoise full precision bfloat16": 1000,
    "denoise simulated float32": 80,
    "denoise simulated bfloat16": 600,
    "denoise deployed": 3000,
    "features EffNetLite0": 1000,
    "encode latents": 500,
    "decode latents": 250,
}


def probed(part: str, speed: float) -> Throughput:
    ms = 32e3 / speed
    times = Times(median_ms=ms, p20_ms=ms, p80_ms=ms, min_ms=ms, repeats=5)
    return Throughput(part=part, what=part, batch=32, times=times, peak_bytes=20 << 30)


@pytest.fixture
def probe() -> Probe:
    blank = dict.fromkeys(("driver", "triton", "max_sm_clock_mhz", "sm_clock_mhz", "memory_clock_mhz", "power_limit_w"))
    sizes = {"multiprocessors": 1, "l2_bytes": 1, "memory_bytes": 80 << 30, "capability": "9.0"}
    gpu = Hardware(name="Test GPU", cuda="13", torch="2", **sizes, **blank)
    missing = Throughput(part="features Inception", what="x", reason="no weights")
    parts = (*(probed(*item) for item in SPEEDS.items()), missing)
    return Probe(
        parts=parts, model="XL/2", pixels=256, hardware=gpu, seconds=60, provenance=provenance.collect("Test GPU")
    )


@pytest.fixture
def preset(in_root):
    """The preset `gpu` at settings that stay, and with changes."""
    fixed = "qat.steps=2000,qat.batch=256,sample.n=10000,sample.steps=50,sample.guidance=1.5,sample.lane=500"
    fixed += ",sample.denoiser=simulated,sample.precision=float32,sample.scheduler=flow_euler,model.patch=2"
    fixed += ",evaluate.extractor=EffNetLite0,evaluate.also=[],seeds=[0,1,2],more_seeds={},data.held_out=10000"

    def load(changes: str = ""):
        settings = parse_overrides(fixed, "fixed") | parse_overrides(changes, "changes")
        return load_preset("gpu", ",".join(f"{key}={json.dumps(value)}" for key, value in settings.items()))

    return load


def make(preset, probe, gpus=1, rows=None, images=1000) -> Plan:
    variants = [load_row(preset, *row.rsplit("/", 1)) for row in rows or preset.rows]
    return plans.make(preset, variants, probe, gpus, images)


SHAPES = [(DiT(width=384, depth=12, heads=6, patch=2), Shape(32, 4, 1000)), (XL, Shape(32, 4, 1000))]


@pytest.mark.parametrize(("model", "shape"), SHAPES)
def test_operations_are_those_that_torch_counts(model, shape):
    counted = step_cost.forward_flops(step_cost.Size(model, shape, 1, "cpu"))
    assert 2 * work(model, shape.size) == pytest.approx(counted, rel=0.02)


def test_hours_are_images_over_throughput(preset, probe, monkeypatch):
    chosen = preset("train.steps=3600,train.batch=100,qat.steps=360,qat.batch=100,sample.n=7200,sample.steps=10")
    ratio = work(chosen.model, 32) / work(XL, 32)
    plan = make(chosen, probe, rows=["full_precision/W32A32", "robuq_uniform/W1.58A2"])
    first = {job.name: job.hours for job in plan.first}
    assert first["full-precision training"]["train"] == pytest.approx(ratio * 360_000 / 100 / 3600)
    full, ours = plan.rows
    assert full.name == "full_precision/W32A32" and full.seeds == 1 and "train" not in full.hours
    assert full.hours["sample"] == pytest.approx(ratio * 7200 * 10 * 2 / 200 / 3600), "guidance doubles the passes"
    assert ours.hours["sample"] == pytest.approx(ratio * 7200 * 10 * 2 / 80 / 3600)
    assert ours.hours["train"] == pytest.approx(ratio * 36_000 / 50 / 3600)
    assert ours.hours["score"] == pytest.approx(7200 / 1000 / 3600)
    assert ours.seeds == 3 and ours.total == pytest.approx(3 * sum(ours.hours.values()))
    assert plan.hours == pytest.approx(sum(job.total for job in (*plan.first, full, ours)))


def test_a_setting_costs_what_it_says(preset, probe):
    def hours(changes: str, row: str = "robuq_uniform/W1.58A2"):
        return make(preset(changes), probe, rows=[row]).rows[0].hours

    base = hours("")
    assert hours("qat.steps=4000")["train"] == pytest.approx(2 * base["train"])
    assert hours("qat.checkpointing=true")["train"] == pytest.approx(4 / 3 * base["train"])
    assert hours("sample.guidance=1")["sample"] == pytest.approx(base["sample"] / 2)
    assert hours("sample.denoiser=deployed")["sample"] == pytest.approx(base["sample"] * 80 / 3000)
    assert hours("sample.precision=bfloat16")["sample"] == pytest.approx(base["sample"] * 80 / 600)
    heun = hours("sample.scheduler=flow_heun,sample.steps=50")["sample"]
    assert heun == pytest.approx(base["sample"] * 99 / 50)
    ampn = hours("", "robuq/W1.58A2")
    assert ampn["allocate"] > 0 and "allocate" not in base and ampn["train"] == base["train"]


def test_a_schedule_and_a_teacher_cost_their_time(preset, probe):
    def train(row: str) -> float:
        return make(preset(), probe, rows=[row]).rows[0].hours["train"]

    base = train("robuq_uniform/W1.58A2")
    assert train("robuq_uniform,schedule.steps=3/W1.58A2") == pytest.approx(3 * base)
    # A third of a full-precision step, which is twice as fast here.
    assert train("robuq_uniform,loss=distil/W1.58A2") == pytest.approx(base * (1 + 1 / 3 / 2))


def test_memory_is_state_and_activations(preset, probe):
    chosen = preset("model.width=1152,model.depth=28,model.heads=16,model.patch=2,qat.batch=64,sample.lane=1")
    estimate = Estimate(chosen, probe, 1, 1)
    assert estimate.ratio == pytest.approx(1) and estimate.values_ratio == pytest.approx(1)
    fixed = 20 * estimate.known_parameters
    of_an_image = ((20 << 30) - fixed) / 32
    memory = estimate.training_memory("train quantised", chosen.qat)
    assert memory == pytest.approx(20 * estimate.parameters + 64 * of_an_image)
    assert estimate.parameters == pytest.approx(estimate.known_parameters, rel=0.01)
    eight = Estimate(chosen, probe, 8, 1).training_memory("train quantised", chosen.qat)
    assert eight == pytest.approx(20 * estimate.parameters + 8 * of_an_image), "GPUs share a batch"
    small = chosen.qat.model_copy(update={"micro_batch": 4})
    assert estimate.training_memory("train quantised", small) == pytest.approx(
        20 * estimate.parameters + 4 * of_an_image
    )
    kept = chosen.qat.model_copy(update={"checkpointing": True})
    assert estimate.training_memory("train quantised", kept) < memory


def test_a_checkpoint_and_its_state_lie_on_disk_for_every_seed(preset, probe):
    one, three = (make(preset(f"seeds={s}"), probe, rows=["robuq_uniform/W1.58A2"]) for s in ("[0]", "[0,1,2]"))
    estimate = Estimate(preset(), probe, 1, 1)
    samples = 10_000 * 32 * 32 * 3
    assert one.rows[0].disk == pytest.approx(samples + estimate.parameters * (20 + 2 / 8))
    assert three.rows[0].disk == pytest.approx(3 * one.rows[0].disk)


def test_jobs_are_spread_over_gpus():
    assert makespan([5, 3, 3, 1], 1) == 12 and makespan([5, 3, 3, 1], 2) == 6 and makespan([5, 3, 3, 1], 9) == 5
    job = Job("row", 3, {"train": 1.5, "sample": 0.5}, 1.0, 1.0)
    first = Job("fp", 1, {"train": 4.0}, 1.0, 1.0)
    plan = Plan((first,), (job,), 2, (), ())
    assert plan.hours == 10 and plan.apart == 4 + 4
    assert plan.together == pytest.approx((4 + 3 * 1.5) / 2 / 0.6 + 3 * 0.5 / 2 / 0.9), "steps are shared at a cost"
    assert Plan((first,), (job,), 1, (), ()).together == 10


def test_what_the_probe_did_not_time_is_said(preset, probe, refused):
    plan = make(preset("evaluate.extractor=Inception"), probe, rows=["full_precision/W32A32"])
    assert (
        plan.rows[0].hours["score"] == 0
        and "features Inception" in plan.left_out[0]
        and "no weights" in plan.left_out[0]
    )
    both = make(preset("evaluate.also=[Pixels]"), probe, rows=["full_precision/W32A32"])
    one = make(preset(), probe, rows=["full_precision/W32A32"])
    assert both.rows[0].hours == one.rows[0].hours and "Pixels" in both.left_out[0] and not one.left_out
    lacking = probe.model_copy(update={"parts": tuple(p for p in probe.parts if p.part != "train quantised")})
    refused(lambda: make(preset(), lacking), "train quantised", "probe")


UNRECORDED = Throughput(part="train quantised", what="x", batch=32, peak_bytes=24 << 30, reason="issued plainly")


def test_a_quantised_step_that_was_not_timed_is_assumed_and_said_to_be(preset, probe):
    others = tuple(part for part in probe.parts if part.part != "train quantised")
    lacking = probe.model_copy(update={"parts": (*others, UNRECORDED)})
    row, chosen = "robuq/W1.58A2", preset("qat.steps=360,qat.batch=100")
    variants = [load_row(chosen, *row.rsplit("/", 1))]
    plan = plans.make(chosen, variants, lacking, 1, 1000, StepRatio(1.25, "of a small model"))
    ratio = work(chosen.model, 32) / work(XL, 32)
    assert plan.rows[0].hours["train"] == pytest.approx(1.25 * ratio * 36_000 / 100 / 3600), (
        "full precision takes 100/s"
    )
    assert plan.rows[0].hours["allocate"] > 0
    said = plan.assumptions[0]
    assert all(words in said for words in ("NOT MEASURED", "issued plainly", "1.25 times", "of a small model"))
    assert not any("NOT MEASURED" in said for said in make(chosen, probe, rows=[row]).assumptions)
    timed = Estimate(chosen, probe, 1, 1).training_memory("train quantised", chosen.qat)
    assert Estimate(chosen, lacking, 1, 1).training_memory("train quantised", chosen.qat) > timed


def test_a_ratio_is_read_with_its_source(in_root, tmp_path, refused):
    rows = [{"row": "full_precision/W32A32", "ratio": 1.0}, {"row": plan_stage.STEPS_OF, "ratio": 1.25}]
    record = {"size": "S/2", "blocks": "fused", "batch": 8, "rows": rows, "provenance": provenance.collect("Test GPU")}
    path = tmp_path / "cost.json"
    write_json(path, record)
    ratio = plan_stage.read_ratio(path)
    assert ratio.value == 1.25 and all(word in ratio.source for word in ("S/2", "Test GPU", "cost.json"))
    write_json(path, record | {"rows": rows[:1]})
    refused(lambda: plan_stage.read_ratio(path), "cost.json", plan_stage.STEPS_OF, "step-cost")
    write_json(path, {"rows": rows})
    refused(lambda: plan_stage.read_ratio(path), "provenance lacks")
    refused(lambda: plan_stage.read_ratio(tmp_path / "none.json"), "none.json: no such step cost")


@pytest.mark.parametrize("name", ["paper", "gpu"])
def test_it_plans_from_what_is_committed(in_root, capsys, name):
    assert cli.main(["plan", name, "--gpus", "8"]) == 0
    assert "8 × NVIDIA H100" in capsys.readouterr().out


@pytest.fixture
def throughput(probe, tmp_path):
    write_json(tmp_path / "probe.json", probe.model_dump(mode="json"))
    return str(tmp_path / "probe.json")


def test_the_plan_is_printed_with_its_assumptions(in_root, throughput, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert cli.main(["plan", "gpu", "--gpus", "4", "--throughput", throughput, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    for text in ("4 × Test GPU", "robuq/W1.58A2", "On the clock", "Assumed:", "as fast as RobuQ"):
        assert text in printed
    assert all(assumption in " ".join(printed.split()) for assumption in record["assumptions"])
    assert record["label"] == "theory" and record["throughput"]["device"] == "Test GPU"
    assert record["gpu_hours"] == pytest.approx(sum(job["gpu_hours"] for job in record["jobs"]))
    assert record["hours_one_gpu_a_job"] >= record["gpu_hours"] / 4


def test_what_a_study_of_the_preset_took_stands_beside_its_plan(in_root, throughput, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan_stage, "REFERENCE", tmp_path)
    counted = {"gpus": ["Test GPU"], "jobs": {"train": 4, "sample": 2}, "seconds": {"train": 30.0, "sample": 7.0}}
    write_json(tmp_path / "gpu/cost.json", counted | {"provenance": provenance.collect()})
    assert cli.main(["plan", "gpu", "--throughput", str(throughput)]) == 0
    assert "GPU-seconds a job on Test GPU: sample 3.5, train 7.5;" in capsys.readouterr().out
    assert list(plan_stage.measured("paper")) == []


def test_what_does_not_fit_is_said(in_root, throughput, capsys):
    assert cli.main(["plan", "gpu", "--throughput", throughput, "--set", "qat.batch=100000"]) == 0
    assert "It does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["quick"], ("quick", "CPU", "device=cuda")),
        (["gpu", "--gpus", "0"], ("--gpus 0",)),
        (["gpu", "--throughput", "nowhere.json"], ("nowhere.json",)),
        (["gqu"], ("gqu", "gpu")),
    ],
)
def test_mistakes_are_one_line(in_root, throughput, capsys, given, words):
    given = given if "--throughput" in given else [*given, "--throughput", throughput]
    assert cli.main(["plan", *given]) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words)
