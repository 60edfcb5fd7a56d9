"""Checkpoints keep every bit through every form, and whatever is no checkpoint is refused by name."""

import argparse
import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import TOKENIZER, make_autoencoder, tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file
from small_checkpoints import KL, UNUSED, kl_weights, make_released, make_run, true_layout, weights
from torch import Tensor

from harmon.answering import AnswerConfig, answer
from harmon.convert.autoencoders import dump_sizes
from harmon.convert.code import ENTRIES, remote_code
from harmon.convert.contents import EMBEDDING, HEAD, same_bits
from harmon.convert.folder import open_folder, write_folder
from harmon.convert.released import Named, open_released, write_released
from harmon.convert.remote.configuration_harmon import PretrainedHarmonConfig
from harmon.convert.remote.modeling_harmon import PretrainedHarmon
from harmon.convert.start import open_parts
from harmon.generate import draw_pictures
from harmon.latents import load_autoencoder
from harmon.model.autoencoder import KlAutoencoder
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.pictures import padded_square
from harmon.prompts import padded
from harmon.sampling_config import SamplingConfig
from harmon.text import IMAGE_SLOT
from harmon.trained import load, open_checkpoint
from harmon.training.weights import load_weights
from pipelines.errors import ConfigurationError, HarmonError
from tests.parts import need_shared

torch.set_num_threads(1)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not same_bits(one[name], other[name])]


# -- there and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "head"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True), (torch.float64, False)]
)
def test_released_files_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, head: bool) -> None:
    nan = torch.full((1, 1, 24), float("nan"), dtype=dtype)
    file, named = make_released(tmp_path / "released", dtype, head, {"mar.mask_token": nan})
    write_folder(open_released(file, named), tmp_path / "hf", shard_bytes=20_000)
    write_released(open_folder(tmp_path / "hf"), tmp_path / "back")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert_same(torch.load(file), torch.load(tmp_path / "back" / "harmon.pth"))
    assert_same(torch.load(file.parent / "kl16.ckpt")["model"], torch.load(tmp_path / "back" / "kl16.ckpt")["model"])
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_the_published_codes_own_files_come_back_bit_for_bit(tmp_path: Path) -> None:
    goldens = need_shared("reference/goldens")
    from harmon.parity.golden import Golden

    state, kl = load_file(goldens / "harmon.safetensors"), load_file(goldens / "kl16.safetensors")
    (tmp_path / "sizes.json").write_text(Golden(goldens).model.config.model_dump_json())
    torch.save(state, tmp_path / "harmon.pth")
    torch.save({"model": kl}, tmp_path / "kl16.ckpt")
    contents = open_released(tmp_path / "harmon.pth", Named(model=str(tmp_path / "sizes.json")))
    write_released(contents, tmp_path / "back")
    assert_same(state, torch.load(tmp_path / "back" / "harmon.pth"))
    assert_same(kl, torch.load(tmp_path / "back" / "kl16.ckpt")["model"])


@pytest.mark.parametrize("size", ["harmon-0.5b", "harmon-1.5b"])
def test_files_of_the_published_layout_are_known_by_their_shapes(tmp_path: Path, size: str) -> None:
    with torch.device("meta"):
        model, autoencoder = Harmon(HarmonConfig.preset(size)), KlAutoencoder()
    torch.save(true_layout(model), tmp_path / "harmon.pth")
    torch.save({"model": true_layout(autoencoder)}, tmp_path / "kl16.ckpt")
    contents = open_checkpoint(tmp_path)
    assert contents.config == HarmonConfig.preset(size)
    assert contents.autoencoder == autoencoder.config and contents.px == 512 and contents.released_head
    with pytest.raises(ConfigurationError, match=r"name a Qwen2\.5-Instruct folder .* --tokenizer"):
        contents.named_tokenizer()


