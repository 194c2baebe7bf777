"""Things that a user names as ``module:name``: the only code of others that aks imports."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def import_named(path: str) -> Any:
    """What ``module:name`` names, found as ``import`` finds it or in the working directory.

    Raises
    ------
    ImportError, AttributeError, ValueError
        If there is no such module, no such name in it, or path is not of that form.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{path!r} is not 'module:name'")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look there by itself
    return getattr(importlib.import_module(module), name)
