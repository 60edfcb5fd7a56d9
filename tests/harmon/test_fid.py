"""FID from pictures to the number. No published Inception weights are here: networks have the true graphs and random
weights, or, where the network does not matter, a stand-in that averages."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from harmon.evaluation.drawn import DrawnBytes
from harmon.evaluation.fid import inception
from harmon.evaluation.fid.examiner import FidExaminer
from harmon.evaluation.fid.inception import Extractor, load_extractor
from harmon.evaluation.fid.preparation import Preparation
from harmon.evaluation.fid.protocols import PROTOCOLS, coco_val2014, references
from harmon.evaluation.fid.statistics import FidStore, Statistics, published_statistics, read_moments, set_hash
from harmon.evaluation.marks import Marked
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.fid import frechet_distance, moments
from harmon.evaluation.verdicts import COLUMNS, judged
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.workspace import Journal

torch.set_num_threads(1)
PLAIN = Preparation()


@dataclass(frozen=True)
class Shown:
    """A real picture at hand."""

    where: str
    data: bytes

    def read(self) -> bytes:
        return self.data


def png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A smooth random picture: noise alone is the same to any network."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def shown(seeds: Sequence[int]) -> list[Shown]:
    return [Shown(f"picture {seed}", png(seed)) for seed in seeds]


Reality = Sequence[tuple[str, Shown]]


def sha(seed: int) -> str:
    return hashlib.sha256(png(seed)).hexdigest()


def drawn(seeds: Sequence[int], benchmark: str = "mscoco-30k", **facts: str) -> list[DrawnBytes]:
    return [DrawnBytes(Prompt(benchmark, str(seed), "a cat", 1, facts), 0, png(seed)) for seed in seeds]


def random_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that keep the size of activations through all layers, so that features differ between pictures."""
    generator = torch.Generator().manual_seed(7)
    state = network.state_dict()
    return {
        name: torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        if value.dim() > 1
        else value
        for name, value in state.items()
    }


@pytest.fixture(scope="module")
def tensorflow_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of TensorFlow's graph, which has torchvision's names and 1,008 classes."""
    from torchvision.models import Inception3

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_state(Inception3(num_classes=1008, aux_logits=False, init_weights=False)), path)
    return path


def averaging(name: inception.Name = "torch-fidelity") -> Extractor:
    """A stand-in for Inception: means over a grid of the picture, 48 features."""
    return Extractor(name, "0" * 64, nn.Sequential(nn.AdaptiveAvgPool2d(4)))


@pytest.mark.parametrize(("pictures", "features"), [(300, 48), (1000, 16), (20, 48)])
def test_fid_equals_torch_fidelitys_on_the_same_features(pictures: int, features: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(pictures)
    mixing = rng.normal(size=(features, features))
    first = (rng.normal(size=(pictures, features)) @ mixing).astype(np.float64)
    second = (rng.normal(0.3, 1.5, size=(pictures, features)) @ mixing).astype(np.float64)
    theirs = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(some)) for some in (first, second)), verbose=False
    )["frechet_inception_distance"]
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert frechet_distance(moments(first), moments(first)) == pytest.approx(0, abs=1e-4 * theirs / 100)


def test_pictures_give_torch_fidelitys_own_features(tensorflow_weights: Path, tmp_path: Path) -> None:
    """Random weights, true graph: torch-fidelity reads the files and extracts, and so do we."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    pictures = shown(range(4))
    network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(tensorflow_weights))
    raw = np.stack([np.array(Image.open(io.BytesIO(picture.data))) for picture in pictures])
    with torch.inference_mode():
        (theirs,) = network(torch.from_numpy(raw).permute(0, 3, 1, 2))
    extractor = load_extractor("torch-fidelity", tensorflow_weights, unpublished=True)
    ours = FidStore(tmp_path, extractor, PLAIN).features(pictures).values
    assert ours.shape == (4, 2048)
    assert np.ptp(ours, axis=0).max() > 0.1 * np.abs(ours).max()  # they tell pictures apart
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5 * np.abs(ours).max())


def test_clean_fid_pictures_are_resized_as_clean_fid_does(tensorflow_weights: Path) -> None:
    from cleanfid.resize import build_resizer

    picture = np.random.default_rng(0).integers(0, 256, (71, 350, 3), dtype=np.uint8)
    extractor = Extractor("clean-fid", "", nn.Identity())
    ours = extractor.input(picture).numpy() * 128 + 128
    np.testing.assert_allclose(ours, build_resizer("clean")(picture).transpose(2, 0, 1), atol=2e-5)


