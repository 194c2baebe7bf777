"""CUDA graphs for a model: where its launches change with the batch, which graphs that asks for, and their replay.

>>> plan = aks.graphs.plan_model(model, max_m=256)
>>> print(plan, plan.with_tops(aks.graphs.powers_of_two(256)))
>>> step = aks.graphs.StepGraphs(model_step, [tokens, positions], plan.tops)
>>> step.capture_pending()
>>> logits = step(tokens, positions)
"""

from aks.integrations.graphs import layers_of, plan_model
from aks.runtime.capture import StepGraphs, measured_cost
from aks.runtime.graphs import (
    Breakpoint,
    Interval,
    Launch,
    Layer,
    Plan,
    Predictors,
    breakpoints,
    launches,
    plan,
    powers_of_two,
    stretch_tops,
)

__all__ = [
    "Breakpoint",
    "Interval",
    "Launch",
    "Layer",
    "Plan",
    "Predictors",
    "StepGraphs",
    "breakpoints",
    "launches",
    "layers_of",
    "measured_cost",
    "plan",
    "plan_model",
    "powers_of_two",
    "stretch_tops",
]
