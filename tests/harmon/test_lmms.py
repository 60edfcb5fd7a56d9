"""lmms-eval, in its own environment, finds Harmon by its entry point and scores it on tasks over a local dataset."""

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from harmon.answering import AnswerConfig
from harmon.ask import answer_questions
from harmon.evaluation.encoders import DEMO
from harmon.likelihood import answer_losses
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.text import IGNORED
from harmon.trained import RunDescription, TrainedStage, describe_run, load
from harmon.training.weights import load_weights, own_tensors
from pipelines.scenes import make_scene, questions, render

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = CHECKOUT / ".venv-lmms-eval/bin/python"
DOCUMENTS, CHOICES = 6, ["yes", "no", "red", "two"]
TASKS = {
    "scenes_said": """
output_type: generate_until
generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false, until: ["."]}
process_results: !function scene_tasks.right
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
""",
    "scenes_chosen": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "scenes_untold": """
output_type: generate_until
generation_kwargs: {max_new_tokens: 4}
process_results: !function scene_tasks.right
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
""",
}
FUNCTIONS = """
import io
from PIL import Image

def picture(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]

def no_picture(doc):
    return []

def right(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's parts as a run of one stage: the connectors are fresh, so its answers are words without sense."""
    folder = tmp_path_factory.mktemp("run")
    config = HarmonConfig.from_file(DEMO / "harmon.yaml")
    torch.manual_seed(3)
    model = Harmon(config)
    load_weights(model, [DEMO / "qwen/model.safetensors", DEMO / "mar.safetensors"])
    checkpoint = folder / "train/stage1-aaaaaaaa/checkpoints/000001"
    checkpoint.mkdir(parents=True)
    save_file({name: value.clone() for name, value in own_tensors(model).items()}, checkpoint / "model.safetensors")
    stages = (TrainedStage(folder="stage1-aaaaaaaa", px=64),)
    sampling = {"ar_steps": 2, "diffusion_steps": "3", "clip_x0": 9.0}
    described = RunDescription(model=config, stages=stages, sampling=sampling)
    describe_run(folder, described, DEMO / "qwen", DEMO / "patch_latent.safetensors")
    return folder


def scenes() -> Iterator[tuple[bytes, str, str]]:
    """(PNG, question, answer) of each document."""
    for index in range(DOCUMENTS):
        scene = make_scene(11, index)
        asked, stored = questions(scene)[0], io.BytesIO()
        Image.fromarray(render(scene)).save(stored, "PNG")
        yield stored.getvalue(), asked.question, asked.answer


def write_tasks(folder: Path) -> None:
    rows = [
        {"image": {"bytes": data}, "question": question, "answer": answer, "choices": CHOICES}
        for data, question, answer in scenes()
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "scenes.parquet")
    (folder / "scene_tasks.py").write_text(FUNCTIONS)
    for name, task in TASKS.items():
        seen = "no_picture" if name == "scenes_untold" else "picture"
        target = "0" if name == "scenes_chosen" else "answer"
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: parquet\n"
            f"dataset_kwargs: {{data_files: {{test: {folder}/scenes.parquet}}}}\ntest_split: test\n"
            f"doc_to_visual: !function scene_tasks.{seen}\ndoc_to_text: '{{{{question}}}}'\n"
            f"doc_to_target: {target}\n{task}"
        )


SCORE = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

