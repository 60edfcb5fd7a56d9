"""The images are built from what is pinned, run as nobody special, and contain no secret."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts import need

FOLDER = Path("infra/docker")
FILES = sorted(FOLDER.glob("*.Dockerfile"))
SECRET = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)\b", re.IGNORECASE)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile with its words, continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def said(path: Path, word: str) -> list[str]:
    return [rest for name, rest in instructions(path) if name == word]


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    need(Path(program).exists(), "hadolint is installed (make env)")
    return subprocess.run([program, "--failure-threshold", "style", str(path)], capture_output=True, text=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = hadolint(path)
    assert done.returncode == 0, done.stdout


def test_hadolint_looks(tmp_path: Path) -> None:
    bad = tmp_path / "bad.Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install requests\n")
    assert "DL3007" in hadolint(bad).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_image_begins_with_a_named_version(path: Path) -> None:
    given = dict(one.split("=", 1) for one in said(path, "ARG"))
    stages = {one.split(" AS ")[1] for one in said(path, "FROM") if " AS " in one}
    for one in said(path, "FROM"):
        image = re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], one.split()[0])
        assert image in stages or re.search(r"(:v?\d+\.\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})$", image), one


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_image_runs_as_nobody_special(path: Path) -> None:
    last = said(path, "FROM")[-1]
    after = instructions(path)[[rest for _, rest in instructions(path)].index(last) :]
    users = [rest for name, rest in after if name == "USER"]
    assert users and all(re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user) for user in users)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_fetched_by_address_and_no_secret_is_kept(path: Path) -> None:
    assert said(path, "ADD") == []
    assert [one for name in ("ENV", "ARG") for one in said(path, name) if SECRET.search(one)] == []
    assert not any(re.search(r"\b(curl|wget)\s+\S*https?:", one) for one in said(path, "RUN"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_sent_to_the_builder(path: Path) -> None:
    sent = {line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")}
    for one in said(path, "COPY"):
        if one.startswith("--from="):
            continue
        for source in one.split()[:-1]:
            assert source == "." or (Path(source).exists() and Path(source).parts[0] in sent), source


def test_the_builder_is_sent_the_code_and_nothing_else() -> None:
    lines = Path(".dockerignore").read_text().splitlines()
    assert "*" in lines
    packages = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"!{one.rstrip('*')}" for one in packages} <= set(lines)
    assert not {"!data", "!runs", "!.git", "!.venv"} & set(lines)


def test_versions_are_those_of_the_rest() -> None:
    pinned = dict(line.split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line)
    for name in ("data", "train"):
        text = (FOLDER / f"{name}.Dockerfile").read_text()
        for package in ("torch", "torchvision"):
            assert f" {package}=={pinned[package]}" in text
    vllm = (FOLDER / "vllm.Dockerfile").read_text()
    for one in yaml.safe_load_all(Path("infra/vllm/kubernetes.yaml").read_text()):
        if one["kind"] == "Deployment":
            image = one["spec"]["template"]["spec"]["containers"][0]["image"]
            assert image == said(FOLDER / "vllm.Dockerfile", "ARG")[0].partition("=")[2] and image in vllm


def test_dependencies_are_those_of_the_project() -> None:
    spec = importlib.util.spec_from_file_location("dependencies", FOLDER / "dependencies.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    found = module.requirements(Path("pyproject.toml"), ["gpu", "eval"])
    extras = project["optional-dependencies"]
    assert found == [*project["dependencies"], *extras["gpu"], *extras["eval"]]
