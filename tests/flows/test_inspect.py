"""diff, show, forget and export as a person types them: exit codes, one sentence for errors, one JSON document."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from pipelines.canonical import sample_key, sha256_hex
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.manifest import SOURCE
from pipelines.steps import Step, StepRun

KEYS = [sample_key("toys", str(number)) for number in range(4)]


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    run = StepRun(Dataset(tmp_path / "toys"), Step("download", 1, {}))
    run.pending([0])
    out = run.shard(0)
    rows = [
        {"key": key, "source": "toys", "row_id": str(number), "task": "text", "caption": f"text {number}"}
        for number, key in enumerate(KEYS)
    ]
    out.columns(SOURCE, pa.Table.from_pylist(rows, SOURCE_SCHEMA))
    out.finish(4)
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    return tmp_path / "toys"


def harmon(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_forget_then_diff_then_audit(toys: Path, tmp_path: Path) -> None:
    listed = tmp_path / "keys.txt"
    listed.write_text(KEYS[1] + "\n")
    dry = harmon("forget", toys, "--keys", listed, "--dry-run")
    assert dry.exit_code == 0 and "toys: 1 samples would go, 1 shards would be written anew" in dry.output
    assert harmon("diff", toys, 0, 0).exit_code == 0
    done = harmon("forget", toys, "--keys", listed, "--json")
    assert done.exit_code == 0
    assert json.loads(done.output)["done"] == [{"dataset": "toys", "samples": 1, "shards": 1, "commits": [1]}]
    again = harmon("forget", toys, "--keys", listed)
    assert again.exit_code == 0 and "nothing to do" in again.output
    differs = harmon("diff", toys, 0, 1, "--json")
    assert differs.exit_code == 1 and json.loads(differs.output)["removed"] == {"forgotten": 1}
    assert harmon("audit", toys, "--deep").exit_code == 0


@pytest.mark.parametrize(
    ("option", "named"),
    [("--keys", KEYS[2]), ("--urls", "https://example.org/2.jpg"), ("--sha256", sha256_hex(b"2"))],
)
def test_a_sample_is_forgotten_by_its_key_its_link_or_its_bytes(tmp_path: Path, option: str, named: str) -> None:
    run = StepRun(Dataset(tmp_path / "toys"), Step("download", 1, {}))
    out = run.shard(0)
    facts = [{"url": f"https://example.org/{n}.jpg", "sha256": sha256_hex(str(n).encode())} for n in range(4)]
    rows = [
        {"key": key, "source": "toys", "row_id": str(number), "task": "text", **facts[number]}
        for number, key in enumerate(KEYS)
    ]
    out.columns(SOURCE, pa.Table.from_pylist(rows, SOURCE_SCHEMA))
    out.finish(4)
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    (tmp_path / "list.txt").write_text(f"{named}\n")
    done = harmon("forget", tmp_path / "toys", option, tmp_path / "list.txt", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["done"][0]["samples"] == 1
    left = Dataset(tmp_path / "toys").whole_table(SOURCE)
    assert left["key"].to_pylist() == [*KEYS[:2], *KEYS[3:]]
    assert harmon("audit", tmp_path / "toys", "--deep").exit_code == 0


def test_show_and_export_write_files(toys: Path, tmp_path: Path) -> None:
    shown = harmon("show", toys, "-o", tmp_path / "out" / "page.html", "--lineage", "--samples", 2)
    assert shown.exit_code == 0 and "2 of 4 samples" in (tmp_path / "out" / "page.html").read_text()
    assert harmon("export", toys, "croissant", "-o", tmp_path / "c.json").exit_code == 0
    assert json.loads((tmp_path / "c.json").read_text())["name"] == "toys"
    printed = harmon("export", toys, "openlineage")
    assert printed.exit_code == 0 and len(json.loads(printed.stdout)) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("forget", "toys"), 2, "nothing is named to forget"),
        (("forget", "toys", "--keys", "absent.txt"), 2, "cannot be read"),
        (("forget", "none", "--keys", "keys.txt"), 3, "there is no dataset"),
        (("diff", "toys", "0", "7"), 3, "has no commit 7"),
        (("diff", "toys", "0"), 2, "two commit numbers"),
        (("show", "none"), 3, "there is no dataset"),
        (("show", "toys", "--samples", "0"), 2, "choose 1 to 2000"),
        (("export", "none", "croissant"), 3, "there is no dataset"),
        (("export", "toys", "csv"), 2, "croissant"),
    ],
)
def test_errors_have_their_exit_code_and_one_sentence(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "keys.txt").write_text(KEYS[0])
    monkeypatch.chdir(tmp_path)
    result = harmon(*arguments)
    assert result.exit_code == code and said in result.output and "Traceback" not in result.output
