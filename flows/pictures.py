"""Where a recipe's stages have their pictures' latents from."""

from pathlib import Path

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


def understanding_file(recipe: Recipe) -> Path | None:
    """Weights of the frozen encoder that sees in MAR's place; None where it is MAR's, or the autoencoder."""
    seeing = recipe.training.understanding
    return None if seeing is None or seeing.weights is None else part(seeing.weights)


def latents_needed(recipe: Recipe) -> list[tuple[str, int, Path]]:
    """Training sets, picture sizes and encoders whose maps have to be stored before the stages, each once."""
    if recipe.training.latents != "stored":
        return []
    needed: dict[tuple[str, int, Path], None] = {}
    autoencoder = part(recipe.training.autoencoder)
    seeing = understanding_file(recipe) or autoencoder
    for settings in recipe.training.stages:
        stage = load_stage(settings.stage, settings.departures)
        for encoder, entries, share in (
            (seeing, settings.image2text, stage.ratio.image2text),
            (autoencoder, settings.text2image, stage.ratio.text2image),
        ):
            needed |= {(entry.set, stage.px, encoder): None for entry in entries if share}
    return list(needed)
