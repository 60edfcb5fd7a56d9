"""No source whose terms need an acceptance is touched before someone has accepted them; the record stays."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import catalogue
from pipelines.acquire import Acquisition, acquire
from pipelines.audit import audit
from pipelines.catalogue import Source
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings
from pipelines.errors import ConfigurationError
from pipelines.settings import parse
from pipelines.terms import Acceptance, accepted_in, effective_of, effective_terms, terms_record
from tests.pipelines.miniatures import WITH_IMAGES
from tests.pipelines.small_datasets import write_column
from tests.pipelines.test_miniatures import scratch

__all__ = ["scratch"]  # the fixture, for this module too

YES = Acceptance(by="A. Tester, University of Nowhere", when=date(2026, 11, 20), what="ImageNet terms of access")
GATED = {"imagenet-1k", "infinity-mm", "journeydb", "mgm-pretrain", "sharegpt4v-pt"}


def test_the_sources_of_the_terms_matrix_are_refused_and_the_others_are_not() -> None:
    """DATASETS.md section 15."""
    entries = [catalogue.source(name) for name in catalogue.names()]
    assert {entry.name for entry in entries if entry.needs_acceptance} == GATED
    non_commercial = {entry.name for entry in entries if "non-commercial" in entry.restrictions}
    assert non_commercial == {"imagenet-1k", "journeydb", "mgm-pretrain", "sharegpt4v-pt"}
    model_output = {"mgm-pretrain", "sharegpt4v-pt", "pixelprose", "blip3o-60k", "journeydb"}
    assert model_output <= {entry.name for entry in entries if "model-output" in entry.restrictions}
    assert catalogue.source("pd12m").terms == "open" and not catalogue.source("pd12m").restrictions


@pytest.mark.parametrize("name", sorted(GATED))
def test_nothing_is_read_before_terms_are_accepted(name: str, tmp_path: Path) -> None:
    asked = Acquisition(DownloadSettings(), {"another": YES}, folder=tmp_path / "not looked for")
    with pytest.raises(ConfigurationError, match=rf"{name}.*nobody has accepted.*by: WHO, what"):
        acquire(Dataset(tmp_path / "d"), catalogue.source(name), asked)
    assert not (tmp_path / "d").exists()


def test_the_record_is_in_the_manifest_in_later_commits_and_in_the_audit(tmp_path: Path) -> None:
    WITH_IMAGES["imagenet-1k"](tmp_path / "native")
    asked = Acquisition(DownloadSettings(), {"imagenet-1k": YES}, folder=tmp_path / "native")
    dataset = Dataset(tmp_path / "d")
    commit = acquire(dataset, catalogue.source("imagenet-1k"), asked)
    record = commit.terms["imagenet-1k"]
    assert record["accepted"] == {"by": YES.by, "when": "2026-11-20", "what": YES.what}
    assert write_column(dataset, "later").commit().terms == commit.terms
    report = audit(dataset)
    told = "\n".join(report.lines())
    assert "imagenet-1k: accepted by A. Tester, University of Nowhere on 2026-11-20" in told
    assert "non-commercial (no commercial use): imagenet-1k" in told and "NOT accepted" not in told
    assert report.to_json()["terms"]["imagenet-1k"] == record
    assert set(report.to_json()["effective_terms"]["restrictions"]) == set(record["restrictions"])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"by": "A", "when": "2026-11-20"}, "what"),
        ({"by": " ", "when": "2026-11-20", "what": "x"}, "by.*empty"),
        ({"by": "A", "when": "yesterday", "what": "x"}, "when"),
        ({"by": "A", "when": str(datetime.now(UTC).date() + timedelta(days=2)), "what": "x"}, "future"),
        ({"by": "A", "when": "2026-11-20", "what": "x", "whom": "B"}, "unknown key 'whom'"),
    ],
)
def test_half_an_acceptance_is_none(record: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"r\.yaml: terms\.imagenet-1k.*{said}"):
        accepted_in({"terms": {"imagenet-1k": record}}, "r.yaml")


def test_a_licence_that_nobody_has_stated_is_refused_and_never_passes_for_one() -> None:
    with pytest.raises(ConfigurationError, match="own-links is your own, and nobody has said under what licence"):
        terms_record(catalogue.source("own-links"), {})
    assert terms_record(catalogue.source("own-links", settings=["licence=CC0-1.0"]), {})["licence"] == "CC0-1.0"
    made_before = effective_terms({"cats": {"licence": catalogue.UNSTATED, "terms": "own"}})
    assert "cats: yours to state [NOT stated]" in "\n".join(made_before.lines())


def test_what_binds_one_source_binds_the_whole() -> None:
    terms = effective_of(
        [catalogue.source(name) for name in ("pd12m", "infinity-mm", "imagenet-1k")], {"imagenet-1k": YES}
    )
    assert terms.restrictions["non-commercial"] == ("imagenet-1k",)
    assert terms.restrictions["no-redistribution"] == ("imagenet-1k",)
    assert terms.unaccepted == ("infinity-mm",)
    alone = effective_of([catalogue.source("pd12m")], {})
    assert not alone.restrictions and "CDLA-Permissive-2.0" in "\n".join(alone.lines())


def test_an_entry_cannot_name_terms_and_leave_out_what_they_restrict() -> None:
    data = catalogue.source("pd12m").model_dump()
    with pytest.raises(ConfigurationError, match="restrictions must list it"):
        parse(Source, data | {"terms": "non-commercial"}, "pd12m.yaml")
    with pytest.raises(ConfigurationError, match="agreement must say"):
        parse(Source, data | {"restrictions": ["gated"]}, "pd12m.yaml")
    assert terms_record(catalogue.source("pd12m"), {}) == {
        "licence": catalogue.source("pd12m").licence,
        "terms": "open",
    }
