"""The command `serve`: the trained model behind an OpenAI-compatible API. Nothing heavy is imported until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path)


@click.command(epilog="The key that requests must send is the word in --key-file, or in HARMON_API_KEY.")
@click.argument("checkpoint", type=_PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--key-file", type=_PATH, metavar="FILE", help="File that holds the API key.")
@click.option("--no-key", is_flag=True, help="Listen beyond this machine without a key.")
@click.option("--name", default="harmon", show_default=True, help="The model's name in requests.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Any bound of docs/serving.md.")
@click.option("--model", metavar="PRESET|FILE", help="Sizes of a .pth file that was never published.")
@click.option("--vae", type=_PATH, metavar="FILE", help="kl16.ckpt, where it is not beside the .pth file.")
@click.option("--tokenizer", type=_PATH, metavar="FOLDER", help="Qwen2.5-Instruct folder, for a .pth file.")
@click.option("--device", default="cpu", show_default=True, help="As torch names it: cpu, cuda.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def serve(
    checkpoint: Path,
    host: str,
    port: int,
    key_file: Path | None,
    no_key: bool,
    name: str,
    limits: tuple[str, ...],
    model: str | None,
    vae: Path | None,
    tokenizer: Path | None,
    device: str,
    dtype: str,
) -> None:
    """Serve CHECKPOINT: chat about pictures and draw them, for OpenAI's clients and for a person at the page on /.

    Pictures of all requests are drawn together, an AR step at a time, and answers a token at a time.
    """
    from harmon.serving.server import LOOPBACK, api_key, bound, check_reach
    from harmon.serving.settings import ServingSettings
    from pipelines.settings import parse, with_override

    values: dict[str, Any] = {"name": name}
    for limit in limits:
        with_override(values, limit, "--limit")
    settings = parse(ServingSettings, values, "--limit")
    key = api_key(key_file)
    check_reach(host, key, no_key)
    with bound(host, port) as listening:  # before the model loads, which may take minutes
        import torch

        from harmon.convert.released import Named
        from harmon.serving.app import application
        from harmon.serving.server import serve as answer
        from harmon.trained import load

        trained = load(checkpoint, Named(tokenizer, vae, model), device, getattr(torch, dtype))
        app = application(trained, settings, key=key, loopback=host in LOOPBACK and key is None)
        shown = f"[{host}]" if ":" in host else host
        click.echo(
            f"{settings.name} is served on http://{shown}:{listening.getsockname()[1]} (Ctrl+C ends it)", err=True
        )
        answer(app, listening)
