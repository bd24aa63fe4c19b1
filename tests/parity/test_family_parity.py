"""Every family, every stage, at its native and another size, against transformers with the same weights."""

from functools import cache

import pytest
from family_parity import CASES, differences, pair

TOLERANCE = 1e-4  # of a map's standard deviation: fp32, other kernels, fused attention

cached_pair = cache(pair)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, case in CASES.items() for size in case.sizes])
def test_family_maps_of_every_stage_equal_those_of_transformers(name, size):
    found = differences(name, *cached_pair(name), size)
    assert max(found.values()) <= TOLERANCE, found
