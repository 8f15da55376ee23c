"""Frechet distance against SciPy, its statistics, their cache, and the meter."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from evotok.data.processes import Workers
from evotok.eval.frechet import FeatureStatistics, FrechetMeter, StatisticsCache, frechet_distance


def by_scipy(mean, covariance, other_mean, other_covariance) -> float:
    root = sqrtm((covariance @ other_covariance).numpy()).real
    trace = covariance.trace() + other_covariance.trace()
    return float((mean - other_mean).square().sum() + trace) - 2 * float(np.trace(root))


def features_of(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 64])
def test_frechet_distance_agrees_with_scipy(width):
    moments, statistics = [], []
    for seed in (1, 2):
        features = features_of(200, width, seed) * seed + seed
        moments += [features.double().mean(0), torch.from_numpy(np.cov(features.double().T)).reshape(width, width)]
        statistics.append(FeatureStatistics.of(features))
    assert frechet_distance(*statistics) == pytest.approx(by_scipy(*moments), rel=1e-8)


def test_frechet_distance_is_exact_for_fewer_images_than_features():
    """Covariances are singular then, and a root of their product loses digits."""
    features = features_of(10, 50)
    same, moved = FeatureStatistics.of(features), FeatureStatistics.of(features + 2)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(same, moved) == pytest.approx(50 * 4, rel=1e-6)


def test_frechet_distance_refuses_too_few_images_and_nan():
    some = FeatureStatistics.of(torch.rand(5, 3))
    for features, message in [(torch.zeros(1, 3), "1 images have no cov"), (torch.full((3, 3), torch.nan), "NaN")]:
        with pytest.raises(ValueError, match=message):
            frechet_distance(FeatureStatistics.of(features), some)


def test_statistics_of_disjoint_sets_are_added():
    features = features_of(40, 6) + 3
    found = FeatureStatistics.of(features[:11]) + FeatureStatistics.of(features[11:])
    mean, covariance = found.mean_and_covariance()
    np.testing.assert_allclose(mean, features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.double().numpy().T), rtol=1e-10)


def test_statistics_cache_is_of_one_network_and_one_set_of_images(tmp_path):
    found = FeatureStatistics.of(torch.rand(5, 3))
    cache = StatisticsCache(tmp_path / "new", "net", "images")
    cache.write(found)
    assert all(torch.equal(a, b) for a, b in zip(vars(cache.read()).values(), vars(found).values(), strict=True))
    for other in (("net 2", "images"), ("net", "images 2")):
        assert StatisticsCache(tmp_path / "new", *other).read() is None
    cache.path.write_bytes(b"damaged")
    assert cache.read() is None


def test_meter_reads_statistics_of_originals_from_the_cache(tmp_path):
    processed = []

    def features(pixels):
        processed.append(len(pixels))
        return pixels.flatten(1)

    pixels = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    distances = []
    for _ in range(2):
        meter = FrechetMeter(features, 12, StatisticsCache(tmp_path, "net", "images"), [1, 2], Workers())
        meter.add_originals(pixels)
        meter.add_reconstructions(1, pixels)
        meter.add_reconstructions(2, pixels + 1)
        distances.append(meter.distances())
    assert processed == [6] * 5, "originals once, reconstructions of both depths twice"
    assert distances[0] == distances[1] == {1: pytest.approx(0, abs=1e-6), 2: pytest.approx(12)}
