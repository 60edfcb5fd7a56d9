"""From a drawn picture to GenEval's score: the official file, a random Mask2Former and a random CLIP of the true
graphs, and the decision behind them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harmon.evaluation.detectors import colours as colour_module
from harmon.evaluation.detectors.colours import ClipColours, crop, sentences
from harmon.evaluation.detectors.examiner import GenEvalExaminer, with_colours
from harmon.evaluation.detectors.mask2former import Mask2FormerDetector, check_classes, instances
from harmon.evaluation.detectors.official import GenEvalResults
from harmon.evaluation.detectors.seen import Seen
from harmon.evaluation.drawn import DrawnBytes
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.geneval import COLOURS, OFFICIAL, Detection
from harmon.evaluation.scorers.geneval import Prompt as Metadata
from pipelines.coco_names import COCO_NAMES
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.workspace import Journal

torch.set_num_threads(1)
RED_DOG = {
    "tag": "colors",
    "prompt": "a photo of a red dog",
    "include": [{"class": "dog", "count": 1, "color": "red"}],
}
TWO_CATS = {
    "tag": "counting",
    "prompt": "a photo of two cats",
    "include": [{"class": "cat", "count": 2}],
    "exclude": [{"class": "cat", "count": 3}],
}


def png(size: tuple[int, int] = (96, 64), colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def prompt(number: int, record: Mapping[str, Any]) -> Prompt:
    return Prompt("geneval", f"{number:05}", record["prompt"], 4, {"task": record["tag"]}, record)


class Planted:
    """A detector that sees what it is told, with masks, and a classifier that reads the pixels themselves."""

    label = "planted"

    def __init__(self, **seen: Sequence[tuple[tuple[float, float, float, float], float]]) -> None:
        self.seen, self.asked = seen, 0

    def detect(self, image: Image.Image) -> Mapping[str, Sequence[Seen]]:
        mask = np.ones((image.height, image.width), dtype=bool)
        return {name: [Seen(Detection(box, score), mask) for box, score in some] for name, some in self.seen.items()}

    def colours(self, image: Image.Image, name: str, objects: Sequence[Seen]) -> list[str]:
        self.asked += len(objects)
        reds = [np.array(crop(image, one))[..., 0].mean() > 200 for one in objects]
        return ["red" if red else "blue" for red in reds]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mask2Former of the true architecture with random weights, saved as a checkpoint is published."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=7,
        id2label=dict(enumerate(COCO_NAMES)),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, ignore_index=255).save_pretrained(folder)
    return folder


def test_a_random_mask2former_of_the_true_architecture_is_asked_and_named_not_official(checkpoint: Path) -> None:
    detector = Mask2FormerDetector(checkpoint)
    assert detector.label.endswith("not GenEval's official detector")
    with torch.no_grad():  # so random that nothing is above 0.3: let one class be certain in every query
        detector._model.class_predictor.bias[COCO_NAMES.index("dog")] = 20.0
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    seen = detector.detect(image)
    assert set(seen) == {"dog"}
    for one in seen["dog"]:
        assert one.mask is not None
        assert one.mask.shape == (50, 90)
        x0, y0, x1, y1 = one.detection.box
        assert one.mask[int(y0) : int(y1), int(x0) : int(x1)].sum() == one.mask.sum() > 0
        assert 0.3 < one.detection.score <= 1


def test_boxes_lie_around_masks_and_padding_is_cut_off() -> None:
    classes = torch.full((2, 4), -20.0)
    classes[0, 2] = classes[1, 3] = 20.0  # the second query is no object
    masks = torch.full((2, 8, 8), -20.0)
    masks[0, 2:4, 1:3] = 20.0
    shown = torch.zeros(32, 32)
    shown[:16, :32] = 1  # the lower half is padding
    ((number, seen),) = instances(classes, masks, shown, (160, 320))
    assert number == 2
    assert seen.mask is not None
    assert seen.detection.score == pytest.approx(1, abs=0.1)
    x0, y0, x1, y1 = seen.detection.box
    assert (x0, x1) == pytest.approx((40, 120), abs=8)  # columns 1 and 2 of 8 over 320 pixels
    assert (y0, y1) == pytest.approx((80, 160), abs=8)  # rows 2 and 3 of the four that show the picture
    assert instances(classes - torch.tensor([0, 0, 40.0, 0]), masks, shown, (160, 320)) == []


def test_a_score_falls_with_an_uncertain_mask() -> None:
    classes = torch.full((1, 3), -20.0)
    classes[0, 0] = 20.0
    masks = torch.full((1, 4, 4), 0.2)  # barely above one half
    assert instances(classes, masks, torch.ones(16, 16), (16, 16))[0][1].detection.score == pytest.approx(
        0.55, abs=0.01
    )


def test_classes_must_be_cocos_under_names_that_are_known(tmp_path: Path) -> None:
    other = dict(enumerate(COCO_NAMES)) | {3: "motorbike", 62: "tvmonitor", 64: "mouse"}
    check_classes(tmp_path, other)
    with pytest.raises(ConfigurationError, match="calls class 3 'tree', where COCO has 'motorcycle'"):
        check_classes(tmp_path, other | {3: "tree"})
    with pytest.raises(ConfigurationError, match="tells 2 classes apart"):
        check_classes(tmp_path, {0: "person", 1: "bicycle"})
    with pytest.raises(ConfigurationError, match=r"holds no config\.json"):
        Mask2FormerDetector(tmp_path)


def test_an_object_is_shown_on_grey_and_cut_to_its_box() -> None:
    image = Image.new("RGB", (20, 10), "red")
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:6, 4:8] = True
    shown = np.array(crop(image, Seen(Detection((3, 1, 9, 7), 0.9), mask)))
    assert shown.shape == (6, 6, 3)
    assert shown[0, 0].tolist() == [0x99, 0x99, 0x99]
    assert shown[2, 2].tolist() == [255, 0, 0]
    assert np.array(crop(image, Seen(Detection((3, 1, 9, 7), 0.9)))).shape == (
        6,
        6,
        3,
    )  # boxes alone: nothing is masked


def test_clip_colours_are_the_nearest_of_the_mean_sentences(tmp_path: Path) -> None:
    """A tiny CLIP with random weights: which colour it tells is the official formula's, whatever that colour is."""
    import open_clip

    layout = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-colours.json").write_text(json.dumps(layout))
    open_clip.add_model_config(tmp_path / "tiny-colours.json")
    torch.manual_seed(1)
    model = open_clip.create_model("tiny-colours").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    ours = ClipColours(tmp_path / "weights.pt", "tiny-colours")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    objects = [Seen(Detection((float(x), 0.0, float(x + 20), 40.0), 0.9)) for x in range(0, 40, 2)]
    told = ours.colours(image, "dog", objects)
    tokenizer = open_clip.get_tokenizer("tiny-colours")
    with torch.no_grad():
        directions = []
        for colour in COLOURS:
            each = torch.nn.functional.normalize(model.encode_text(tokenizer(sentences(colour, "dog"))), dim=-1)
            directions.append(each.mean(0) / each.mean(0).norm())
        pictures = torch.stack([ours._prepare(crop(image, one)) for one in objects])
        near = torch.nn.functional.normalize(model.encode_image(pictures), dim=-1) @ torch.stack(directions).T
    assert told == [COLOURS[number] for number in near.argmax(1).tolist()]
    assert len(told) == 20 > colour_module.BATCH
    with pytest.raises(ConfigurationError, match="are absent"):
        ClipColours(tmp_path / "none.pt")


