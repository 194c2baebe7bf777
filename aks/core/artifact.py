"""Artifact folders: JSON written the same way every time, and read back only if nothing was changed.

A folder has a ``manifest.json`` that lists its files with their hashes and carries a hash of itself.
The hashes catch damage and mix-ups, not malice: nothing that is read is ever run as code.

Whoever replaces a version first copies it to ``versions/<version>/``, and puts the new manifest in last.
So a manifest, which is replaced in one step, always finds its own files: in the folder, or, once they are
being replaced, in the copy. Readers need neither locks nor write access, on network file systems too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from aks.core.errors import ArtifactError

MANIFEST, VERSIONS = "manifest.json", "versions"
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


def version_of(manifest: dict[str, Any]) -> str:
    """What names the bytes of a folder: 12 hex digits of the manifest's hash, which covers those of the files."""
    return manifest["sha256"][:12]


def read_manifest(folder: Path, version: str | None = None) -> dict[str, Any]:
    """The folder's manifest, checked against its own hash; with ``version``, the manifest of that version.

    Raises
    ------
    ArtifactError
        If it is missing, truncated, altered, of another format, or the folder does not have ``version``.
    """
    manifest = _read_manifest(folder / MANIFEST)
    if version in (None, version_of(manifest)):
        return manifest
    # Looked for after the manifest: a version is copied before its manifest is replaced.
    kept = {path.parent.name: path for path in folder.glob(f"{VERSIONS}/*/{MANIFEST}")}
    if version in kept and version_of(older := _read_manifest(kept[version])) == version:
        return older
    raise ArtifactError(
        f"{folder} holds version {version_of(manifest)}, and of earlier ones {', '.join(sorted(kept)) or 'none'}; "
        f"wanted {version!r}; load one that is there in all processes of the job, or export the wanted one again"
    )


def _read_manifest(path: Path) -> dict[str, Any]:
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
    """Bytes of one file of the manifest's version, checked against the manifest.

    Raises
    ------
    ArtifactError
        If it is missing, not listed, truncated or altered.
    """
    listed = manifest["files"].get(name)
    if not isinstance(listed, dict):
        raise ArtifactError(f"{folder / MANIFEST} does not list {name}; {REDO}")
    try:
        return _read_listed(folder / name, listed)
    except ArtifactError:
        kept = folder / VERSIONS / version_of(manifest) / name
        if not kept.is_file():
            raise
    return _read_listed(kept, listed)  # another version has taken its place, or is about to


def _read_listed(path: Path, listed: dict[str, Any]) -> bytes:
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
