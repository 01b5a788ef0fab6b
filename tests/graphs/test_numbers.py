"""Numbers as people read them: none is rounded into another statement."""

import math

import pytest

from crosstrace.graphs.numbers import count, error, plain, points, probability, share, signed


@pytest.mark.parametrize(
    ("write", "value", "shown"),
    [
        (share, 0.997, "99.7%"),
        (share, 0.99999, ">99.9%"),
        (share, 1.0, "100%"),
        (share, 0.00123, "0.12%"),
        (share, 0.00098, "0.098%"),
        (share, 1e-9, "<0.001%"),
        (share, 0.0, "0%"),
        (probability, 0.997, "0.997"),
        (probability, 0.99999, ">0.999"),
        (probability, 5e-7, "5.0e-07"),
        (probability, 0.0012, "0.0012"),
        (points, 0.083, "+8.30 pp"),
        (points, -0.5, "-50.0 pp"),
        (points, 0.0, "0 pp"),
        (signed, 150.0, "+150"),
        (signed, -0.213, "-0.213"),
        (signed, 1e308, "+1.0e+308"),
        (plain, 1234.5, "1,234"),
        (plain, 2e-5, "2.0e-05"),
        (plain, math.inf, "inf"),
        (plain, math.nan, "not a number"),
        (error, 2.34e-7, "2.3e-07"),
        (error, 0.51, "0.51"),
    ],
)
def test_as_people_read_them(write, value, shown):
    assert write(value) == shown


def test_counts():
    assert [count(262144), count(1, "feature"), count(0, "feature")] == ["262,144", "1 feature", "0 features"]


@pytest.mark.parametrize("write", [share, probability, points, plain, signed, error])
def test_widths_and_zero(write):
    for exponent in range(-300, 300, 7):
        for digits in (1.0, 1.5, 9.4, 9.96, 9.9996):
            value = digits * 10.0**exponent
            if write in (share, probability, points) and value > 1:
                continue
            assert len(write(value)) <= 10
            assert write(value).strip("+% p").replace(".", "").replace("0", ""), f"{value} reads as zero"
