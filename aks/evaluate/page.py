"""HTML pages that need nothing else: templates with one style."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, context: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """The page that a template of ``aks/evaluate/templates`` makes of the context."""
    environment = Environment(loader=PackageLoader("aks.evaluate"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= dict(filters or {})
    return environment.get_template(template).render(context)
