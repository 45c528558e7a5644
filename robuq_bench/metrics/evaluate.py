"""All scores of one set of images against a reference."""

from collections.abc import Sequence
from typing import Any

import torch

from robuq_bench.devices import release
from robuq_bench.metrics.features import Features
from robuq_bench.metrics.frechet import frechet_distance, moments
from robuq_bench.metrics.neighbours import precision_recall
from robuq_bench.metrics.reference import Reference, check_source
from robuq_bench.metrics.scores import inception_score, kid


def evaluate(fake: Features, reference: Reference) -> dict[str, Any]:
    """Score generated images. Keys and units:

    FD, sFD: Fréchet distances of pooled and spatial features, against all n_reference real images.
    IS: Inception Score. KID, KID_se, precision, recall, n_neighbours: see `pair_scores`.
    n: generated images. extractor, digest, protocol: what made the features.
    Raises BenchError for features of another extractor, non-finite ones, and n too small for a covariance.
    """
    return {**moment_scores(fake, reference), **pair_scores(fake, reference)}


def evaluate_all(pairs: Sequence[tuple[Features, Reference]], device: torch.device | str) -> list[dict[str, Any]]:
    """`evaluate` for each of `pairs`; a claimed GPU is given back once what is left is work for the CPU."""
    near = [pair_scores(*pair, device) for pair in pairs]
    release()
    return [{**moment_scores(*pair), **found} for pair, found in zip(pairs, near, strict=True)]


def moment_scores(fake: Features, reference: Reference) -> dict[str, Any]:
    """The part of `evaluate` that needs moments only: work for the CPU."""
    check_source(fake.source, reference.source, "evaluate")
    return {
        "FD": frechet_distance(moments(fake.pooled), reference.pooled),
        "sFD": frechet_distance(moments(fake.spatial), reference.spatial),
        "IS": inception_score(fake.probabilities),
        "n": len(fake),
        "n_reference": reference.n,
        "extractor": fake.source.name,
        "digest": fake.source.digest,
        "protocol": fake.source.protocol,
    }


def pair_scores(fake: Features, reference: Reference, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The part of `evaluate` that looks at all pairs of images, on `device`: nearly all of its arithmetic.

    KID, KID_se: MMD² and its standard error, raw (often printed × 1000), against all the kept reals. precision,
    recall: 0…1, k = 3, against the first n of the kept reals (n_neighbours: how many there were), so that both sets
    are equally large whenever enough are kept. Raises BenchError as `evaluate` does.
    """
    check_source(fake.source, reference.source, "evaluate")
    neighbours = reference.kept[: len(fake)]
    distance = kid(fake.pooled, reference.kept, device)
    manifold = precision_recall(real=neighbours, fake=fake.pooled, device=device)
    return {
        "KID": distance.value,
        "KID_se": distance.standard_error,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "n_neighbours": len(neighbours),
    }
