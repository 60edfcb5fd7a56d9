import json
from pathlib import Path

import pytest
import yaml
from odd_model import ODD

from harmon.model.config import HarmonConfig, QwenConfig
from pipelines.errors import ConfigurationError


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_written_configuration_reads_back_equal(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    values = ODD.model_dump(mode="json")
    path.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
    assert HarmonConfig.from_file(path) == ODD


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"mar": {**ODD.mar.model_dump(), "encoder_heads": 5}}, "mar"),
        ({"mar": {**ODD.mar.model_dump(), "encoder_hight": 5}}, r"mar\.encoder_hight"),
        ({"head": {"width": 8, "depth": 1, "sampling_steps": "a tenth"}}, r"head\.sampling_steps"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_or_unknown_field_is_refused_by_its_place(tmp_path: Path, change: dict, place: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({**ODD.model_dump(mode="json"), **change}))
    with pytest.raises(ConfigurationError, match=place):
        HarmonConfig.from_file(path)


def test_an_absent_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        HarmonConfig.from_file(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigurationError, match="not a mapping"):
        HarmonConfig.from_file(tmp_path / "list.yaml")


def test_sizes_of_a_qwen_folder_are_read_from_its_config(tmp_path: Path) -> None:
    wanted = ODD.llm.model_copy(update={"rope_theta": 1e4})
    values = wanted.model_dump(exclude={"rope_theta"}) | {"model_type": "qwen2", "hidden_act": "silu"}
    for rope in ({"rope_theta": 1e4}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}):
        (tmp_path / "config.json").write_text(json.dumps(values | rope))
        assert QwenConfig.from_folder(tmp_path) == wanted
