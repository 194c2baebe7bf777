"""Artifact folders: JSON written the same way every time, and read back only if nothing was changed.

A folder has a ``manifest.json`` that lists its files with their hashes and carries a hash of itself.
The hashes catch damage and mix-ups, not malice: nothing that is read is ever run as code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from aks.core.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT, VERSION = "aks-manifest", 1
REDO = "export it again (aks export)"


def dump(document: dict[str, Any], *, indent: int | None = None) -> bytes:
    """The document as JSON text that depends on nothing but its content; compact unless indented."""
    separators = (",", ":") if indent is None else None
    return (json.dumps(document, indent=indent, separators=separators, allow_nan=False) + "\n").encode()


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own hash as the last entry."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**body, "sha256": digest(dump(body))}


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in ``data``; ``path`` is for the message.

    Raises
    ------
    ArtifactError
        If it is empty, truncated, no JSON, or not an object.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is empty, truncated or not JSON ({error}); {REDO}") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} holds a JSON {type(document).__name__}, not an object; {REDO}")
    return document


def read_manifest(folder: Path) -> dict[str, Any]:
    """The folder's manifest, checked against its own hash.

    Raises
    ------
    ArtifactError
        If it is missing, truncated, altered, or of another format or version.
    """
    path = folder / MANIFEST
    manifest = parse(_read(path), path)
    found = (manifest.get("format"), manifest.get("version"))
    if found != (FORMAT, VERSION):
        raise ArtifactError(f"{path} has format and version {found}; this version of aks reads {(FORMAT, VERSION)}")
    if seal(manifest) != manifest:
        raise ArtifactError(f"{path} was altered: its content does not match its sha256; {REDO}")
    if not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{path} lists no files; {REDO}")
    return manifest


def read_member(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """Bytes of one file of the folder, checked against the manifest.

    Raises
    ------
    ArtifactError
        If it is missing, not listed, truncated or altered.
    """
    path = folder / name
    listed = manifest["files"].get(name)
    if not isinstance(listed, dict):
        raise ArtifactError(f"{folder / MANIFEST} does not list {name}; {REDO}")
    data = _read(path)
    if len(data) != listed.get("bytes"):
        raise ArtifactError(f"{path} has {len(data)} bytes, its manifest says {listed.get('bytes')}; {REDO}")
    if digest(data) != listed.get("sha256"):
        raise ArtifactError(f"{path} was altered: its sha256 is not the manifest's; {REDO}")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); {REDO}") from error