def test_a_run_folder_becomes_a_hugging_face_folder_that_names_the_stand_in(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    contents = open_checkpoint(run)
    write_folder(contents, tmp_path / "hf")
    assert "stand-in for KL-16" in (tmp_path / "hf" / "README.md").read_text()
    assert "stand-in" in json.loads((tmp_path / "hf" / "config.json").read_text())["autoencoder"]["name"]
    again = load(tmp_path / "hf")
    assert again.fingerprint == contents.fingerprint() and again.px == 64 and again.sampling == contents.sampling
    assert_same(again.model.state_dict(), load(run).model.state_dict())
    with pytest.raises(ConfigurationError, match=r"stand-in for KL-16 that kl16.ckpt cannot hold"):
        write_released(contents, tmp_path / "released")


def test_training_and_the_latents_step_read_the_folders_files(tmp_path: Path) -> None:
    write_folder(open_released(*make_released(tmp_path / "released")), tmp_path / "hf", shard_bytes=20_000)
    model = Harmon(tiny_model())
    load_weights(model, sorted((tmp_path / "hf").glob("model-*.safetensors")))
    loaded = load(tmp_path / "hf")
    assert_same(model.state_dict(), loaded.model.state_dict())
    assert_same(load_autoencoder(tmp_path / "hf" / "vae.safetensors").state_dict(), loaded.autoencoder.state_dict())


def test_half_precision_files_load_as_float32_unless_asked(tmp_path: Path) -> None:
    file, named = make_released(tmp_path, torch.bfloat16)
    full, half = load(file, named), load(tmp_path, named, dtype=torch.bfloat16)
    assert full.model.mar.fake_latent.dtype == torch.float32 and half.model.mar.fake_latent.dtype == torch.bfloat16
    assert torch.equal(full.model.mar.fake_latent, half.model.mar.fake_latent.float())
    assert half.autoencoder.quant_conv.weight.dtype == torch.float32  # type: ignore[union-attr]


# -- what is refused -----------------------------------------------------------------------------------------

NORM = "llm.model.norm.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {NORM: None, "llm.model.norm.scale": torch.ones(32)},
            rf"{NORM} is missing; llm.model.norm.scale is unexpected",
        ),
        ({NORM: torch.ones(31)}, rf"{NORM} has shape \(31,\) in place of \(32,\)"),
        ({NORM: torch.ones(32, dtype=torch.int8)}, f"{NORM} holds int8, not floats"),
        ({"vae.quant_conv.bias": torch.ones(32)}, "vae.quant_conv.bias is unexpected"),
        ({HEAD: torch.zeros(2)}, f"{HEAD} differs from {EMBEDDING}"),
    ],
)
def test_a_file_of_other_keys_shapes_or_types_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    with pytest.raises(HarmonError, match=message):
        open_released(*make_released(tmp_path, changes=changes))


