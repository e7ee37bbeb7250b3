"""Guards evaluation/metrics.py by values computed by hand, scikit-learn, and loops over every threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalydiffusion_core.evaluation.metrics import (
    PRO_LIMIT,
    Ranking,
    RegionCoverage,
    ResampledPixels,
    rank_photos,
    rank_pixels,
    region_shares,
)


def figures(pixels: Ranking, regions: RegionCoverage) -> SimpleNamespace:
    best, threshold = pixels.f1_max()
    named = {"auroc": pixels.auroc(), "ap": pixels.average_precision(), "f1_max": best, "pro": regions.pro()}
    return SimpleNamespace(**named, threshold=threshold)


def pixel_metrics(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> SimpleNamespace:
    return figures(*rank_pixels(maps, masks))


def test_four_samples_by_hand() -> None:
    scores, anomalous = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    ranking = rank_photos(scores, anomalous)
    assert ranking.auroc() == 3 / 4  # of four pairs, one is the wrong way round
    assert ranking.average_precision() == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert ranking.f1_max() == (pytest.approx(2 * 2 / (3 + 2)), 0.7)
    swapped = rank_photos(scores, ~anomalous)
    assert swapped.auroc() == 1 / 4 and swapped.average_precision() == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_ties_count_half() -> None:
    ranking = Ranking.of(np.array([0.5, 0.5]), np.array([0.5, 0.1]))
    assert ranking.auroc() == (2 * 0.5 + 2 * 1) / 4
    assert ranking.average_precision() == pytest.approx(2 / 3)
    assert ranking.f1_max() == (pytest.approx(4 / 5), 0.5)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: len({flag for _, flag in rows}) == 2
    )
)
@settings(max_examples=200, deadline=None)
def test_rankings_agree_with_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores, anomalous = np.array([s / 8 for s, _ in rows], np.float32), np.array([f for _, f in rows])
    ranking = rank_photos(scores, anomalous)
    assert ranking.auroc() == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-9)
    assert ranking.average_precision() == pytest.approx(average_precision_score(anomalous, scores), abs=1e-9)
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best, threshold = ranking.f1_max()
    assert best == pytest.approx(f1.max(), abs=1e-9)
    flagged = scores >= threshold
    reached = 2 * (flagged & anomalous).sum() / (flagged.sum() + anomalous.sum())
    assert best == pytest.approx(reached, abs=1e-9)


def literal_pro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """Every threshold, every region by itself, trapezoids, the last one cut at the limit."""
    regions = [
        (number, parts == i)
        for number, mask in enumerate(masks)
        for parts, count in [ndimage.label(mask, np.ones((3, 3)))]
        for i in range(1, count + 1)
    ]
    normal = np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        covered = [(maps[number][region] >= threshold).mean() for number, region in regions]
        points.append(((normal >= threshold).mean(), np.mean(covered)))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x1 > limit:
            if x0 < limit:
                y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
                area += (limit - x0) * (y0 + y1) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def pictures(seed: int, decimals: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    for number in range(5):
        mask = np.zeros((24, 30), bool)
        if number < 3:
            mask[3 + number : 9, 4 : 10 + number] = True
            mask[15:17, 20 : 20 + 3 * number] = True
        scores = random.random(mask.shape) + 0.6 * mask * random.random(mask.shape)
        yield np.round(scores, decimals).astype(np.float32), mask


@pytest.mark.parametrize("decimals", [0, 1, 2, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_pixel_metrics_agree_with_literal_loops(seed: int, decimals: int) -> None:
    maps, masks = zip(*pictures(seed, decimals), strict=True)
    found = pixel_metrics(maps, masks)
    scores, marked = (np.concatenate([x.ravel() for x in part]) for part in (maps, masks))
    assert found.auroc == pytest.approx(roc_auc_score(marked, scores), abs=1e-9)
    assert found.ap == pytest.approx(average_precision_score(marked, scores), abs=1e-9)
    assert found.pro == pytest.approx(literal_pro(list(maps), list(masks), PRO_LIMIT), abs=1e-9)


@pytest.mark.parametrize("decimals", [1, 6])
def test_resampled_pixels_measure_exactly_as_the_photos_repeated(decimals: int) -> None:
    random = np.random.default_rng(3)
    maps = [random.random((9, 11)).round(decimals) for _ in range(5)]
    masks = [random.random((9, 11)) < share for share in (0.3, 0.1, 0.0, 0.0, 0.2)]
    pixels = ResampledPixels(maps, masks)
    for counts in ([1, 1, 1, 1, 1], [0, 2, 1, 0, 0], [3, 0, 0, 2, 1], [0, 0, 0, 4, 1]):
        rows = [i for i, count in enumerate(counts) for _ in range(count)]
        expected = pixel_metrics([maps[i] for i in rows], [masks[i] for i in rows])
        assert vars(figures(*pixels.ranked(np.array(counts)))) == pytest.approx(vars(expected), rel=1e-12)


def test_pro_gives_every_region_the_same_say() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True  # 100 pixels, found
    mask[15, 15] = True  # one pixel, missed
    scores = np.where(mask, 1.0, 0.5)
    scores[15, 15] = 0
    assert pixel_metrics([scores], [mask]).pro == pytest.approx(0.5)
    assert region_shares(mask).sum() == pytest.approx(2)


def test_regions_touch_at_corners() -> None:
    assert region_shares(np.eye(4, dtype=bool)).tolist() == [0.25] * 4


def test_constant_scores_tell_nothing() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:7] = True
    found = pixel_metrics([np.full((10, 10), 0.3)], [mask])
    assert (found.auroc, found.ap) == (0.5, pytest.approx(0.1))
    assert found.f1_max == pytest.approx(2 * 0.1 / 1.1)
    assert found.pro == pytest.approx(0.3 / 2)  # the diagonal up to the limit


def test_a_perfect_map_is_perfect_and_one_moved_by_a_pixel_is_not() -> None:
    mask = np.zeros((32, 32), bool)
    mask[10:14, 10:14] = True
    perfect = pixel_metrics([mask.astype(float)] * 2, [mask] * 2)
    assert (perfect.auroc, perfect.ap, perfect.f1_max, perfect.pro) == pytest.approx((1, 1, 1, 1))
    moved = pixel_metrics([mask.astype(float), np.roll(mask, 1, 1).astype(float)], [mask] * 2)
    assert moved.ap < 0.9 and moved.f1_max == pytest.approx(28 / 32) and moved.pro < 1
    swapped = pixel_metrics([1.0 - mask], [mask])
    assert swapped.auroc == 0 and swapped.pro == 0


def test_what_cannot_be_measured_is_refused() -> None:
    scores, mask = np.random.default_rng(0).random((4, 4)), np.zeros((4, 4), bool)
    with pytest.raises(ValueError, match="no anomalous samples"):
        pixel_metrics([scores], [mask])
    with pytest.raises(ValueError, match="no normal samples"):
        pixel_metrics([scores], [~mask])
    mask[1, 1] = True
    with pytest.raises(ValueError, match="Map 1 is .4, 4., its mask .3, 4."):
        pixel_metrics([scores, scores], [mask, mask[:3]])
    with pytest.raises(ValueError, match="2 maps for 1 masks"):
        pixel_metrics([scores, scores], [mask])
    with pytest.raises(ValueError, match="no numbers"):
        pixel_metrics([np.where(mask, np.nan, scores)], [mask])


def test_pro_is_anomalib_s() -> None:
    aupro = pytest.importorskip("anomalib.metrics.aupro", reason="anomalib is not installed")
    torch = pytest.importorskip("torch")
    maps, masks = zip(*pictures(0, 6), strict=True)
    metric = aupro._AUPRO(fpr_limit=PRO_LIMIT)
    metric.update(torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks)).int())
    assert pixel_metrics(maps, masks).pro == pytest.approx(float(metric.compute()), abs=1e-4)
