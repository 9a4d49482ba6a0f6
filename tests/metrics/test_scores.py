"""The mathematics: closed forms, and torch-fidelity's and pytorch-fid's own functions."""

import math

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from evonorm_plugins.metrics.density_coverage import density_coverage
from evonorm_plugins.metrics.fid import Gaussian, frechet_distance
from evonorm_plugins.metrics.fid_infinity import fid_infinity
from evonorm_plugins.metrics.gan import summary
from evonorm_plugins.metrics.inception_score import InceptionScore, inception_score, split_of_each
from evonorm_plugins.metrics.kid import kernel_distance
from evonorm_plugins.metrics.moments import Moments
from evonorm_plugins.metrics.precision_recall import precision_recall


def features(n, d, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.exp(-np.arange(d) / 20))
    return (np.abs(mixed) + shift).astype(np.float32)


def statistics(x):
    return x.mean(0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False)


# ---- FID ----


def test_two_gaussians_of_one_dimension():
    # (m1 - m2)^2 + (s1 - s2)^2
    distance = frechet_distance([1.0], [[4.0]], [4.0], [[25.0]])
    assert distance == pytest.approx(9 + 9, abs=1e-12)


def test_two_gaussians_that_commute():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    a, b = np.arange(1.0, 7), np.array([3.0, 0, 2, 8, 5, 1])
    covariances = [rotation @ np.diag(v) @ rotation.T for v in (a, b)]
    expected = 6 * 0.25 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    for singular in (False, True):
        distance = frechet_distance(
            np.zeros(6), covariances[0], np.full(6, 0.5), covariances[1], singular=singular
        )
        assert distance == pytest.approx(expected, abs=1e-6)


def test_of_itself_is_zero():
    mean, covariance = statistics(features(50, 100))
    assert abs(frechet_distance(mean, covariance, mean, covariance)) < 1e-10 * np.trace(covariance)


def test_one_point_and_a_cloud():
    mean, covariance = statistics(features(500, 8))
    distance = frechet_distance(mean, covariance, mean, np.zeros((8, 8)))
    assert distance == pytest.approx(np.trace(covariance), rel=1e-12)