def test_a_verdict_takes_the_surest_boxes_and_asks_their_colour_alone(journal: Journal) -> None:
    sure, unsure = ((0.0, 0.0, 40.0, 40.0), 0.95), ((50.0, 0.0, 90.0, 40.0), 0.5)
    planted = Planted(dog=[unsure, sure], cat=[sure, unsure])
    pictures = [DrawnBytes(prompt(0, RED_DOG), 0, png()), DrawnBytes(prompt(0, RED_DOG), 1, png(colour="blue"))]
    first, second = GenEvalExaminer(planted, planted).examine(pictures, journal)
    assert (first["correct"], second["correct"]) == (True, False)
    assert second["why"] == "expected red dog>=1, found 0 red; and 1 blue"
    assert planted.asked == 2  # one box a picture
    image = Image.new("RGB", (96, 64), "red")
    coloured = with_colours(Metadata.of(RED_DOG), image, planted.detect(image), planted, OFFICIAL)
    assert [box.colour for box in coloured["dog"]] == [None, "red"]
    (counted,) = GenEvalExaminer(planted, planted).examine([DrawnBytes(prompt(1, TWO_CATS), 0, png())], journal)
    assert (counted["correct"], counted["why"]) == (False, "expected cat>=2, found 1")  # counting wants 0.9


