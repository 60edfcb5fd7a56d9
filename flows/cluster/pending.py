"""Work of a recipe that Ray's nodes can share and that has not been done yet, in shards."""

import math

from filtering.embedding import embed_step
from flows.caption_groups import rewrite_of
from flows.recipe import Recipe
from flows.work import clip_of
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun


def pending_shards(recipe: Recipe) -> dict[str, int]:
    """By step and dataset, the shards without a receipt that recaptioning and embedding have left. A dataset that is
    not there yet has none: nobody can work on it.
    """
    found = {}
    for name in recipe.recaption.datasets:
        dataset = Dataset(recipe.dataset(name))
        for prompt in recipe.recaption.prompts:
            if dataset.head is not None:
                found[f"rewrite:{name}@{prompt}"] = _left(dataset, rewrite_of(recipe, prompt).step(dataset))
    for name in tuple(recipe.sources) if recipe.aesthetic else ():
        dataset = Dataset(recipe.dataset(name))
        if dataset.head is not None and recipe.aesthetic:
            found[f"embed:{name}"] = _left(dataset, embed_step(dataset, clip_of(recipe.aesthetic)))
    return found


def nodes_for(shards: int, shards_per_node: int, most: int) -> int:
    """How many nodes `shards` are worth."""
    return min(most, math.ceil(shards / shards_per_node))


def _left(dataset: Dataset, step: Step) -> int:
    run = StepRun(dataset, step)
    return 0 if run.committed else len(run.pending(dataset.shard_numbers))
