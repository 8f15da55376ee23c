"""The Frechet distance, held against SciPy, and the statistics that it is made of."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from evotok.data.processes import Workers
from evotok.eval.frechet import FeatureStatistics, FrechetMeter, StatisticsCache, frechet_distance


def statistics(features: torch.Tensor) -> FeatureStatistics:
    found = FeatureStatistics.empty(features.shape[1])
    for batch in features.split(7):
        found.add(batch)
    return found


def gaussian(mean: torch.Tensor, covariance: torch.Tensor, count: int = 1000) -> FeatureStatistics:
    """Statistics of a sample that has exactly these moments."""
    products = (count - 1) * covariance + count * torch.outer(mean, mean)
    return FeatureStatistics(torch.tensor(count), count * mean, products)


def by_scipy(mean, covariance, other_mean, other_covariance) -> float:
    root = sqrtm((covariance @ other_covariance).numpy()).real
    trace = covariance.trace() + other_covariance.trace()
    return float((mean - other_mean).square().sum() + trace) - 2 * float(np.trace(root))


@pytest.mark.parametrize("width", [1, 5, 64])
def test_agrees_with_scipy_on_known_gaussians(width):
    generator = torch.Generator().manual_seed(width)
    means = torch.randn(2, width, generator=generator).double()
    factors = torch.randn(2, width, 2 * width, generator=generator).double()
    covariances = factors @ factors.transpose(1, 2) / width
    found = frechet_distance(*(gaussian(m, c) for m, c in zip(means, covariances, strict=True)))
    assert found == pytest.approx(by_scipy(means[0], covariances[0], means[1], covariances[1]), rel=1e-8)


def test_two_diagonal_gaussians_by_hand():
    first = gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 4.0])).double())
    second = gaussian(torch.tensor([3.0, 0.0]).double(), torch.diag(torch.tensor([9.0, 4.0])).double())
    assert frechet_distance(first, second) == pytest.approx(9 + (1 - 3) ** 2)


def test_fewer_images_than_features():
    """Covariances are singular then, and the root of their product is where rounding does harm."""
    features = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    same, moved = statistics(features), statistics(features + 2)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(same, moved) == pytest.approx(50 * 4, rel=1e-6)


def test_moments_are_those_of_numpy_however_the_images_are_dealt_out():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) + 3
    parts = [statistics(features[:11]), statistics(features[11:])]
    for found in (statistics(features), parts[0] + parts[1]):
        mean, covariance = found.mean_and_covariance()
        np.testing.assert_allclose(mean, features.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(features.double().numpy().T), rtol=1e-10)


def test_what_has_no_distance():
    one, some = statistics(torch.zeros(1, 3)), statistics(torch.rand(5, 3))
    with pytest.raises(ValueError, match="1 images have no covariance"):
        frechet_distance(one, some)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(statistics(torch.full((3, 3), torch.nan)), some)


def test_cache_keeps_statistics_apart_and_survives_damage(tmp_path):
    found = statistics(torch.rand(5, 3))
    cache = StatisticsCache(tmp_path / "new", "net", "images")
    assert cache.read() is None
    cache.write(found)
    assert all(torch.equal(a, b) for a, b in zip(vars(cache.read()).values(), vars(found).values(), strict=True))
    assert [path.suffix for path in cache.path.parent.iterdir()] == [".safetensors"], "nothing half-written stays"
    for other in (("net 2", "images"), ("net", "images 2")):
        assert StatisticsCache(tmp_path / "new", *other).read() is None
    cache.path.write_bytes(b"damaged")
    assert cache.read() is None


def test_originals_in_the_cache_are_not_looked_at_again(tmp_path):
    seen = []

    def features(pixels):
        seen.append(len(pixels))
        return pixels.flatten(1)

    pixels = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    distances = []
    for _ in range(2):
        meter = FrechetMeter(features, 12, StatisticsCache(tmp_path, "net", "images"), [1, 2], Workers())
        meter.add_originals(pixels)
        meter.add_copies(1, pixels)
        meter.add_copies(2, pixels + 1)
        distances.append(meter.distances())
    assert seen == [6, 6, 6, 6, 6], "originals once, copies of both depths twice"
    assert distances[0] == distances[1] == {1: pytest.approx(0, abs=1e-6), 2: pytest.approx(12)}
