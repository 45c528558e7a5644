"""An ablation: one question, answered by the same recipe with one thing changed, each setting a row of its own."""

from pathlib import Path

from pydantic import Field

from robuq_bench.config.base import Model, build, read_yaml
from robuq_bench.errors import BenchError, unknown

PATH = Path("workflows/ablations.yaml")


class Ablation(Model):
    """`settings`: label -> recipe expression, each run at every variant; the first is what the others stand against."""

    title: str
    question: str
    variants: tuple[str, ...] = Field(min_length=1)
    settings: dict[str, str] = Field(min_length=2)

    def rows(self) -> list[tuple[str, str, str]]:
        """(label, recipe expression, variant), settings first."""
        return [(label, recipe, variant) for variant in self.variants for label, recipe in self.settings.items()]


def load_ablations(path: Path = PATH) -> dict[str, Ablation]:
    """Every ablation by name. Raises BenchError with file and key."""
    if not path.is_file():
        raise BenchError(f"{path}: no such file; run from the root of a robuq_bench checkout")
    return {name: build(Ablation, raw, f"{path}: {name}") for name, raw in read_yaml(path).items()}


def load_ablation(name: str, path: Path = PATH) -> Ablation:
    ablations = load_ablations(path)
    if name not in ablations:
        raise unknown("ablation", name, ablations, str(path))
    return ablations[name]
