"""Expected calibration error."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.calibration import ece, equal_mass, equal_width, gap_sums


def test_by_hand() -> None:
    probability, hit = np.array([0.1, 0.2, 0.8, 1.0]), np.array([False, True, True, False])
    bins = equal_width(probability, 2)
    assert bins.tolist() == [0, 0, 1, 1]
    gaps = gap_sums(probability, hit, bins, 2)
    assert gaps.tolist() == pytest.approx([0.7, -0.8])
    assert float(ece(gaps, 4)) == pytest.approx((0.7 + 0.8) / 4)


def test_sums_of_two_batches_are_those_of_one() -> None:
    rng = np.random.default_rng(0)
    probability, hit = rng.random(1000), rng.random(1000) < 0.5
    parts = sum(
        gap_sums(p, h, equal_width(p, 15), 15)
        for p, h in ((probability[:300], hit[:300]), (probability[300:], hit[300:]))
    )
    np.testing.assert_allclose(parts, gap_sums(probability, hit, equal_width(probability, 15), 15), atol=1e-9)


def test_bins_of_equal_mass_have_as_many_targets() -> None:
    probability = np.random.default_rng(0).random(1500) ** 3
    assert set(np.bincount(equal_mass(probability, 15)).tolist()) == {100}
