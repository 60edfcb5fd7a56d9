"""Pictures depend on what their metadata says and on nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, PngImagePlugin
from small_checkpoints import make_released, make_run

from flows.cli import main
from harmon.drawing import draw_latents
from harmon.generate import draw_pictures, generate_files, picture_size
from harmon.picture_files import PictureRecord, read_record
from harmon.prompts import padded
from harmon.sampling_config import SamplingConfig
from harmon.trained import Trained, load
from pipelines.errors import ConfigurationError

torch.set_num_threads(1)
QUICK = SamplingConfig(ar_steps=3, diffusion_steps="4", clip_x0=3.0)
PROMPTS = [
    f"{count} {colour} circles" for count in ("two", "seven hundred") for colour in ("red", "blue", "green", "grey")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return load(run)


def harmon(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def drawn(*arguments: object) -> list[Path]:
    done = harmon("generate", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return [Path(file) for file in json.loads(done.stdout)["files"]]


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def record(trained: Trained, prompt: str = "a red circle", **changes: object) -> PictureRecord:
    values = {"prompt": prompt, "seed": 1, "width": 64, "height": 64, "sampling": QUICK, "weights": trained.fingerprint}
    return PictureRecord.model_validate(values | changes)


# -- one picture and its batch -------------------------------------------------------------------------------


def latents(trained: Trained, rows: range) -> torch.Tensor:
    prompts = [trained.text.generation_prompt(PROMPTS[row]) for row in rows]
    ids, mask = padded(
        prompts + [trained.text.generation_prompt(None)] * len(rows), trained.text.pad, torch.device("cpu")
    )
    return draw_latents(trained.model, ids, mask, (4, 4), list(rows), QUICK.model_dump())


def test_eight_together_are_four_and_four(trained: Trained) -> None:
    together, again = latents(trained, range(8)), latents(trained, range(8))
    assert torch.equal(together, again)
    halves = torch.cat([latents(trained, range(4)), latents(trained, range(4, 8))])
    assert len({len(trained.text.generation_prompt(prompt)) for prompt in PROMPTS}) > 1  # the padding differs
    torch.testing.assert_close(halves, together, atol=1e-4, rtol=0)
    eight = draw_pictures(trained, PROMPTS, range(8), QUICK, batch=8)
    fours = draw_pictures(trained, PROMPTS, range(8), QUICK, batch=4)
    assert np.abs(eight.astype(int) - fours.astype(int)).max() <= 1
    assert np.array_equal(eight, draw_pictures(trained, PROMPTS, range(8), QUICK, batch=8))


def test_a_negative_prompt_and_a_full_stop_change_the_picture(trained: Trained) -> None:
    plain = draw_pictures(trained, ["a red circle"], [0], QUICK)
    assert (draw_pictures(trained, ["a red circle"], [0], QUICK, negatives=["blue"]) != plain).any()
    assert record(trained, " a red circle ", variant="release-batch").caption == "a red circle."
    assert record(trained).caption == "a red circle"


# -- files ---------------------------------------------------------------------------------------------------


def test_the_metadata_alone_reproduces_a_picture(run: Path, tmp_path: Path) -> None:
    options = [
        "--negative",
        "green",
        "--cfg",
        2.5,
        "--cfg-schedule",
        "linear",
        "--ar-steps",
        4,
        "--diffusion-steps",
        "5",
    ]
    options += [
        "--temperature",
        0.9,
        "--size",
        "96x64",
        "--seed",
        7,
        "--variant",
        "release-batch",
        "-n",
        2,
        "--batch",
        1,
    ]
    files = drawn(run, "a red circle", "ein blaues Quadrat ü", *options, "-o", tmp_path / "first")
    assert len(files) == 4 and {Image.open(file).size for file in files} == {(96, 64)}
    assert [read_record(file).seed for file in files] == [7, 8, 9, 10]
    again = drawn(run, *[part for file in files for part in ("--again", file)], "--batch", 1, "-o", tmp_path / "again")
    assert [file.name for file in again] == [file.name for file in files]
    for one, other in zip(files, again, strict=True):
        assert np.array_equal(pixels(one), pixels(other))
    wide = drawn(run, *[part for file in files for part in ("--again", file)], "--batch", 4, "-o", tmp_path / "wide")
    assert all(np.abs(pixels(one) - pixels(other)).max() <= 1 for one, other in zip(files, wide, strict=True))


def test_every_choice_is_in_the_record(trained: Trained, tmp_path: Path) -> None:
    [file] = generate_files(trained, [record(trained, negative="blue")], tmp_path)
    assert read_record(file) == record(trained, negative="blue")
    names = {record(trained, **change).file_name for change in ({}, {"seed": 2}, {"width": 32}, {"negative": "x"})}
    assert len(names) == 4 and all(name.startswith("a-red-circle-") for name in names)
    assert record(trained, "../../etc/passwd \0 ✓").file_name.startswith("etc-passwd-1-")
    assert record(trained, "✓").file_name.startswith("picture-1-")


def test_the_approximations_are_options_and_stand_in_the_record(run: Path, tmp_path: Path) -> None:
    options = ["--diffusion-steps", "6", "--diffusion-steps-last", 2, "--sampler", "dpm++"]
    options += ["--cfg-interval", 0, 0.5, "--cfg-every", 2, "--refresh-every", 3, "--ar-steps", 3]
    [file] = drawn(run, "a red circle", *options, "-o", tmp_path)
    sampling = read_record(file).sampling
    assert (sampling.diffusion_steps_last, sampling.sampler, sampling.cfg_every) == (2, "dpm++", 2)
    assert sampling.cfg_interval == (0.0, 0.5) and sampling.refresh_every == 3


def test_diffusion_steps_that_nobody_names_are_the_models_and_stand_in_the_record(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    description = run / "model" / "model.json"
    values = json.loads(description.read_text())
    values["model"]["head"]["sampling_steps"] = "3,2"
    del values["sampling"]["diffusion_steps"]
    description.write_text(json.dumps(values))
    trained = load(run)
    [file] = drawn(run, "a red circle", "--seed", 4, "-o", tmp_path / "own")
    assert read_record(file).sampling.diffusion_steps == "3,2"
    named = SamplingConfig(ar_steps=3, diffusion_steps="3,2", clip_x0=3.0)
    for sampling in (named, named.model_copy(update={"diffusion_steps": None})):
        assert np.array_equal(pixels(file), draw_pictures(trained, ["a red circle"], [4], sampling)[0])
        [again] = generate_files(trained, [record(trained, seed=4, sampling=sampling)], tmp_path / "again")
        assert again.name == file.name and read_record(again) == read_record(file)
    [other] = drawn(run, "a red circle", "--seed", 4, "--diffusion-steps", 4, "-o", tmp_path / "own")
    assert read_record(other).sampling.diffusion_steps == "4"


def test_the_last_word_of_a_long_prompt_counts_and_a_longer_one_than_the_model_reads_is_refused(
    trained: Trained, tmp_path: Path
) -> None:
    prompts = [f"{'a red circle and ' * 60}{last}" for last in ("a blue square", "a green star")]
    assert min(len(trained.text.generation_prompt(prompt)) for prompt in prompts) > 128
    one, other = draw_pictures(trained, prompts, [1, 1], QUICK, 64)
    assert not np.array_equal(one, other)
    endless = record(trained, "circle " * trained.model.config.llm.max_position_embeddings)
    with pytest.raises(ConfigurationError, match="in fewer words"):
        generate_files(trained, [record(trained), endless], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_there_is_not_drawn_again(trained: Trained, tmp_path: Path) -> None:
    first, second = record(trained), record(trained, seed=2)
    [file] = generate_files(trained, [first], tmp_path)
    before, told = file.stat().st_mtime_ns, []
    files = generate_files(trained, [first, second, first], tmp_path, on_progress=lambda *at: told.append(at))
    assert file.stat().st_mtime_ns == before and files == [file, tmp_path / second.file_name, file]
    assert told[-1] == (3, 3) and told == sorted(told)
    assert not list(tmp_path.glob("*.part"))


def test_the_preview_shows_the_canvas_after_each_ar_step(run: Path, tmp_path: Path) -> None:
    [file] = drawn(run, "a red circle", "--ar-steps", 4, "--steps-preview", "-o", tmp_path)
    with Image.open(file.with_suffix(".steps.webp")) as film:
        assert film.n_frames == 4 and film.size == (64, 64)
        frames = []
        for number in range(4):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
    distances = [np.abs(frame - pixels(file)).mean() for frame in frames]
    assert distances[0] > distances[-1] and distances[-1] < 8  # lossy, and the last is the picture


def test_a_grid_has_a_row_for_each_prompt(run: Path, tmp_path: Path) -> None:
    files = drawn(run, "a red circle", "a blue circle", "-n", 3, "--grid", "-o", tmp_path)
    assert len(files) == 7
    sheet = pixels(files[-1])
    assert sheet.shape == (2 * 68 + 4, 3 * 68 + 4, 3)
    assert np.array_equal(sheet[4 + 68 : 68 + 68, 4 + 136 : 68 + 136], pixels(files[5]))


@pytest.mark.parametrize(
    ("px", "size", "aspect", "expected"),
    [
        (None, None, None, (64, 64)),
        (32, None, None, (32, 32)),
        (None, "96x48", None, (96, 48)),
        (128, None, "4:1", (256, 64)),
        (64, None, "3:2", (80, 48)),
        (64, None, "1:99", (16, 640)),
    ],
)
def test_sizes_and_shapes(
    trained: Trained, px: int | None, size: str | None, aspect: str | None, expected: tuple[int, int]
) -> None:
    assert picture_size(trained, px, size, aspect) == expected


@pytest.mark.parametrize(
    ("px", "size", "aspect", "message"),
    [
        (40, None, None, "40 px cannot be drawn: choose a multiple of 16 px"),
        (None, "96x50", None, "96 x 50 px cannot be drawn"),
        (None, "96", None, "--size 96: write it as 768x512"),
        (None, None, "0:1", "--aspect 0:1: write it as 3:2"),
        (64, "64x64", None, "leave --px and --aspect out"),
        (16000, None, None, "is 1000004 tokens"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(
    trained: Trained, px: int | None, size: str | None, aspect: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        picture_size(trained, px, size, aspect)


def test_a_picture_of_other_weights_or_of_no_record_is_refused(trained: Trained, run: Path, tmp_path: Path) -> None:
    [file] = generate_files(trained, [record(trained)], tmp_path)
    named = make_released(tmp_path / "other")[1]
    parts = ["--tokenizer", named.tokenizer, "--model", named.model]
    done = harmon("generate", tmp_path / "other" / "harmon.pth", *parts, "--again", file, "-o", tmp_path / "no")
    assert done.exit_code == 2 and "was drawn with other weights" in done.stderr and not (tmp_path / "no").exists()
    bare = tmp_path / "bare.png"
    Image.new("RGB", (8, 8)).save(bare)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("harmon", '{"prompt": 3}')
    strange = tmp_path / "strange.png"
    Image.new("RGB", (8, 8)).save(strange, pnginfo=text)
    for wrong in (bare, strange, tmp_path / "absent.png", Path(__file__)):
        with pytest.raises(ConfigurationError, match=wrong.name):
            read_record(wrong)


def test_another_dtype_draws_another_picture_and_is_refused_again(run: Path, tmp_path: Path) -> None:
    how = ["a red circle", "--ar-steps", 2, "--diffusion-steps", "3", "--clip-x0", 3, "-o", tmp_path]
    [half] = drawn(run, *how, "--dtype", "bfloat16")
    [single] = drawn(run, *how)
    assert half != single and (pixels(half) != pixels(single)).any()
    assert (read_record(half).dtype, read_record(single).dtype) == ("bfloat16", "float32")
    refused = harmon("generate", run, "--again", half, "-o", tmp_path / "again")
    assert refused.exit_code == 2 and "give --dtype bfloat16" in refused.stderr
    assert not (tmp_path / "again").exists()
    [again] = drawn(run, "--again", half, "--dtype", "bfloat16", "-o", tmp_path / "again")
    assert again.name == half.name and np.array_equal(pixels(again), pixels(half))


def test_the_command_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    nothing = harmon("generate", run, "-o", tmp_path / "x")
    assert nothing.exit_code == 2 and "Name at least one PROMPT" in nothing.stderr
    wrong = harmon("generate", run, "a circle", "--cfg", 0.5, "-o", tmp_path / "x")
    assert wrong.exit_code == 2 and "the sampling: cfg" in wrong.stderr
    idle = harmon("generate", run, "a circle", "--negative", "blue", "--cfg", 1, "-o", tmp_path / "x")
    assert idle.exit_code == 2 and "no guidance" in idle.stderr
    absent = harmon("generate", tmp_path / "absent", "a circle", "-o", tmp_path / "x")
    assert absent.exit_code == 2 and "is no checkpoint" in absent.stderr


def test_every_form_of_checkpoint_draws_the_same(tmp_path: Path) -> None:
    file, named = make_released(tmp_path / "released")
    parts = ["--tokenizer", named.tokenizer, "--model", named.model]
    assert harmon("convert", file, *parts, "-o", tmp_path / "hf").exit_code == 0
    back = harmon("convert", tmp_path / "hf", "--to", "released", "-o", tmp_path / "back", "--json")
    assert back.exit_code == 0 and len(json.loads(back.stdout)["files"]) == 3
    how = ["a red circle", "--ar-steps", 2, "--diffusion-steps", "3", "--clip-x0", 3, "--px", 64]
    [one] = drawn(file, *parts, *how, "-o", tmp_path / "a")
    [two] = drawn(tmp_path / "hf", *how, "-o", tmp_path / "b")
    [three] = drawn(tmp_path / "back", "--model", named.model, *how, "-o", tmp_path / "c")
    assert one.name == two.name == three.name
    assert np.array_equal(pixels(one), pixels(two)) and np.array_equal(pixels(one), pixels(three))
    neither = harmon("convert", "-o", tmp_path / "d")
    assert neither.exit_code == 2 and "--init MAR QWEN KL16" in neither.stderr
