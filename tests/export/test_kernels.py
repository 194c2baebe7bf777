"""Bundles: the set of kernels is closed, its files are sealed, and exporting again replaces them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

from aks.core import artifact, kernel_files, postfix
from aks.core.errors import ArtifactError
from aks.core.tree import VENDOR, Tree
from aks.export import bundle
from aks.export.reachable import attribute_values, leaf_boxes, reachable
from aks.ops import OPS
from aks.ops.op import Op
from aks.runtime.predictor import Predictor
from tests.kernels import CUDA, export_fake
from tests.runtime.test_predictor import problem_rows
from tests.selectors import random_selector

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = sorted(path.parent for path in MODELS.rglob("manifest.json") if "versions" not in path.parts)
every_op = pytest.mark.parametrize("op", OPS.values(), ids=attrgetter("name"))


def corners_and_middles(tree: Tree, rng: random.Random) -> Iterator[dict[str, int]]:
    """Problems, as formulas see them, of every leaf x attributes (alignment among them): ragged ones and round ones."""
    axes = [parameter.name for parameter in tree.parameters if not parameter.choices]
    for _, box in leaf_boxes(tree):
        for attributes in attribute_values(tree, box):
            for step in (1, 2, 4, 8, 256):
                row = {}
                for axis in axes:
                    low, high = box[axis]
                    value = rng.choice([low, high, rng.randint(low, high), min(high, low + rng.randrange(8))])
                    row[axis] = max(low, value // step * step)
                yield row | attributes


def check_closed(tree: Tree, op: Op, predictor: Predictor) -> tuple[set[int], set[int]]:
    """Every problem finds its kernel; returns the configs that were chosen, and those that have kernels."""
    keys = {(key.config, key.values) for key in reachable(tree, op.launch_spec, predictor.configs)}
    seen = set()
    for row in corners_and_middles(tree, random.Random(0)):
        problem = {
            parameter.name: parameter.choices[row[parameter.name]]
            if parameter.choices and isinstance(parameter.choices[0], str)
            else row[parameter.name]
            for parameter in tree.parameters
        }
        chosen = predictor.select(*problem.values())
        if op.launch_spec.config_has_kernel(predictor.configs[chosen]):
            assert (chosen, op.launch_spec.variant_values(predictor.configs[chosen], row)) in keys, problem
            seen.add(chosen)
    return seen, {config for config, _ in keys}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: "-".join(folder.relative_to(MODELS).parts))
def test_every_leaf_and_alignment_of_a_shipped_tree_finds_its_kernel(folder: Path):
    predictor = Predictor.load(OPS[folder.parent.name], path=folder)
    op = OPS[folder.parent.name]
    seen, bundled = check_closed(predictor.tree, op, predictor)
    # Nor is the set much too large: nearly every config in it does run somewhere.
    assert len(seen) > 0.8 * len(bundled)


@every_op
@pytest.mark.parametrize("seed", range(3))
def test_every_leaf_of_a_random_tree_finds_its_kernel(op: Op, seed: int, tmp_path: Path):
    folder = export_fake(tmp_path, random_selector(seed, op=op, levels=6))
    predictor = Predictor.load(op, path=folder)
    check_closed(predictor.tree, op, predictor)


def read_table(folder: Path) -> dict:
    manifest = artifact.read_manifest(folder)
    return json.loads(artifact.read_member(folder, manifest, kernel_files.TABLE_FILE))


def choose_by_table(table: dict, row: dict[str, int]) -> tuple[int, int | None]:
    """Config and function that the table gives for a problem: the plain reading of ``kernels.json``."""
    names = [parameter["name"] for parameter in table["parameters"]]
    values = [row[name] for name in names] + [0] * (len(table["operands"]) + len(table["scratch"]))

    def value(place: int) -> int:
        return postfix.evaluate(table["formulas"][place], values)

    for parameter in table["parameters"]:
        support, at = parameter["support"], row[parameter["name"]]
        if not (at in support if isinstance(support, list) else support["low"] <= at <= support["high"]):
            return VENDOR, None
    place = 0 if table["nodes"] else -1
    while place >= 0:
        formula, threshold, left, right = table["nodes"][place]
        place = left if value(formula) <= threshold else right
    _, *options = table["leaves"][-1 - place]
    chosen = next(c for c, f in zip(options[::2], options[1::2], strict=True) if f == -1 or value(f))
    config = table["configs"][chosen]
    if config is None:
        return chosen, None
    key = [value(formula) for formula in config["variant"]]
    return chosen, next(function for *values, function in config["kernels"] if values == key)


@every_op
@pytest.mark.parametrize("seed", range(4))
def test_the_table_says_what_the_predictor_says(op: Op, seed: int, tmp_path: Path):
    folder = export_fake(tmp_path, random_selector(seed, op=op, levels=6))
    predictor, table = Predictor.load(op, path=folder), read_table(folder)
    code = (folder / kernel_files.CODE_FILE).read_bytes()
    for row in problem_rows(op, seed):
        problem = op.problem_type.from_row(row).variables()
        chosen, function = choose_by_table(table, problem)
        assert chosen == predictor.select(**row)
        config = predictor.configs[chosen]
        assert (function is not None) == op.launch_spec.config_has_kernel(config)
        if function is not None:
            offset, size, sha256 = table["cubins"][table["functions"][function]["cubin"]]
            cubin = code[offset : offset + size]
            assert artifact.digest(cubin) == sha256
            assert f"{config.key()} {op.launch_spec.variant_values(config, problem)}".encode() in cubin


def test_the_manifest_vouches_for_the_kernels(tmp_path: Path):
    folder = export_fake(tmp_path, random_selector(1))
    facts = bundle.load(folder).manifest["kernels"]
    assert facts["capability"] == 90 and facts["cuda"] == CUDA and facts["count"] >= facts["cubins"] > 0
    code = folder / kernel_files.CODE_FILE
    code.write_bytes(code.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"kernels\.bin was altered"):
        bundle.load(folder)


def test_exporting_without_kernels_takes_them_away_and_keeps_the_version(tmp_path: Path):
    folder = export_fake(tmp_path, random_selector(1))
    version = artifact.version_of(artifact.read_manifest(folder))
    bundle.export(tmp_path / "selector.json", folder)
    assert not (folder / kernel_files.CODE_FILE).exists()
    kept = artifact.read_manifest(folder, version)
    assert artifact.read_member(folder, kept, kernel_files.CODE_FILE)


def test_the_same_selector_gives_the_same_bytes(tmp_path: Path):
    folders = [export_fake(tmp_path / name, random_selector(2)) for name in ("a", "b")]
    for name in (artifact.MANIFEST, *bundle.KERNEL_FILES):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
