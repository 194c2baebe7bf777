"""Records of PyTorch's AutoHeuristic (times of Inductor's configs for ``torch.mm``) as measurements of ``mm``.

A file of records has a row for each configuration that was tried on a product mat1 [m, k] @ mat2 [k, n]:
the columns of ``COLUMNS``. A record says less than a measurement of ours; what stands for the rest:

- ``device`` is a model's name; its row of ``devices.toml`` is taken (``aliases`` there): the SKU is not given.
- ``time_ms`` is the median of timings that are gone, so it is the one sample. Infinite: the configuration
  failed, which is recorded as ``OUT_OF_RESOURCES``, by far the most usual reason.
- AutoHeuristic times with Triton's ``do_bench``, which clears L2 before each launch: the regime is ``cold``.
- Versions of driver, libraries and compiler, clocks and dates are ``unknown`` (0 where a number is wanted).
- Strides show in layouts and alignment alone: two records may be of one problem of ours. Their medians are
  then the samples of one measurement, whose latency is their median; a failure counts if all failed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from aks.core.device import DeviceSpec, device_slug, find_device
from aks.core.errors import DataError, IllegalConfigError, UnknownDeviceError
from aks.core.measurement import Regime, Status
from aks.core.record import SCHEMA_VERSION, Environment
from aks.data.check import MAX_US
from aks.data.schema import SAMPLES, arrow_schema
from aks.ops.mm.spec import ELEMENT_BYTES, MM, MmConfig, MmProblem

_STRIDES = ("mat1_stride_0", "mat1_stride_1", "mat2_stride_0", "mat2_stride_1")
_PROBLEM = ("device", "m", "n", "k", "dtype", *_STRIDES)
_KNOBS = ("block_m", "block_n", "block_k", "num_stages", "num_warps")
_CONFIG = ("is_triton", *_KNOBS)
COLUMNS = (*_PROBLEM, *_CONFIG, "time_ms")
"""Columns that a file of records must have; it may have others."""

FAMILY = RUN_ID = "autoheuristic"
_UNKNOWN = "unknown"
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Imported:
    """Measurements of ``mm`` made of records: a table of the columns of ``arrow_schema(MM)``.

    pooled: records that share a measurement with another. against_rules: measurements that were timed
    though the space's rules forbid them, which training takes to be impossible.
    """

    table: pa.Table
    records: int
    pooled: int
    against_rules: int

    def __str__(self) -> str:
        table = self.table
        devices = ", ".join(sorted(set(table["device"].to_pylist())))
        problems = len(table.group_by(["device", *(field.name for field in fields(MmProblem))]).aggregate([]))
        failed = table.num_rows - table["latency_us"].drop_null().length()
        lines = [f"{self.records} records: {table.num_rows} measurements of {problems} problems on {devices}"]
        lines.append(f"  {failed} of them failed; {self.pooled} records are of a problem that another has too")
        if self.against_rules:
            lines.append(
                f"  {self.against_rules} ran though the rules of the space forbid them: training ignores these"
            )
        return "\n".join(lines)


def import_records(path: str | Path) -> Imported:
    """The records in a Parquet file, as measurements of ``mm``.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, has a value of another type or out of range, a
        configuration that is not in the space of ``mm``, or the same record twice.
    UnknownDeviceError
        If ``devices.toml`` has no row for a device.
    """
    path = Path(path)
    frame = _read(path)
    for column in (*_PROBLEM[1:4], *_STRIDES):
        _refuse(
            frame, frame[column] < (0 if column in _STRIDES else 1), f"have a {column} that cannot be", column, path
        )
    _refuse(frame, ~frame["dtype"].isin(_DTYPES), f"have another dtype than {', '.join(_DTYPES)}", "dtype", path)
    time_us = frame["time_ms"].to_numpy(np.float64) * 1e3
    sane = (time_us > 0) & ((time_us < MAX_US) | np.isposinf(time_us))
    _refuse(frame, ~sane, "have a time_ms that is neither a positive time nor inf", "time_ms", path)
    frame.loc[~frame["is_triton"], list(_KNOBS)] = 0
    _refuse(frame, frame.duplicated([*_PROBLEM, *_CONFIG]), "are there twice", "time_ms", path)

    problem_of, problem_rows = _numbered(frame, _PROBLEM)
    devices = {name: _device(name, path) for name in dict.fromkeys(row["device"] for row in problem_rows)}
    cells = [(devices[row["device"]], _problem(row, path)) for row in problem_rows]
    config_of, config_rows = _numbered(frame, _CONFIG)
    configs = [_config(row, path) for row in config_rows]
    # Records that differ in strides alone may be of one problem: number problems and not records.
    places = {cell: place for place, cell in enumerate(dict.fromkeys(cells))}
    cell_of = np.array([places[cell] for cell in cells])[problem_of]
    pools, samples_us = _pooled(cell_of * len(configs) + config_of, time_us)
    cell_index, config_index = np.divmod(pools.index.to_numpy(), len(configs))
    shared = pools["records"].to_numpy()
    return Imported(
        _table(pools, samples_us, list(places), cell_index, configs, config_index),
        records=len(frame),
        pooled=int(shared[shared > 1].sum()),
        against_rules=_against_rules(list(places), cell_index, configs, config_index, pools),
    )


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"no file of records {path}; name a Parquet file with the columns {', '.join(COLUMNS)}")
    try:
        names = pq.read_schema(path).names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise DataError(f"{path} lacks {', '.join(missing)}; records have the columns {', '.join(COLUMNS)}")
        table = pq.read_table(path, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file, truncated or damaged ({error}); copy it again") from error
    integers = (*_PROBLEM[1:4], *_STRIDES, *_KNOBS)
    for name in COLUMNS:
        kind = table.schema.field(name).type
        fits = {
            "device": pa.types.is_string(kind) or pa.types.is_large_string(kind),
            "dtype": pa.types.is_string(kind) or pa.types.is_large_string(kind),
            "is_triton": pa.types.is_boolean(kind),
            "time_ms": pa.types.is_floating(kind),
        }.get(name, pa.types.is_integer(kind))
        if not fits or table[name].null_count:
            raise DataError(
                f"{path} has {name} as {kind} with {table[name].null_count} empty cells; records have text in device "
                "and dtype, truth in is_triton, a float in time_ms, integers in the rest, and no empty cell"
            )
    if not table.num_rows:
        raise DataError(f"{path} has no records")
    return table.to_pandas().astype(dict.fromkeys(integers, np.int64))


def _refuse(frame: pd.DataFrame, wrong: Any, what: str, column: str, path: Path) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        first = frame[column].iloc[rows[0]]
        raise DataError(
            f"{path}: {len(rows)} records {what} (the first: row {rows[0]}, {column} {first}); correct them"
        )


def _numbered(frame: pd.DataFrame, columns: tuple[str, ...]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The distinct rows of ``columns`` in order of appearance, and which of them each row is."""
    groups = frame.groupby(list(columns), sort=False)
    return groups.ngroup().to_numpy(), frame.loc[:, list(columns)].drop_duplicates().to_dict("records")


