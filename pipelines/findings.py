"""What an audit can find, and what each finding means for the dataset."""

from dataclasses import dataclass

UNSOUND = {
    "manifest_missing": "a commit between two others is gone: restore it from a copy",
    "manifest_unreadable": "a commit cannot be parsed: restore it from a copy",
    "manifest_altered": "a commit was edited after it was made: restore it from a copy",
    "chain_broken": "a commit does not follow from the one before: restore both from a copy",
    "file_dropped": "a commit lost files that the one before had, without a record of forgetting them",
    "step_key_differs": "a commit's step key does not follow from what it says it computed",
    "counts_differ": "rows were lost or invented: in is not out plus rejected (or ok plus failed)",
    "reasons_differ": "a file gives rows other reasons than its commit counts: restore it, or run its step anew",
    "receipt_missing": "a shard's receipt is gone: --repair makes it anew, or restore it from a copy",
    "receipt_differs": "a receipt and its commit tell different stories: --repair makes it anew, or restore it",
    "file_missing": "a listed file is gone: restore it, or --repair lets its step write it again",
    "file_unreadable": "a listed file cannot be opened: restore it, or --repair lets its step write it again",
    "size_differs": "a listed file has another length: restore it, or --repair lets its step write it again",
    "hash_differs": "a listed file has other bytes: restore it, or --repair lets its step write it again",
    "rows_differ": "a file has another number of rows than its commit says",
    "schema_differs": "a column file has other columns or types than its commit says",
    "keys_differ": "a file's keys are not those that its commit says, or not in that order",
    "keys_misaligned": "a group does not have the shard's keys in the shard's order",
    "key_duplicated": "two rows have the same key",
    "index_differs": "a shard's index does not belong to its archive: --repair makes it anew",
    "members_differ": "an archive's members do not match the rows of source",
    "image_damaged": "an image does not decode, or not to what its row says: reject its row in a new dataset",
    "terms_missing": "no licence and terms are recorded for a source: its rows may not be used until they are",
    "forgotten_file": "a file with forgotten samples still stands: run the same `harmon forget` again, or --repair",
    "forgotten_row": "a forgotten sample is back in the dataset: forget it again",
    "foreign_file": "nothing lists this file and no attempt left it: move it out of the dataset",
}
HARMLESS = {
    "leftover_temporary": "an unfinished put of a killed attempt: it may be deleted",
    "leftover_upload": "a large upload that was never completed: invisible, and paid for; --repair drops it",
    "leftover_work": "journals and temporaries of an attempt: deleted when the step is committed",
    "leftover_uncommitted": "finished work of a step that is not committed: a rerun adopts it",
    "upstream_unreachable": "a dataset that this one was made from is not beside it",
    "upstream_differs": "a dataset that this one was made from holds other data now",
}


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found: its kind (a key of UNSOUND or HARMLESS), where, and the particulars."""

    kind: str
    path: str
    detail: str
    sound: bool

    @property
    def advice(self) -> str:
        """What the kind means and what to do about it."""
        return (HARMLESS if self.sound else UNSOUND)[self.kind]


def found(kind: str, path: str, detail: str) -> Finding:
    """A finding; whether the dataset stays sound follows from its kind."""
    assert kind in UNSOUND or kind in HARMLESS, kind
    return Finding(kind, path, detail, kind in HARMLESS)