def test_distance_is_that_of_both_tools():
    a, b = (statistics(features(400, 64, seed, seed / 4)) for seed in (0, 1))
    ours = frechet_distance(*a, *b)
    as_dict = [dict(zip(("mu", "sigma"), s, strict=True)) for s in (a, b)]
    theirs = fid_statistics_to_metric(*as_dict, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert ours == pytest.approx(calculate_frechet_distance(*a, *b), rel=1e-9)


def test_fewer_images_than_features():
    x, y = features(40, 200, 0), features(60, 200, 1, 0.2)
    a, b = statistics(x), statistics(y)
    # Without covariances: the singular values of the product of the centred features.
    centred = [(z - z.mean(0, dtype=np.float64)) / math.sqrt(len(z) - 1) for z in (x, y)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    exact = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * cross
    assert frechet_distance(*a, *b) == pytest.approx(exact, rel=1e-12)
    as_dict = [dict(zip(("mu", "sigma"), s, strict=True)) for s in (a, b)]
    theirs = fid_statistics_to_metric(*as_dict, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*a, *b, singular=True) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], np.eye(2), [0, 0, 0], np.eye(3)), "of one D"),
        (([0, 0], np.eye(2), [0, math.nan], np.eye(2)), "finite"),
        (([0, 0], np.eye(2), [0, 0], [[1, 0.5], [0, 1]]), "symmetric"),
        (([0, 0], np.eye(2), [0, 0], [[1, 0], [0, -1]]), "negative eigenvalue"),
    ],
)
def test_what_is_no_gaussian(arguments, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(*arguments)


# ---- FID at infinite N ----


def test_fid_at_infinite_n_is_that_of_the_gaussians():
    """Of a known distance: too high by 9 % in 1,000 images, in the mean over ten draws."""
    variances, shift = np.linspace(0.5, 2, 24), 0.05
    real = Gaussian(np.zeros(24), np.eye(24))
    exact = 24 * shift**2 + ((np.sqrt(variances) - 1) ** 2).sum()
    plain, infinite = [], []
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(size=(1000, 24))
        fake = (noise * np.sqrt(variances) + shift).astype(np.float32)
        plain.append(frechet_distance(*statistics(fake), real.mean, real.covariance))
        infinite.append(fid_infinity(fake, real, smallest=200, seed=seed))
    assert np.mean(plain) - exact > 0.08 * exact
    error = np.std(infinite) / math.sqrt(len(infinite))
    assert abs(np.mean(infinite) - exact) < 3 * error < 0.06 * exact


def test_fid_at_infinite_n_is_the_end_of_a_line():
    """Its points are the FIDs of the subsets, of all images at last."""
    fake, real = features(300, 6), Gaussian(*statistics(features(300, 6, 1, 0.2)))
    order = np.random.default_rng(2020).permutation(300)
    sizes, values = (100, 200, 300), []
    for size in sizes:
        x = fake[order[:size]]
        values.append(frechet_distance(*statistics(x), real.mean, real.covariance))
    line = np.linalg.lstsq(np.stack([1 / np.array(sizes), np.ones(3)], 1), values, rcond=None)[0]
    assert fid_infinity(fake, real, smallest=100, points=3) == pytest.approx(line[1], rel=1e-9)


@pytest.mark.parametrize("wrong", [{"smallest": 1}, {"smallest": 300}, {"points": 1}])
def test_no_line(wrong):
    real = Gaussian(np.zeros(6), np.eye(6))
    with pytest.raises(ValueError, match=r"a line through subsets of .* there are 300 images"):
        fid_infinity(features(300, 6), real, **{"smallest": 100, **wrong})


# ---- moments ----


@pytest.mark.parametrize("cuts", [[], [1], [7, 7, 100], [299]])
def test_moments_do_not_depend_on_batches(cuts):
    # Large mean, small deviation: nothing is left of E[x^2] - E[x]^2 in float32.
    x = torch.from_numpy(features(300, 12)).double() * 1e-3 + 1e3
    moments = Moments(12)
    for part in torch.tensor_split(x, cuts):
        moments.update(part)
    mean, covariance = statistics(x.numpy())
    assert moments.n == 300
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(moments.covariance(), covariance, rtol=1e-8, atol=1e-16)


def test_merged_moments():
    x = torch.from_numpy(features(90, 5))
    parts = [Moments(5) for _ in range(3)]
    for part, some in zip(parts, torch.tensor_split(x, [20, 20]), strict=True):
        part.update(some)
    parts[0].merge(parts[1])  # of an empty one
    parts[0].merge(parts[2])
    mean, covariance = statistics(x.numpy())
    np.testing.assert_allclose(parts[0].mean, mean, rtol=1e-13)
    np.testing.assert_allclose(parts[0].covariance(), covariance, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        Moments(5).covariance()


# ---- IS ----


def test_uniform_predictions_score_1():
    assert inception_score(torch.zeros(100, 10)) == pytest.approx((1, 0), abs=1e-12)


def test_sure_predictions_score_the_number_of_classes():
    one_hot = torch.eye(8).repeat(20, 1) * 1e4
    mean, std = inception_score(one_hot, splits=1)
    assert mean == pytest.approx(8, abs=1e-12)
    assert std == 0
    # Sorted by class and not shuffled, every split is of one class.
    by_class = one_hot[one_hot.argmax(1).argsort()]
    assert inception_score(by_class, splits=8, shuffle=False)[0] == pytest.approx(1, abs=1e-12)
    assert inception_score(by_class, splits=2)[0] > 7


def test_two_sure_classes_of_unequal_size():
    logits = torch.tensor([[1e4, 0]] * 30 + [[0, 1e4]] * 10)
    p = 0.25
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert inception_score(logits, splits=1)[0] == pytest.approx(math.exp(entropy), rel=1e-12)


@pytest.mark.parametrize("n", [10, 101, 250])
@pytest.mark.parametrize("shuffle", [True, False])
def test_score_is_torch_fidelitys(n, shuffle):
    logits = torch.randn(n, 30, generator=torch.Generator().manual_seed(n)) * 3
    ours = inception_score(logits, shuffle=shuffle)
    theirs = isc_features_to_metric(logits, shuffle=shuffle)
    assert ours[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert ours[1] == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-12)


def test_score_does_not_depend_on_batches():
    logits = torch.randn(103, 7, generator=torch.Generator().manual_seed(0))
    score = InceptionScore(split_of_each(103), 7)
    for places in torch.randperm(103, generator=torch.Generator().manual_seed(1)).split(9):
        score.update(places, logits[places])
    assert score.scores().mean() == pytest.approx(inception_score(logits)[0], rel=1e-13)


def test_fewer_images_than_splits():
    with pytest.raises(ValueError, match="over 10 splits needs as many images, got 9"):
        split_of_each(9)
    assert sorted(split_of_each(10)) == list(range(10))


# ---- KID, precision and recall ----


def test_kid_is_torch_fidelitys():
    x, y = features(120, 40, 0), features(150, 40, 1, 0.3)
    ours = kernel_distance(x, y, subsets=7, subset_size=50)
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=7, kid_subset_size=50, verbose=False
    )
    # torch-fidelity adds up in float32.
    assert ours[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours[1] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_kid_by_hand():
    x, y = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 1], [2, 0]])
    # Kernels (x y / 2 + 1)^3: x1 x2 gives 1, y1 y2 gives 8; between: 1.5, 2, 1.5 and 1, cubed.
    expected = 1 + 8 - 2 * (1.5**3 + 2**3 + 1.5**3 + 1) / 4
    assert kernel_distance(x, y, subsets=3, subset_size=2) == pytest.approx((expected, 0))


