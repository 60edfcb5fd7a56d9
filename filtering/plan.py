"""Which rows a selection keeps, and why each other leaves: decided before anything is written.

Memory: the columns of at most HELD rows, one byte a row, at most 150 MiB while equal rows are looked for
(filtering.repeats), 8 bytes for each row that gives way to an equal and 20 for each that it gives way to (twice that
while they are sorted), and 512 KiB for each column that is counted. Columns are read shard by shard, once for every
pass unless they are held.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from filtering.cut import cuts, orders, score_of
from filtering.expression import Name
from filtering.grammar import parse_condition
from filtering.inputs import check_inputs
from filtering.repeats import Losers, Piece, losers
from filtering.rows import Drop, Mask, ShardRows, shards_of
from filtering.rules import Check
from filtering.selection import Selection
from filtering.shuffle import ties_of
from filtering.spread import Spread
from pipelines.charts import Passage
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE

KEY_TWICE, SAME_BYTES, NEAR, CUT, UNSCORED = "duplicate_key", "duplicate", "near_duplicate", "below_cut", "unscored"
SAID = {KEY_TWICE: "the key stands in an earlier row", SAME_BYTES: "same bytes as ", NEAR: "much like "}
HELD = 1 << 14  # rows whose columns stay between passes: opening files again would cost more than judging so few
Codes = NDArray[np.uint8]


@dataclass
class Plan:
    """The verdict on every row of some datasets."""

    datasets: Sequence[Dataset]
    selection: Selection
    reasons: list[str] = field(default_factory=lambda: [""])
    """By code; 0 is kept. In the order in which they are judged."""
    codes: dict[tuple[int, int], Codes] = field(default_factory=dict)
    """By dataset and shard."""
    firsts: dict[tuple[int, int], int] = field(default_factory=dict)
    """Number of a shard's first row among all rows."""
    beaten: dict[str, Losers] = field(default_factory=dict)
    """Rows that gave way to an equal one, by reason."""
    cut: dict[str, float] = field(default_factory=dict)
    """The lowest score kept, by source with a quota of its own and "" for all others."""
    alone: dict[str, int] = field(default_factory=dict)
    """How many rows each reason would drop if it were the only one."""
    spreads: dict[tuple[str, str], Spread] = field(default_factory=dict)
    """Of every column that a threshold or the cut looks at, over all pictures."""
    short: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where fewer pictures were there than asked for: how many were, and how many were asked for; by source with a
    quota and "" for all others."""
    kept_by_source: dict[str, int] = field(default_factory=dict)
    held: dict[tuple[int, int], ShardRows] = field(default_factory=dict)
    """Shards of few rows, while they are judged."""

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(len(codes) for codes in self.codes.values())

    @property
    def counts(self) -> dict[str, int]:
        """Rows by reason, the kept ones under ""; every reason that was judged is there."""
        total = np.zeros(len(self.reasons), np.int64)
        for codes in self.codes.values():
            total += np.bincount(codes, minlength=len(self.reasons))
        return dict(zip(self.reasons, total.tolist(), strict=True))

    @property
    def kept(self) -> int:
        """Rows that stay."""
        return self.counts[""]

    def funnel(self) -> list[Passage]:
        """Rows through the reasons, in the order of judgement."""
        left, passages = self.rows, []
        for reason, number in list(self.counts.items())[1:]:
            alone = f"alone it would drop {self.alone[reason]:,}" if reason in self.alone else ""
            passages.append(Passage(reason, left, left - number, alone))
            left -= number
        return passages

    def lines(self) -> list[str]:
        """The counts as text, with what thresholds keep."""
        lines = [f"{self.kept:,} of {self.rows:,} rows stay ({100 * self.kept / max(1, self.rows):.3g}%)"]
        for passage in self.funnel():
            lost = passage.rows_in - passage.rows_out
            alone = f" ({passage.lost})" if passage.lost and self.alone.get(passage.label) != lost else ""
            lines.append(f"  {passage.label}: {lost:,} leave{alone}, {passage.rows_out:,} go on")
        lines += [f"  cut{f' of {name}' if name else ''}: {value:.6g}" for name, value in sorted(self.cut.items())]
        lines += [f"  {line}" for line in shortfalls(self.short)]
        lines += [f"  {line}" for spread in self.spreads.values() for line in spread.lines()]
        return lines + [f"  kept of {name}: {number:,}" for name, number in sorted(self.kept_by_source.items())]

    def code(self, reason: str) -> int:
        """The number of a reason, known from then on."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        if len(self.reasons) > 255:
            raise ConfigurationError("A selection has more than 254 reasons; leave some rules out.")
        return self.reasons.index(reason)

    def drops(self, number: int, rows: ShardRows) -> dict[int, Drop]:
        """Why each row of a shard leaves, with what was measured: for the rejects."""
        codes, first = self.codes[number, rows.shard], self.firsts[number, rows.shard]
        found: dict[int, Drop] = {}
        for check in checks(rows, self.selection):
            for row in np.flatnonzero(check.drops & (codes == self.code(check.reason))).tolist():
                if row not in found:
                    found[row] = Drop(check.reason, check.detail(row))
        for reason, beaten in self.beaten.items():
            for row in np.flatnonzero(codes == self.code(reason)).tolist():
                if row not in found:
                    winner = "" if reason == KEY_TWICE else beaten.winner(first + row)
                    found[row] = Drop(reason, SAID[reason] + winner)
        left = [row for row in np.flatnonzero(codes > 0).tolist() if row not in found]
        if left and (take := self.selection.take) is not None:
            scores, sources = rows.numbers(take.group, take.column), rows.values(SOURCE, "source")
            for row in left:
                cut = self.cut.get(sources[row] if sources[row] in take.quotas else "")
                found[row] = Drop(self.reasons[codes[row]], f"{take.column} {_beside(scores[row], cut)}")
        return found


