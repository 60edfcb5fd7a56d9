"""What OpenLineage 2-0-2 asks of a run event, as a JSON Schema of our own.

The rules are those of https://openlineage.io/spec/2-0-2/OpenLineage.json (RunEvent, and the base of every facet) and of
the facets that we emit: SchemaDatasetFacet 1-2-0, DatasetVersionDatasetFacet 1-0-1, OutputStatisticsOutputDatasetFacet
1-0-2. Formats are checked, which JSON Schema leaves to its reader.
"""

import uuid
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker

TEXT, COUNT = {"type": "string"}, {"type": "integer"}


def record(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with these fields; more are allowed, as everywhere in OpenLineage."""
    return {"type": "object", "properties": required | optional, "required": list(required)}


def text(form: str) -> dict[str, Any]:
    return {"type": "string", "format": form}


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def facets(**known: dict[str, Any]) -> dict[str, Any]:
    """A map of facets: each says who made it and which schema it has; the known ones have their own fields."""
    base = record({"_producer": text("uri"), "_schemaURL": text("uri")})
    return {"type": "object", "properties": known, "additionalProperties": base} | {
        "patternProperties": {name: base for name in known}  # a known facet is a facet too
    }


COLUMN = record(
    {"name": TEXT}, type=TEXT, description=TEXT, ordinal_position=COUNT, fields=listed({"$ref": "#/$defs/column"})
)
DATASET_FACETS = facets(
    schema=record({}, fields=listed({"$ref": "#/$defs/column"})),
    version=record({"datasetVersion": TEXT}),
)
DATASET = {"namespace": TEXT, "name": TEXT}
RUN_EVENT = record(
    {
        "eventTime": text("date-time"),
        "producer": text("uri"),
        "schemaURL": text("uri"),
        "run": record({"runId": text("uuid")}, facets=facets()),
        "job": record({"namespace": TEXT, "name": TEXT}, facets=facets()),
    },
    eventType={"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
    inputs=listed(record(DATASET, facets=DATASET_FACETS, inputFacets=facets())),
    outputs=listed(
        record(
            DATASET,
            facets=DATASET_FACETS,
            outputFacets=facets(outputStatistics=record({}, rowCount=COUNT, size=COUNT, fileCount=COUNT)),
        )
    ),
) | {"$defs": {"column": COLUMN}}

FORMATS = FormatChecker(formats=())


@FORMATS.checks("uuid", raises=ValueError)
def _is_uuid(value: str) -> bool:
    return str(uuid.UUID(value)) == value


@FORMATS.checks("date-time", raises=ValueError)
def _is_time(value: str) -> bool:
    return "T" in value and datetime.fromisoformat(value).tzinfo is not None


@FORMATS.checks("uri", raises=ValueError)
def _is_uri(value: str) -> bool:
    return bool(urlsplit(value).scheme) and " " not in value


def problems(event: Any) -> list[str]:
    """Where and why an event breaks the rules."""
    found = Draft202012Validator(RUN_EVENT, format_checker=FORMATS).iter_errors(event)
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in found]
