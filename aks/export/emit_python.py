"""``tree.py``: the tree as one pure Python function; it imports nothing, or ``gcd`` where a formula calls it."""

from __future__ import annotations

from collections.abc import Iterator

from aks.core.python_source import Actions, function_lines
from aks.core.tree import VENDOR, Tree
from aks.export.header import Origin, header_lines


def emit_python(tree: Tree, origin: Origin) -> Iterator[str]:
    """Lines of a module with ``CONFIGS`` and ``predict``, which returns an index into it."""
    for line in header_lines(tree, origin):
        yield f"# {line}"
    yield ""
    if tree.calls("gcd"):
        yield from ("from math import gcd", "")
    yield "CONFIGS = ("
    for row in tree.configs:
        yield f"    {row!r},"
    yield ")"
    yield ""
    yield ""
    answer = "return {}".format
    doc = "Index into CONFIGS; 0, the vendor's routine, outside the training data's support."
    yield from function_lines("predict", tree, Actions(answer, answer(VENDOR), answer(VENDOR)), doc)
