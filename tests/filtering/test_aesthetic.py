"""The folded head scores what LAION's layers score, and loads nothing but tensors."""

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from filtering.aesthetic import V2_LAYERS, V2_SHA256, AestheticHead, load_head, main, score_aesthetics
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.steps import Reads, Step, StepRun
from tests.filtering.pictured import Row, write_rows
from tests.parts import need_shared

WIDTHS = (768, 1024, 128, 64, 16, 1)
HEAD = "reference/aesthetic/sac+logos+ava1-l14-linearMSE.pth"
GOLDEN = "reference/aesthetic/golden.safetensors"


def layers(seed: int = 0) -> dict[str, torch.Tensor]:
    """A head of V2's shape with random weights."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (inputs, outputs) in zip(V2_LAYERS, pairwise(WIDTHS), strict=True):
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        state[f"{name}.bias"] = torch.randn(outputs, generator=generator)
    return state


def embeddings(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 768, generator=torch.Generator().manual_seed(1)) * 7


def one_by_one(state: dict[str, torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
    vectors = torch.nn.functional.normalize(vectors.double(), dim=1)
    for name in V2_LAYERS:
        vectors = vectors @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()
    return vectors[:, 0]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_folding_five_layers_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"head{suffix}"
    save_file(layers(), path) if suffix == ".safetensors" else torch.save(layers(), path)
    scores = load_head(path).score(embeddings().numpy())
    np.testing.assert_allclose(scores, one_by_one(layers(), embeddings()).numpy(), rtol=1e-12)


def test_the_released_head_scores_the_reference_embeddings() -> None:
    head, golden = need_shared(HEAD), need_shared(GOLDEN)
    assert main(["--head", str(head), "--check", str(golden)]) == 0


def test_the_released_head_is_the_pinned_one() -> None:
    head = load_head(need_shared(HEAD))
    assert (head.sha256, head.name) == (V2_SHA256, "laion-v2-21dd590f")
    assert float(np.linalg.norm(head.weight)) == pytest.approx(17.9956, abs=1e-4)
    assert head.bias == pytest.approx(5.2366, abs=1e-4)
    assert head.score(np.ones((1, 768)))[0] == pytest.approx(4.883285, abs=1e-6)


def test_a_single_layer_is_read_as_v1(tmp_path: Path) -> None:
    weight = torch.randn(1, 768, generator=torch.Generator().manual_seed(2))
    torch.save({"weight": weight, "bias": torch.tensor([0.5])}, tmp_path / "v1.pth")
    head = load_head(tmp_path / "v1.pth")
    assert head.name.startswith("laion-v1-")
    expected = torch.nn.functional.normalize(embeddings(), dim=1) @ weight[0] + 0.5
    np.testing.assert_allclose(head.score(embeddings().numpy()), expected.numpy(), atol=1e-5)


def test_length_does_not_matter_and_a_zero_embedding_scores_the_bias(tmp_path: Path) -> None:
    head = AestheticHead("x", "", np.arange(768.0), 5.0)
    vectors = embeddings().double().numpy()
    np.testing.assert_allclose(head.score(vectors), head.score(vectors * 100))
    assert head.score(np.zeros((1, 768)))[0] == 5.0


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"weight": Bomb()}, protocol=2))
    torch.save({"weight": Bomb()}, tmp_path / "zipped.pth")
    for name in ("bomb.pth", "zipped.pth"):
        with pytest.raises(ConfigurationError, match="something else than tensors"):
            load_head(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_the_sibling_with_nonlinearities_is_refused(tmp_path: Path) -> None:
    names = ("layers.0", "layers.3", "layers.6", "layers.9", "layers.11")
    state = {f"{name}.{part}": torch.zeros(1) for name in names for part in ("weight", "bias")}
    torch.save(state, tmp_path / "relu.pth")
    with pytest.raises(ConfigurationError, match="neither"):
        load_head(tmp_path / "relu.pth")


def test_layers_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    torch.save(layers() | {"layers.2.weight": torch.zeros(128, 1000)}, tmp_path / "head.pth")
    with pytest.raises(ConfigurationError, match="do not fit"):
        load_head(tmp_path / "head.pth")


def test_the_check_answers_with_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(layers(), tmp_path / "head.pth")
    scores = one_by_one(layers(), embeddings()).float()
    save_file({"embeddings": embeddings(), "scores": scores}, tmp_path / "good.safetensors")
    save_file({"embeddings": embeddings(), "scores": scores + 1e-3}, tmp_path / "bad.safetensors")
    save_file({"scores": scores}, tmp_path / "lacking.safetensors")
    head = str(tmp_path / "head.pth")
    assert main(["--head", head, "--check", str(tmp_path / "good.safetensors")]) == 0
    assert main(["--head", head, "--check", str(tmp_path / "bad.safetensors")]) == 1
    assert "largest error 0.001" in capsys.readouterr().out
    assert main(["--head", head, "--check", str(tmp_path / "lacking.safetensors")]) == 2
    assert main(["--head", "nowhere.pth", "--check", str(tmp_path / "good.safetensors")]) == 2
    assert "embeddings" in capsys.readouterr().err


def test_scores_stand_beside_the_embeddings_they_were_made_from(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "scenes", [Row("a"), Row("text", text=True), Row("b", 1)])
    write_embeddings(dataset, [embeddings(2)[0].tolist(), None, embeddings(2)[1].tolist()])
    head = AestheticHead("laion-v1-00000000", "00", np.linspace(-1, 1, 768), 5.0)
    commit = score_aesthetics(dataset, head, "clip.toy-float32")
    rows = dataset.whole_table("aesthetic.laion-v1-00000000.toy-float32").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    expected = head.score(embeddings(2).half().numpy())
    assert [rows[0]["score"], rows[2]["score"]] == pytest.approx(list(expected), abs=1e-5)
    assert dict(commit.failed) == {"no_image": 1}


def write_embeddings(dataset: Dataset, vectors: list[list[float] | None]) -> None:
    run = StepRun(dataset, Step("embed", 1, {}, (Reads(dataset, ("source",)),)))
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        table = {
            "key": dataset.table("source", shard).column("key"),
            "embedding": pa.array(vectors, pa.list_(pa.float32())).cast(pa.list_(pa.float16())),
            "status": pa.array(["ok" if vector else "failed" for vector in vectors]),
            "reason": pa.array([None if vector else "no_image" for vector in vectors], pa.string()),
        }
        output.columns("clip.toy-float32", pa.table(table))
        output.finish(len(vectors))
    run.commit()
