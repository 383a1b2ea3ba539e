"""Keras's own loss tests pass with `jaxloss.keras` in the place of its module, but for these."""

from importlib import metadata

import pytest

from tests import own_tests

EXPECTED = {
    # A configuration without the setting that it is to restore; Keras 3.16 has it.
    "losses_test.py::CosineSimilarityTest::test_config",
    "losses_test.py::HuberLossTest::test_config",
    # An error for a class axis that is not the last; here it works.
    "losses_test.py::SparseCategoricalCrossentropyTest::test_binary_segmentation_different_axis",
    "losses_test.py::SparseCategoricalCrossentropyTest::test_multi_class_segmentation_different_axis",
    # A number for labels with a blank between them, [1, 2, 0, 2], of which Keras reads the first
    # three, blank included; here it is NaN.
    "losses_test.py::CTCTest::test_correctness",
    # Its alpha for its beta, unlike the documentation and 3.16.
    "losses_test.py::TverskyTest::test_binary_segmentation_custom_coefficients",
    "losses_test.py::TverskyTest::test_binary_segmentation_custom_coefficients_with_axis",
    "losses_test.py::TverskyTest::test_correctness_custom_coefficients",
    # The default dtype is a global setting there; here it is by the predictions.
    "loss_test.py::LossTest::test_default_dtype",
}


@pytest.mark.slow
def test_keras_own_tests():
    pytest.importorskip("keras")
    if not metadata.version("keras").startswith("3.15."):
        pytest.skip("the list is that of Keras 3.15")
    own_tests.check("keras", EXPECTED, 150)