checkpoint, folder, tasks, out = sys.argv[1:]
found = simple_evaluate(
    model="harmon", model_args=f"pretrained={checkpoint}", tasks=tasks.split(","), batch_size=4, device="cpu",
    task_manager=TaskManager(include_path=folder, include_defaults=False, model_name="harmon"), log_samples=True,
    bootstrap_iters=0,
)
ordered = {task: sorted(some, key=lambda one: one["doc_id"]) for task, some in found["samples"].items()}
said = {task: [one["resps"] for one in some] for task, some in ordered.items()}
json.dump({"said": said, "results": found["results"]}, open(out, "w"), default=str)
"""


def lmms_eval(tmp_path: Path, script: str, *arguments: str) -> str:
    """What `script` prints in lmms-eval's environment; our modules are the checkout's, and it reaches no network."""
    if not PYTHON.exists():  # it takes 0.7 GB and minutes, so that `make soak` makes it and `make test` does not
        (pytest.fail if os.environ.get("HARMON_SOAK") else pytest.skip)(
            "lmms-eval's environment is absent: make lmms-eval"
        )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    environment = os.environ | offline | {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(PYTHON), "-c", script, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_lmms_eval_lists_harmon_among_its_models(tmp_path: Path) -> None:
    listing = "from lmms_eval.models import list_available_models as names; print(*names(), sep='\\n')"
    assert "harmon" in lmms_eval(tmp_path, listing).split()


@pytest.mark.slow
def test_tasks_over_a_local_dataset_get_the_answers_that_the_checkpoint_gives(tmp_path: Path, run: Path) -> None:
    write_tasks(tmp_path / "tasks")
    lmms_eval(tmp_path, SCORE, str(run), str(tmp_path / "tasks"), ",".join(TASKS), str(tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text())
    said = found["said"]

    trained = load(run)
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data, _, _ in scenes()]
    asked = [question for _, question, _ in scenes()]
    whole = answer_questions(trained, pictures, asked, config=AnswerConfig(max_new_tokens=8))
    assert [one[0][0] for one in said["scenes_said"]] == [answer.split(".")[0].strip() for answer in whole]
    untold = answer_questions(trained, None, asked, config=AnswerConfig(max_new_tokens=4))
    assert [one[0][0] for one in said["scenes_untold"]] == untold
    for place, given in enumerate(said["scenes_chosen"]):
        wanted = answer_losses(trained, [pictures[place]] * 4, [asked[place]] * 4, CHOICES)
        assert [float(one[0][0]) for one in given] == pytest.approx([loss for loss, _ in wanted], abs=1e-4)

    answers = [answer for _, _, answer in scenes()]
    hits = [one[0][0] == answer for one, answer in zip(said["scenes_said"], answers, strict=True)]
    assert found["results"]["scenes_said"]["right,none"] == pytest.approx(sum(hits) / DOCUMENTS)


@pytest.mark.slow
def test_drawing_tasks_get_the_file_of_a_picture_that_is_drawn_once(tmp_path: Path, run: Path) -> None:
    script = (
        "import json, sys\n"
        "from lmms_eval.api.instance import Instance\n"
        "from harmon.evaluation.lmms import HarmonLmms\n"
        "model = HarmonLmms.create_from_arg_string(sys.argv[1], {'device': 'cpu', 'batch_size': 2})\n"
        "def told(i):\n    return {'task': 'draw', 'doc_id': i, 'repeats': 1}\n"
        "asked = [Instance('generate_until', (f'a {c} circle', {}, None, i, 'draw', 'test'), i, told(i))"
        " for i, c in enumerate(('red', 'blue', 'green'))]\n"
        "first = model.generate_until(asked)\n"
        "model.trained = None  # what is there is not drawn again\n"
        "assert model.generate_until(asked) == first\n"
        "print('TOLD', json.dumps(first))\n"
    )
    printed = lmms_eval(tmp_path, script, f"pretrained={run},draw=true,output={tmp_path / 'drawn'}")
    told = [json.loads(one) for one in json.loads(printed.split("TOLD ")[1])]
    assert [one["text"] for one in told] == [""] * 3
    assert [Image.open(one["images"][0]).size for one in told] == [(64, 64)] * 3


def test_an_answers_loss_is_that_of_its_tokens_and_its_end(run: Path) -> None:
    trained = load(run)
    asked, told = ["What is it?", "How many?"], ["a red circle", "two"]
    found = answer_losses(trained, None, asked, told)
    for question, answer, (loss, greedy) in zip(asked, told, found, strict=True):
        chat = trained.text.encode_pair(question, answer, 0)
        with torch.no_grad():
            hidden = trained.model.llm.model(input_ids=torch.tensor([chat.ids])).last_hidden_state
            chances = trained.model.llm.lm_head(hidden)[0, :-1].log_softmax(-1)
        labelled = [place for place, label in enumerate(chat.labels) if label != IGNORED]
        assert chat.labels[labelled[-1]] == trained.text.eos
        each = [-float(chances[place - 1, chat.labels[place]]) for place in labelled]
        assert loss == pytest.approx(sum(each) / len(each), abs=1e-4)
        assert greedy == all(int(chances[place - 1].argmax()) == chat.labels[place] for place in labelled)
