"""engine-tune without a GPU: which products of a packed file are measured, and what is refused."""

import pytest
import torch

from robuq_bench.cli import main
from robuq_bench.engine import tuning
from robuq_bench.engine.kernels.choice import Choice, Shape
from robuq_bench.engine.kernels.tiles import SingleTile


def test_each_product_is_measured_once_for_each_number_of_tokens(latent_card):
    """Width 128, 16 tokens an image: M is a power of two from 64 on; adaLN is another kernel's."""
    card = latent_card("robuq/W1.58A2", mixed=True)
    linears = [(128, 128, 3), (128, 512, 1), (384, 128, 2), (512, 128, 4)]  # proj, fc2, qkv, fc1 (N, K, bits)
    found = tuning.shapes(card, [1, 2, 9, 16])  # 16 and 32 tokens count as 64, 144 and 256 as 256
    assert found == [Shape(m, *linear) for m in (64, 256) for linear in linears]


def test_a_line_tells_the_winner_and_the_next():
    tile, other = SingleTile(64, 1, 1), SingleTile(128, 1, 1)
    line = tuning.describe(Choice(Shape(64, 128, 256, 2), tile, {str(other): 4.0, str(tile): 3.0}, 1.5))
    assert line.startswith(f"M 64 N 128 K 256 A2: {tile} 3.0 us") and f"next {other} 4.0" in line
    assert "(2 tried, 1.5 s)" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(latent_file, capsys):
    assert main(["engine-tune", str(latent_file("robuq/W1.58A2"))]) != 0
    assert "NVIDIA GPU" in capsys.readouterr().err
