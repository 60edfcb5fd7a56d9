"""`harmon evaluate --hashes` as a person types it: lists that keep benchmarks out of training data."""

import hashlib
import json
from pathlib import Path

from click.testing import CliRunner, Result

from filtering.decontamination import Decontamination, read_list
from filtering.phash import digits, phash
from flows.cli import main
from tests.harmon import benchmark_miniatures as mini


def harmon(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_a_list_has_a_row_for_each_picture_of_each_item(tmp_path: Path) -> None:
    mini.mmmu(tmp_path / "mmmu")
    done = harmon("evaluate", "mmmu-val", "--data", tmp_path / "mmmu", "--hashes", tmp_path / "l.parquet", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "benchmark": "mmmu-val",
        "file": str(tmp_path / "l.parquet"),
        "items": 900,
        "pictures": 7,
    }
    rows = read_list(tmp_path / "l.parquet").to_pylist()
    assert len(rows) == 847 * 2 + 53
    assert rows[0] == {
        "benchmark": "mmmu-val",
        "item": "validation_Subject_0_1",
        "sha256": hashlib.sha256(mini.jpeg(0)).hexdigest(),
        "phash": digits(phash(mini.jpeg(0))),
        "prompt": "What of it, 0?",
    }
    assert (rows[1]["item"], rows[1]["phash"]) == (rows[0]["item"], digits(phash(mini.jpeg(1))))
    assert [path.name for path in tmp_path.glob("*l.parquet*")] == ["l.parquet"]
    assert Decontamination(lists=(tmp_path / "l.parquet",)).needs == ("hash",)


def test_prompts_without_pictures_are_listed_as_prompts(tmp_path: Path) -> None:
    mini.geneval_file(tmp_path)
    done = harmon("evaluate", "geneval", "--data", tmp_path, "--hashes", tmp_path / "l.parquet")
    assert done.exit_code == 0, done.output
    assert "553 items of geneval with 0 different pictures" in done.stdout
    rows = read_list(tmp_path / "l.parquet").to_pylist()
    assert len(rows) == 553
    assert rows[0] == {
        "benchmark": "geneval",
        "item": "00000",
        "sha256": None,
        "phash": None,
        "prompt": "a photo of a single_object 0",
    }


def test_an_incomplete_benchmark_gives_no_list(tmp_path: Path) -> None:
    lines = mini.geneval_lines()[1:]
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = harmon("evaluate", "geneval", "--data", tmp_path, "--hashes", tmp_path / "l.parquet")
    assert done.exit_code == 3
    assert "552 items, where 553 were published" in done.stderr
    assert not (tmp_path / "l.parquet").exists()


def test_a_picture_that_cannot_be_decoded_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    mini.mmmu(tmp_path / "mmmu", lambda row: row.update(image_1={"bytes": b"<html>", "path": "x.png"}))
    done = harmon("evaluate", "mmmu-val", "--data", tmp_path / "mmmu", "--hashes", tmp_path / "l.parquet")
    assert done.exit_code == 3
    assert "Subject_0/validation-00000-of-00001.parquet, row 1: its picture cannot be decoded" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mmmu"]


def test_a_list_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "l.parquet").write_bytes(b"mine")
    done = harmon("evaluate", "geneval", "--data", tmp_path, "--hashes", tmp_path / "l.parquet")
    assert done.exit_code == 2
    assert (tmp_path / "l.parquet").read_bytes() == b"mine"
    assert harmon("evaluate", "genevel", "--data", tmp_path, "--hashes", tmp_path / "m.parquet").exit_code == 2
    nowhere = harmon("evaluate", "geneval", "--data", tmp_path, "--hashes", tmp_path / "no/m.parquet")
    assert nowhere.exit_code == 2
    assert "is no folder" in nowhere.stderr
