"""Heads over stored embeddings, and the fetching of pinned weights."""

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from filtering.embedding import Clip, ClipEmbedder, Pool, embed_images
from filtering.probe import load_probe, score_probe
from filtering.similarity import score_similarity, similarity_group
from filtering.weights import PUBLISHED, Published, fetch
from pipelines.errors import ConfigurationError, HarmonError
from tests.filtering.pictured import Row, tiny_clip, write_rows


def probe_file(path: Path, **told: str) -> tuple[Path, torch.nn.Sequential]:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(768, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1), torch.nn.Sigmoid())
    tensors = {
        f"layers.{n}.{part}": getattr(network[2 * n], part).detach() for n in (0, 1) for part in ("weight", "bias")
    }
    save_file(tensors, path, {"name": "nsfw", "activation": "relu", "output": "sigmoid"} | told)
    return path, network


def test_a_probe_scores_what_its_network_scores(tmp_path: Path) -> None:
    path, network = probe_file(tmp_path / "nsfw.safetensors")
    vectors = torch.randn(5, 768)
    expected = network(torch.nn.functional.normalize(vectors, dim=1))[:, 0].detach().numpy()
    np.testing.assert_allclose(load_probe(path).score(vectors.numpy()), expected, atol=1e-6)


@pytest.mark.parametrize("told", [{"name": "No Name"}, {"activation": "gelu"}, {"output": ""}])
def test_a_probe_of_another_layout_is_refused(tmp_path: Path, told: dict[str, str]) -> None:
    path, _ = probe_file(tmp_path / "nsfw.safetensors", **told)
    with pytest.raises(ConfigurationError, match="are due"):
        load_probe(path)


def test_probes_and_similarity_read_the_stored_embeddings(tmp_path: Path) -> None:
    clip = Clip(tiny_clip(tmp_path), "tiny-stand-in")
    dataset = write_rows(tmp_path / "toys", [Row("a"), Row("words", text=True), Row("b", 1)])
    embed_images(dataset, clip, pool=Pool(threads=2))
    probe = load_probe(probe_file(tmp_path / "nsfw.safetensors")[0])
    score_probe(dataset, probe, clip.group)
    similar = score_similarity(dataset, clip)
    vectors = [row["embedding"] for row in dataset.whole_table(clip.group).to_pylist()]
    found = dataset.whole_table(probe.group(clip.group)).column("score").to_pylist()
    assert found[1] is None
    assert [found[0], found[2]] == pytest.approx(probe.score(np.array([vectors[0], vectors[2]])).tolist())
    captions = dataset.whole_table("source").column("caption").to_pylist()
    texts = ClipEmbedder(clip).embed_texts([captions[0], captions[2]])
    scores = dataset.whole_table(similarity_group("source", clip.group)).column("score").to_pylist()
    assert [scores[0], scores[2]] == pytest.approx(
        [float(np.dot(vectors[0], texts[0])), float(np.dot(vectors[2], texts[1]))], abs=1e-3
    )
    assert dict(similar.failed) == {"no_image": 1}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def published(web: tuple[Path, str], name: str, data: bytes, **other: object) -> Published:
    (web[0] / name).write_bytes(data)
    return Published(f"{web[1]}/{name}", hashlib.sha256(data).hexdigest(), **({"most_bytes": 1 << 26} | other))  # type: ignore[arg-type]


def test_a_file_is_kept_only_if_its_hash_agrees(web: tuple[Path, str], tmp_path: Path) -> None:
    good = published(web, "head.pth", b"weights")
    assert fetch(good, tmp_path / "kept").read_bytes() == b"weights"
    (web[0] / "head.pth").write_bytes(b"other")
    assert fetch(good, tmp_path / "kept").read_bytes() == b"weights"  # there already: not fetched again
    with pytest.raises(HarmonError, match="another file than the pinned one"):
        fetch(good, tmp_path / "new")
    with pytest.raises(HarmonError, match="larger than 3 bytes"):
        fetch(Published(good.url, good.sha256, 3), tmp_path / "new")
    with pytest.raises(HarmonError, match="could not be fetched"):
        fetch(Published(good.url + "x", good.sha256, 3), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "kept" / "head.pth").write_bytes(b"changed")
    with pytest.raises(HarmonError, match="is not the pinned file"):
        fetch(good, tmp_path / "kept")


def test_a_scripted_archive_is_kept_as_its_tensors(web: tuple[Path, str], tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2).half()
    torch.jit.save(torch.jit.script(network), tmp_path / "archive")
    one = published(web, "ViT.pt", (tmp_path / "archive").read_bytes(), scripted=True)
    path = fetch(one, tmp_path / "kept")
    assert path.name == "ViT.safetensors"
    assert torch.equal(load_file(path)["weight"], network.weight.float())
    assert fetch(one, tmp_path / "kept") == path
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(HarmonError, match=r"is not the pinned file .*, or what was made of it"):
        fetch(one, tmp_path / "kept")
    path.with_name("ViT.safetensors.sha256").unlink()
    with pytest.raises(HarmonError, match="is not the pinned file"):
        fetch(one, tmp_path / "kept")


def test_the_pins_are_full_hashes() -> None:
    assert all(len(one.sha256) == 64 and one.url.startswith("https://") for one in PUBLISHED.values())
