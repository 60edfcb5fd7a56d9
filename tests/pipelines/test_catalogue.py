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


@pytest.mark.parametrize(("change", "said"), [("licens: x\n", "'licence'"), ("name: other\n", "one name")])
def test_a_wrong_entry_is_named(tmp_path: Path, change: str, said: str) -> None:
    text = (catalogue.FOLDER / "scenes.yaml").read_text()
    text = text.replace("name: scenes\n", change) if change.startswith("name") else text + change
    (tmp_path / "scenes.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        catalogue.source("scenes", tmp_path)
