"""The sentence of an ablation is made from its numbers."""

from robuq_bench.config.ablation import Ablation
from robuq_bench.report.ablation_stage import sentence

ABLATION = Ablation(title="T", question="Q", variants=("W1.58A2",), settings={"ours": "a", "less": "b", "more": "c"})


def rows(seeds: int = 3, **distances: float | None) -> list[dict]:
    return [{"setting": name, "variant": "W1.58A2", "FD": value, "seeds": seeds} for name, value in distances.items()]


def test_reference_best():
    text = sentence(ABLATION, "W1.58A2", rows(ours=10.0, less=12.0, more=11.0), "FD-X")
    assert text == "At W1.58A2 'ours' has the lowest FD-X (10), and 'less' the highest (12)."


def test_another_setting_best():
    text = sentence(ABLATION, "W1.58A2", rows(ours=10.0, less=12.0, more=9.5), "FD-X")
    assert "'more' has the lowest FD-X (9.5), 0.5 below the reference 'ours' (10)" in text


def test_diverged_settings_are_named():
    assert sentence(ABLATION, "W1.58A2", rows(ours=10.0, less=None, more=9.0), "FD-X").endswith("Diverged: less.")
    assert (
        sentence(ABLATION, "W1.58A2", rows(ours=None, less=None, more=None), "FD-X")
        == "At W1.58A2 every setting diverged."
    )


def test_close_figures_are_told_apart_and_one_seed_is_said():
    text = sentence(ABLATION, "W1.58A2", rows(seeds=1, ours=4.845, less=4.848), "FD-X")
    assert "(4.845)" in text and "(4.848)" in text and "One seed:" in text
