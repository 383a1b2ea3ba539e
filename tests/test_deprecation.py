"""What is deprecated warns where it is called, and still works."""

import pytest

from jaxloss._core.deprecation import deprecated, removed_in, renamed


@deprecated("0.3", "new_loss")
def old_loss(x):
    return 2 * x


@renamed("0.3", {"sigma": "scale"})
def scaled(x, *, scale=1.0):
    return x * scale


def test_functions():
    with pytest.warns(
        DeprecationWarning, match=r"since jaxloss 0\.3 .* 0\.5; use new_loss"
    ) as seen:
        assert old_loss(3) == 6
    assert seen[0].filename == __file__
    assert old_loss.__name__ == "old_loss"


def test_arguments():
    with pytest.warns(DeprecationWarning, match="use scale=") as seen:
        assert scaled(3, sigma=2) == 6
    assert seen[0].filename == __file__
    assert scaled(3, scale=2) == 6  # A warning would be an error.
    with pytest.raises(TypeError, match="its former name"):
        scaled(3, scale=2, sigma=2)


def test_two_minor_versions():
    assert removed_in("0.3") == "0.5"
    assert removed_in("1.9.2") == "1.11"
