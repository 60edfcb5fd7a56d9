"""A dataset as a Croissant 1.0 description (https://docs.mlcommons.org/croissant/docs/croissant-spec.html).

It says what the manifests say and nothing else: files with their checksums, columns with their types, licences
as recorded. What no manifest knows (citation, home page, date of publication) is left out; validators warn
about that, rightly.
"""

import re
from typing import Any

from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import IMAGES, INDEX, Commit, FileEntry, is_volatile

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification prescribes."""

TYPES = {
    "string": "sc:Text",
    "bool": "sc:Boolean",
    "int8": "cr:Int8",
    "int16": "cr:Int16",
    "int32": "cr:Int32",
    "int64": "cr:Int64",
    "halffloat": "cr:Float16",
    "float": "cr:Float32",
    "double": "cr:Float64",
}
"""Arrow type, as manifests record it, to Croissant data type."""
LIST = re.compile(r"(?:fixed_size_)?list<element: (\w+)>(?:\[\d+\])?")
FORMATS = {".tar": "application/x-tar", ".idx": "application/octet-stream", ".parquet": "application/x-parquet"}


def croissant(dataset: Dataset) -> dict[str, Any]:
    """The newest commit as a JSON-LD document; paths are relative to the dataset's folder.

    Columns whose type Croissant cannot say (lists of structures) are left out of the record sets; their files
    are listed all the same. Raises HarmonError for a dataset without a commit.
    """
    head = dataset.head
    if head is None:
        raise HarmonError(f"there is no dataset at {dataset.root}; name the folder that holds its manifest/")
    groups = sorted({entry.group for entry in head.files})
    licences = sorted({str(terms["licence"]) for terms in head.terms.values() if terms.get("licence")})
    document: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": dataset.name,
        "description": _description(dataset, head),
        "version": f"{head.number}.0.0",
        "identifier": f"sha256:{head.content_hash}",
        "distribution": [part for group in groups for part in _distribution(head, group)],
        "recordSet": [_records(head, group) for group in groups if group in head.schemas and not is_volatile(group)],
    }
    return document | ({"license": licences} if licences else {})


def _description(dataset: Dataset, head: Commit) -> str:
    steps = ", ".join(f"{commit.step} ({commit.rows_in:,} in, {commit.rows_out:,} out)" for commit in dataset.commits())
    sources = ", ".join(sorted(head.terms)) or "none recorded"
    return (
        f"{dataset.total_rows:,} samples in {len(dataset.shard_numbers)} shards. "
        f"Sources: {sources}. Commits: {steps}. Major version = commit number."
    )


def _distribution(head: Commit, group: str) -> list[dict[str, Any]]:
    """Every file of a group, and the set of them."""
    entries = sorted((entry for entry in head.files if entry.group == group), key=lambda entry: entry.shard)
    files = [_file(entry) for entry in entries]
    together = {
        "@type": "cr:FileSet",
        "@id": group,
        "name": group,
        "description": _GROUPS.get(group, f"Column group {group}: one row for each sample, in shard order."),
        "encodingFormat": _format(entries[0]),
        "includes": [entry.path for entry in entries],
    }
    return [*files, together]


_GROUPS = {
    IMAGES: "WebDataset archives: KEY.<extension> and KEY.json, adjacent.",
    INDEX: "Little-endian u64 offsets of each sample's first header in the archive, then the end.",
}


def _file(entry: FileEntry) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": entry.path,
        "name": entry.path,
        "contentUrl": entry.path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": _format(entry),
        "sha256": entry.sha256,
    }


def _format(entry: FileEntry) -> str:
    return next(kind for suffix, kind in FORMATS.items() if entry.path.endswith(suffix))


def _records(head: Commit, group: str) -> dict[str, Any]:
    """A column group as records of its columns."""
    fields = [field for name, kind in sorted(head.schemas[group].items()) if (field := _field(group, name, kind))]
    return {
        "@type": "cr:RecordSet",
        "@id": f"{group}/records",
        "name": f"{group}/records",
        "key": {"@id": f"{group}/records/key"},
        "field": fields,
    }


def _field(group: str, name: str, kind: str) -> dict[str, Any] | None:
    listed = LIST.fullmatch(kind)
    data_type = TYPES.get(listed[1] if listed else kind)
    if data_type is None:
        return None
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{group}/records/{name}",
        "name": f"{group}/records/{name}",
        "dataType": data_type,
        "source": {"fileSet": {"@id": group}, "extract": {"column": name}},
    }
    return field | ({"repeated": True} if listed else {})
