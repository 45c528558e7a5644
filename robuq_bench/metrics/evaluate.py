"""All scores of one set of images against a reference."""

from typing import Any

from robuq_bench.metrics.features import Features
from robuq_bench.metrics.frechet import frechet_distance, moments
from robuq_bench.metrics.neighbours import precision_recall
from robuq_bench.metrics.reference import Reference, check_source
from robuq_bench.metrics.scores import inception_score, kid


def evaluate(fake: Features, reference: Reference) -> dict[str, Any]:
    """Score generated images. Keys and units:

    FD, sFD: Fréchet distances of pooled and spatial features, against all n_reference real images.
    IS: Inception Score. KID, KID_se: MMD² and its standard error, raw (often printed × 1000), against all the
    kept reals. precision, recall: 0…1, k = 3, against the first n of the kept reals (n_neighbours: how many
    there were), so that both sets are equally large whenever enough are kept.
    n: generated images. extractor, digest, protocol: what made the features.
    Raises BenchError for features of another extractor, non-finite ones, and n too small for a covariance.
    """
    check_source(fake.source, reference.source, "evaluate")
    pooled, spatial = moments(fake.pooled), moments(fake.spatial)
    neighbours = reference.kept[: len(fake)]
    distance = kid(fake.pooled, reference.kept)
    manifold = precision_recall(real=neighbours, fake=fake.pooled)
    return {
        "FD": frechet_distance(pooled, reference.pooled),
        "sFD": frechet_distance(spatial, reference.spatial),
        "IS": inception_score(fake.probabilities),
        "KID": distance.value,
        "KID_se": distance.standard_error,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "n": len(fake),
        "n_reference": reference.n,
        "n_neighbours": len(neighbours),
        "extractor": fake.source.name,
        "digest": fake.source.digest,
        "protocol": fake.source.protocol,
    }


def floor(held_out: Features, reference: Reference) -> dict[str, Any]:
    """What real images that are not in the reference score: the best any model can hope for at this n.

    A Fréchet distance is biased upwards, by roughly 1/n, so print this beside each FD.
    """
    return evaluate(held_out, reference)
