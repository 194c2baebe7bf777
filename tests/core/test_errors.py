"""Errors carry a readable message, and a missing extra is named."""

from __future__ import annotations

import pytest

from aks.core import errors
from aks.ops import find_op


def test_require_returns_the_module():
    assert errors.require("json", "train").dumps([1]) == "[1]"


def test_require_names_the_extra():
    with pytest.raises(errors.MissingExtraError, match=r"'no_such_module'.*'train' extra: pip install 'aks\[train\]'"):
        errors.require("no_such_module", "train")


def test_an_unknown_op_says_what_is_known():
    with pytest.raises(errors.UnknownOpError) as caught:
        find_op("conv")
    assert str(caught.value).startswith("no op 'conv'; known: ")


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_error_is_an_aks_error_and_prints_plainly(kind):
    assert issubclass(kind, errors.AksError)
    assert str(kind("plain text")) == "plain text"
