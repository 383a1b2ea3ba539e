"""Optax's own loss tests pass with ours in the place of its functions, but for these."""

from importlib import metadata

import pytest

from tests import own_tests

EXPECTED = {
    # A warning of an old name of `generalized_kl_divergence`; here it has none.
    "_classification_test.py::GeneralizedKLDivergenceTest::test_deprecated_alias",
    # An error for probabilities that do not sum to one, if they are known; here `checkify`'s.
    "_segmentation_test.py::DiceLossTest::test_probability_validation",
}


@pytest.mark.slow
def test_optax_own_tests():
    if metadata.version("optax") != "0.2.8":
        pytest.skip("the list is that of optax 0.2.8")
    own_tests.check("optax", EXPECTED, 150)