def test_both_preparations_of_one_network_differ(tmp_path: Path) -> None:
    picture = np.array(Image.open(io.BytesIO(png(0, (600, 500)))))
    inputs = [Extractor(name, "", nn.Identity()).input(picture) for name in inception.NAMES]
    assert {tuple(one.shape) for one in inputs} == {(3, 299, 299)}
    assert all(float(one.min()) >= -1.01 and float(one.max()) <= 1.01 for one in inputs)
    assert not torch.allclose(inputs[0], inputs[1], atol=1e-3)


def test_torchvisions_graph_gives_its_pooled_features(tmp_path: Path) -> None:
    from torchvision.models import Inception3

    network = Inception3(aux_logits=True, init_weights=False)
    state = random_state(network)
    torch.save(state, tmp_path / "tv.pth")
    network.load_state_dict(state)
    network.fc = nn.Identity()
    extractor = load_extractor("torchvision", tmp_path / "tv.pth", unpublished=True)
    one = extractor.input(np.array(Image.open(io.BytesIO(png(3)))))
    with torch.inference_mode():
        theirs = network.eval()(one.unsqueeze(0))
    np.testing.assert_allclose(extractor.features([one]), theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_other_weights_are_refused_unless_meant_and_then_named(tensorflow_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="6726825d0af5"):
        load_extractor("clean-fid", tensorflow_weights)
    extractor = load_extractor("clean-fid", tensorflow_weights, unpublished=True)
    assert extractor.label == f"clean-fid, not the published weights but {extractor.weights_sha256[:12]}"
    assert replace(extractor, weights_sha256=inception.TENSORFLOW.sha256).label == "clean-fid"
    torch.save({"some": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(HarmonError, match="does not hold clean-fid's Inception"):
        load_extractor("clean-fid", tmp_path / "other.pth", unpublished=True)
    torch.save({"code": print}, tmp_path / "code.pth")
    with pytest.raises(HarmonError, match="cannot be read as weights"):
        load_extractor("clean-fid", tmp_path / "code.pth", unpublished=True)


def test_statistics_are_kept_by_the_content_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FidStore(tmp_path, averaging(), PLAIN)
    first = store.statistics(shown(range(6)))
    path = store.folder / f"statistics-{first.identity.removeprefix('set:')[:16]}.npz"
    assert read_moments(path).n == 6

    def fails(self: Extractor, inputs: object) -> NDArray[np.float32]:
        raise AssertionError("extracted again")

    monkeypatch.setattr(Extractor, "features", fails)
    again = FidStore(tmp_path, averaging(), PLAIN)
    renamed = [Shown(f"moved/{one.where}", one.data) for one in reversed(shown(range(6)))]
    found = again.statistics(renamed)
    assert found.identity == first.identity
    np.testing.assert_array_equal(found.moments.covariance, first.moments.covariance)
    assert again.statistics(shown(range(5))).identity != first.identity  # fewer: other statistics, no new features
    with pytest.raises(AssertionError, match="extracted again"):
        again.statistics(shown([0, 1, 2, 3, 4, 99]))
    with pytest.raises(AssertionError, match="extracted again"):  # another preparation
        FidStore(tmp_path, averaging(), Preparation(16)).statistics(shown(range(6)))


def test_a_killed_extraction_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmon.evaluation.fid.statistics.BATCH", 4)
    monkeypatch.setattr("harmon.evaluation.kept.PART_ROWS", 4)
    pictures = shown(range(10))
    broken = [*pictures[:9], Shown("the tenth", b"no picture")]
    with pytest.raises(HarmonError, match="the tenth"):
        FidStore(tmp_path, averaging(), PLAIN).features(broken)
    extracted: list[int] = []
    real = Extractor.features

    def counted(self: Extractor, inputs: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        extracted.append(len(inputs))
        return real(self, inputs)

    monkeypatch.setattr(Extractor, "features", counted)
    found = FidStore(tmp_path, averaging(), PLAIN).features(pictures)
    assert sum(extracted) == 2  # eight were kept
    np.testing.assert_array_equal(
        found.values, FidStore(tmp_path / "new", averaging(), PLAIN).features(pictures).values
    )


def measured(
    protocol: str, pictures: Sequence[DrawnBytes], real: Reality, folder: Path, partial: bool = True
) -> tuple[Marked, FidExaminer]:
    """As `harmon evaluate` does it."""
    examiner = FidExaminer(PROTOCOLS[protocol], averaging(), real, folder)
    schema = pa.schema([*COLUMNS["mjhq-30k"], ("status", pa.string()), ("reason", pa.string())])
    seen = pa.Table.from_pylist(examiner.examine(pictures, Journal(folder / "journal.jsonl")), schema)
    return judged(PROTOCOLS[protocol].benchmark, pictures, seen, examiner, partial), examiner


def test_the_same_pictures_have_fid_0_and_others_more(tmp_path: Path) -> None:
    real = [("", picture) for picture in shown(range(12))]
    same, _ = measured("mscoco-30k-captions", drawn(range(12)), real, tmp_path)
    other, examiner = measured("mscoco-30k-captions", drawn(range(50, 62)), real, tmp_path)
    assert same.measures[0].value == pytest.approx(0, abs=1e-6)
    assert other.measures[0].value > 0.01
    assert (other.report["n"], other.report["reference_n"], other.report["by"]) == (12, 12, {})
    assert other.report["reference"] == same.report["reference"] == f"set:{set_hash([*map(sha, range(12))])}"
    told = examiner.configuration
    assert (told["extractor"], told["weights_sha256"]) == ("torch-fidelity", "0" * 64)
    assert told["preparation"] == {"side": 256, "resample": "lanczos", "shape": "centre-crop"}
    assert examiner.name.endswith("torch-fidelity, not the published weights but 000000000000")
    assert examiner.differs[0].startswith("Features are by torch-fidelity, not the published weights")


def test_mjhq_is_measured_by_category_too(tmp_path: Path) -> None:
    ours = [*drawn(range(5), "mjhq-30k", category="art"), *drawn(range(10, 15), "mjhq-30k", category="logo")]
    real = [("art", one) for one in shown(range(5))] + [("logo", one) for one in shown(range(20, 25))]
    found, _ = measured("mjhq-30k-512", ours, real, tmp_path)
    values = {one.name: one.value for one in found.measures}
    assert list(values) == ["FID", "FID, art", "FID, logo"]
    assert values["FID, art"] == pytest.approx(0, abs=1e-6)
    assert values["FID, logo"] > values["FID"] > 0.001
    assert found.report["by"]["logo"] == {"fid": values["FID, logo"], "n": 5, "reference_n": 5}
    few, _ = measured("mjhq-30k-512", ours[:6], real, tmp_path)  # of a part: one picture has no covariance
    assert [one.name for one in few.measures] == ["FID", "FID, art"]


def test_a_number_over_other_pictures_is_not_given(tmp_path: Path) -> None:
    real = [("", picture) for picture in shown(range(3))]
    with pytest.raises(HarmonError, match="generated pictures counts 3, but the benchmark has 30,000"):
        measured("mscoco-30k-captions", drawn(range(3)), real, tmp_path, partial=False)
    prompts = [Prompt("mscoco-30k", "1", "a cat", 1)]
    with pytest.raises(HarmonError, match="has no real picture"):
        references(PROTOCOLS["mscoco-30k-captions"], prompts, tmp_path, partial=True)


def test_all_of_val2014_can_be_the_reference(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    for number in (7, 3):
        (tmp_path / f"val2014/COCO_val2014_{number:012}.jpg").write_bytes(png(number))
    (tmp_path / "val2014/notes.txt").write_text("no picture")
    assert [picture.read() for picture in coco_val2014(tmp_path)] == [png(3), png(7)]
    with pytest.raises(HarmonError, match="counts 2, but the benchmark has 40,504"):
        references(PROTOCOLS["mscoco-30k-all"], [], tmp_path)
    assert len(references(PROTOCOLS["mscoco-30k-all"], [], tmp_path, partial=True)) == 2


def test_published_statistics_stand_in_for_pictures(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    found = published_statistics(tmp_path / "stats.npz")
    assert isinstance(found, Statistics)
    assert (found.moments.n, found.identity[:5]) == (None, "file:")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "stats.npz").read_bytes()[:1000])
    with pytest.raises(HarmonError, match="cannot be read"):
        published_statistics(tmp_path / "cut.npz")
    np.savez(tmp_path / "few.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(HarmonError, match="64 features"):
        published_statistics(tmp_path / "few.npz")
