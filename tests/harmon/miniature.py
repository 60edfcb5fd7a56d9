"""A training dataset of a few scenes, a patch latent fitted to them, and a Harmon of a few thousand
parameters.
"""

import io
from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image

from harmon.latents import latents_group, write_latents
from harmon.model.config import HarmonConfig, HeadConfig, MarConfig, QwenConfig
from harmon.model.patch_latent import PatchLatent
from harmon.text import ChatText
from harmon.training.job import TrainJob
from harmon.training.mixture import Mixture, MixtureSource
from harmon.training.stage import StageConfig, load_stage
from pipelines.canonical import sample_key, sha256_hex
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.scenes import Scene, class_name, dense_caption, make_scene, questions, render, text_dialogue
from pipelines.steps import Step, StepRun

TOKENIZER = Path(__file__).parents[2] / "harmon" / "parts" / "demo" / "qwen"
REWRITES = "caption.rewrite-v1-none-00000000"
TASKS = ("text2image", "image2text", "text")


def make_corpus(
    folder: Path | str, shards: int = 3, rows: int = 12, px: int = 64, wide: bool = False, cut: tuple[int, ...] = ()
) -> Dataset:
    """A dataset of `shards` x `rows` scenes, tasks in turn, with rewritten captions; `wide`: pictures of
    2:1; the files of the rows `cut`, counted over all shards, end too early.
    """
    dataset = Dataset(folder)
    run = StepRun(dataset, Step("make-corpus", 1, {"shards": shards, "rows": rows, "wide": wide}, ()))
    for shard in run.pending(range(shards)):
        output = run.shard(shard)
        output.columns("source", _source(output, shard, rows, px, wide, cut))
        output.finish(rows_in=rows)
    run.commit({"scenes": {"licence": "CC0-1.0", "terms": "open"}})
    rewriting = StepRun(dataset, Step("make-rewrites", 1, {}, ()))
    for shard in rewriting.pending(dataset.shard_numbers):
        source = dataset.table("source", shard, ["key", "task"])
        texts = [
            f"A picture, number {row}." if task == "image2text" and row else None
            for row, task in enumerate(source["task"].to_pylist())
        ]
        table = pa.table({"key": source["key"], "text": pa.array(texts, pa.string())})
        output = rewriting.shard(shard)
        output.columns(REWRITES, table)
        output.finish(rows_in=rows)
    rewriting.commit()
    return dataset


def make_autoencoder(path: Path, channels: int = 16) -> Path:
    """A patch latent of stride 16 fitted to a few scenes."""
    images = torch.stack(
        [torch.from_numpy(render(make_scene(1, i), 64)).permute(2, 0, 1) / 127.5 - 1 for i in range(32)]
    )
    PatchLatent.fit(images.float(), channels, 16).save(path)
    return path


def tiny_model(text: ChatText | None = None) -> HarmonConfig:
    """Sizes that train in milliseconds: one layer of each kind, no drop-out."""
    vocabulary = (text or ChatText(TOKENIZER)).tokenizer.get_vocab_size()
    llm = QwenConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        vocab_size=vocabulary, rope_theta=1e4,
    )  # fmt: skip
    mar = MarConfig(
        encoder_width=24, encoder_depth=1, encoder_heads=2, decoder_width=24, decoder_depth=1, decoder_heads=2,
        native_grid=4, buffer_size=4, class_count=0, attention_dropout=0, dropout=0,
    )  # fmt: skip
    return HarmonConfig(llm=llm, mar=mar, head=HeadConfig(width=16, depth=1, batch_mul=2))


def mixture(dataset: Dataset) -> Mixture:
    """Class names and rewritten captions for drawing, questions and dense captions for seeing, dialogues for
    text.
    """
    folder = str(dataset.root)
    return Mixture(
        text=(MixtureSource(dataset=folder, rows="text", text="conversation"),),
        image2text=(
            MixtureSource(dataset=folder, rows="image2text", text="conversation", weight=2),
            MixtureSource(dataset=folder, rows="image2text", text="caption"),
        ),
        text2image=(
            MixtureSource(dataset=folder, rows="text2image", text="caption"),
            MixtureSource(dataset=folder, rows="image2text", text=REWRITES),
        ),
    )


def make_job(folder: Path, stage: StageConfig, **settings: object) -> TrainJob:
    """A job on a new corpus below `folder`, latents computed."""
    dataset = make_corpus(folder / "corpus")
    autoencoder = make_autoencoder(folder / "patch_latent.safetensors")
    write_latents(dataset, stage.px, autoencoder)
    values = {
        "stage": stage, "mixture": mixture(dataset), "model": tiny_model(), "tokenizer": str(TOKENIZER),
        "latents": latents_group(stage.px, autoencoder), "runs": str(folder / "train"), "log_every": 1,
    }  # fmt: skip
    return TrainJob(**(values | settings))


def small_stage(name: str = "stage2", **changes: object) -> StageConfig:
    """A stage of the paper cut to 64 px and 24 rows a step, with rates at which something moves."""
    rates = {part: 1e-2 for part, rate in load_stage(name).learning_rate.model_dump().items() if rate}
    cut = {
        "px": 64,
        "global_batch": 24,
        "block_rows": 4,
        "steps": 8,
        "learning_rate": rates,
        "warmup_share": 0.25,
    }
    return load_stage(name, cut | changes)


def _source(output: object, shard: int, rows: int, px: int, wide: bool, cut: tuple[int, ...]) -> pa.Table:
    records = []
    for row in range(rows):
        task = TASKS[row % 3]
        scene = make_scene(0, shard * rows + row, objects=1 if task == "text2image" else None)
        key = sample_key("scenes", f"scene-{shard * rows + row:06d}")
        record: dict[str, object] = dict.fromkeys(SOURCE_SCHEMA.names)
        record |= {"key": key, "source": "scenes", "row_id": f"scene-{shard * rows + row:06d}", "task": task}
        if task != "text":
            data = _png(scene, px, wide)[: 200 if shard * rows + row in cut else None]
            output.images().add(key, data, "png", {})  # type: ignore[attr-defined]
            record |= {
                "ext": "png",
                "width": px * (2 if wide else 1),
                "height": px,
                "sha256": sha256_hex(data),
            }
        records.append(record | _words(scene, task))
    return pa.Table.from_pylist(records, schema=SOURCE_SCHEMA)


def _words(scene: Scene, task: str) -> dict[str, object]:
    if task == "text2image":
        return {"caption": class_name(scene)}
    if task == "text":
        return {"conversations": [{"role": turn.role, "text": turn.text} for turn in text_dialogue(scene)]}
    turns = [(("user", asked.question), ("assistant", asked.answer)) for asked in questions(scene)]
    conversation = [{"role": role, "text": text} for turn in turns for role, text in turn]
    return {"caption": dense_caption(scene), "conversations": conversation}


def _png(scene: Scene, px: int, wide: bool) -> bytes:
    picture = Image.fromarray(render(scene, px))
    if wide:
        picture = picture.resize((2 * px, px))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