class Payload:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("which", ["harmon.pth", "kl16.ckpt"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, which: str, legacy: bool) -> None:
    file, named = make_released(tmp_path)
    mark = tmp_path / "mark"
    bad = {"model": {"quant_conv.weight": Payload(mark)}, "x": Payload(mark)}
    torch.save(bad, tmp_path / which, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        HarmonError, match=rf"{which} was refused: loading it would run code \(it asks for posix.mkdir\)"
    ):
        open_released(file, named)
    assert not mark.exists()
    with (tmp_path / which).open("wb") as plain:
        pickle.dump(bad, plain)
    with pytest.raises(HarmonError, match=rf"{which} is damaged or no torch file"):
        open_released(file, named)
    assert not mark.exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut short", b"<html>not found</html>"])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    file, named = make_released(tmp_path)
    file.write_bytes(data)
    with pytest.raises(HarmonError, match=r"harmon\.pth is damaged or no torch file"):
        open_released(file, named)


@pytest.mark.parametrize("name", ["model.json", "tokenizer.json"])
def test_a_damaged_file_of_a_run_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    file = run / "model" / name
    file.write_bytes(file.read_bytes()[:100] + b"\xff")
    with pytest.raises(HarmonError, match=rf"{name} cannot be read") as refused:
        open_checkpoint(run)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"channels": 8}, "16 latent channels and its autoencoder 8"), ({}, "8 pixels a latent and its autoencoder 16")],
)
def test_a_model_and_an_autoencoder_of_other_latents_are_refused(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    run = make_run(tmp_path / "run")
    if changes:
        make_autoencoder(run / "model" / "autoencoder.safetensors", **changes)
    else:
        file = run / "model" / "model.json"
        description = json.loads(file.read_text())
        description["model"]["latent_stride"] = 8
        file.write_text(json.dumps(description))
    with pytest.raises(HarmonError, match=message):
        open_checkpoint(run)


def test_what_released_files_lack_is_asked_for(tmp_path: Path) -> None:
    file, named = make_released(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has the sizes of no published model.*--model FILE"):
        open_released(file, Named(tokenizer=TOKENIZER))
    with pytest.raises(ConfigurationError, match=r"Released files hold no tokenizer.*--tokenizer FOLDER"):
        load(file, Named(model=named.model))
    with pytest.raises(ConfigurationError, match=r"no tokenizer.json in"):
        load(file, Named(tokenizer=tmp_path, model=named.model))
    with pytest.raises(ConfigurationError, match="no device 'tpu9'"):
        load(file, named, device="tpu9")
    (tmp_path / "kl16.ckpt").rename(tmp_path / "kl.ckpt")
    with pytest.raises(ConfigurationError, match=r"there is no .*kl16\.ckpt; name kl16.ckpt with --vae"):
        open_released(file, named)
    assert open_released(file, Named(TOKENIZER, tmp_path / "kl.ckpt", named.model)).autoencoder == KL


def test_a_folder_is_read_only_from_itself_and_written_only_when_new(tmp_path: Path) -> None:
    contents = open_released(*make_released(tmp_path / "released"))
    write_folder(contents, tmp_path / "hf")
    with pytest.raises(ConfigurationError, match="already holds something"):
        write_folder(contents, tmp_path / "hf")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("vae.safetensors", "../vae.safetensors"))
    with pytest.raises(HarmonError, match=r"'../vae.safetensors', which is no safetensors file of that folder"):
        open_folder(tmp_path / "hf")
    with pytest.raises(ConfigurationError, match="is no checkpoint: name a run folder, a Hugging Face folder"):
        open_checkpoint(tmp_path)


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = open_released(*make_released(tmp_path / "released"))
    monkeypatch.setattr("harmon.convert.folder.remote_code", lambda: {"a/b.py": ""})  # a name that cannot be written
    with pytest.raises(OSError):
        write_folder(contents, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


# -- the start of stage 1 ------------------------------------------------------------------------------------


def make_parts(folder: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path, Path, str]:
    """MAR's, Qwen's and KL-16's files of the true layout, cut from one small model."""
    folder.mkdir(exist_ok=True)
    config = tiny_model()
    state = weights(config)
    ema = {name.removeprefix("mar."): value for name, value in state.items() if name.startswith("mar.")}
    others = {"model": {}, "optimizer": {"state": {}}, "epoch": 399, "args": argparse.Namespace(model="mar_tiny")}
    torch.save({"model_ema": ema, **others}, folder / "checkpoint-last.pth")
    torch.save({"model": kl_weights() | UNUSED}, folder / "kl16.ckpt")
    qwen = folder / "qwen"
    qwen.mkdir()
    llm = {n.removeprefix("llm."): v.to(dtype) for n, v in state.items() if n.startswith("llm.")}
    half = len(llm) // 2
    for number, names in enumerate((list(llm)[:half], list(llm)[half:]), 1):
        save_file({name: llm[name] for name in names}, qwen / f"model-{number:05d}-of-00002.safetensors")
    index = {n: f"model-{1 + (i >= half):05d}-of-00002.safetensors" for i, n in enumerate(llm)}
    (qwen / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (qwen / "config.json").write_text(json.dumps(config.llm.model_dump() | {"model_type": "qwen2"}))
    (qwen / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    sizes = folder / "sizes.json"
    sizes.write_text(config.model_dump_json())
    return folder / "checkpoint-last.pth", qwen, folder / "kl16.ckpt", str(sizes)


def test_init_joins_the_upstream_parts_and_starts_the_connectors_fresh(tmp_path: Path) -> None:
    mar, qwen, kl16, sizes = make_parts(tmp_path)
    start, again, other = (open_parts(mar, qwen, kl16, sizes, seed) for seed in (0, 0, 1))
    write_folder(start, tmp_path / "start")
    loaded = load(tmp_path / "start")
    ema = torch.load(mar, weights_only=False)["model_ema"]
    assert all(torch.equal(loaded.model.mar.state_dict()[name], value) for name, value in ema.items())
    llm = load_file(qwen / "model-00001-of-00002.safetensors")
    assert all(same_bits(start.tensors[f"llm.{name}"], value) for name, value in llm.items())
    assert loaded.model.llm.lm_head.weight is loaded.model.llm.model.embed_tokens.weight
    fresh = "proj_in.0.weight"
    assert torch.equal(start.tensors[fresh], again.tensors[fresh])
    assert not torch.equal(start.tensors[fresh], other.tensors[fresh])
    bound = (6 / sum(start.tensors[fresh].shape)) ** 0.5  # xavier-uniform's
    assert 0.5 * bound < start.tensors[fresh].abs().max() <= bound
    assert json.loads((tmp_path / "start" / "config.json").read_text())["dtype"] == "float32"


def test_init_knows_mars_published_sizes_by_their_shapes(tmp_path: Path) -> None:
    _, _, kl16, _ = make_parts(tmp_path)
    preset = HarmonConfig.preset("harmon-1.5b")
    with torch.device("meta"):
        whole = Harmon(preset)
    mar, qwen = tmp_path / "mar.pth", tmp_path / "qwen15"
    torch.save({"model_ema": true_layout(whole.mar)}, mar)
    qwen.mkdir()
    (qwen / "config.json").write_text(json.dumps(preset.llm.model_dump()))
    with pytest.raises(ConfigurationError, match=r"There is no .*model\.safetensors; name a Qwen2\.5-Instruct folder"):
        open_parts(mar, qwen, kl16)
    from harmon.convert.start import _head_sizes, _mar_sizes

    tensors = torch.load(mar)["model_ema"]
    assert _mar_sizes(tensors, mar) == preset.mar and _head_sizes(tensors) == preset.head


def test_init_refuses_parts_that_are_not_what_they_are_named(tmp_path: Path) -> None:
    mar, qwen, kl16, sizes = make_parts(tmp_path)
    with pytest.raises(HarmonError, match="no entry 'model_ema'"):
        open_parts(kl16, qwen, kl16, sizes)
    with pytest.raises(HarmonError, match="holds no KL autoencoder"):
        open_parts(mar, qwen, mar, sizes)
    with pytest.raises(ConfigurationError, match=r"24 and 24 wide, and no published MAR is.*--model FILE"):
        open_parts(mar, qwen, kl16)


# -- the code of the folder ----------------------------------------------------------------------------------


def test_the_folders_code_imports_nothing_of_ours_and_all_that_it_names() -> None:
    files = remote_code()
    assert {f"{entry}.py" for entry in ENTRIES} <= files.keys()
    for name, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in files, (name, node.module)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                roots = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {str(root).split(".")[0] for root in roots} & {"harmon", "pipelines", "flows"}, name


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """A folder made from released files, and what a process without this project computes with it."""
    base = tmp_path_factory.mktemp("stranger")
    write_folder(open_released(*make_released(base / "released")), base / "hf", shard_bytes=20_000)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(base / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = Path(__file__).with_name("stranger.py")
    command = [
        sys.executable,
        "-P",
        str(program),
        str(base / "hf"),
        str(program.parents[2] / "harmon"),
        str(base / "out"),
    ]
    done = subprocess.run(command, cwd=base, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return base / "hf", load_file(base / "out.safetensors"), json.loads((base / "out.json").read_text())


def test_auto_classes_load_every_weight_without_this_project(told: tuple[Path, Any, dict[str, Any]]) -> None:
    folder, _, facts = told
    assert facts["ours"] == [] and facts["saved_equal"]
    assert not [name for name, found in facts["report"].items() if found and name != "mismatched_keys"], facts["report"]
    loaded = load(folder)
    names = set(loaded.model.state_dict()) | {f"vae.{name}" for name in loaded.autoencoder.state_dict()}
    assert facts["parameters"].keys() == names
    assert facts["chat"] == "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"


def test_what_transformers_saves_is_a_checkpoint_and_a_processor_again(told: tuple[Path, Any, dict[str, Any]]) -> None:
    folder, _, facts = told
    assert facts["processor_equal"] and facts["tokenizer_equal"]
    saved = folder.parent / "out-saved"
    assert not (saved / "model.safetensors.index.json").exists()
    contents, before = open_checkpoint(saved), open_folder(folder)
    assert_same(dict(contents.tensors), dict(before.tensors))
    assert_same(dict(contents.autoencoder_tensors), dict(before.autoencoder_tensors))
    assert contents.config == before.config and contents.px == before.px and contents.tokenizer is not None
    assert contents.fingerprint() == before.fingerprint()


def test_a_saved_folder_that_repeats_the_tied_head_is_read_without_it(tmp_path: Path) -> None:
    contents = open_released(*make_released(tmp_path / "released"))
    write_folder(contents, tmp_path / "hf")
    folder = tmp_path / "hf"
    whole = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    whole = {name: value for name, value in whole.items() if name not in UNUSED}
    save_file(whole | {HEAD: whole[EMBEDDING].clone()}, folder / "model.safetensors")
    assert_same(dict(open_folder(folder).tensors), dict(contents.tensors))
    save_file(whole | {HEAD: whole[EMBEDDING] + 1}, folder / "model.safetensors")
    with pytest.raises(HarmonError, match=f"{HEAD} differs from {EMBEDDING}"):
        open_folder(folder)


def test_drawing_and_answering_leave_dropout_off_in_a_loaded_model() -> None:
    sizes = tiny_model()
    sizes = sizes.model_copy(update={"mar": sizes.mar.model_copy(update={"dropout": 0.5, "attention_dropout": 0.5})})
    torch.manual_seed(0)
    config = PretrainedHarmonConfig(harmon=sizes.model_dump(mode="json"), autoencoder=dump_sizes(KL), px=64)
    model = PretrainedHarmon(config).eval()
    ids, pixels = torch.arange(8)[None], torch.rand(1, 3, 64, 64)
    asked = torch.cat([ids, torch.full((1, 16 + sizes.mar.buffer_size), IMAGE_SLOT), ids], 1)
    with torch.no_grad():
        before = model(asked, pixel_values=pixels).logits
        prompts = ids.repeat(2, 1)
        model.draw_latents(prompts, torch.ones_like(prompts), ar_steps=1, diffusion_steps="2", clip_x0=3.0)
        assert torch.equal(model(asked, pixel_values=pixels).logits, before)
        model.answer(asked, pixel_values=pixels, attention_mask=torch.ones_like(asked), max_new_tokens=1)
        assert torch.equal(model(asked, pixel_values=pixels).logits, before)
    assert not any(module.training for module in model.modules())


def test_the_folders_own_code_computes_what_ours_does(told: tuple[Path, dict[str, Tensor], dict[str, Any]]) -> None:
    folder, got, facts = told
    trained = load(folder)
    picture = Image.linear_gradient("L").resize((40, 56)).convert("RGB")
    pixels = torch.from_numpy(np.stack([padded_square(picture, 64)] * 2))
    assert torch.equal(got["pixel_values"], pixels)
    encoded = trained.autoencoder.encode(pixels)
    torch.testing.assert_close(got["encoded"], encoded, atol=1e-5, rtol=1e-5)
    questions = ["What is this?", "Is it a long question?"]
    prompts = [trained.text.question_prompt(question, trained.slots(64)) for question in questions]
    ids, mask = padded(prompts, trained.text.pad, torch.device("cpu"))
    with torch.no_grad():
        image = trained.model.visual_features(*trained.model.to_tokens(encoded))[1]
        embeddings = trained.model.prompt_embeddings(ids, image)
        logits = trained.model.llm(inputs_embeds=embeddings, attention_mask=mask.long()).logits
    torch.testing.assert_close(got["logits"][mask], logits[mask], atol=1e-4, rtol=1e-4)
    said = answer(trained.model, encoded, ids, mask, AnswerConfig(max_new_tokens=5), eos_ids=())
    assert facts["said"] == said and facts["texts"] == [trained.text.decode(tokens) for tokens in said]

    sampling = SamplingConfig(ar_steps=2, diffusion_steps="3", clip_x0=3.0)
    drawn = draw_pictures(trained, ["a red circle", "a blue square"], [5, 6], sampling, size=(96, 64))
    assert got["latents"].shape == (2, 16, 4, 6) and facts["size"] == [96, 64]
    assert np.abs(got["drawn"].numpy().astype(int) - drawn.astype(int)).max() <= 1
