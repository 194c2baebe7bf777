"""The artifact folder: ``tree.py``, ``tree.h``, ``tree.json``, kernels, and the manifest that vouches for them."""

from __future__ import annotations

import json
import math
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from aks.core import artifact, kernel_files, tree_json
from aks.core.bundle import TREE_FILE, Bundle, read_bundle
from aks.core.device import DeviceSpec
from aks.core.errors import ArtifactError, DataError, UnknownOpError
from aks.core.forecast import FORECAST_FILE
from aks.core.tree import Leaf, Split, Tree
from aks.export import selector as selector_file
from aks.export.compiling import compile_all
from aks.export.emit_c import emit_c
from aks.export.emit_python import emit_python
from aks.export.header import GENERATOR, Origin
from aks.export.kernels import Compile, kernel_table
from aks.export.tree import lower
from aks.ops import find_op
from aks.ops.op import Op

FILES = ("tree.py", "tree.h", TREE_FILE)
KERNEL_FILES = (kernel_files.TABLE_FILE, kernel_files.CODE_FILE)
"""What a folder has besides if it was exported with its kernels."""
_OPTIONAL = (FORECAST_FILE, *KERNEL_FILES)


def export(
    selector_path: Path | str,
    out_dir: Path | str,
    *,
    device: DeviceSpec | None = None,
    kernels: bool = False,
    compiler: Compile | None = None,
) -> dict[str, Any]:
    """Write the four files of ``selector_path``, and its forecast, to ``out_dir``; returns the manifest.

    device is folded in; None takes the one that the selector was trained on. The same selector and
    device give the same bytes. With ``kernels`` there are two files more: every kernel that the tree can
    name, compiled for the device by ``compiler``, which by default is Triton in parallel processes.

    The version that was there is kept in ``versions/``, for readers that come in between, or after a crash,
    and for jobs that ask for it; delete it when there are none. One export into a folder at a time.

    Raises
    ------
    DataError
        If the selector cannot be read.
    ArtifactError
        If it is of another format, op or space, or contradicts itself, or a kernel cannot be bundled.
    MissingExtraError
        If kernels are wanted and Triton is not installed.
    OSError
        If ``out_dir`` cannot be written.
    """
    selector, selector_sha256 = selector_file.read_selector(Path(selector_path))
    op = _op_of(selector, Path(selector_path))
    selector_file.check_selector(selector, op)
    device = device or DeviceSpec.from_row(selector["device"])
    tree = lower(selector, op, device)
    origin = Origin(_dataset_hash(selector), selector_sha256, str(selector.get("command", "")))
    files = {
        "tree.py": _text(emit_python(tree, origin)),
        "tree.h": _text(emit_c(tree, origin)),
        TREE_FILE: artifact.dump(tree_json.to_json(tree)),
    }
    if forecast := selector_file.read_forecast(selector):
        files[FORECAST_FILE] = artifact.dump(forecast.on(device).to_json())
    if kernels:
        compiler = compiler or partial(compile_all, op.name, device.capability)
        files |= kernel_table(tree, op, device, compiler)
    manifest = _manifest(selector, tree, device, origin, files)
    _write(Path(out_dir), {**files, artifact.MANIFEST: artifact.dump(manifest, indent=1)})
    return manifest


def load(folder: Path | str, *, op: Op | None = None, device: DeviceSpec | None = None) -> Bundle:
    """The content of an artifact folder, every file checked.

    Raises
    ------
    ArtifactError
        If a file is missing, truncated or altered, or the tree is for another op, device or config
        space than ``op`` (default: the registered one of that name) and ``device`` (default: any).
    """
    bundle = read_bundle(Path(folder))
    for name in _listed(bundle.manifest):
        artifact.read_member(bundle.folder, bundle.manifest, name)
    try:
        op = op or find_op(bundle.tree.op)
    except UnknownOpError as error:
        raise ArtifactError(f"{folder}: {error}") from error
    bundle.check_op(op.name, op.space.fingerprint)
    if device is not None:
        bundle.check_device(device)
    return bundle


