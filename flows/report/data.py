"""The page's data: where rows came from and where they left, captions before and after, and scores of
pictures.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from flows.report.inputs import ReportInput, made_rows
from pipelines.charts import Passage, funnel, histogram
from pipelines.dataset import Dataset
from pipelines.manifest import IMAGES, Commit, is_volatile
from pipelines.page import (
    Markup,
    Picture,
    Remark,
    Section,
    State,
    code,
    element,
    gallery,
    note,
    paragraph,
    table,
    thumbnail,
)

CAPTIONS_SHOWN = 9
PICTURES_SHOWN = 6


def funnels(source: ReportInput) -> Section:
    """Rows from the lists to each training set, every reason why rows left, and the planted bad rows."""
    content: list[Markup] = [
        note(f"There is no dataset {name}: its step has not run.", state="bad") for name in source.missing
    ]
    for dataset in source.training_sets or source.downloads:
        content.append(funnel(f"Rows on their way to {dataset.name}", _passages(source, dataset)))
    rows = [row for dataset in source.opened for row in _reason_rows(dataset)]
    content.append(element("h3", "Every reason"))
    content.append(table(["dataset", "step", "rows in", "reason", "rows", "what became of them"], rows))
    content += _planted(source)
    return Section(
        "Data",
        content,
        "At every step rows in = rows out + rows that left, and every row that left says why.",
    )


def captions(source: ReportInput) -> Section:
    """Sample pictures with their dense caption and the short one that the language model made of it."""
    content: list[Markup] = []
    for dataset in source.downloads:
        for group in _caption_groups(dataset):
            content += _caption_group(dataset, group)
    lead = "The dense caption of the list, and → the short sentence that the language model rewrote it into."
    return Section("Captions, before and after", content or [note("No captions were rewritten.", state="bad")], lead)


def scores(source: ReportInput) -> Section:
    """How the filter's scores are spread, its thresholds, and the pictures at both ends."""
    content: list[Markup] = []
    for dataset in source.training_sets:
        commit = made_rows(dataset)
        for threshold in commit.configuration.get("thresholds", []) if commit else []:
            content += _threshold(source, dataset, threshold)
    return Section("Filter", content or [note("No pictures were scored.", state="bad")])


def _passages(source: ReportInput, dataset: Dataset) -> list[Passage]:
    """What the dataset's own rows came through: the downloads together, then its own step."""
    downloads = [commit for made in source.made_from(dataset) if (commit := made_rows(made))]
    passages = [_passage(" + ".join(sorted({commit.step for commit in downloads})), downloads)] if downloads else []
    own = made_rows(dataset)
    return [*passages, _passage(own.step, [own])] if own else passages


def _passage(label: str, commits: list[Commit]) -> Passage:
    lost: Counter[str] = Counter()
    for commit in commits:
        lost.update(commit.rejected)
    reasons = ", ".join(f"{reason} {number}" for reason, number in lost.most_common())
    return Passage(label, sum(c.rows_in for c in commits), sum(c.rows_out for c in commits), reasons)


def _reason_rows(dataset: Dataset) -> list[list[object]]:
    """One table row for each commit's reason; steps that lost nothing have one row saying so."""
    rows: list[list[object]] = []
    for commit in dataset.commits():
        losses = [(reason, n, "rejected, in the rejects table") for reason, n in sorted(commit.rejected.items())]
        losses += [(reason, n, "stays, without a value") for reason, n in sorted(commit.failed.items())]
        for index, (reason, number, fate) in enumerate(losses):
            place = [dataset.name, commit.step, f"{commit.rows_in:,}"] if index == 0 else ["", "", ""]
            rows.append([*place, code(reason), number, fate])
        if not losses:
            rows.append([dataset.name, commit.step, f"{commit.rows_in:,}", "none", 0, "all rows went through"])
    return rows


