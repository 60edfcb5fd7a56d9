"""Which captions a recipe's rows have: its rewriting by each prompt version, and published ones."""

from collections.abc import Sequence

from flows.recipe import Recipe, part
from pipelines.dataset import Dataset
from recaption.language_model import language_model
from recaption.prompt import load_prompt
from recaption.recaption import Recaption


def rewrite_of(recipe: Recipe, prompt: str | None = None) -> Recaption:
    """The recipe's rewriting by this version of the prompt, or by its first one: prompt and model."""
    settings = recipe.recaption
    return Recaption(load_prompt(prompt or settings.prompt), language_model(part(settings.model), settings.model_name))


def caption_groups_of(recipe: Recipe) -> dict[str, str]:
    """The caption group of every prompt version of the recipe, `rewrite` standing for the first, and of the published
    captions that are there.
    """
    groups = {prompt: rewrite_of(recipe, prompt).group for prompt in recipe.recaption.prompts}
    return {"rewrite": groups[recipe.recaption.prompt]} | groups | published_groups(recipe)


def published_groups(recipe: Recipe, sources: Sequence[str] | None = None) -> dict[str, str]:
    """The column group of each entry of published captions that stands in its source's dataset, one of `sources`."""
    return {
        captions: group
        for name, published in recipe.captions.items()
        if sources is None or name in sources
        for captions in published
        for group in Dataset(recipe.dataset(name)).groups()
        if group.startswith(f"caption.published-{captions}-")
    }