def _device(name: str, path: Path) -> DeviceSpec:
    try:
        return find_device(name)
    except UnknownDeviceError as error:
        raise UnknownDeviceError(
            f"{path} has records of device {name!r}: add a row [{device_slug(name)}] to aks/core/devices.toml, or name "
            f"it among the aliases of one that is there ({error})"
        ) from None


def _problem(row: dict[str, Any], path: Path) -> MmProblem:
    x_rows, x_stride = _rows(row, "mat1", ("m", "k"), path)
    w_rows, w_stride = _rows(row, "mat2", ("k", "n"), path)
    dtype = _DTYPES[row["dtype"]]
    size = ELEMENT_BYTES[dtype]
    return MmProblem(
        m=row["m"],
        n=row["n"],
        k=row["k"],
        dtype=dtype,
        x_layout="mk" if x_rows else "km",
        w_layout="kn" if w_rows else "nk",
        alignment=math.gcd(16, size * x_stride, size * w_stride),
    )


def _rows(row: dict[str, Any], name: str, axes: tuple[str, str], path: Path) -> tuple[bool, int]:
    """Whether rows of the matrix are contiguous, or else its columns; and how far they are apart: 0 if there is one."""
    height, width = (row[axis] for axis in axes)
    down, right = row[f"{name}_stride_0"], row[f"{name}_stride_1"]
    # The stride of an axis of size 1 says nothing.
    if right == 1 and (width > 1 or height == 1):
        return True, down if height > 1 else 0
    if down == 1 and (height > 1 or width == 1):
        return False, right if width > 1 else 0
    if width == 1:
        return True, down
    if height == 1:
        return False, right
    raise DataError(
        f"{path}: {name} {height} x {width} has strides {down}, {right}: elements of neither axis are contiguous; "
        "leave such records out"
    )


