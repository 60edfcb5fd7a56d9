"""Audit: a sound dataset is sound, every kind of damage is named, leftovers are told from foreign files."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_datasets import ROWS, SHARDS, download_step, source_row, write_images, write_scores

from pipelines import audit_keys
from pipelines.audit import audit
from pipelines.audit_keys import UniqueKeys
from pipelines.audit_pictures import is_chosen
from pipelines.canonical import canonical_json, keys_sha256, sample_key, sha256_hex
from pipelines.columns import SOURCE_SCHEMA, read_columns, write_columns
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.findings import HARMLESS, UNSOUND
from pipelines.forget import forget
from pipelines.manifest import manifest_path, receipt_path, step_path
from pipelines.request import Request
from pipelines.shards import ShardWriter
from pipelines.steps import Reads, Step, StepRun


def place(dataset: Dataset, group: str, shard: int = 1) -> Path:
    entry = dataset.entry(group, shard)
    assert entry is not None
    return dataset.store.local(entry.path)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_bytes())
    edit(value)
    path.write_bytes(canonical_json(value) + b"\n")


def edit_head(dataset: Dataset, edit: Callable[[Any], None]) -> None:
    edit_json(dataset.store.local(manifest_path(1)), edit)


def forge(dataset: Dataset, group: str, shard: int = 1, **claims: Any) -> None:
    """Make manifests and receipts agree with a file that was changed, as a careful forger would."""
    path = place(dataset, group, shard)
    facts = {"bytes": path.stat().st_size, "sha256": sha256_hex(path.read_bytes()), **claims}

    def amend(record: Any) -> None:
        for entry in record["files"]:
            if (entry["group"], entry["shard"]) == (group, shard):
                entry.update(facts)

    manifests = [dataset.store.local(manifest_path(number)) for number in (0, 1)]
    for file in (*manifests, *dataset.root.glob(f"steps/*/{shard:05d}.json")):
        edit_json(file, amend)
    parent = sha256_hex(manifests[0].read_bytes())
    edit_json(manifests[1], lambda record: record.update(parent=parent))


def rewrite(dataset: Dataset, group: str, change: Callable[[pa.Table], pa.Table], **claims: Any) -> None:
    path = place(dataset, group)
    table = change(read_columns(path))
    path.unlink()
    write_columns(table, path)
    forge(dataset, group, **claims)


def rewrite_images(dataset: Dataset, order: list[int]) -> None:
    """The images of shard 1 in another order, or fewer, with tar and manifest agreeing."""
    samples = [dataset.images(1).read(row) for row in order]
    path = place(dataset, "images")
    path.unlink()
    place(dataset, "images.index").unlink()
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample.key, sample.data, sample.extension, sample.view)
    for group in ("images", "images.index"):
        forge(dataset, group, rows=len(order), keys_sha256=keys_sha256(writer.keys))


def damage_view(before: bytes, after: bytes) -> Callable[[Dataset], None]:
    """The same change, length kept, in a JSON view of shard 1, with manifest and receipt agreeing."""

    def damage(dataset: Dataset) -> None:
        path = place(dataset, "images")
        data = path.read_bytes()
        assert before in data and len(before) == len(after)
        path.write_bytes(data.replace(before, after, 1))
        forge(dataset, "images")

    return damage


def link_manifest(dataset: Dataset) -> None:
    path = dataset.store.local(manifest_path(1))
    elsewhere = dataset.root.with_name("elsewhere.json")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def swap(first: Path, second: Path) -> None:
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def swap_scores(dataset: Dataset) -> None:
    swap(place(dataset, "score.length", 1), place(dataset, "score.length", 2))
    forge(dataset, "score.length", 1)
    forge(dataset, "score.length", 2)


def shift_index(dataset: Dataset) -> None:
    path = place(dataset, "images.index")
    offsets = np.fromfile(path, "<u8")
    offsets[1] += 512
    offsets.tofile(path)
    forge(dataset, "images.index")


def counts(**changes: Any) -> Callable[[Dataset], None]:
    def damage(dataset: Dataset) -> None:
        edit_head(dataset, lambda record: record.update(changes))

    return damage


def drop_file(dataset: Dataset) -> None:
    edit_head(dataset, lambda record: record.update(files=[f for f in record["files"] if f["group"] != "images"]))


def reverse(table: pa.Table) -> pa.Table:
    return table.take(list(range(table.num_rows))[::-1])


def reversed_keys(dataset: Dataset) -> str:
    return keys_sha256(reversed(dataset.table("source", 1, ["key"]).column("key").to_pylist()))


def parse_free(dataset: Dataset) -> None:
    dataset.store.local(manifest_path(1)).write_bytes(b'{"number": 1}')


def reasons(other: str) -> Callable[[pa.Table], pa.Table]:
    """Every reason of a table replaced."""

    def change(table: pa.Table) -> pa.Table:
        values = [reason and other for reason in table.column("reason").to_pylist()]
        return table.set_column(table.column_names.index("reason"), "reason", pa.array(values, pa.string()))

    return change


def all_ok(table: pa.Table) -> pa.Table:
    values = pa.array(["ok"] * table.num_rows)
    return table.set_column(table.column_names.index("status"), "status", values)


def remove(path: str) -> Callable[[Dataset], None]:
    return lambda dataset: next(dataset.root.glob(path)).unlink()


def add(path: str) -> Callable[[Dataset], None]:
    def damage(dataset: Dataset) -> None:
        dataset.store.put(path.replace("KEY8", download_step().key8), b"what is this")

    return damage


def bar(dataset: Dataset) -> None:
    """Commit a tombstone of a sample that stays."""
    key = source_row(1, 0)["key"]
    what = {"keys": [key], "urls_sha256": [], "sha256": [], "files": []}
    run = StepRun(dataset, Step("forget", 1, what, (Reads(dataset, ("source",)),)))
    dataset.store.put(step_path(run.step.key), run.step.identity)
    run.commit()


def forget_and_restore(dataset: Dataset) -> None:
    """A file that forgetting took away comes back, from a copy or because the deletion never ended."""
    old = place(dataset, "images")
    data = old.read_bytes()
    forget(dataset, Request(keys=frozenset([source_row(1, 0)["key"]])))
    old.write_bytes(data)


SHALLOW: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "forgotten sample is back": (bar, "forgotten_row"),
    "forgotten file is back": (forget_and_restore, "forgotten_file"),
    "truncated tar": (
        lambda d: place(d, "images").write_bytes(place(d, "images").read_bytes()[:-700]),
        "size_differs",
    ),
    "emptied tar": (lambda d: place(d, "images").write_bytes(b""), "size_differs"),
    "missing tar": (lambda d: place(d, "images").unlink(), "file_missing"),
    "missing index": (lambda d: place(d, "images.index").unlink(), "file_missing"),
    "missing columns": (lambda d: place(d, "score.length").unlink(), "file_missing"),
    "missing telemetry": (lambda d: place(d, "download.telemetry").unlink(), "file_missing"),
    "short index": (
        lambda d: (place(d, "images.index").write_bytes(b"\0" * 8), forge(d, "images.index")),
        "index_differs",
    ),
    "flipped footer": (lambda d: flip(place(d, "source"), -6), "file_unreadable"),
    "edited source keys": (lambda d: rewrite(d, "source", reverse), "keys_differ"),
    "lost rows": (lambda d: rewrite(d, "score.length", lambda t: t.slice(0, 3)), "rows_differ"),
    "lost column": (
        lambda d: rewrite(d, "score.length", lambda t: t.drop_columns(["score"])),
        "schema_differs",
    ),
    "reordered and forged": (
        lambda d: rewrite(d, "score.length", reverse, keys_sha256=reversed_keys(d)),
        "keys_misaligned",
    ),
    "wrong rows out": (counts(rows_out=17), "counts_differ"),
    "wrong failures": (counts(failed={"text": 3}), "counts_differ"),
    "wrong reason": (counts(failed={"image": 4}), "receipt_differs"),
    "edited configuration": (counts(configuration={"head": "width"}), "step_key_differs"),
    "edited history": (
        lambda d: edit_json(d.store.local(manifest_path(0)), lambda r: r.update(context={})),
        "chain_broken",
    ),
    "missing history": (remove("manifest/000000.json"), "manifest_missing"),
    "reformatted manifest": (
        lambda d: d.store.local(manifest_path(1)).write_bytes(d.store.read(manifest_path(1)) + b"\n"),
        "manifest_altered",
    ),
    "unreadable manifest": (parse_free, "manifest_unreadable"),
    "linked manifest": (link_manifest, "manifest_unreadable"),
    "misnumbered manifest": (counts(number=7), "manifest_altered"),
    "path out of the dataset": (
        lambda d: edit_head(d, lambda r: r["files"][0].update(path="../x")),
        "manifest_altered",
    ),
    "dropped files": (drop_file, "file_dropped"),
    "missing receipt": (remove("steps/*/00002.json"), "receipt_missing"),
    "missing step record": (remove("steps/*/step.json"), "receipt_missing"),
    "edited receipt": (
        lambda d: edit_json(next(d.root.glob("steps/*/00002.json")), lambda r: r.update(rows_in=9)),
        "receipt_differs",
    ),
    "unreadable receipt": (
        lambda d: next(d.root.glob("steps/*/00002.json")).write_bytes(b"{}"),
        "receipt_differs",
    ),
    "foreign file": (add("notes.txt"), "foreign_file"),
    "foreign shard of a committed step": (add("images/KEY8/00099.tar"), "foreign_file"),
    "foreign shard of nobody": (add("images/0123abcd/00000.tar"), "foreign_file"),
    "foreign receipt": (add(f"steps/{'0' * 64}/00000.json"), "foreign_file"),
    "foreign manifest": (add("manifest/readme.json"), "foreign_file"),
    "linked folder": (lambda d: (d.root / "more").symlink_to("/tmp"), "foreign_file"),
}
DEEP: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "flipped image byte": (lambda d: flip(place(d, "images"), 700), "hash_differs"),
    "flipped padding": (lambda d: flip(place(d, "images"), -1), "hash_differs"),
    "flipped index byte": (lambda d: flip(place(d, "images.index"), 8), "hash_differs"),
    "flipped column byte": (lambda d: flip(place(d, "score.length"), 60), "hash_differs"),
    "swapped shards": (lambda d: swap(place(d, "images", 1), place(d, "images", 2)), "hash_differs"),
    "swapped and forged": (swap_scores, "keys_differ"),
    "stale index": (shift_index, "index_differs"),
    "reordered columns": (lambda d: rewrite(d, "score.length", reverse), "keys_differ"),
    "damaged header": (lambda d: (flip(place(d, "images"), 3), forge(d, "images")), "members_differ"),
    "view that is no JSON": (damage_view(b'{"caption"', b'["caption"'), "members_differ"),
    "view of another sample": (damage_view(b'{"caption":"1-0"}', b'{"key":"another"}'), "members_differ"),
    "lost image": (lambda d: rewrite_images(d, [0, 1, 3]), "members_differ"),
    "other rejects": (lambda d: rewrite(d, "rejects.download", reasons("too_large")), "reasons_differ"),
    "other failures": (lambda d: rewrite(d, "score.length", reasons("image")), "reasons_differ"),
    "hidden failures": (lambda d: rewrite(d, "score.length", all_ok), "reasons_differ"),
    "reordered images": (lambda d: rewrite_images(d, [1, 0, 2, 3]), "members_differ"),
}


def test_an_undamaged_dataset_is_sound(original: Dataset) -> None:
    for deep in (False, True):
        report = audit(original, deep)
        assert report.sound
        assert report.findings == ()
        assert report.rows == SHARDS * (ROWS - 1)


@pytest.mark.parametrize(("damage", "kind"), SHALLOW.values(), ids=SHALLOW.keys())
def test_shallow_audit_names_the_damage(toys: Dataset, damage: Callable[[Dataset], object], kind: str) -> None:
    damage(toys)
    report = audit(Dataset(toys.root))
    assert not report.sound
    assert kind in report.counts, list(report.lines())


@pytest.mark.parametrize(("damage", "kind"), DEEP.values(), ids=DEEP.keys())
def test_deep_audit_names_the_damage(toys: Dataset, damage: Callable[[Dataset], object], kind: str) -> None:
    damage(toys)
    report = audit(Dataset(toys.root), deep=True)
    assert not report.sound
    assert kind in report.counts, list(report.lines())


def test_every_unsound_kind_is_tested() -> None:
    own_tests = {"key_duplicated", "image_damaged", "terms_missing"}
    assert {kind for _, kind in (*SHALLOW.values(), *DEEP.values())} | own_tests == set(UNSOUND)
    assert not set(UNSOUND) & set(HARMLESS)


def test_any_single_flipped_byte_of_a_listed_file_is_found(toys: Dataset) -> None:
    head = toys.head
    assert head is not None
    for number, entry in enumerate(head.files):
        path = toys.store.local(entry.path)
        data = path.read_bytes()
        flip(path, number * 977 % len(data))
        report = audit(toys, deep=True)
        assert ("hash_differs", entry.path) in {(finding.kind, finding.path) for finding in report.findings}
        path.write_bytes(data)


def test_a_key_in_two_shards_is_found(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "toys")
    run = StepRun(dataset, download_step())
    for shard in range(2):
        out = run.shard(shard)
        row = source_row(0, 1) | {"task": "text", "row_id": str(shard)}
        out.columns("source", pa.Table.from_pylist([row], SOURCE_SCHEMA))
        out.finish(rows_in=1)
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    (finding,) = audit(dataset).findings
    assert finding.kind == "key_duplicated"
    assert sample_key("toys", "0-1") in finding.detail
    assert "shard 0 and again in shard 1" in finding.detail


def test_a_chosen_share_of_the_images_is_decoded(tmp_path: Path) -> None:
    dataset = write_pictures(tmp_path / "toys", ["good", "cut", "other size", "other type", "other name"])
    assert audit(dataset, deep=True).sound
    report = audit(dataset, deep=True, decode=1.0)
    details = "\n".join(finding.detail for finding in report.findings)
    assert report.counts == {"image_damaged": 4}
    assert "it does not decode" in details
    assert "it is 9 x 8, its row says 9 x 9" in details
    assert "it holds PNG" in details
    assert "its row says png" in details
    keys = [f"{number:032x}" for number in range(0, 2**32, 2**32 // 1000)]
    chosen = [key for key in keys if is_chosen(key, 0.25)]
    assert len(chosen) == pytest.approx(250, abs=1)
    assert not any(is_chosen(key, 0.0) for key in keys)
    assert all(is_chosen(key, 1.0) for key in keys)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigurationError, match="share 0 to 1"):
            audit(dataset, deep=True, decode=wrong)
    with pytest.raises(ConfigurationError, match="add --deep"):
        audit(dataset, decode=0.5)


def write_pictures(root: Path, kinds: list[str]) -> Dataset:
    """One shard of pictures of 9 x 9 pixels, some of them not what their rows say."""
    run = StepRun(Dataset(root), download_step())
    out = run.shard(0)
    rows = []
    for number, kind in enumerate(kinds):
        stream = io.BytesIO()
        size = (9, 8) if kind == "other size" else (9, 9)
        Image.new("RGB", size, (number, 0, 0)).save(stream, "PNG" if kind == "other type" else "JPEG")
        data = stream.getvalue()[: -200 if kind == "cut" else None]
        row = source_row(0, number) | {"task": "text2image", "width": 9, "height": 9}
        row["ext"] = "png" if kind == "other name" else "jpg"
        out.images().add(row["key"], data, "jpg", {})
        rows.append(row)
    out.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
    out.finish(rows_in=len(rows))
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    return run.dataset


def test_keys_are_proven_unique_in_parts_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_keys, "PART", 100)
    monkeypatch.setattr(audit_keys, "IN_MEMORY", 1 << 10)
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 2**63, (1000, 2), dtype=np.uint64) * np.uint64(2)
    keys[500, 0] = keys[2, 0]  # equal in the first half alone: no duplicate
    unique = UniqueKeys(1000)
    assert unique._bits == 4
    for start in range(0, 1000, 70):
        unique.add(keys[start : start + 70])
    unique.add(keys[[3, 777, 3]])
    assert sorted(unique.duplicates()) == sorted(f"{int(a):016x}{int(b):016x}" for a, b in keys[[3, 777]])


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), max_size=9), cut=st.integers(0, 9))
def test_a_column_of_keys_is_hashed_and_packed_as_its_strings_are(keys: list[str], cut: int) -> None:
    column = pa.chunked_array([keys[:cut], keys[cut:]], pa.string())
    assert audit_keys.column_sha256(column) == keys_sha256(keys)
    assert [f"{int(a):016x}{int(b):016x}" for a, b in audit_keys.words(column)] == keys
    assert audit_keys.column_sha256(column.slice(1)) == keys_sha256(keys[1:])


@pytest.mark.parametrize("wrong", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "é" * 16])
def test_what_is_no_key_is_named(wrong: str) -> None:
    column = pa.chunked_array([["0" * 32, wrong]])
    assert audit_keys.column_sha256(column) == keys_sha256(["0" * 32, wrong])
    with pytest.raises(HarmonError, match="is not a key"):
        audit_keys.words(column)


def test_leftovers_are_harmless(toys: Dataset) -> None:
    run = StepRun(toys, Step("unfinished", 1, {}, (Reads(toys, ("source",)),)))
    keys = toys.table("source", 0, ["key"])
    out = run.shard(0)
    out.columns("unfinished", keys.append_column("x", pa.array([1.0] * keys.num_rows)))
    out.finish(rows_in=keys.num_rows)
    run.journal(1).append({"row": 1})
    toys.store.put(f"columns/unfinished/{run.step.key8}/00001.parquet", b"written, then killed before the receipt")
    (toys.root / "manifest" / ".put-0123456789abcdef.tmp").write_bytes(b"torn")
    report = audit(toys, deep=True)
    assert report.sound
    assert report.counts == {"leftover_temporary": 1, "leftover_uncommitted": 4, "leftover_work": 1}


def test_upstream_that_is_gone_or_other_is_a_note(toys: Dataset, tmp_path: Path) -> None:
    derived = Dataset(tmp_path / "derived")
    run = StepRun(derived, Step("select", 1, {}, (Reads(toys, ("source",)),)))
    out = run.shard(0)
    out.columns("source", toys.table("source", 0).set_column(3, "task", pa.array(["text"] * 5)))
    out.finish(rows_in=5)
    assert run.commit().terms == {"toys": {"licence": "CC0-1.0", "terms": "open"}}
    assert audit(derived).findings == ()
    shutil.rmtree(toys.root)
    assert audit(derived).counts == {"upstream_unreachable": 1}
    write_images(Dataset(toys.root), shards=2)
    write_scores(Dataset(toys.root))
    assert audit(derived).counts == {"upstream_differs": 1}
    assert audit(derived).sound


@pytest.mark.parametrize("terms", [{}, {"toys": {}}, {"toys": {"licence": None, "terms": "open"}}])
def test_a_source_without_licence_and_terms_is_found(tmp_path: Path, terms: dict[str, dict[str, str | None]]) -> None:
    run = StepRun(Dataset(tmp_path / "toys"), download_step())
    out = run.shard(0)
    out.columns("source", pa.Table.from_pylist([source_row(0, 4)], SOURCE_SCHEMA))
    out.finish(rows_in=1)
    run.commit(terms)
    assert audit(run.dataset).counts == {"terms_missing": 1} and not audit(run.dataset).sound


def test_receipts_that_were_changed_so_that_their_sums_stay_are_found(toys: Dataset) -> None:
    head = toys.commit(0)
    for shard, more in ((0, 1), (1, -1)):
        path = toys.store.local(receipt_path(head.step_key, shard))
        told = json.loads(path.read_text())
        path.write_bytes(canonical_json(told | {"rows_in": told["rows_in"] + more, "schemas": {}}) + b"\n")
    kinds = [finding.kind for finding in audit(toys).findings]
    assert kinds == ["receipt_differs"] * 4


def test_report_is_one_json_document_and_lines_for_a_person(toys: Dataset) -> None:
    place(toys, "images").unlink()
    report = audit(Dataset(toys.root))
    document = json.loads(json.dumps(report.to_json()))
    assert document["sound"] is False
    assert document["counts"] == {"file_missing": 1}
    assert document["findings"][0]["path"].endswith("00001.tar")
    assert document["commits"][0]["rejected"] == {"dead_link": SHARDS}
    text = "\n".join(report.lines())
    assert "UNSOUND" in text
    assert "24 in, 20 out, 4 rejected (dead_link 4)" in text


def test_there_has_to_be_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(HarmonError, match="no dataset"):
        audit(Dataset(tmp_path / "absent"))
