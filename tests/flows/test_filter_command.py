"""`harmon filter` as a person types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from filtering.clarity import GROUP, score_clarity
from flows.cli import main
from pipelines.audit import audit
from pipelines.dataset import Dataset
from tests.filtering.pictured import Row, write_rows

RECIPE = """
columns: {header: true, hash: true, clarity: true}
duplicates: {prefer: [pixels]}
selection:
  geometry: {min_side: 64, max_aspect: 3.0}
  take: {group: clarity, column: clarity, keep: "50%"}
  decontaminate: {}
  rows_per_shard: 4
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rows = [Row(f"r{n}", n) for n in range(12)] + [Row("twin", 3, (256, 256)), Row("banner", 20, (900, 100))]
    return write_rows(tmp_path / "toys", rows)


def harmon(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_a_recipe_makes_columns_marks_duplicates_and_writes_a_sound_dataset(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    arguments = ("filter", dataset.root, "--recipe", tmp_path / "r.yaml", "--to", tmp_path / "out", "--json")
    done = harmon(*arguments)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["rows"] == 14
    assert said["kept"] == 6
    assert said["dropped"]["near_duplicate"] == 1
    assert said["dropped"]["extreme_aspect"] == 1
    target = Dataset(tmp_path / "out")
    assert audit(target, deep=True).sound
    assert {row["row_id"]: row["reason"] for row in target.rejects().to_pylist()}["r3"] == "near_duplicate"
    assert json.loads(harmon(*arguments).stdout.splitlines()[-1])["content_hash"] == said["content_hash"]


def test_a_dry_run_counts_draws_and_writes_no_dataset(dataset: Dataset, tmp_path: Path) -> None:
    score_clarity(dataset)
    before = dataset.store.list()
    where = "clarity:clarity > 0.3 and ratio < 2"
    sheet, page = tmp_path / "sheet.jpg", tmp_path / "page.html"
    done = harmon("filter", dataset.root, "--where", where, "--dry-run", "--sheet", sheet, "--page", page, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    values = {row["key"]: row["clarity"] for row in dataset.whole_table(GROUP).to_pylist()}
    sizes = {row["key"]: row for row in dataset.whole_table("source").to_pylist()}
    assert said["alone"]["condition"] == sum(
        not (values[key] > 0.3 and max(row["width"], row["height"]) < 2 * min(row["width"], row["height"]))
        for key, row in sizes.items()
    )
    assert said["kept"] + sum(said["dropped"].values()) == 14
    assert dataset.store.list() == before
    with Image.open(sheet) as picture:
        assert picture.width == 8 * 160
    assert "<script" not in page.read_text()
    assert "condition" in page.read_text()


def test_a_dry_run_says_what_thresholds_would_keep_and_draws_the_cut(dataset: Dataset, tmp_path: Path) -> None:
    score_clarity(dataset)
    (tmp_path / "r.yaml").write_text(
        "selection: {geometry: {min_side: 1}, take: {group: clarity, column: clarity, keep: '3'}}\n"
    )
    recipe, page = tmp_path / "r.yaml", tmp_path / "page.html"
    done = harmon(
        "filter", dataset.root, "--recipe", recipe, "--dry-run", "--sheet", tmp_path / "s.jpg", "--page", page
    )
    assert done.exit_code == 0, done.output
    assert "3 of 14 rows stay" in done.output
    assert "clarity:clarity: 14 values, 0 missing; keeping 50% needs >=" in done.output
    assert "cut: 0." in done.output
    assert "cut 0." in page.read_text()


def test_a_dry_run_exits_1_where_nothing_would_stay_and_writing_it_3(dataset: Dataset, tmp_path: Path) -> None:
    where = ("filter", dataset.root, "--where", "width > 5000")
    assert harmon(*where, "--dry-run", "--sheet", tmp_path / "s.jpg").exit_code == 1
    done = harmon(*where, "--to", tmp_path / "out")
    assert done.exit_code == 3
    assert "None of 14 rows passes" in done.stderr


def test_a_dry_run_says_which_columns_are_not_made_and_columns_only_makes_them(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    asked = ("filter", dataset.root, "--recipe", "r.yaml", "--dry-run", "--json")
    done = harmon(*asked)
    assert done.exit_code == 3
    assert "toys lacks header, clarity, hash" in done.stderr
    assert "--columns-only" in done.stderr
    (tmp_path / "columns.yaml").write_text("columns: {header: true, hash: true, clarity: true}\n")
    assert harmon("filter", dataset.root, "--recipe", "columns.yaml", "--columns-only").exit_code == 0
    assert "toys lacks duplicates." in harmon(*asked).stderr
    made = harmon("filter", dataset.root, "--recipe", "r.yaml", "--columns-only")
    assert made.exit_code == 0, made.output
    assert [line.split(":")[0] for line in made.stdout.splitlines()] == ["header", "clarity", "hash", "duplicates"]
    done = harmon(*asked)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kept"] == 6


def test_a_contact_sheet_without_a_name_overwrites_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toys.jpg").write_text("mine")
    done = harmon("filter", dataset.root, "--where", "width > 3", "--dry-run", "--json")
    assert json.loads(done.stdout)["sheet"] == "toys-2.jpg"
    assert (tmp_path / "toys.jpg").read_text() == "mine"
    assert (tmp_path / "toys-2.jpg").exists()


def test_a_quota_that_is_not_met_is_said(dataset: Dataset, tmp_path: Path) -> None:
    score_clarity(dataset)
    take = "{group: clarity, column: clarity, quotas: {toys: 40}}"
    (tmp_path / "r.yaml").write_text(f"selection: {{geometry: {{min_side: 1}}, take: {take}}}\n")
    done = harmon("filter", dataset.root, "--recipe", tmp_path / "r.yaml", "--to", tmp_path / "out")
    assert "short: toys had 13 of the 40 pictures asked for" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--where", "width >"), "wrong at character"),
        (("--where", "__import__('os')", "--dry-run"), "cannot be read|wrong"),
        (("--where", "beauty > 3", "--dry-run"), "names no column"),
        (("--where", "width > 3"), "--to"),
        ((), "--recipe or --where"),
        (("--to", "x", "--sheet", "y.jpg"), "--dry-run"),
        (("--columns-only",), "--recipe"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_in_one_sentence(
    dataset: Dataset, options: tuple[str, ...], said: str
) -> None:
    done = harmon("filter", dataset.root, *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("harmon: ")
    assert any(word in done.stderr for word in said.split("|"))


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    done = harmon("filter", tmp_path / "nothing", "--where", "width > 3", "--dry-run")
    assert done.exit_code == 2
    assert "holds no dataset" in done.stderr