def test_kid_of_equal_sets_is_about_zero():
    x = features(400, 10)
    mean, std = kernel_distance(x[:200], x[200:], subsets=20, subset_size=100)
    assert abs(mean) < 3 * std


@pytest.mark.parametrize("blocks", [{}, {"rows": 7, "columns": 11}])
def test_precision_and_recall_are_torch_fidelitys(blocks):
    x, y = features(80, 16, 0), features(110, 16, 1, 0.4)
    ours = precision_recall(x, y, **blocks)
    theirs = prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    for key in ("precision", "recall", "f_score"):
        assert ours[f"{key}_fraction"] == pytest.approx(theirs[key], abs=1e-6)
    assert 0 < ours["precision_fraction"] < 1


def test_precision_and_recall_by_hand():
    # Real at 0, 1, 2, 3: radii to the nearest neighbour are 1. Fake at 0.5, 0.6, 9.
    fake = np.array([[0.5], [0.6], [9.0]], np.float32)
    real = np.array([[0.0], [1], [2], [3]], np.float32)
    scores = precision_recall(fake, real, neighbours=1)
    assert scores["precision_fraction"] == pytest.approx(2 / 3)
    # Fake radii are 0.1, 0.1 and 8.4: only the last reaches real ones, 1, 2 and 3.
    assert scores["recall_fraction"] == pytest.approx(3 / 4)


def by_definition(fake, real, k):
    """Density and coverage (Naeem et al., equations 4 and 5), pair for pair."""

    def distance(x, y):
        return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)))

    radii = [sorted(distance(x, y) for j, y in enumerate(real) if j != i)[k - 1]
             for i, x in enumerate(real)]  # fmt: skip
    inside = [[distance(x, y) < r for y in fake] for x, r in zip(real, radii, strict=True)]
    density = sum(map(sum, inside)) / (k * len(fake))
    return {"density": density, "coverage_fraction": sum(map(any, inside)) / len(real)}


@pytest.mark.parametrize("blocks", [{}, {"rows": 7, "columns": 11}])
@pytest.mark.parametrize(("n_fake", "n_real", "k"), [(40, 60, 5), (60, 23, 1), (3, 30, 29)])
def test_density_and_coverage_by_definition(n_fake, n_real, k, blocks):
    fake, real = features(n_fake, 9, 0, 0.2), features(n_real, 9, 1)
    expected = by_definition(fake, real, k)
    assert density_coverage(fake, real, neighbours=k, **blocks) == pytest.approx(expected)
    assert expected["density"] > 0


def test_density_and_coverage_by_hand():
    # Real at 0, 1, 2, 9: balls to the nearest neighbour reach 1, 1, 1 and 7; 1 itself is outside.
    real = np.array([[0.0], [1], [2], [9]], np.float32)
    fake = np.array([[0.5], [1.0], [20.0]], np.float32)
    # 0.5 is in the balls of 0 and 1, 1 in that of 1 alone, 20 in none.
    expected = {"density": 3 / 3, "coverage_fraction": 2 / 4}
    assert density_coverage(fake, real, neighbours=1) == expected
    far = np.full((5, 1), 100.0, np.float32)
    nothing = {"density": 0, "coverage_fraction": 0}
    assert density_coverage(far, real, neighbours=1) == nothing


@pytest.mark.parametrize("call", [kernel_distance, precision_recall])
def test_too_few(call):
    with pytest.raises(ValueError, match="3"):
        call(features(3, 4), features(50, 4))


@pytest.mark.parametrize(("n_fake", "n_real"), [(9, 5), (0, 50)])
def test_too_few_for_density(n_fake, n_real):
    with pytest.raises(ValueError, match=f"got {n_real}, and generated ones, got {n_fake}"):
        density_coverage(features(n_fake, 4), features(n_real, 4))


def test_median_and_best():
    scores = [{"fid": 5.0, "inception_score_mean": 2.0, "kid_std": 1.0},
              {"fid": 3.0, "inception_score_mean": 4.0, "kid_std": 2.0},
              {"fid": 9.0, "inception_score_mean": 3.0, "kid_std": 3.0}]  # fmt: skip
    median, best = summary(scores)
    assert median == {"fid": 5.0, "inception_score_mean": 3.0, "kid_std": 2.0}
    assert best == {"fid": 3.0, "inception_score_mean": 4.0}