def _config(row: dict[str, Any], path: Path) -> MmConfig:
    if not row["is_triton"]:
        return MmConfig("aten")
    config = MmConfig("triton", *(row[name] for name in _KNOBS))
    if config not in MM.space.places:
        raise IllegalConfigError(
            f"{path} has a configuration that is not in the space of mm: {config.key()!r}; leave its records out, or "
            "widen the space in aks/ops/mm/spec.py"
        )
    return config


def _pooled(cell: np.ndarray, time_us: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Of each cell, in order: the median of its finite times (nan if there is none), how many they are, and how
    many records it has; and the finite times, one cell's after the other's."""
    every = pd.DataFrame({"cell": cell, "time_us": np.where(np.isfinite(time_us), time_us, np.nan)})
    groups = every.groupby("cell")["time_us"]
    pools = pd.DataFrame({"latency_us": groups.median(), "timed": groups.count(), "records": groups.size()})
    return pools, every.dropna().sort_values("cell", kind="stable")["time_us"].to_numpy(np.float32)


def _table(
    pools: pd.DataFrame,
    samples_us: np.ndarray,
    cells: list[tuple[DeviceSpec, MmProblem]],
    cell_index: np.ndarray,
    configs: list[MmConfig],
    config_index: np.ndarray,
) -> pa.Table:
    schema, length = arrow_schema(MM), len(pools)
    failed = (pools["timed"] == 0).to_numpy()
    common = {
        "schema_version": SCHEMA_VERSION,
        "op": MM.name,
        "families": FAMILY,
        "regime": Regime.COLD.value,
        "num_launches": 0,
        "sm_clock_mhz": 0,
        **dict.fromkeys((field.name for field in fields(Environment)), _UNKNOWN),
        "space_fingerprint": MM.space.fingerprint,
        "run_id": RUN_ID,
        "measured_at": _UNKNOWN,
    }
    made = {name: pa.repeat(pa.scalar(value, schema.field(name).type), length) for name, value in common.items()}
    made |= _spread([device.to_row() | problem.to_row() for device, problem in cells], cell_index, schema)
    made |= _spread([config.to_row() for config in configs], config_index, schema)
    made["status"] = pa.array(np.where(failed, Status.OUT_OF_RESOURCES.value, Status.OK.value), pa.string())
    made["detail"] = pa.array(np.where(failed, "recorded as inf", ""), pa.string())
    made["latency_us"] = pa.array(pools["latency_us"].to_numpy(), pa.float64(), from_pandas=True)
    ends = np.concatenate([[0], np.cumsum(pools["timed"].to_numpy())])
    samples = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(samples_us))
    made[SAMPLES] = samples.cast(schema.field(SAMPLES).type)
    return pa.table([made[name] for name in schema.names], schema=schema)


def _spread(rows: list[dict[str, Any]], index: np.ndarray, schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns of ``rows`` at ``index``."""
    taken = pa.array(index)
    return {name: pa.array([row[name] for row in rows], schema.field(name).type).take(taken) for name in rows[0]}


def _against_rules(
    cells: list[tuple[DeviceSpec, MmProblem]],
    cell_index: np.ndarray,
    configs: list[MmConfig],
    config_index: np.ndarray,
    pools: pd.DataFrame,
) -> int:
    timed = (pools["timed"] > 0).to_numpy()
    tried = pd.Series(config_index[timed]).groupby(cell_index[timed]).agg(list)
    count = 0
    for cell, here in tried.items():
        device, problem = cells[int(cell)]  # type: ignore[call-overload]
        count += len(here) - len(MM.space.legal(problem, device, [configs[index] for index in here]))
    return count
