"""A deployed flow whose middle step asks a person, and what it has done as files."""

from dataclasses import replace
from pathlib import Path

from flows.flow_body import do_all
from flows.flow_command import deployed
from flows.recipe import load_recipe
from flows.work_item import Work
from tests.flows.small_run import RECIPE


@deployed("gated")
def gated(folder: str) -> None:
    """Three steps; the second waits for a person.

    Args:
        folder: Where each step leaves a file.
    """
    place = Path(folder)

    def step(name: str) -> Work:
        def do(_: object) -> None:
            with (place / name).open("a") as file:
                file.write("done\n")

        return Work("train", name, lambda: (place / name).exists(), do)

    recipe = load_recipe(RECIPE, [f"runs={place / 'run'}", f"data={place / 'data'}"])
    do_all(recipe, [step("before"), replace(step("gate"), ask=lambda: None), step("after")])
