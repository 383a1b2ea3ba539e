"""The small changes of `mutants`: each is one, where it says, and Python."""

import ast

import pytest

from mutants import __main__ as mutants
from mutants.changes import changes

SOURCE = '''
def f(x, y, flag=True):
    """Of 2 numbers."""
    if x is None:
        raise ValueError("x + 1")
    z: int | None = -x * y + g(x, y)
    return jnp.maximum(z, 2) if flag and x < y else z
'''


def test_every_kind():
    found = [(c.kind, c.before, c.after) for c in changes("m.py", SOURCE)]
    assert ("an operand dropped", "-x * y", "(-x)") in found
    assert ("a sign dropped", "-x", "(x)") in found
    assert ("another comparison", "x < y", "((x) <= (y))") in found
    assert ("operands swapped", "g(x, y)", "g(y, x)") in found
    assert ("another function", "jnp.maximum", "jnp.minimum") in found
    assert ("a condition negated", "x is None", "(not (x is None))") in found
    assert ("another number", "True", "False") in found
    # Neither the type nor the message.
    assert not any(before in ("int | None", "x + 1") for _, before, _ in found)


@pytest.mark.parametrize("module", ["_families/focal.py", "_core/rows.py", "linear/_tokens.py"])
def test_what_is_changed_is_python(module):
    source = (mutants.ROOT / "jaxloss" / module).read_text()
    all_changes = list(changes(module, source))
    assert len(all_changes) > 50
    before = ast.dump(ast.parse(source))
    for change in all_changes[::10]:
        assert ast.dump(ast.parse(change.applied(source))) != before, change


def test_a_sample_is_repeatable():
    assert mutants.sample(20, seed=1) == mutants.sample(20, seed=1)
    assert mutants.sample(20, seed=1) != mutants.sample(20, seed=2)


def test_of_a_family_its_own_tests_run():
    suite = mutants.tests_of("jaxloss/_families/focal.py")
    assert "tests/families/test_focal.py" in suite and "sigmoid_focal_loss" in suite[-1]
