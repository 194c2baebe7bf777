"""``fit``: what the tree of a device may look at."""

from __future__ import annotations

import pytest

from aks.core.device import find_device
from aks.train.fit import Options, fit

H200, HALF = find_device("h200"), find_device("h200-64sm")


@pytest.mark.parametrize("device", [H200, HALF], ids=lambda device: device.name)
def test_only_trees_of_partitions_split_on_waves(training_set, device) -> None:
    op = training_set.op
    fitted = fit(training_set, Options(num_imagined=500, num_rounds=2), device=device)
    split_on = {op.features[feature].name for feature in fitted.tree.nodes.feature if feature >= 0}
    assert split_on & set(op.tree_features)
    assert split_on <= {*op.tree_features, *op.partition_tree_features}
    assert bool(split_on & set(op.partition_tree_features)) is device.is_partition
