"""A recipe whose datasets lie in S3 makes the datasets that the same recipe makes on local disk."""

from pathlib import Path

from flows.recipe import load_recipe
from flows.work import datasets_of, work_of
from pipelines.audit import audit
from tests.flows.small_run import RECIPE, SIZES, SmallRun
from tests.s3_server import s3_root, s3_server

__all__ = ["s3_root", "s3_server"]

BEFORE_TRAINING = ("publish", "download", "rewrite", "clarity", "select", "latents")


def test_datasets_in_s3_have_the_content_hashes_of_local_ones(
    small_run: SmallRun, s3_root: str, tmp_path: Path
) -> None:
    settings = (*SIZES, f"data={s3_root}", f"runs={tmp_path / 'run'}", f"web.port={small_run.port}")
    recipe = load_recipe(RECIPE, settings)
    works = [work for work in work_of(recipe) if work.step in BEFORE_TRAINING]
    for work in works:
        work.do(lambda progress: None)
    assert all(work.is_done() for work in works)
    made = {dataset.name: dataset for dataset in datasets_of(recipe)}
    assert {name: head.content_hash for name, data in made.items() if (head := data.head)} == small_run.hashes()
    for dataset in made.values():
        report = audit(dataset, deep=True, decode=1.0)
        assert report.sound, list(report.lines())
    assert not (tmp_path / "s3:").exists()