def _planted(source: ReportInput) -> list[Markup]:
    if not source.planted:
        return []
    left: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for dataset in source.opened:
        for row in dataset.rejects().to_pylist():
            left.setdefault((row["source"], row["row_id"]), []).append(
                (row["step"], row["reason"], row["detail"] or "")
            )
    duplicates = any(reason == "duplicate" for fates in left.values() for _, reason, _ in fates)
    rows: list[list[object]] = []
    caught = 0
    for bad in source.planted:
        found = left.get((bad.source, bad.row_id), [])
        right = [fate for fate in found if fate[:2] == (bad.step, bad.reason)]
        twin = bad.reason == "duplicate" and not found and duplicates
        caught += bool(right or twin)
        missed = ("", "its twin left instead" if twin else f"stayed: expected {bad.reason} at {bad.step}", "")
        step, reason, detail = next(iter([*right, *found, missed]))
        sign = _sign("good" if right or twin else "bad")
        rows.append([sign, bad.row_id, code(bad.url), step, code(reason), detail])
    said = f"{caught} of {len(rows)} bad rows planted in the lists left where they had to, for the right reason."
    state: State = "good" if caught == len(rows) else "bad"
    return [
        element("h3", "Planted bad rows"),
        note(said, state=state),
        table(["", "row", "link", "left at", "reason", "what was seen"], rows),
    ]


def _sign(state: State) -> Markup:
    return element("span", element("span", "✓" if state == "good" else "✗", class_="sign"), class_=state)


def _caption_groups(dataset: Dataset) -> list[str]:
    return [group for group in dataset.groups() if group.startswith("caption.") and not is_volatile(group)]


def _caption_group(dataset: Dataset, group: str) -> list[Markup]:
    outcome: Counter[str] = Counter()
    shown: list[Picture] = []
    shards = dataset.shard_numbers
    for shard in shards:
        after = dataset.table(group, shard, ["key", "text", "status", "reason"]).to_pylist()
        outcome.update(row["reason"] if row["status"] == "failed" else "rewritten" for row in after)
        wanted = -(-CAPTIONS_SHOWN // len(shards))
        chosen = [index for index, row in enumerate(after) if row["status"] == "ok" and row["text"]]
        before = dataset.table("source", shard, ["caption"]).column("caption").to_pylist()
        for index in _spread(chosen, wanted):
            data = _picture_data(dataset, shard, after[index]["key"])
            if data:
                shown.append(thumbnail(data, before[index] or "", Remark(f"→ {after[index]['text']}")))
    counts = ", ".join(f"{reason} {number:,}" for reason, number in outcome.most_common())
    return [
        paragraph(dataset.name, ", ", code(group), f": {counts}."),
        gallery(shown[:CAPTIONS_SHOWN], wide=True),
    ]


def _threshold(source: ReportInput, dataset: Dataset, threshold: dict[str, Any]) -> list[Markup]:
    """The histogram of one threshold of a training set, over the datasets it was made from."""
    group, column, least = threshold["group"], threshold["column"], float(threshold["at_least"])
    scored: list[tuple[float, Dataset, int, str]] = []
    for made in source.made_from(dataset):
        for entry in made.entries(group):
            columns = made.table(group, entry.shard, ["key", column])
            pairs = zip(columns.column("key").to_pylist(), columns.column(column).to_pylist(), strict=True)
            scored += [(value, made, entry.shard, key) for key, value in pairs if value is not None]
    scored.sort(key=lambda item: (item[0], item[3]))
    lowest = [item for item in scored if item[0] < least][:PICTURES_SHOWN]
    highest = [item for item in scored if item[0] >= least][::-1][:PICTURES_SHOWN]
    said = f"Scores of {group}."
    if group == "clarity":
        said = "Clarity measures sharpness and colourfulness. It stands in for an aesthetic score, and is none."
    return [
        note(said),
        histogram(f"{group}, for the training set {dataset.name}", [item[0] for item in scored], column, least),
        gallery([picture for item in [*lowest, *highest] if (picture := _scored_picture(*item, least))]),
    ]


def _scored_picture(value: float, dataset: Dataset, shard: int, key: str, least: float) -> Picture | None:
    data = _picture_data(dataset, shard, key)
    if data is None:
        return None
    state: State = "good" if value >= least else "bad"
    return thumbnail(data, f"{value:.3f}", Remark("kept" if value >= least else "left out", state), state=state)


def _picture_data(dataset: Dataset, shard: int, key: str) -> bytes | None:
    if dataset.entry(IMAGES, shard) is None:
        return None
    image = dataset.images(shard).find(key)
    return image.data if image else None


def _spread(indices: list[int], number: int) -> Iterable[int]:
    """At most `number` of the indices, evenly spread."""
    step = max(1, len(indices) // number) if number else 1
    return indices[::step][:number]
