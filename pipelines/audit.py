"""Is a dataset what its manifests say: whole, aligned, accounted for, with nothing else in its folder?"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.audit_files import Depth, Progress, check_files, check_reasons
from pipelines.audit_folder import check_unlisted
from pipelines.audit_forgotten import check_forgotten
from pipelines.audit_history import check_history, read_history
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.findings import Finding
from pipelines.manifest import SOURCE, Commit
from pipelines.terms import EffectiveTerms, effective_terms

__all__ = ["AuditReport", "Finding", "audit"]


@dataclass(frozen=True)
class AuditReport:
    """The outcome of an audit. `sound` is the verdict; findings that leave a dataset sound are notes."""

    dataset: str
    deep: bool
    findings: tuple[Finding, ...]
    commits: tuple[Commit, ...]

    @property
    def sound(self) -> bool:
        """Whether everything is as the manifests say."""
        return all(finding.sound for finding in self.findings)

    @property
    def head(self) -> Commit | None:
        """The newest readable commit."""
        return self.commits[-1] if self.commits else None

    @property
    def rows(self) -> int:
        """Rows of the dataset, by its newest commit."""
        return sum(entry.rows for entry in self.head.files if entry.group == SOURCE) if self.head else 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings by kind."""
        return dict(sorted(Counter(finding.kind for finding in self.findings).items()))

    @property
    def effective_terms(self) -> EffectiveTerms:
        """What binds the dataset as a whole, from the terms of every source in it."""
        return effective_terms(self.head.terms if self.head else {})

    def to_json(self) -> dict[str, Any]:
        """One JSON document: the verdict, the size of what was looked at, every finding."""
        files = self.head.files if self.head else ()
        return {
            "dataset": self.dataset,
            "sound": self.sound,
            "deep": self.deep,
            "content_hash": self.head.content_hash if self.head else None,
            "rows": self.rows,
            "shards": len({entry.shard for entry in files}),
            "files": len(files),
            "bytes": sum(entry.bytes for entry in files),
            "commits": [_step_json(commit) for commit in self.commits],
            "counts": self.counts,
            "terms": dict(self.head.terms) if self.head else {},
            "effective_terms": self.effective_terms.to_json(),
            "findings": [
                {"kind": f.kind, "path": f.path, "detail": f.detail, "sound": f.sound, "advice": f.advice}
                for f in self.findings
            ],
        }

    def lines(self) -> Iterator[str]:
        """The report for a person, worst first."""
        summary = self.to_json()
        yield (
            f"{self.dataset}: {'sound' if self.sound else 'UNSOUND'} ({'deep' if self.deep else 'shallow'}), "
            f"{self.rows:,} rows in {summary['shards']} shards, {summary['files']} files, "
            f"{summary['bytes'] / 1e6:,.1f} MB, content {str(summary['content_hash'])[:12]}"
        )
        for commit in self.commits:
            lost = commit.rejected or commit.failed
            reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(lost.items()))
            word = "rejected" if commit.rejected else "failed"
            tail = f", {sum(lost.values()):,} {word} ({reasons})" if lost else ""
            yield f"  {commit.number:>3} {commit.step}: {commit.rows_in:,} in, {commit.rows_out:,} out{tail}"
        if self.head:
            yield from (f"  {line}" for line in self.effective_terms.lines())
            for name, record in sorted(self.head.terms.items()):
                if accepted := record.get("accepted"):
                    yield f"    {name}: accepted by {accepted['by']} on {accepted['when']}: {accepted['what']}"
        for finding in sorted(self.findings, key=lambda finding: (finding.sound, finding.kind, finding.path)):
            mark = "note" if finding.sound else "WRONG"
            yield f"  {mark} {finding.kind}: {finding.path}: {finding.detail} ({finding.advice})"


def _step_json(commit: Commit) -> dict[str, Any]:
    return {
        "number": commit.number,
        "step": commit.step,
        "step_key": commit.step_key,
        "content_hash": commit.content_hash,
        "rows_in": commit.rows_in,
        "rows_out": commit.rows_out,
        "rejected": dict(commit.rejected),
        "failed": dict(commit.failed),
    }


def audit(dataset: Dataset, deep: bool = False, decode: float = 0.0, progress: Progress | None = None) -> AuditReport:
    """Check a dataset without changing it.

    Shallow: every listed file exists with its size, footers say the recorded rows and schema, the keys of
    `source` are unique and hash as recorded, groups are aligned, commits chain, counts add up, terms are recorded,
    and nothing foreign lies in the folder. Deep: besides, every byte and every key is read again, every archive
    is walked against its index and its rows, reasons are counted again, and the share `decode` of the images
    (0 to 1) is decoded.

    Raises HarmonError where there is no such folder, ConfigurationError for a share without `deep`.
    """
    if not 0 <= decode <= 1 or (decode and not deep):
        raise ConfigurationError(f"--decode {decode:g}: decoding is part of a deep audit, its share 0 to 1; add --deep")
    if not dataset.store.is_there():
        raise HarmonError(f"there is no dataset at {dataset.root}; name the folder that holds its manifest/")
    commits, findings = read_history(dataset)
    sizes = dataset.store.sizes()  # after the commits, so that all their files stood already if another process commits
    findings += check_history(dataset, commits, sizes)
    if commits:
        findings += check_files(dataset, commits[-1], sizes, Depth(deep, decode), progress)
    if deep:
        findings += check_reasons(dataset, commits)
    findings += check_forgotten(dataset, commits, sizes)
    findings += check_unlisted(dataset, commits, sizes)
    return AuditReport(str(dataset.root), deep, tuple(findings), tuple(commits))
