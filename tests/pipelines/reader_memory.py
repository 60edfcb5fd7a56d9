"""Writes an input of a given size for one layout, or reads it as a download does and tells the peak of memory.

python -m tests.pipelines.reader_memory write|read LAYOUT FOLDER MEGABYTES
"""

import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import peak_memory
from pipelines import catalogue
from pipelines.ingest import plan
from pipelines.layouts import UrlTable
from pipelines.listing import read_list_rows
from pipelines.readers.files import local_files, open_reader
from pipelines.readers.rules import sample_of
from tests.pipelines.miniatures import IMAGE, TURNS, chat, tar

MB = 1_000_000
PICTURE = 256_000  # bytes of an image
LAYOUTS = {
    "parquet-images": "llava-recap-cc3m",
    "json-array": "mgm-pretrain",
    "records-in-zips": "densefusion-1m",
    "records-in-gzipped-tars": "journeydb",
    "webdataset": "text-to-image-2m",
    "class-folders": "own-folder",
    "links-parquet": "pixelprose",
    "links-csv": "own-links",
}


def write(layout: str, root: Path, megabytes: int) -> None:
    """An input of about that size, in one file (and one row group) where the layout allows."""
    size = megabytes * MB
    images = range(max(2, size // PICTURE))
    noise = os.urandom(PICTURE + len(images))

    def picture(n: int) -> bytes:
        return noise[n : n + PICTURE]

    if layout == "parquet-images":
        schema = pa.schema([("id", pa.string()), ("image", IMAGE), ("conversations", TURNS)])
        path = root / "data/train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        group = 100 if megabytes < 1000 else 1000  # as the hub's library writes images, and as other tools do

        def row(n: int) -> dict[str, object]:
            return {"id": f"{n}", "image": {"bytes": picture(n)}, "conversations": chat("x")}

        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as out:
            for start in range(0, len(images), group):
                rows = [row(n) for n in images[start : start + group]]
                out.write_table(pa.Table.from_pylist(rows, schema))
    elif layout == "json-array":
        with (root / "mgm_pretrain.json").open("w") as json_out:
            answer = "a kettle – on a stove " * 90
            line = len(json.dumps({"id": "000000000", "conversations": chat(answer, "Why?")}))
            for n in range(size // line):
                json_out.write("[" if n == 0 else ",\n")
                json_out.write(json.dumps({"id": f"{n:09}", "conversations": chat(answer, "Why?")}))
            json_out.write(',{"id": "one", "image": "images/1.jpg", "conversations": []}]')
        (root / "images").mkdir()
        (root / "images/1.jpg").write_bytes(b"x")
    elif layout == "records-in-zips":
        (root / "DenseFusion-1M").mkdir(parents=True)
        (root / "images/DenseFusion-1M").mkdir(parents=True)
        with (root / "DenseFusion-1M/DenseFusion-1M.jsonl").open("w") as json_out:
            for n in images:
                row = {"image_id": f"{n}", "url": "u", "caption": "c", "image_path": f"DenseFusion-1M/0/{n}.png"}
                json_out.write(json.dumps(row) + "\n")
        with zipfile.ZipFile(root / "images/DenseFusion-1M/0.zip", "w") as zip_out:
            for n in images:
                zip_out.writestr(f"{n}.png", picture(n))
    elif layout == "records-in-gzipped-tars":
        lines = (json.dumps({"img_path": f"./000/{n}.jpg", "prompt": "p", "Task2": {"Caption": "c"}}) for n in images)
        folder = root / "data/train"
        data = "\n".join(lines).encode()
        tar(folder / "train_anno_realease_repath.jsonl.tgz", [("train.jsonl", data)], "w:gz")
        tar(folder / "imgs/000.tgz", ((f"000/{n}.jpg", picture(n)) for n in images), "w:gz")
    elif layout == "webdataset":
        members = (m for n in images for m in ((f"{n}.jpg", picture(n)), (f"{n}.json", b'{"prompt": "p"}')))
        tar(root / "data_512_2M/data_000000.tar", members)
    elif layout == "class-folders":
        (root / "teapot").mkdir()
        for n in images:
            (root / f"teapot/{n}.jpg").write_bytes(picture(n))
    elif layout == "links-parquet":
        _write_links(root, size)
    else:
        with (root / "links.csv").open("w") as csv_out:
            csv_out.write("url,note\n")
            for n in range(size // 1000):
                csv_out.write(f"https://img.example.org/{n:012}.jpg,{'a note ' * 136}\n")


def _write_links(root: Path, size: int) -> None:
    """One row group, as tools write whose writer buffers a table."""
    caption = os.urandom(450).hex()
    schema = pa.schema([("uid", pa.string()), ("url", pa.string()), ("vlm_caption", pa.string())])
    path = root / "data/vlm_captions_cc12m_00.parquet"
    path.parent.mkdir(parents=True)
    rows = size // 1000
    columns = [
        pa.chunked_array([pa.array([form.format(n) for n in range(start, min(start + 50_000, rows))])
                          for start in range(0, rows, 50_000)])
        for form in ("{:032x}", "https://img.example.org/{:09}.jpg", "{:09}" + caption)
    ]  # fmt: skip
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as out:
        out.write_table(pa.table(columns, schema), row_group_size=rows)


def read(layout: str, root: Path) -> int:
    """Plan the shards, read every row and judge it; the number of rows."""
    source = catalogue.source(LAYOUTS[layout])
    files = local_files(source, root)
    if isinstance(files.layout, UrlTable):
        return sum(1 for _ in read_list_rows(files))
    with tempfile.TemporaryDirectory() as scratch:
        reader = open_reader(files, Path(scratch), 32 << 20)
        pieces, _ = plan(reader, files, 1000)

        def rows() -> Iterator[object]:
            for piece in pieces:
                for native in reader.rows(piece.file, piece.cursor, piece.first, piece.rows):
                    yield sample_of(source, files.layout, native)

        return sum(1 for _ in rows())


if __name__ == "__main__":
    what, layout_, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if what == "write":
        write(layout_, folder, int(sys.argv[4]))
    else:
        rows = read(layout_, folder)
        print(json.dumps({"rows": rows, "peak": peak_memory()}))
