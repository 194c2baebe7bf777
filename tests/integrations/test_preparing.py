"""``aks.prepare``: each kind of layer runs once for each size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aks
from tests.integrations.test_fusing import Block, made

BF16 = torch.bfloat16


def test_each_kind_of_layer_runs_once_for_each_size(stand_in) -> None:
    model = made()
    aks.patch(model, static_weights=True, verbose=False)
    stand_in.take_calls()
    # mix, gate and up, down; the norms and the gated layer: of the two blocks one stands for both.
    assert aks.prepare(model, [1, 5, 5]) == 5
    seen = [(x[0], w) for x, w, _ in stand_in.take_calls()]
    assert sorted(set(seen)) == [(m, (n, k)) for m in (1, 5) for n, k in ((16, 16), (16, 48), (48, 16))]
    assert aks.prepare(model, []) == 0 and not stand_in.take_calls()


def test_layers_that_are_not_ours_are_left_out(stand_in) -> None:
    assert aks.prepare(Block(16).to(BF16).eval(), [1]) == 0
    assert aks.prepare(aks.nn.Linear(8, 8, dtype=BF16).train(), [1]) == 0
    assert aks.prepare(nn.Sequential(aks.nn.Linear(8, 8, dtype=BF16)).eval(), range(1, 4)) == 1
    with pytest.raises(ValueError, match="sizes begin at 0; wanted"):
        aks.prepare(nn.Linear(8, 8), [0, 1])
