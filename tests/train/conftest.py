"""One made-up data set and one small training, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aks.data.schema import DIGEST, arrow_schema, content_digest, file_metadata
from aks.ops import OPS
from aks.ops.op import Op
from aks.train.dataset import TrainingSet, from_frame
from aks.train.fit import Options
from aks.train.growth import Shape
from aks.train.selector import TrainResult, train
from tests.synthetic import synthetic_records

HELD_OUT = ("beta",)
OPTIONS = Options(max_portfolio=6, num_imagined=300, num_rounds=12, shape=Shape(max_leaves=20))


def write_parquet(frame: pd.DataFrame, path: Path, op: Op, **changed: str) -> Path:
    """The frame as ``aks data merge`` writes it; ``changed`` replaces metadata."""
    table = pa.Table.from_pylist(frame.to_dict("records"), schema=arrow_schema(op))
    metadata = file_metadata(op) | {DIGEST: content_digest(table)}
    metadata |= {name.encode(): value.encode() for name, value in changed.items()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.fixture(scope="session")
def op() -> Op:
    return OPS["gemm"]


@pytest.fixture(scope="session")
def frame(op: Op) -> pd.DataFrame:
    return pd.DataFrame([record.to_row() for record in synthetic_records(configs=24, op=op)])


@pytest.fixture(scope="session")
def training_set(frame: pd.DataFrame, op: Op) -> TrainingSet:
    return from_frame(frame, op)


@pytest.fixture(scope="session")
def data_file(frame: pd.DataFrame, op: Op, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(frame, tmp_path_factory.mktemp("data") / "h200.parquet", op)


@pytest.fixture(scope="session")
def result(data_file: Path, op: Op, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("trained")
    return train(op, data_file, out, held_out=HELD_OUT, options=OPTIONS, track=False, command="aks train")
