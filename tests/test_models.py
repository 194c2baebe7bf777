"""What is shipped under models/ is what export writes from the selector beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aks.export.bundle import export

MODELS = Path(__file__).parents[1] / "models"
SHIPPED = sorted(path.parent for path in MODELS.rglob("manifest.json") if "versions" not in path.parts)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: "-".join(folder.relative_to(MODELS).parts))
def test_shipped_files_are_regenerated_byte_for_byte(folder, tmp_path) -> None:
    export(folder / "selector.json", tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert set(written) - {"forecast.json"} == {"manifest.json", "tree.h", "tree.json", "tree.py"}
    assert ("forecast.json" in written) == (folder / "forecast.json").exists()
    for name in written:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), (
            f"export {folder / 'selector.json'} again"
        )


def test_something_is_shipped() -> None:
    assert SHIPPED
