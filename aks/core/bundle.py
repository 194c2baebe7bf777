"""An exported folder as its readers see it: the tree, the device it is for, and the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aks.core import artifact, tree_json
from aks.core.device import DeviceSpec, device_slug
from aks.core.errors import ArtifactError, UnknownDeviceError
from aks.core.tree import Tree

TREE_FILE = "tree.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a folder holds; every hash was checked on the way."""

    folder: Path
    manifest: dict[str, Any]
    device: DeviceSpec
    tree: Tree

    @property
    def version(self) -> str:
        """Names the bytes that were read: the same for all who read the same."""
        return artifact.version_of(self.manifest)

    def check_op(self, name: str, space_fingerprint: str | None = None) -> None:
        """Raise unless the tree is for this op, and for this config space if one is given.

        Raises
        ------
        ArtifactError
            Naming what the tree is for.
        """
        if self.tree.op != name:
            raise ArtifactError(f"{self.folder} holds a tree for op {self.tree.op!r}; wanted {name!r}")
        if space_fingerprint not in (None, self.tree.space_fingerprint):
            raise ArtifactError(
                f"{self.folder} is for config space {self.tree.space_fingerprint!r} of {name}, which is now "
                f"{space_fingerprint!r}: its rules or kernels changed since; train again and {artifact.REDO}"
            )

    def check_device(self, device: DeviceSpec | str) -> None:
        """Raise unless the tree is for ``device``: every fact of a spec must agree, of a name the slug.

        Raises
        ------
        ArtifactError
            Naming what the tree is for.
        """
        if isinstance(device, str):
            same = device_slug(device) == self.tree.device
        else:
            same = device.variables() == self.device.variables()
        if not same:
            raise ArtifactError(
                f"{self.folder} is for device {self.device}; wanted {device}; "
                f"{artifact.REDO} for that device, or load another folder"
            )


def read_bundle(folder: Path, version: str | None = None) -> Bundle:
    """Read the manifest and the tree of a folder: what was exported last, or ``version``.

    An export into the same folder may be under way: one version is read, whole.

    Raises
    ------
    ArtifactError
        If either is missing, truncated, altered or malformed, or they are of different exports, or the
        folder does not have ``version``.
    """
    manifest = artifact.read_manifest(folder, version)
    data = artifact.read_member(folder, manifest, TREE_FILE)
    tree = tree_json.from_json(artifact.parse(data, folder / TREE_FILE))
    try:
        device = DeviceSpec.from_row(manifest["device"])
    except (UnknownDeviceError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / artifact.MANIFEST} names no device: {error}; {artifact.REDO}") from error
    listed = (manifest.get("op"), manifest.get("space_fingerprint"), device_slug(device.name))
    if listed != (tree.op, tree.space_fingerprint, tree.device):
        raise ArtifactError(f"{folder}: manifest and tree are of different exports: {listed}; {artifact.REDO}")
    return Bundle(folder, manifest, device, tree)
