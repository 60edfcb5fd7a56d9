"""Catalogue entries are typed, and a wrong name or key is told with the nearest right one."""

from pathlib import Path

import pytest

from pipelines import catalogue
from pipelines.errors import ConfigurationError


def test_every_entry_loads_under_its_own_name() -> None:
    assert {"photographs", "scenes"} <= set(catalogue.names())
    assert all(catalogue.source(name).name == name for name in catalogue.names())


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'scenes'"):
        catalogue.source("scene")


PAPER = {
    "llava-recap-cc3m", "pixelprose", "densefusion-1m", "mgm-pretrain", "sharegpt4v-pt", "imagenet-1k", "infinity-mm",
    "llava-onevision", "pd12m", "megalith-10m", "laion-aesthetics", "journeydb", "text-to-image-2m", "blip3o-60k",
}  # fmt: skip
"""The thirteen datasets that the paper names, and the one of its release."""


def test_every_dataset_of_the_paper_has_an_entry_that_is_read_from_the_hub() -> None:
    assert set(catalogue.names()) >= PAPER
    for name in PAPER:
        entry = catalogue.source(name)
        assert entry.hub and entry.layouts and entry.rows and entry.traps, name
        assert entry.revision == "main"  # never a guessed commit: it is resolved at the first download


def test_every_published_caption_names_sources_that_there_are() -> None:
    overrides = [entry for name in catalogue.names() if (entry := catalogue.source(name)).override]
    assert len(overrides) == 5
    assert all(set(entry.override.of) <= set(catalogue.names()) for entry in overrides if entry.override)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("layouts.0.fields.captions=[x]", "unknown key 'layouts.0.urls.fields.captions'; did you mean 'caption'"),
        ("layouts.0.gate=[]", "did you mean 'gates'"),
        ("odd.image_onely=keep", "did you mean 'image_only'"),
        ("layouts.0.kind=url", "does not match any of the expected tags"),
        ("rows.count=many", "rows.count"),
    ],
)
def test_a_wrong_key_deep_inside_is_told_with_the_nearest(setting: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        catalogue.source("laion-aesthetics", settings=[setting])


@pytest.mark.parametrize(("change", "said"), [("licens: x\n", "'licence'"), ("name: other\n", "one name")])
def test_a_wrong_entry_is_named(tmp_path: Path, change: str, said: str) -> None:
    text = (catalogue.FOLDER / "scenes.yaml").read_text()
    text = text.replace("name: scenes\n", change) if change.startswith("name") else text + change
    (tmp_path / "scenes.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        catalogue.source("scenes", tmp_path)
