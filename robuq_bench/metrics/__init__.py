"""How good are the images: features, Fréchet distances, KID, Inception Score, precision and recall."""

from robuq_bench.metrics.evaluate import evaluate
from robuq_bench.metrics.extractors import EXTRACTORS, label, load_extractor
from robuq_bench.metrics.features import Extractor, Features, Source
from robuq_bench.metrics.intervals import Interval, t_interval
from robuq_bench.metrics.reference import Reference, build_reference, load_reference, save_reference

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "Features",
    "Interval",
    "Reference",
    "Source",
    "build_reference",
    "evaluate",
    "label",
    "load_extractor",
    "load_reference",
    "save_reference",
    "t_interval",
]
