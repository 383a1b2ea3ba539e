"""How many small faults the tests notice: `python -m mutants --help`.

The code is changed in one small way, such as a sign, a factor, a mask that is dropped or two
operands that are swapped, and the tests of its family run; a change after which they all still
pass was not noticed. The changes are a random sample, repeatable by its seed.

A mutation tester from the shelf makes no difference between a term and a type: half of what
cosmic-ray would change here are annotations, messages and shapes, and it neither drops a term of
a derivative nor swaps operands; mutmut skips what has a decorator, as every loss here has.
"""