def _listed(manifest: dict[str, Any]) -> list[str]:
    """The files that a folder must have: the forecast and the kernels only if its manifest lists them."""
    return [*FILES, *(name for name in _OPTIONAL if name in manifest["files"])]


def _op_of(selector: dict[str, Any], path: Path) -> Op:
    try:
        return find_op(str(selector.get("op")))
    except UnknownOpError as error:
        raise DataError(f"{path}: {error}") from error


def _dataset_hash(selector: dict[str, Any]) -> str:
    dataset = selector["dataset"]
    if not isinstance(dataset, dict) or not isinstance(dataset.get("sha256"), str):
        raise ArtifactError(f"selector has dataset {dataset!r}; wanted its sha256; write it again: aks train")
    return dataset["sha256"]


def _text(lines) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _manifest(
    selector: dict[str, Any], tree: Tree, device: DeviceSpec, origin: Origin, files: dict[str, bytes]
) -> dict[str, Any]:
    nodes = list(tree.nodes())
    return artifact.seal(
        {
            "format": artifact.FORMAT,
            "version": artifact.VERSION,
            "op": tree.op,
            "device": device.to_row(),
            "trained_on": selector.get("devices", [selector["device"]["device"]]),
            "uncovered_facts": selector.get("uncovered_facts", []),
            "regime": selector.get("regime"),
            "space_fingerprint": tree.space_fingerprint,
            "created_by": GENERATOR,
            "versions": {"selector": selector["version"], "tree": tree_json.VERSION},
            "command": origin.command,
            "seed": selector.get("seed"),
            "dataset": _finite(selector["dataset"]),
            "selector_sha256": origin.selector_sha256,
            "support": selector["support"],
            "held_out_metrics": _finite(selector.get("metrics", {})),
            "tree": {
                "splits": sum(isinstance(node, Split) for node in nodes),
                "leaves": sum(isinstance(node, Leaf) for node in nodes),
                "levels": tree.levels,
            },
            **_kernels(files),
            "files": {name: {"bytes": len(data), "sha256": artifact.digest(data)} for name, data in files.items()},
        }
    )


def _kernels(files: dict[str, bytes]) -> dict[str, Any]:
    """What the manifest says of the kernels, if there are any."""
    if kernel_files.TABLE_FILE not in files:
        return {}
    table = json.loads(files[kernel_files.TABLE_FILE])
    count = sum(len(config["kernels"]) for config in table["configs"] if config)
    facts = {name: table[name] for name in ("capability", "cuda", "triton")}
    return {"kernels": {"count": count, "cubins": len(table["cubins"]), **facts}}


def _finite(value: Any) -> Any:
    """The value with nan and infinity as None: JSON has neither."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(out_dir: Path, files: dict[str, bytes]) -> None:
    """Write all files beside their place, then move them in, in order: a full disk changes nothing."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out_dir) as staging:
        new, old = Path(staging, "new"), Path(staging, "old")
        _write_files(new, files)
        _keep(out_dir, old, files[artifact.MANIFEST])
        for name in files:
            os.replace(new / name, out_dir / name)
    for name in _OPTIONAL:
        if name not in files:  # of the version before; what is not listed would only puzzle
            (out_dir / name).unlink(missing_ok=True)


def _keep(out_dir: Path, staging: Path, new_manifest: bytes) -> None:
    """Copy the version in ``out_dir``, if there is a sound and another one, to where readers look for it."""
    try:
        manifest = artifact.read_manifest(out_dir)
        files = {name: artifact.read_member(out_dir, manifest, name) for name in _listed(manifest)}
    except ArtifactError:
        return
    kept, old_manifest = out_dir / artifact.VERSIONS / artifact.version_of(manifest), artifact.dump(manifest, indent=1)
    if old_manifest != new_manifest and not kept.exists():
        _write_files(staging, {**files, artifact.MANIFEST: old_manifest})
        kept.parent.mkdir(exist_ok=True)
        os.rename(staging, kept)


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        with open(folder / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
