"""The commands that take a CHECKPOINT: convert, generate, ask. Nothing heavy is imported until one runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.terminal import shown_progress
from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from harmon.convert.released import Named
    from harmon.trained import Trained

_PATH = click.Path(path_type=Path)
_CHECKPOINT = "CHECKPOINT is a run folder, a Hugging Face folder that `harmon convert` wrote, or a released .pth file."


def _parts_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options for what released files lack."""
    for option in (
        click.option("--model", metavar="PRESET|FILE", help="Sizes of a .pth file that was never published."),
        click.option("--vae", type=_PATH, metavar="FILE", help="kl16.ckpt, where it is not beside the .pth file."),
        click.option("--tokenizer", type=_PATH, metavar="FOLDER", help="Qwen2.5-Instruct folder, for a .pth file."),
    ):
        command = option(command)
    return command


def _average_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--average", is_flag=True, help="Of a run folder, the averaged weights (training.average).")(
        command
    )


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    """`_parts_options`, and where and in which precision the model runs."""
    kinds = click.Choice(["float32", "bfloat16"])
    command = click.option("--dtype", type=kinds, default="float32", show_default=True, help="Of the weights.")(command)
    command = click.option("--device", default="cpu", show_default=True, help="As torch names it: cpu, cuda.")(command)
    return _parts_options(command)


@click.command(epilog=_CHECKPOINT)
@click.argument("checkpoint", type=_PATH, required=False)
@click.option("-o", "--out", required=True, type=_PATH, metavar="DIR", help="New folder to write.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["huggingface", "released"]),
    default="huggingface",
    show_default=True,
    help="Form to write: a Hugging Face folder, or the release's .pth and kl16.ckpt.",
)
@click.option(
    "--init",
    "parts",
    type=_PATH,
    nargs=3,
    metavar="MAR QWEN KL16",
    help="In place of CHECKPOINT: the start of stage 1 from MAR's checkpoint-last.pth, a Qwen2.5-Instruct folder "
    "and kl16.ckpt.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the fresh connectors of --init.")
@_parts_options
@_average_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def convert(
    checkpoint: Path | None,
    out: Path,
    form: str,
    parts: tuple[Path, Path, Path] | None,
    seed: int,
    tokenizer: Path | None,
    vae: Path | None,
    model: str | None,
    average: bool,
    as_json: bool,
) -> None:
    """Write CHECKPOINT in another form, every number as it is.

    A Hugging Face folder loads with AutoModel and AutoProcessor (trust_remote_code) where this project is not
    installed.
    """
    from harmon.convert.folder import write_folder
    from harmon.convert.released import write_released
    from harmon.convert.start import open_parts
    from harmon.trained import open_checkpoint

    if (checkpoint is None) == (parts is None):
        raise ConfigurationError("Name a CHECKPOINT to convert, or its three parts with --init MAR QWEN KL16.")
    if parts and (tokenizer or vae or average):
        raise ConfigurationError(
            "--init takes the tokenizer, the autoencoder and the weights from its parts: leave the options out."
        )
    contents = (
        open_parts(*parts, model=model, seed=seed)
        if parts
        else open_checkpoint(_given(checkpoint), _named(tokenizer, vae, model, average))
    )
    if form == "released":
        files = write_released(contents, out)
    else:
        with shown_progress("MB written") as progress:
            files = write_folder(contents, out, on_progress=progress)
    if as_json:
        click.echo(json.dumps({"form": form, "files": [str(file) for file in files]}))
    else:
        click.echo("\n".join(str(file) for file in files))


