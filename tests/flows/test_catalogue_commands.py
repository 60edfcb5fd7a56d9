"""`harmon catalog` tells what is known and what binds it; `harmon download` makes it a dataset or says what lacks."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from flows.recipe import load_recipe
from flows.work import work_of
from pipelines import catalogue, fetch
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.loopback import serve
from tests.parts import need
from tests.pipelines.miniatures import WITH_IMAGES, web

TERMS = "terms:\n  imagenet-1k: {by: A. Tester, when: 2026-11-20, what: ImageNet terms of access}\n"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMON_SCRATCH", str(tmp_path / "scratch"))


def harmon(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_catalog_lists_every_source_with_its_terms_and_use() -> None:
    listed = harmon("catalog").stdout
    for name in catalogue.names():
        entry = catalogue.source(name)
        assert f"\n{name} " in listed and entry.terms in listed and entry.role in listed
    assert "2.86 M   139 GB" in listed
    told = json.loads(harmon("catalog", "--json").stdout)
    assert [one["name"] for one in told] == catalogue.names()


def test_catalog_explains_one_source_and_knows_the_nearest_name() -> None:
    told = harmon("catalog", "sharegpt4v-pt").stdout
    assert "570,486 rows" in told and "refused until accepted" in told and "Lin-Chen/ShareGPT4V" in told
    wrong = harmon("catalog", "sharegpt4v")
    assert wrong.exit_code == 2 and "did you mean 'sharegpt4v-pt'" in wrong.stderr


def test_catalog_shows_the_effective_terms_of_a_recipe() -> None:
    told = json.loads(harmon("catalog", "--recipe", "flows/recipes/demo.yaml", "--json").stdout)
    assert [one["name"] for one in told["sources"]] == ["photographs", "scenes"]
    assert told["effective_terms"]["restrictions"] == {}
    assert "effective terms: nothing beyond" in harmon("catalog", "--recipe", "flows/recipes/demo.yaml").stdout


def test_a_gated_source_is_refused_then_read_once_its_terms_are_accepted(tmp_path: Path) -> None:
    WITH_IMAGES["imagenet-1k"](tmp_path / "native")
    asked = ("download", "imagenet-1k", "--from", tmp_path / "native", "--to", tmp_path / "d")
    refused = harmon(*asked)
    assert refused.exit_code == 2 and "nobody has accepted its terms" in refused.stderr
    (tmp_path / "terms.yaml").write_text(TERMS)
    done = harmon(*asked, "--terms", tmp_path / "terms.yaml", "--short-side", "24", "--rows-per-shard", "64")
    assert done.exit_code == 0, done.output
    assert "203 rows, 1 rejected" in done.stdout and "no_label: 1" in done.stdout
    assert "the publisher speaks of 1,281,167 rows; these files have 204" in done.stdout
    assert "non-commercial (no commercial use): imagenet-1k" in done.stdout
    rows = Dataset(tmp_path / "d").whole_table("source").to_pylist()
    assert all(min(row["width"], row["height"]) == 24 for row in rows)
    told = json.loads(harmon(*asked, "--terms", tmp_path / "terms.yaml", "--short-side", "24",
                             "--rows-per-shard", "64", "--json").stdout)  # fmt: skip
    assert (told["rows"], told["commit"], told["rejected"]) == (203, 0, {"no_label": 1})


def test_what_is_missing_of_a_source_is_told_by_family(tmp_path: Path) -> None:
    """Of SA-1B, under Meta's agreement, only one tar is here."""
    WITH_IMAGES["sharegpt4v-pt"](tmp_path / "native")
    (tmp_path / "terms.yaml").write_text(TERMS.replace("imagenet-1k", "sharegpt4v-pt"))
    asked = ("download", "sharegpt4v-pt", "--from", tmp_path / "native", "--to", tmp_path / "d")
    done = harmon(*asked, "--terms", tmp_path / "terms.yaml")
    assert "image_missing: 33\n    below sam/: 33" in done.stdout


def test_an_entry_of_ones_own_is_a_file(tmp_path: Path) -> None:
    WITH_IMAGES["own-folder"](tmp_path / "native")
    text = (catalogue.FOLDER / "own-folder.yaml").read_text()
    (tmp_path / "cats.yaml").write_text(text.replace("own-folder", "cats").replace("yours to state", "CC-BY-4.0"))
    done = harmon("download", tmp_path / "cats.yaml", "--from", tmp_path / "native", "--to", tmp_path / "d")
    assert done.exit_code == 0 and "cats: CC-BY-4.0" in done.stdout
    assert {row["source"] for row in Dataset(tmp_path / "d").whole_table("source").to_pylist()} == {"cats"}
    (tmp_path / "dogs.yaml").write_text(text)
    wrong = harmon("download", tmp_path / "dogs.yaml", "--from", tmp_path / "native", "--to", tmp_path / "e")
    assert wrong.exit_code == 2 and "must have one name" in wrong.stderr


