"""The command `probe`: what frozen encoders know of pictures. Nothing heavy is imported until it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.terminal import shown_progress
from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from harmon.evaluation.encoders import Encoder

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", required=False)
@click.option(
    "--data", required=True, metavar="DATA", help="Labelled pictures: a folder, a dataset, or a name (below)."
)
@click.option("-o", "--out", required=True, type=_PATH, metavar="DIR", help="Folder for features, numbers and report.")
@click.option("--label", default="source.caption", show_default=True, help="Column of a dataset that is the label.")
@click.option(
    "--mar", type=_PATH, metavar="FILE", help="MAR's checkpoint-last.pth, in place of CHECKPOINT; needs --vae."
)
@click.option("--vae", type=_PATH, metavar="FILE", help="kl16.ckpt, for --mar or a .pth file it does not lie beside.")
@click.option("--tokenizer", type=_PATH, metavar="FOLDER", help="Qwen2.5-Instruct folder, for a .pth file.")
@click.option("--model", metavar="PRESET|FILE", help="Sizes of a .pth file that was never published.")
@click.option("--clip", "clips", multiple=True, metavar="NET[=FILE]",
              help="One more encoder: a network of open_clip, and its weights; random without.")  # fmt: skip
@click.option("--vqgan", type=_PATH, metavar="FILE", help="One more encoder: what `python -m harmon.seeing` wrote.")
@click.option(
    "--px", type=click.IntRange(16), help="Side at which MAR and VAE see pictures. [MAR's own; 256 published]"
)
@click.option("--pooling", type=click.Choice(["mean", "flat", "buffers"]), default="mean", show_default=True,
              help="What the head reads: the mean over positions, all of them, or MAR's buffers.")  # fmt: skip
@click.option("--limit", type=click.IntRange(2), help="Use so many of the pictures.")
@click.option("--epochs", type=click.IntRange(1), help="Of the head's training. [MAE: 90]")
@click.option("--shown", default=8, show_default=True, type=click.IntRange(0), help="Pictures shown and reconstructed.")
@click.option("--picture", "extra", type=_PATH, multiple=True, help="One more picture to reconstruct.")
@click.option("--diffusion-steps", help="Of the diffusion head in reconstruction. [paper: 100]")
@click.option("--clip-x0", type=float, help="Bound on predicted clean tokens. [paper: none]")
@click.option("--device", default="cpu", show_default=True, help="As torch names it: cpu, cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def probe(
    checkpoint: str | None,
    data: str,
    out: Path,
    label: str,
    mar: Path | None,
    vae: Path | None,
    tokenizer: Path | None,
    model: str | None,
    clips: tuple[str, ...],
    vqgan: Path | None,
    px: int | None,
    pooling: str,
    limit: int | None,
    epochs: int | None,
    shown: int,
    extra: tuple[Path, ...],
    diffusion_steps: str | None,
    clip_x0: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Probe frozen encoders on labelled pictures, map where the probes look, and redraw pictures from MAR's features.

    CHECKPOINT is what `harmon generate` takes, or `demo` for the parts that the demo starts from: its MAR and its
    autoencoder are studied. DATA is a folder (LABEL/*, or train/LABEL/* and val/LABEL/* as ImageNet is kept), a dataset
    with a label column, or one of digits, scene-shapes, scene-colours. Writes DIR/report.html and DIR/study.json;
    features that DIR holds are not computed again.
    """
    from harmon.evaluation.labelled import open_labelled
    from harmon.evaluation.study import REPORT, StudyConfig, study
    from pipelines.settings import parse

    settings: dict[str, object] = {"pooling": pooling, "shown": shown}
    settings["probe"] = {"epochs": epochs} if epochs else {}
    drawing = {"diffusion_steps": diffusion_steps, "clip_x0": clip_x0}
    settings["reconstruction"] = {name: value for name, value in drawing.items() if value is not None}
    config = parse(StudyConfig, settings, "the options")
    if absent := [file for file in extra if not file.is_file()]:
        raise ConfigurationError(f"There is no picture {absent[0]}; name a file.")
    labelled = open_labelled(data, label)
    labelled = labelled.limited(limit) if limit else labelled
    encoders = _encoders(checkpoint, mar, vae, tokenizer, model, clips, vqgan, px, pooling, device)
    result = study(encoders, labelled, out, config, extra, device, shown_progress)
    if as_json:
        click.echo(json.dumps(result.report() | {"report": str(out / REPORT)}))
        return
    for one in result.encoders:
        top1, top5, shuffled = one.probed.top1, one.probed.top5, one.probed.shuffled
        name = f"{one.encoder.name} (stand-in)" if one.encoder.stand_in else one.encoder.name
        click.echo(
            f"{name}: top-1 {top1.share:.1%} (chance {top1.chance:.1%}), top-5 {top5.share:.1%} "
            f"(chance {top5.chance:.1%}) of {top1.n}; labels shuffled {shuffled.share:.1%}"
        )
    click.echo(str(out / REPORT))


def _encoders(
    checkpoint: str | None,
    mar: Path | None,
    vae: Path | None,
    tokenizer: Path | None,
    model: str | None,
    clips: tuple[str, ...],
    vqgan: Path | None,
    px: int | None,
    pooling: str,
    device: str,
) -> list[Encoder]:
    from harmon.convert.released import Named
    from harmon.evaluation.encoders import (
        MarEncoder,
        clip_encoder,
        demo_encoders,
        pretrained_encoders,
        trained_encoders,
        vqgan_encoder,
    )
    from harmon.trained import load

    if checkpoint and mar:
        raise ConfigurationError("Name a CHECKPOINT or --mar, not both: each report is of one MAR.")
    if mar and not vae:
        raise ConfigurationError("--mar needs the autoencoder whose latents it reads: name kl16.ckpt with --vae.")
    found: list[Encoder] = []
    if checkpoint == "demo":
        found += demo_encoders(px)
    elif checkpoint:
        trained = load(Path(checkpoint), Named(tokenizer, vae, model), device)
        found += trained_encoders(trained, Path(checkpoint).name, px)
    elif mar and vae:
        found += pretrained_encoders(mar, vae, px, model)
    if pooling == "buffers":  # which MAR alone has
        found = [encoder for encoder in found if isinstance(encoder, MarEncoder)]
        clips, vqgan = (), None
    if vqgan:
        found.append(vqgan_encoder(vqgan, px))
    for clip in clips:
        architecture, _, weights = clip.partition("=")
        found.append(clip_encoder(architecture, Path(weights) if weights else None))
    if not found:
        raise ConfigurationError(
            "Name a CHECKPOINT (or demo), --mar with --vae, or (unless buffers are pooled) --clip or --vqgan: there is "
            "nothing to probe."
        )
    return found
