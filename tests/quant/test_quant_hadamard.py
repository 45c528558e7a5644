"""Hadamard matrices and the fast rotation against the dense one, exactly where integers allow it."""

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

from robuq_bench.quant.hadamard import BLOCK, block_width, factors, rotate, signs_matrix

PRESETS = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "config").glob("*.yaml"))]
INPUTS = {factor * preset["model"]["width"] for preset in PRESETS for factor in (1, 4)}