def test_a_list_of_links_becomes_a_dataset_under_its_own_name(tmp_path: Path) -> None:
    need(
        Path(os.environ.get(fetch.INTERPRETER) or fetch.DEFAULT_INTERPRETER).exists(),
        "img2dataset is not installed: run `make img2dataset`",
    )
    web(tmp_path / "web")
    with serve(tmp_path / "web", 0) as address:
        lines = [f'{{"url": "{address}/{n}.jpg", "words": "a cat, {n}"}}' for n in range(20)]
        (tmp_path / "My Cats.jsonl").write_text("\n".join(lines))
        asked = ("download", tmp_path / "My Cats.jsonl", "--to", tmp_path / "d", "--allow", "127.0.0.1/32")
        asked += ("--set", "layouts.0.fields.caption=[words]")
        unlicensed = harmon(*asked)
        assert unlicensed.exit_code == 2 and "state it with --licence" in unlicensed.stderr
        done = harmon(*asked, "--licence", "CC-BY-4.0: see A", "--fetch", "threads=4", "--fetch", "patience=30")
        assert done.exit_code == 0, done.output
        assert "20 links," in done.stderr and "100.0 % fetched" in done.stderr  # how it went, live
        again = harmon("download", tmp_path / "d", "--only", "failed")  # of a source that no catalogue knows
        assert again.exit_code == 0 and "nothing to ask for again" in again.stdout
    assert "my-cats: CC-BY-4.0: see A" in done.stdout
    assert Dataset(tmp_path / "d").commits()[-1].context["fetch"]["threads"] == 4
    rows = Dataset(tmp_path / "d").whole_table("source").to_pylist()
    assert [(row["source"], row["caption"]) for row in rows] == [("my-cats", f"a cat, {n}") for n in range(20)]
    assert audit(Dataset(tmp_path / "d"), deep=True).sound


def test_a_list_of_ones_own_whose_server_was_down_is_finished_by_asking_for_what_is_missing(tmp_path: Path) -> None:
    web(tmp_path / "web")
    with serve(tmp_path / "web", 0) as address:
        pass  # and it is gone again
    (tmp_path / "cats.txt").write_text("".join(f"{address}/{n}.jpg\n" for n in range(20)))
    asked = ("download", tmp_path / "cats.txt", "--to", tmp_path / "d", "--allow", "127.0.0.1/32", "--engine", "native")
    down = harmon(*asked, "--licence", "CC0-1.0", "--fetch", "retries=0")
    assert down.exit_code == 3 and "looks like an outage" in down.stderr
    with serve(tmp_path / "web", int(address.rpartition(":")[2])):
        done = harmon("download", tmp_path / "d", "--only", "missing", "--fetch", "threads=2")
    assert done.exit_code == 0 and "20 of 20 rows came now" in done.stdout, done.output
    terms = Dataset(tmp_path / "d").commits()[-1].terms
    assert terms == {"cats": {"licence": "CC0-1.0", "terms": "own"}}
    assert harmon(*asked, "--licence", "CC0-1.0").exit_code == 0  # and has nothing left to do
    assert len(Dataset(tmp_path / "d").commits()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("scenes", "--from", "."), "made by a recipe's own web"),
        (("nothing.csv",), "there is no list nothing.csv"),
        (("own-folder", "--from", "no such folder"), "there is no folder"),
        (("own-folder", "--from", ".", "--files", "*.tiff"), "matches none"),
        (("own-folder", "--from", ".", "--without", "**/*"), "has no files of own-folder"),
        (("own-folder",), "is not on the hub; name the folder"),
        (("own-folder", "--from", ".", "--set", "layouts.0.folder=x"), "did you mean 'folders'"),
        (("own-folder", "--from", ".", "--allow", "everything"), "allow"),
        (("own-folder", "--from", ".", "--fetch", "thread=3"), "did you mean 'threads'"),
        (("own-folder", "--from", ".", "--fetch", "threads=many"), "--fetch: threads"),
        (("own-folder", "--from", ".", "--fetch", "threads"), "--fetch threads: write it as"),
        (("ImageNet 1k.csv",), "'imagenet-1k', which a source of the catalogue has"),
        (("imagenet-1k.yaml",), "rename the file"),
        (("imagenet-1k", "--set", "restrictions=[]", "--set", "terms=open"), "its publisher's to state"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = ("--licence", "CC0-1.0") if arguments[0] == "own-folder" else ()
    for file in ("ImageNet 1k.csv", "imagenet-1k.yaml"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    wrong = harmon("download", *arguments, *stated, "--to", tmp_path / "d")
    assert wrong.exit_code in (2, 3) and said in wrong.stderr and not (tmp_path / "d").exists(), wrong.output


def test_a_recipe_reads_published_files_once_their_terms_are_accepted(tmp_path: Path) -> None:
    WITH_IMAGES["imagenet-1k"](tmp_path / "native")
    said = [
        f"data={tmp_path / 'data'}",
        "sources.imagenet-1k.rows_per_shard=64",
        "files.imagenet-1k.entry=[odd.text_only=keep]",
    ]
    said.append(f"files.imagenet-1k.folder={tmp_path / 'native'}")
    with pytest.raises(ConfigurationError, match="nobody has accepted"):
        work_of(load_recipe(Path("flows/recipes/demo.yaml"), said))
    said.append("terms.imagenet-1k={by: A. Tester, what: ImageNet terms of access, when: 2026-11-20}")
    recipe = load_recipe(Path("flows/recipes/demo.yaml"), said)
    (work,) = [one for one in work_of(recipe) if one.name == "download:imagenet-1k"]
    assert not work.is_done()
    work.do(lambda _: None)
    assert work.is_done()
    dataset = Dataset(recipe.dataset("imagenet-1k"))
    assert dataset.total_rows == 203 and dataset.commits()[0].terms["imagenet-1k"]["accepted"]["by"] == "A. Tester"
    other = load_recipe(Path("flows/recipes/demo.yaml"), [*said, "sources.imagenet-1k.limits.short_side=16"])
    assert not next(one for one in work_of(other) if one.name == "download:imagenet-1k").is_done()