def test_the_examiner_gives_the_verdict_on_each_picture(journal: Journal) -> None:
    planted = Planted(dog=[((0.0, 0.0, 40.0, 40.0), 0.95)])
    examiner = GenEvalExaminer(planted, planted)
    pictures = [DrawnBytes(prompt(0, RED_DOG), 0, png()), DrawnBytes(prompt(0, RED_DOG), 1, png(colour="blue"))]
    why = "expected red dog>=1, found 0 red; and 1 blue"
    assert examiner.examine(pictures, journal) == [
        {"correct": True, "why": "", "status": "ok", "reason": None},
        {"correct": False, "why": why, "status": "ok", "reason": None},
    ]
    assert examiner.differs == ("Objects are those of planted.", "Colours are told by planted.")
    assert json.loads(json.dumps(examiner.configuration))["detector"] == "planted"


def results(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Lines as pandas writes them for the official evaluation."""
    lines = [
        {**row, "details": json.dumps(row["details"]), "metadata": "{}"} if isinstance(row["details"], dict) else row
        for row in rows
    ]
    path.write_text("".join(json.dumps(line).replace("/", "\\/") + "\n" for line in lines))
    return path


def official(record: Mapping[str, Any], number: int, picture: int, correct: bool, **details: Any) -> dict[str, Any]:
    return {
        "filename": f"/runs/geneval/{number:05}/samples/{picture:04}.png",
        "tag": record["tag"],
        "prompt": record["prompt"],
        "correct": correct,
        "reason": "" if correct else "expected cat>=2, found 1",
        "details": details,
    }


def test_the_official_file_gives_the_official_verdicts(tmp_path: Path, journal: Journal) -> None:
    box = [0.0, 0.0, 40.0, 40.0, 0.95]
    path = results(
        tmp_path / "results.jsonl",
        [official(RED_DOG, 0, 1, True, dog=[box]), official(TWO_CATS, 1, 0, False, cat=[box])],
    )
    examiner = GenEvalResults(path)
    drawn = [
        DrawnBytes(prompt(0, RED_DOG), 1, b""),
        DrawnBytes(prompt(1, TWO_CATS), 0, b""),
        DrawnBytes(prompt(1, TWO_CATS), 1, b""),
    ]
    missing = {"correct": None, "why": None, "status": "failed", "reason": "results.jsonl has no line of it"}
    assert examiner.examine(drawn, journal) == [
        {"correct": True, "why": "", "status": "ok", "reason": None},
        {"correct": False, "why": "expected cat>=2, found 1", "status": "ok", "reason": None},
        missing,
    ]
    assert examiner.name.startswith("GenEval's own detector") and examiner.differs == ()


def test_of_boxes_that_are_equally_sure_the_official_order_decides(tmp_path: Path, journal: Journal) -> None:
    """The dog is judged by the first of its boxes, which is left of the cat."""
    record = {
        "tag": "position",
        "prompt": "a photo of a dog left of a cat",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    }
    dogs = [[0.0, 0.0, 10.0, 10.0, 0.9], [80.0, 0.0, 90.0, 10.0, 0.9]]
    line = official(record, 0, 0, True, cat=[[40.0, 0.0, 50.0, 10.0, 0.9]], dog=dogs)
    examiner = GenEvalResults(results(tmp_path / "r.jsonl", [line]))
    (told,) = examiner.examine([DrawnBytes(prompt(0, record), 0, b"")], journal)
    assert told["correct"] is True


def test_detections_from_elsewhere_are_judged_here_and_never_called_genevals(tmp_path: Path, journal: Journal) -> None:
    line = official(RED_DOG, 0, 0, True, dog=[[0.0, 0.0, 40.0, 40.0, 0.95, "red"]])
    verdict = {"correct": line.pop("correct"), "reason": line.pop("reason")}
    examiner = GenEvalResults(results(tmp_path / "jax.jsonl", [line]))
    (told,) = examiner.examine([DrawnBytes(prompt(0, RED_DOG), 0, b"")], journal)
    assert told["correct"] is True
    assert examiner.name == "detections of jax.jsonl, judged here"
    assert "not of GenEval" in examiner.differs[0]
    other = line | verdict | {"filename": "00000/samples/0001.png"}
    mixed = GenEvalResults(results(tmp_path / "mixed.jsonl", [line, other]))
    with pytest.raises(HarmonError, match="verdicts in some lines and none in others"):
        mixed.examine([DrawnBytes(prompt(0, RED_DOG), 0, b"")], journal)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"correct": True}, "does not follow from its boxes"),
        ({"filename": "00001.png"}, "where …/00000/samples/0000.png is read"),
        ({"prompt": "a photo of a cow"}, "is 'a photo of a cow', where 'a photo of two cats' was drawn"),
        ({"details": {"unicorn": []}}, "none of COCO's 80"),
        ({"details": {"cat": [[0, 0, float("nan"), 1, 1]]}}, "not x0, y0, x1, y1, score"),
        ({"details": "{"}, "no JSON"),
        ({"correct": "yes"}, "where true or false is read"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_an_error(
    tmp_path: Path, journal: Journal, change: dict[str, Any], error: str
) -> None:
    line = official(TWO_CATS, 1, 0, False, cat=[[0.0, 0.0, 40.0, 40.0, 0.95]]) | change
    with pytest.raises(HarmonError, match=error):
        GenEvalResults(results(tmp_path / "r.jsonl", [line])).examine(
            [DrawnBytes(prompt(1, TWO_CATS), 0, b"")], journal
        )


def test_a_picture_that_is_told_twice_is_an_error(tmp_path: Path, journal: Journal) -> None:
    line = official(RED_DOG, 0, 0, True, dog=[])
    with pytest.raises(HarmonError, match="00000/0000 is told before"):
        GenEvalResults(results(tmp_path / "r.jsonl", [line, line])).examine(
            [DrawnBytes(prompt(0, RED_DOG), 0, b"")], journal
        )


def test_a_verdict_on_another_runs_picture_is_an_error_where_that_is_still_there(
    tmp_path: Path, journal: Journal
) -> None:
    file = tmp_path / "00000/samples/0000.png"
    file.parent.mkdir(parents=True)
    line = official(RED_DOG, 0, 0, True, dog=[]) | {"filename": str(file)}
    examiner = GenEvalResults(results(tmp_path / "r.jsonl", [line]))
    file.write_bytes(png())
    assert examiner.examine([DrawnBytes(prompt(0, RED_DOG), 0, png())], journal)[0]["correct"]
    file.write_bytes(png(colour="blue"))
    with pytest.raises(HarmonError, match=r"is not the picture 00000/0000 of this run"):
        examiner.examine([DrawnBytes(prompt(0, RED_DOG), 0, png())], journal)