@click.command(epilog=_CHECKPOINT)
@click.argument("checkpoint", type=_PATH)
@click.argument("prompts", metavar="PROMPT...", nargs=-1)
@click.option("-o", "--out", required=True, type=_PATH, metavar="DIR", help="Folder for the pictures.")
@click.option("-n", "--count", default=1, show_default=True, type=click.IntRange(1), help="Pictures of each prompt.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first picture; each next one's is 1 more.")
@click.option("--negative", metavar="PROMPT", help="What guidance leads away from.")
@click.option("--px", type=click.IntRange(1), help="Side in pixels; as the checkpoint's when left out.")
@click.option("--size", metavar="WxH", help="Width and height in pixels.")
@click.option("--aspect", metavar="W:H", help="Shape, with as many pixels as the square of --px has.")
@click.option("--ar-steps", type=int, help="Iterations in which the tokens are drawn. [paper: 64]")
@click.option("--diffusion-steps", help="Steps of the diffusion head for each token. [the model's; paper: 100]")
@click.option("--cfg", type=float, help="Guidance; 1 is none. [paper: 3]")
@click.option("--cfg-schedule", type=click.Choice(["constant", "linear"]), help="[paper: constant]")
@click.option("--temperature", type=float, help="Factor on the noise of diffusion steps. [paper: 1]")
@click.option("--clip-x0", type=float, help="Bound on predicted clean tokens. [paper: none]")
@click.option("--diffusion-steps-last", type=int, help="Anneal diffusion steps to these (DiSA). [paper: none]")
@click.option("--sampler", type=click.Choice(["ddpm", "dpm++"]), help="Solver of the diffusion head. [paper: ddpm]")
@click.option("--cfg-interval", type=float, nargs=2, help="Shares of the AR steps between which there is guidance.")
@click.option("--cfg-every", type=int, help="AR steps from one unconditional half to the next. [paper: 1]")
@click.option("--refresh-every", type=int, help="AR steps from one reading of all tokens to the next. [paper: 1]")
@click.option("--compile", "compiled", is_flag=True, help="Compile the model first: for many pictures, or on a GPU.")
@click.option("--variant", type=click.Choice(["single", "release-batch"]), default="single", show_default=True,
              help="release-batch: the prompts end with a full stop, as in the release's batch script.")  # fmt: skip
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Pictures drawn together.")
@click.option("--grid", is_flag=True, help="Also write all pictures as one sheet, a row for each prompt.")
@click.option("--steps-preview", is_flag=True, help="Also write each picture's AR steps as an animated WebP.")
@click.option("--again", type=_PATH, multiple=True, metavar="PNG", help="Draw a picture again from its metadata.")
@_model_options
@_average_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def generate(
    checkpoint: Path,
    prompts: tuple[str, ...],
    out: Path,
    count: int,
    seed: int,
    negative: str | None,
    px: int | None,
    size: str | None,
    aspect: str | None,
    variant: str,
    batch: int,
    compiled: bool,
    grid: bool,
    steps_preview: bool,
    again: tuple[Path, ...],
    tokenizer: Path | None,
    vae: Path | None,
    model: str | None,
    device: str,
    dtype: str,
    average: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Draw the pictures that the PROMPTs describe into DIR.

    A picture depends on its prompt, its seed and the options of drawing alone, and its PNG holds them all.
    Options that are left out are the checkpoint's own, or the paper's. A picture that is there is not drawn
    again.
    """
    from harmon.generate import contact_sheet, dtype_of, generate_files, picture_size
    from harmon.model.compiled import compile_regions
    from harmon.picture_files import PictureRecord, read_record
    from harmon.sampling_config import SamplingConfig
    from pipelines.canonical import sha256_hex
    from pipelines.settings import parse

    if not prompts and not again:
        raise ConfigurationError("Name at least one PROMPT, or a picture to draw again with --again PNG.")
    records = [read_record(file) for file in again]
    trained = _load(checkpoint, _named(tokenizer, vae, model, average), device, dtype)
    if compiled:
        compile_regions(trained.model)
    width, height = picture_size(trained, px, size, aspect)
    chosen = {key: value for key, value in sampling.items() if value is not None}
    how = parse(SamplingConfig, {**trained.sampling, **chosen}, "the sampling").resolved(trained.model.config)
    if negative is not None and how.cfg == 1:
        raise ConfigurationError("--negative says what guidance leads away from, and --cfg 1 is no guidance.")
    shared = {"negative": negative, "width": width, "height": height, "variant": variant, "sampling": how}
    shared |= {"weights": trained.fingerprint, "dtype": dtype_of(trained)}
    records += [
        parse(PictureRecord, {"prompt": prompt, "seed": seed + i, **shared}, "the options")
        for i, prompt in enumerate(one for one in prompts for _ in range(count))
    ]
    with shown_progress("AR steps") as progress:
        files = generate_files(
            trained, records, out, batch=batch, buckets=compiled, preview=steps_preview, on_progress=progress
        )
    if grid:
        columns = count if count > 1 else max(1, round(len(files) ** 0.5))
        sheet = out / f"grid-{sha256_hex(chr(10).join(file.name for file in files).encode())[:8]}.png"
        contact_sheet(files, columns).save(sheet)
        files = [*files, sheet]
    click.echo(json.dumps({"files": [str(file) for file in files]}) if as_json else "\n".join(map(str, files)))


@click.command(epilog=_CHECKPOINT)
@click.argument("checkpoint", type=_PATH)
@click.argument("image", type=_PATH)
@click.argument("questions", metavar="QUESTION...", nargs=-1)
@click.option("-q", "--question", "more", multiple=True, help="One more question.")
@click.option("--image", "images", type=_PATH, multiple=True, help="One more picture to ask every question about.")
@click.option("--chat", is_flag=True, help="Ask in one conversation; without questions, those on stdin, a line each.")
@click.option("--max-new-tokens", default=1024, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--temperature", default=0.0, show_default=True, help="0: the likeliest token; above: tokens are drawn.")
@click.option("--top-p", default=1.0, show_default=True, help="Draw from the tokens that together have this chance.")
@click.option("--seed", default=0, show_default=True, help="Seed of drawn answers.")
@click.option(
    "--px", type=click.IntRange(1), help="Side at which pictures are seen; as the checkpoint's when left out."
)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Questions answered together.")
@_model_options
@_average_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def ask(
    checkpoint: Path,
    image: Path,
    questions: tuple[str, ...],
    more: tuple[str, ...],
    images: tuple[Path, ...],
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    px: int | None,
    batch: int,
    tokenizer: Path | None,
    vae: Path | None,
    model: str | None,
    device: str,
    dtype: str,
    average: bool,
    as_json: bool,
) -> None:
    """Answer QUESTIONs about the picture in file IMAGE.

    One question, or a conversation, is answered token by token; several are answered together.
    """
    from harmon.answering import AnswerConfig
    from harmon.ask import answer_questions, read_picture
    from pipelines.settings import parse

    asked = [*questions, *more]
    files = [image, *images]
    if not asked and not chat:
        raise ConfigurationError("Name at least one QUESTION, or use --chat to type them.")
    if chat and images:
        raise ConfigurationError("--chat is about one picture; ask about others in a chat of their own.")
    how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    config = parse(AnswerConfig, how, "the options")
    pictures = [read_picture(file) for file in files]
    trained = _load(checkpoint, _named(tokenizer, vae, model, average), device, dtype)
    if chat or (len(asked) == len(files) == 1 and not as_json):
        _converse(trained, pictures[0], asked, chat, config, seed, px, image, as_json)
        return
    pairs = [(number, question) for number in range(len(files)) for question in asked]
    answers = answer_questions(
        trained,
        [pictures[number] for number, _ in pairs],
        [question for _, question in pairs],
        px,
        config,
        batch,
        [seed] * len(pairs),
    )
    rows = [
        {"image": str(files[number]), "question": question, "answer": said}
        for (number, question), said in zip(pairs, answers, strict=True)
    ]
    click.echo(
        json.dumps(rows) if as_json else "\n".join("{image}: {question}\n{answer}".format(**row) for row in rows)
    )


def _converse(
    trained: Trained,
    picture: Any,
    asked: list[str],
    chat: bool,
    config: Any,
    seed: int,
    px: int | None,
    image: Path,
    as_json: bool,
) -> None:
    """One question, or a conversation of those given, else of those on stdin; spoken as it is found."""
    from harmon.ask import Conversation

    conversation = Conversation.about(trained, picture, px)
    rows = []
    for question in asked or _typed():
        said = []
        for piece in conversation.ask(question, config, seed):
            said.append(piece)
            if not as_json:
                click.echo(piece, nl=False)
                sys.stdout.flush()
        rows.append({"image": str(image), "question": question, "answer": "".join(said).strip()})
        if not as_json:
            click.echo()
    if as_json:
        click.echo(json.dumps(rows))


def _typed() -> Any:
    """Questions on stdin, a line each, prompted for on a terminal."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _named(tokenizer: Path | None, vae: Path | None, model: str | None, average: bool) -> Named:
    from harmon.convert.released import Named

    return Named(tokenizer, vae, model, average)


def _load(checkpoint: Path, named: Named, device: str, dtype: str) -> Trained:
    import torch

    from harmon.trained import load

    return load(checkpoint, named, device, getattr(torch, dtype))


def _given(checkpoint: Path | None) -> Path:
    assert checkpoint is not None
    return checkpoint
