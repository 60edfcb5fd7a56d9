"""Where a recipe's stages have their pictures' latents from."""

from flows.recipe import Recipe, part
from harmon.latents import latents_group
from harmon.training.decoding import Decoding, Online
from harmon.training.stage import load_stage

REJECTS = "rejects.jsonl"  # beside the stages: pictures that proved corrupt while training


def latents_of(recipe: Recipe, px: int) -> str | Online:
    """The column group of pictures of `px` pixels, or how they are decoded and encoded while training."""
    how, autoencoder = recipe.training.latents, part(recipe.training.autoencoder)
    if how == "stored":
        return latents_group(px, autoencoder)
    decoding = Decoding() if how == "online" else how
    rejects = str(recipe.run_folder / "train" / REJECTS)
    return Online(**decoding.model_dump(), autoencoder=str(autoencoder), device=recipe.training.device, rejects=rejects)


def latents_needed(recipe: Recipe) -> list[tuple[str, int]]:
    """Training sets and picture sizes whose latents have to be stored before the stages, each pair once."""
    if recipe.training.latents != "stored":
        return []
    needed: dict[tuple[str, int], None] = {}
    for settings in recipe.training.stages:
        px = load_stage(settings.stage, settings.departures).px
        for entry in (*settings.image2text, *settings.text2image):
            needed[entry.set, px] = None
    return list(needed)