def shortfalls(short: Mapping[str, Sequence[int]]) -> list[str]:
    """A sentence for each source that has fewer pictures than were asked for of it."""
    return [
        f"short: {name or 'sources without a quota'} had {there:,} of the {asked:,} pictures asked for"
        for name, (there, asked) in sorted(short.items())
    ]


def _beside(score: float, cut: float | None) -> str:
    """A score that did not stay beside the cut, both as float32, which is how they were compared."""
    if np.isnan(score):
        return "no value"
    if cut is None:
        return f"{np.float32(score)!s}, none kept"
    if np.float32(score) == np.float32(cut):
        return f"{np.float32(score)!s} is the cut, and the draw among equal scores went to others"
    return f"{np.float32(score)!s} < the cut, {np.float32(cut)!s}"


def plan(datasets: Sequence[Dataset], selection: Selection) -> Plan:
    """Judge every row of `datasets`.

    The order: shape, file type, caption, address, hash lists, thresholds, condition, decontamination; then rows with a
    key or bytes that another row has, and near duplicates; then the cut. Rows without an image, which are text, meet
    the condition, the decontamination of prompts, and the keys.

    Raises ConfigurationError where a rule needs a column that a dataset with images lacks, or names a source of no row.
    """
    selection = selection.named(datasets)
    check_inputs(datasets, selection)
    made, first = Plan(datasets, selection), 0
    for number, rows in _shards(made):
        made.codes[number, rows.shard] = _judged(made, rows)
        made.firsts[number, rows.shard] = first
        first += len(rows)
    _drop_equals(made)
    if selection.take:
        _take(made)
    for number, rows in _shards(made):
        kept = rows.column(SOURCE, "source").filter(pa.array(made.codes[number, rows.shard] == 0))
        for found in kept.value_counts().to_pylist():
            name = found["values"]
            made.kept_by_source[name] = made.kept_by_source.get(name, 0) + found["counts"]
    made.held.clear()
    return made


def _shards(made: Plan) -> Iterator[tuple[int, ShardRows]]:
    """Every shard with the number of its dataset; the first ones with what was read of them before."""
    held = 0
    for number, rows in shards_of(made.datasets):
        held += len(rows)
        yield number, made.held.setdefault((number, rows.shard), rows) if held <= HELD else rows


def checks(rows: ShardRows, selection: Selection) -> Iterator[Check]:
    """Every rule that judges a row by itself, in order. A shard without images has none of the rules on images."""
    if rows.has(IMAGES):
        for rule in selection.rules:
            yield from rule.verdicts(rows)
    if selection.where is not None:
        stays = parse_condition(selection.where).mask(rows)
        yield Check("condition", ~stays, lambda row: f"not {selection.where}")
    if selection.decontaminate is not None:
        yield from selection.decontaminate.checks(rows)


