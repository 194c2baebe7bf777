"""Records of AutoHeuristic become measurements of ``mm``, and nothing that they do not say is made up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from aks.core.device import find_device
from aks.core.errors import AksError, DataError, UnknownDeviceError
from aks.core.measurement import Status
from aks.core.record import Record
from aks.data.autoheuristic import FAMILY, import_records
from aks.data.check import check
from aks.data.merge import merge
from aks.data.records import read_records
from aks.ops import OPS
from aks.ops.mm.spec import MmConfig, MmProblem
from aks.train.dataset import from_frame
from tests.collect.scene import CONFIGS
from tests.collect.scene import OP as GEMM

MM = OPS["mm"]
ATEN: dict[str, Any] = {"is_triton": False, **dict.fromkeys(("block_m", "block_n", "block_k"), -1)}
ATEN |= {"num_stages": -1, "num_warps": -1}
TRITON: dict[str, Any] = {"is_triton": True, "block_m": 64, "block_n": 32, "block_k": 32, "num_stages": 5}
TRITON |= {"num_warps": 8}


def record(m: int = 64, n: int = 256, k: int = 512, *, time_ms: float = 0.5, **changed: Any) -> dict[str, Any]:
    """A row of records: x and w with contiguous rows of k and n."""
    shape = {"device": "a100", "m": m, "n": n, "k": k, "dtype": "float16"}
    strides = {"mat1_stride_0": k, "mat1_stride_1": 1, "mat2_stride_0": n, "mat2_stride_1": 1}
    return {**shape, **strides, **ATEN, "time_ms": time_ms, "samples": 3, **changed}


def written(path: Path, *rows: dict[str, Any], **changed: Any) -> Path:
    frame = pd.DataFrame([row | changed for row in rows])
    small = {name: "int16" for name in ("block_m", "block_n", "block_k", "num_stages", "num_warps")}
    frame.astype(small | {"time_ms": "float32"}).to_parquet(path)
    return path


def measured(path: Path) -> list[Record]:
    return [Record.from_row(row, MM) for row in import_records(path).table.to_pylist()]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "records.parquet"


def test_a_record_is_a_measurement_of_the_same_thing(path):
    made = measured(written(path, record(), record(**TRITON, time_ms=0.25), record(device="h100", dtype="bfloat16")))
    first, second, third = made
    assert first.measurement.problem == MmProblem(64, 256, 512, "fp16", "mk", "kn", 16)
    assert (first.measurement.config, second.measurement.config) == (MM.vendor, MmConfig("triton", 64, 32, 32, 5, 8))
    assert [one.measurement.latency_us for one in made] == [500.0, 250.0, 500.0]
    assert [len(one.measurement.samples_us) for one in made] == [1, 1, 1]
    assert (first.device, third.device) == (find_device("a100-sxm4-80gb"), find_device("h100-80gb-hbm3"))
    assert (first.families, first.environment.triton, first.sm_clock_mhz) == ((FAMILY,), "unknown", 0)
    assert getattr(third.measurement.problem, "dtype") == "bf16"  # noqa: B009


def test_inf_is_a_config_that_failed(path):
    (failed,) = measured(written(path, record(**TRITON, time_ms=math.inf)))
    assert failed.measurement.status is Status.OUT_OF_RESOURCES
    assert failed.measurement.samples_us == ()


@pytest.mark.parametrize(
    ("shape", "strides", "layouts", "alignment"),
    [
        ((64, 256, 512), (512, 1, 256, 1), ("mk", "kn"), 16),
        ((64, 256, 512), (1, 64, 1, 512), ("km", "nk"), 16),
        ((64, 256, 512), (516, 1, 256, 1), ("mk", "kn"), 8),
        ((63, 256, 512), (1, 63, 1, 512), ("km", "nk"), 2),
        ((63, 255, 510), (510, 1, 1, 510), ("mk", "nk"), 4),
        # One row, or one element a row: its stride says nothing.
        ((1, 256, 64), (1, 1, 1, 64), ("mk", "nk"), 16),
        ((1, 256, 64), (64, 1, 1, 64), ("mk", "nk"), 16),
        ((64, 1, 512), (512, 1, 1, 1), ("mk", "nk"), 16),
        ((64, 256, 1), (1, 1, 256, 1), ("km", "kn"), 16),
        ((64, 256, 1), (3, 1, 256, 1), ("mk", "kn"), 2),
    ],
)
def test_strides_are_layouts_and_alignment(path, shape, strides, layouts, alignment):
    names = ("mat1_stride_0", "mat1_stride_1", "mat2_stride_0", "mat2_stride_1")
    (one,) = measured(written(path, record(*shape, **dict(zip(names, strides, strict=True)))))
    row = dict(zip(("m", "n", "k", "x_layout", "w_layout"), (*shape, *layouts), strict=True))
    assert one.measurement.problem == MmProblem.from_row(row | {"dtype": "fp16", "alignment": alignment})


def test_records_that_differ_in_padding_alone_are_pooled_by_their_median(path):
    padded = {"mat1_stride_0": 1024}
    more = {"mat1_stride_0": 2048}
    rows = [
        *(record(time_ms=time, **stride) for time, stride in ((0.1, {}), (0.4, padded), (0.2, more))),
        record(**TRITON, time_ms=math.inf),
        record(**TRITON, time_ms=0.3, **padded),
    ]
    found = import_records(written(path, *rows))
    vendor, kernel = (Record.from_row(row, MM).measurement for row in found.table.to_pylist())
    assert sorted(vendor.samples_us) == pytest.approx([100.0, 200.0, 400.0])
    assert (vendor.latency_us, kernel.latency_us) == pytest.approx((200.0, 300.0))
    assert kernel.status is Status.OK  # one of two ran
    assert (found.records, found.pooled) == (5, 5)


def test_what_is_imported_passes_the_check_and_can_be_trained_on(path, tmp_path):
    rows = [record(m) for m in (16, 64)] + [record(m, **TRITON, time_ms=0.1 * m) for m in (16, 64)]
    impossible = TRITON | {"block_m": 256, "block_n": 256, "block_k": 256, "num_stages": 4}
    found = import_records(written(path, *rows, record(**impossible, time_ms=math.inf)))
    merge(MM, [found.table], tmp_path / "out.parquet")
    op, table = read_records(tmp_path / "out.parquet")
    assert (op, table.num_rows, found.against_rules) == (MM, 5, 0)
    assert check(table, op, "out.parquet").problems == 2
    data = from_frame(table.to_pandas(), op)
    assert (len(data), data.configs[0]) == (2, MM.vendor)
    assert sorted(data.oracle_us) == pytest.approx([500.0, 500.0])


def test_what_ran_against_the_rules_is_counted(path):
    too_large = TRITON | {"block_m": 256, "block_n": 256, "block_k": 256, "num_stages": 4}
    found = import_records(written(path, record(), record(**too_large), record(**TRITON)))
    assert found.against_rules == 1
    assert "1 ran though the rules" in str(found)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"time_ms": math.nan}, "time_ms as float with 2 empty cells"),
        ({"time_ms": -1.0}, r"2 records have a time_ms that is neither a positive time nor inf .*row 0, time_ms -1.0"),
        ({"time_ms": -math.inf}, "neither a positive time nor inf"),
        ({"time_ms": 0.0}, "neither a positive time nor inf"),
        ({"m": 0}, "have a m that cannot be"),
        ({"mat1_stride_0": -4}, "mat1_stride_0 that cannot be"),
        ({"mat1_stride_1": 7}, "mat1 64 x 512 has strides 512, 7: .*neither axis are contiguous"),
        ({"dtype": "float8"}, "another dtype than bfloat16, float16, float32 .*dtype float8"),
        ({"is_triton": True, "block_m": 48}, "not in the space of mm: 'triton block_m=48"),
        ({"k": 2.5}, "has k as double"),
        ({**ATEN}, "1 records are there twice"),
    ],
)
def test_what_cannot_be_a_record_is_refused(path, changed, said):
    with pytest.raises(AksError, match=said):
        import_records(written(path, record(), record(**TRITON), **changed))


def test_an_unknown_device_names_the_row_that_is_missing(path):
    with pytest.raises(
        UnknownDeviceError, match=r"device 'NVIDIA H300 SXM': add a row \[h300-sxm\] to aks/core/devices"
    ):
        import_records(written(path, record(device="NVIDIA H300 SXM")))


def test_either_schema_is_told_by_what_the_file_has(path, tmp_path, parquet):
    op, table = read_records(written(path, record(), record(**TRITON)))
    assert (op, table.num_rows) == (MM, 2)
    op, table = read_records(parquet)
    assert (op, table.num_rows) == (GEMM, 2 * len(CONFIGS))


def test_a_file_of_neither_schema_says_which_are_wanted(path, tmp_path):
    pd.DataFrame({"m": [1], "time_ms": [2.0]}).to_parquet(path)
    with pytest.raises(
        DataError, match=r"neither schema.*no aks_op.*lacks device, n, k.*AutoHeuristic have the columns"
    ):
        read_records(path)
    with pytest.raises(DataError, match="lacks device, n, k"):
        import_records(path)
    (tmp_path / "text.parquet").write_text("m,n,k\n")
    for read in (read_records, import_records):
        with pytest.raises(DataError, match="no Parquet file"):
            read(tmp_path / "text.parquet")
        with pytest.raises(DataError, match=r"none\.parquet"):
            read(tmp_path / "none.parquet")
