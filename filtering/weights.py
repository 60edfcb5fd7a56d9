"""Fetches the published weights that filtering reads, each pinned by its SHA-256.

    python -m filtering.weights aesthetic|clip FOLDER

OpenAI publishes CLIP as a TorchScript archive. Once its hash agrees it is read, and its tensors are written as
.safetensors, which is what the rest of the system loads. The hash of that file, which no publisher knows, is noted in a
file beside it, by which it is checked from then on.
"""

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from filtering.aesthetic import V2_SHA256
from pipelines.disk import make_folder
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.storage import file_sha256

NO_TENSORS = (
    "input_resolution",
    "context_length",
    "vocab_size",
)  # sizes that OpenAI's archive holds beside its weights


@dataclass(frozen=True)
class Published:
    """One file on the internet."""

    url: str
    sha256: str
    most_bytes: int
    """Above which a download is given up."""
    scripted: bool = False
    """A TorchScript archive, kept as .safetensors."""

    @property
    def name(self) -> str:
        """The file's name, as it is kept."""
        last = self.url.rpartition("/")[2]
        return last.removesuffix(".pt") + ".safetensors" if self.scripted else last


PUBLISHED = {
    "aesthetic": Published(
        "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/"
        "main/sac+logos+ava1-l14-linearMSE.pth",
        V2_SHA256,
        4 << 20,
    ),
    "clip": Published(  # the hash stands in OpenAI's own address (openai/CLIP, clip.py)
        "https://openaipublic.azureedge.net/clip/models/"
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        1 << 30,
        scripted=True,
    ),
}


def fetch(published: Published, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it is there; never under its name before its hash agrees.

    Raises:
        HarmonError: it cannot be fetched, or is another file than the pinned one, or than was made of it.
    """
    target = folder / published.name
    note = target.with_name(f"{target.name}.sha256")
    if target.exists():
        due = published.sha256 if not published.scripted else _noted(note, published)
        if file_sha256(target) != due:
            raise HarmonError(
                f"{target} is not the pinned file {published.sha256[:12]}"
                f"{', or what was made of it' if published.scripted else ''}; move it away and run again."
            )
        return target
    make_folder(folder)
    partial = folder / f".{published.name}.part"
    try:
        _download(published, partial)
        if published.scripted:
            _unscripted(partial)
            note.write_text(f"{file_sha256(partial)} made of {published.sha256}\n")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _noted(note: Path, published: Published) -> str:
    """Hash of the file that was made of the published one; nothing where none is noted."""
    words = note.read_text().split() if note.is_file() else []
    return words[0] if len(words) == 4 and words[-1] == published.sha256 else ""


def _download(published: Published, partial: Path) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with (
            httpx.stream("GET", published.url, follow_redirects=True, timeout=60) as answer,
            partial.open("wb") as file,
        ):
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                size += len(chunk)
                if size > published.most_bytes:
                    raise HarmonError(f"{published.url} is larger than {published.most_bytes} bytes; it was given up.")
                digest.update(chunk)
                file.write(chunk)
    except httpx.HTTPError as problem:
        raise HarmonError(f"{published.url} could not be fetched: {problem}; try again, or copy the file.") from problem
    if digest.hexdigest() != published.sha256:
        raise HarmonError(
            f"{published.url} is another file than the pinned one (sha256 {digest.hexdigest()[:12]}, "
            f"not {published.sha256[:12]}); it was not kept."
        )


def _unscripted(path: Path) -> None:
    """Replace a TorchScript archive by its tensors as .safetensors, float32."""
    import torch
    from safetensors.torch import save_file

    state = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    save_file({name: value.float().contiguous() for name, value in state.items() if name not in NO_TENSORS}, path)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 fetched, 3 not."""
    parser = argparse.ArgumentParser(prog="python -m filtering.weights", description="Fetches pinned weights.")
    parser.add_argument("name", choices=sorted(PUBLISHED))
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        print(fetch(PUBLISHED[chosen.name], chosen.folder))
    except (HarmonError, ConfigurationError) as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
