"""Looking into a dataset in S3, and forgetting there: the same as on a local disk, on a real server."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_datasets import picture, source_row, write_all

import pipelines.storage
from flows.cli import main
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.forget import forget
from pipelines.lineage import neighbours
from pipelines.past import keys_then
from pipelines.repair import apply_repair, plan_repair
from pipelines.request import Request
from pipelines.tombstones import tombstones_beside

KEY = source_row(1, 2)["key"]


def harmon(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_uploads_that_another_machine_may_be_at_work_on_are_left(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toys = write_all(f"{s3_root}/toys")
    toys.store._s3.create_multipart_upload(**toys.store._at("images/0123abcd/00000.tar"))  # type: ignore[attr-defined]
    forget(toys, Request(keys=frozenset([KEY])))
    report = audit(toys)
    assert (report.counts, len(toys.store.uploads())) == ({"leftover_upload": 1}, 1)
    assert plan_repair(toys, report) == []
    monkeypatch.setattr(pipelines.storage, "ABANDONED", timedelta(days=-1))  # as a day later
    (mend,) = plan_repair(toys, report)
    assert mend.action == "drop_upload"
    assert list(apply_repair([mend])) == [(mend, None)]
    assert toys.store.uploads() == []


def test_forget_audit_diff_show_and_export_work_on_s3(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.storage, "ABANDONED", timedelta(days=-1))  # the upload below is an old one
    toys, other = write_all(f"{s3_root}/toys"), write_all(f"{s3_root}/other")
    local = write_all(tmp_path / "toys")
    toys.store._s3.create_multipart_upload(**toys.store._at("images/0123abcd/00000.tar"))  # type: ignore[attr-defined]
    listed = tmp_path / "keys.txt"
    listed.write_text(KEY)

    done = harmon("forget", toys.root, "--keys", listed, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["done"][0]["samples"] == 1
    forget(local, Request(keys=frozenset([KEY])))
    here, there = local.commits()[-1], Dataset(toys.root).commits()[-1]
    assert here.content_hash == there.content_hash  # what a local disk gives
    assert not [path for path in toys.store.list() if picture(1, 2) in toys.store.read(path)]
    assert toys.store.uploads() == []
    assert neighbours(other)[0].root == toys.root
    assert KEY in tombstones_beside(other).keys

    report = audit(Dataset(toys.root), deep=True)
    assert report.findings == ()
    audited = harmon("audit", toys.root, "--deep", "--json")
    assert (audited.exit_code, json.loads(audited.output)["sound"]) == (0, True)

    compared = harmon("diff", toys.root, 1, there.number, "--json")
    told = json.loads(compared.output)
    assert (compared.exit_code, told["forgotten"], told["removed"]) == (1, 1, {"forgotten": 1})
    assert KEY in keys_then(toys.at(1), 1)
    assert harmon("diff", toys.root, local.root).exit_code == 0

    page = tmp_path / "page.html"
    assert harmon("show", toys.root, "--lineage", "-o", page).exit_code == 0
    text = page.read_text()
    assert KEY not in text
    assert source_row(1, 1)["key"] in text
    exported = harmon("export", toys.root, "croissant")
    assert json.loads(exported.output)["identifier"] == f"sha256:{there.content_hash}"
    refused = harmon("show", toys.root, "-o", f"{s3_root}/page.html")
    assert (refused.exit_code, "is no local file" in refused.output) == (2, True)


def test_forgetting_on_s3_refuses_while_this_machine_keeps_work_of_it(s3_root: str) -> None:
    toys = write_all(f"{s3_root}/toys")
    kept = toys.store.work(".work/damaged/images")
    kept.mkdir(parents=True)
    (kept / "00000.tar").write_bytes(b"?")
    with pytest.raises(HarmonError, match=r"a repair of s3://.* set aside.*delete it, then forget"):
        forget(toys, Request(keys=frozenset([KEY])))
