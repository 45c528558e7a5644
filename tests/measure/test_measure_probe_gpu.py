"""The probe on a real GPU, two of its quickest parts."""

import pytest
import torch

from robuq_bench import cli
from robuq_bench.config.base import build
from robuq_bench.files import read_json
from robuq_bench.measure.probe_records import Probe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_parts_are_timed_in_processes_of_their_own(tmp_path, in_root):
    out, parts = tmp_path / "probe.json", ["features EffNetLite0", "features Inception"]
    assert cli.main(["probe", "--part", *parts, "--repeats", "5", "--out", str(out)]) == 0
    probe = build(Probe, read_json(out), str(out))
    features, inception = probe.parts
    assert features.times, features.reason
    assert features.images_per_s > 100 and features.peak_bytes > 1e7
    assert inception.times is None and "--inception" in inception.reason
