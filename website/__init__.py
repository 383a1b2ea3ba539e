"""The documentation site: a page for every public name, made from its docstring when it is built.

`mkdocs.yml` names `website/hooks.py`, from which the rest is reached:

- `catalog`: the public names, the family and the docstring of each;
- `formulas`: the formulas of docstrings as TeX;
- `pictures`: value and derivative, drawn from the function itself;
- `facts`: names elsewhere, what others get wrong, what a loss costs;
- `pages`: the page of a name, as Markdown;
- `docstrings`: docstrings as mkdocstrings reads them;
- `vendor`: scripts and fonts of others, fetched once, so that a page asks nothing of the network.
"""
