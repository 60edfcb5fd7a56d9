"""The documentation is a site: it builds without a warning, asks nothing of others, and has every command and key."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from flows.cli import main
from flows.recipe import Recipe
from tests.parts import need


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(importlib.util.find_spec("mkdocs") is not None, "MkDocs is installed (make env)")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", "docs/hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_on_the_site_and_in_its_menu(site: Path) -> None:
    written = [str(path.relative_to("docs").with_suffix(".html")) for path in Path("docs").rglob("*.md")]
    menu = re.findall(r'<a href="([^"#]+)" class="md-nav__link', (site / "index.html").read_text())
    for page in (*written, "reference/cli.html", "reference/recipe.html"):
        assert (site / page).exists() and page in menu


def test_a_page_that_the_menu_does_not_name_stands_at_its_end(hooks: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.md").write_text("# Page\n")
    config = SimpleNamespace(docs_dir=str(tmp_path), nav=[{"Home": [{"A": "a.md"}]}])
    assert hooks.on_config(config).nav == [{"Home": [{"A": "a.md"}]}, {"More": ["b.md"]}]


def test_the_site_asks_nothing_of_others(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="([^"]+)"', page.read_text())
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|preload|icon)"[^>]+href="([^"]+)"', page.read_text())
        assert [one for one in loaded if one.startswith(("http", "//"))] == [], page


def test_pages_that_are_named_are_linked_and_other_files_named(site: Path) -> None:
    text = (site / "recaption.html").read_text()
    assert "../infra" not in text and "infra/vllm/README.md" in text
    assert '<a href="speed.html">docs/speed.md</a>' in text


def test_the_page_of_commands_has_every_command_and_option(hooks: Any) -> None:
    page = hooks.cli_page()
    found = list(hooks.commands(main, "harmon"))
    assert {path.split()[1] for path, _ in found} == set(main.commands)
    for path, command in found:
        section = page.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
        shown = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
        assert section and all(name in section for one in shown for name in one.opts), path


def test_the_page_of_recipes_has_every_key_with_what_is_said_of_it(hooks: Any) -> None:
    page = hooks.recipe_page()
    found = hooks.models(Recipe)
    assert {"Recipe", "TrainingSettings", "Launch", "Execution", "Gate", "FetchSettings"} <= found.keys()
    for name, model in found.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert all(f"| `{key}` |" in section for key in model.model_fields), name
    assert "How long a job goes on when whoever submitted it is gone." in page


def test_types_and_defaults_read_as_a_person_writes_them(hooks: Any) -> None:
    page = hooks.recipe_page()
    (device,) = re.findall(r"^\| `device` \|.*$", page, re.MULTILINE)[:1]
    assert "`cpu` or `cuda`" in device
    (gates,) = re.findall(r"^\| `lease_seconds` \|(.*)$", page, re.MULTILINE)
    assert " number | `60.0` |" in gates
    assert "ForwardRef" not in page and "<class" not in page and "Undefined" not in page
