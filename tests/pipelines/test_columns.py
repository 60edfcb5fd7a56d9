"""Column files: equal values give equal bytes, come back as they went in, and are read by the column."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA, conform, read_columns, write_columns
from pipelines.errors import HarmonError

TURNS = st.lists(
    st.fixed_dictionaries({"role": st.text(max_size=4), "text": st.none() | st.text(max_size=9)}), max_size=3
)
ROW = st.fixed_dictionaries(
    {
        "key": st.text("0123456789abcdef", min_size=32, max_size=32),
        "width": st.none() | st.integers(0, 2**31 - 1),
        "bytes": st.none() | st.integers(0, 2**63 - 1),
        "caption": st.none() | st.text(max_size=20),
        "conversations": st.none() | TURNS,
    }
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(ROW, max_size=8), cut=st.integers(0, 8))
def test_bytes_depend_on_values_alone(tmp_path_factory: pytest.TempPathFactory, rows: list[dict], cut: int) -> None:
    folder = tmp_path_factory.mktemp("columns")
    table = pa.Table.from_pylist(rows, SOURCE_SCHEMA)
    pieces = pa.concat_tables([table.slice(0, cut), table.slice(cut)]).replace_schema_metadata({"made": "elsewhere"})
    write_columns(table, folder / "a")
    write_columns(pieces, folder / "b")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    assert read_columns(folder / "a").equals(table)


def test_half_precision_embeddings_come_back_exactly(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4)
    table = pa.table({"key": ["a", "b", "c"], "embedding": embedding})
    write_columns(table, tmp_path / "a")
    assert read_columns(tmp_path / "a").schema.field("embedding").type == embedding.type
    assert read_columns(tmp_path / "a", ["embedding"]).column("embedding").to_pylist() == values.tolist()


def test_reading_one_column_reads_no_other(tmp_path: Path) -> None:
    write_columns(pa.table({"key": ["a"], "x": [1], "y": [2]}), tmp_path / "a")
    assert read_columns(tmp_path / "a", ["y"]).column_names == ["y"]
    with pytest.raises(HarmonError, match="no column"):
        read_columns(tmp_path / "a", ["z"])


@pytest.mark.parametrize(
    "table", [pa.table({"x": [1]}), pa.table({"x": [1], "key": ["a"]}), pa.table({"key": ["a", None]})]
)
def test_a_group_without_a_key_for_each_row_is_refused(tmp_path: Path, table: pa.Table) -> None:
    with pytest.raises(HarmonError, match="key"):
        write_columns(table, tmp_path / "a")


def test_damage_is_one_plain_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"PAR1 this is not Parquet PAR1")
    with pytest.raises(HarmonError, match="cannot be read as Parquet"):
        read_columns(tmp_path / "a")
    with pytest.raises(HarmonError, match="cannot be read as Parquet"):
        read_columns(tmp_path / "absent")


def test_conform_names_what_is_missing_and_unknown() -> None:
    with pytest.raises(HarmonError, match=r"missing \['row_id'.*unknown \['why'\]"):
        conform(pa.table({"key": ["a"], "source": ["s"], "why": ["x"]}), REJECT_SCHEMA, "the rejects")


def test_conform_refuses_values_that_do_not_fit() -> None:
    wide = pa.Table.from_pylist([{"key": "a"}], SOURCE_SCHEMA).set_column(6, "width", pa.array([2**40]))
    with pytest.raises(HarmonError, match="does not fit"):
        conform(wide, SOURCE_SCHEMA, "source")