def _judged(made: Plan, rows: ShardRows) -> Codes:
    codes = np.zeros(len(rows), np.uint8)
    for check in checks(rows, made.selection):
        code = made.code(check.reason)
        made.alone[check.reason] = made.alone.get(check.reason, 0) + int(check.drops.sum())
        codes[check.drops & (codes == 0)] = code
    for group, column in made.selection.measured:
        if rows.has(group):
            spread = made.spreads.setdefault(
                (group, column), Spread(column if group == SOURCE else f"{group}:{column}")
            )
            spread.add(rows.numbers(group, column)[rows.pictures])
    return codes


def _pieces(made: Plan, pictures: bool, group: str | None = None) -> Iterator[Piece]:
    """Rows that are still kept, shard by shard."""
    for number, rows in _shards(made):
        if group is None or rows.has(group):
            eligible = made.codes[number, rows.shard] == 0
            yield Piece(rows, made.firsts[number, rows.shard], eligible & rows.pictures if pictures else eligible)


def _drop_equals(made: Plan) -> None:
    """Drop rows whose key, bytes or duplicate group a better row has; of equal keys the first stays."""
    selection = made.selection

    def worth(rows: ShardRows) -> list[NDArray[np.float64]]:
        return [Name(name).numbers(rows) for name in selection.prefer]

    _beat(made, KEY_TWICE, losers(lambda: _pieces(made, False), (SOURCE, "key"), made.rows))
    chosen = worth if selection.prefer else None
    _beat(made, SAME_BYTES, losers(lambda: _pieces(made, True), (SOURCE, "sha256"), made.rows, chosen))
    if (group := selection.duplicates) is not None:
        _beat(made, NEAR, losers(lambda: _pieces(made, True, group), (group, "group"), made.rows, chosen))


def _beat(made: Plan, reason: str, beaten: Losers) -> None:
    code = made.code(reason)
    made.beaten[reason] = beaten
    for place, first in made.firsts.items():
        codes = made.codes[place]
        codes[beaten.rows[beaten.among(first, first + len(codes))] - np.uint32(first)] = code


def _take(made: Plan) -> None:
    """Keep as many of the pictures that are left as the selection asks for, the best of each quota."""
    take = made.selection.take
    assert take is not None
    names = ["", *take.quotas]
    unscored, below = made.code(UNSCORED), made.code(CUT)

    def competing(number: int, rows: ShardRows) -> Mask:
        left: Mask = (made.codes[number, rows.shard] == 0) & rows.pictures
        return left & rows.of(take.sources) if take.sources else left

    def passes() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
        for number, rows in _shards(made):
            left = competing(number, rows)
            yield _classes(rows, left, take.quotas), _orders(rows, left)

    def _orders(rows: ShardRows, left: NDArray[np.bool_]) -> NDArray[np.uint64]:
        if not left.any():  # text alone, which has no score
            return np.zeros(0, np.uint64)
        keys = rows.column(SOURCE, "key").filter(left).to_pylist()
        scores = rows.numbers(take.group, take.column)[left].astype(np.float32)
        return orders(scores, ties_of(keys, made.selection.seed))

    present = np.zeros(len(names), np.int64)
    for number, rows in _shards(made):
        left = competing(number, rows)
        if left.any():
            made.codes[number, rows.shard][left & np.isnan(rows.numbers(take.group, take.column))] = unscored
        present += np.bincount(_classes(rows, competing(number, rows), take.quotas), minlength=len(names))
    there = dict(zip(names, present.tolist(), strict=True))
    asked, wanted = take.asked(there), take.wanted(there)
    made.short = {name: (there[name], asked[name]) for name in names if asked[name] > there[name]}
    lowest = cuts(passes, [wanted[name] for name in names])
    made.cut = {name: score_of(value) for name, value in zip(names, lowest, strict=True) if value is not None}
    none = np.array([value is None for value in lowest])
    least = np.array([value or 0 for value in lowest], np.uint64)
    for number, rows in _shards(made):
        left = competing(number, rows)
        which = _classes(rows, left, take.quotas)
        low = none[which] | (_orders(rows, left) < least[which])
        made.codes[number, rows.shard][np.flatnonzero(left)[low]] = below


def _classes(rows: ShardRows, left: NDArray[np.bool_], quotas: object) -> NDArray[np.int64]:
    """For each row that is left the number of its source among those with a quota, counted from 1; 0 for all others."""
    names = list(quotas) if isinstance(quotas, dict) else []
    found = np.zeros(int(left.sum()), np.int64)
    if names:
        sources = np.array(rows.values(SOURCE, "source"), dtype=object)[left]
        for number, name in enumerate(names, start=1):
            found[sources == name] = number
    return found
