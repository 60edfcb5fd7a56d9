"""MME: two questions about each picture, one to be answered yes and one no (BradyFU, branch Evaluation; EVALS.md 2.2).

As published     a folder for each of 14 tasks: NAME.txt (two lines `question <tab> Yes|No`) beside NAME.jpg or .png, or
                 those in questions_answers_YN/ and images/; or TASK.txt with `picture <tab> question <tab> Yes|No`
From the hub     lmms-lab/MME: test-*.parquet

Names of pictures repeat across tasks, so the pair is known by task and name.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import Record, files_of
from harmon.evaluation.files.images import FilePicture, Images, ZippedPicture
from harmon.evaluation.files.parquet import read_parquet
from harmon.evaluation.prompting import LLAVA, LMMS_EVAL, OFFICIAL, VLMEVALKIT, worded
from harmon.evaluation.question import Picture, Question
from harmon.evaluation.scorers.counts import MME_COGNITION, MME_PERCEPTION
from pipelines.errors import ConfigurationError, HarmonError

TASKS = MME_PERCEPTION | MME_COGNITION
"""Task to its number of questions."""
VARIANTS = (LLAVA, LMMS_EVAL, OFFICIAL, VLMEVALKIT)
ENDING = " Please answer yes or no."  # of every question, which llava and lmms-eval take off
ENDINGS = (".jpg", ".png", ".jpeg")
ANSWERS = {"Yes": "yes", "No": "no"}
MAX_TEXT = 1 << 20  # bytes of a text file


def read_mme(folder: Path, variant: str) -> Iterator[Question]:
    """The questions, those of one picture beside each other, in the order of `TASKS`."""
    pairs: dict[tuple[str, str], list[tuple[Record, str, str, Picture]]] = defaultdict(list)
    parquet = any(folder.glob("**/test-*.parquet"))
    for task, name, row, text, answer, picture in _hub(folder) if parquet else _published(folder):
        if answer not in ANSWERS:
            raise row.wrong("answer", f"{answer[:20]!r}, neither Yes nor No")
        pairs[task, name].append((row, text, ANSWERS[answer], picture))
    order = list(TASKS)
    for task, name in sorted(pairs, key=lambda key: order.index(key[0])):
        pair = pairs[task, name]
        if sorted(answer for *_, answer, _ in pair) != ["no", "yes"]:
            raise HarmonError(
                f"{pair[0][0].where}: the picture {name} of {task} has {len(pair)} questions, not one of each answer; "
                "fetch MME anew."
            )
        for place, (_, text, answer, picture) in enumerate(pair, 1):
            yield Question(
                "mme", f"{task}/{name}/{place}", text, _prompt(text, variant), (picture,), answer,
                facts={"category": task, "picture": name}, group=f"{task}/{name}",
            )  # fmt: skip


def _prompt(text: str, variant: str) -> str:
    return text if variant in (OFFICIAL, VLMEVALKIT) else worded(text.strip().replace(ENDING, ""))


Found = tuple[str, str, Record, str, str, Picture]  # task, picture's name, row, question, answer, picture


def _hub(folder: Path) -> Iterator[Found]:
    paths = files_of(folder, "**/test-*.parquet", named="MME")
    for row in read_parquet(paths, ("question_id", "question", "answer", "category")):
        task = row.one_of(list(TASKS), "category")
        name = row.text("question_id").removeprefix(f"{task}/")
        yield task, name, row, row.text("question"), row.text("answer").strip(), row.picture()


def _published(folder: Path) -> Iterator[Found]:
    root = next((path.parent for path in sorted(folder.glob("**/existence")) if path.is_dir()), None)
    if root is None:
        raise ConfigurationError(
            f"{folder} holds no MME: neither test-*.parquet nor a folder `existence`; "
            "docs/benchmarks-data.md says what to fetch."
        )
    for task in TASKS:
        if not (root / task).is_dir():
            raise HarmonError(f"{root} has no folder {task}, one of MME's 14 tasks; fetch MME anew.")
        images = Images(root, (f"{task}/images", task))
        template = next((path for path in _templates(folder, root, task) if path.is_file()), None)
        rows = _template(template) if template else _texts(root, task)
        for row in rows:
            name = row.text("picture")
            picture = images.find(row.where, *([name] if template else [name + ending for ending in ENDINGS]))
            yield task, Path(picture_name(picture)).name, row, row.text("question"), row.text("answer"), picture


def picture_name(picture: FilePicture | ZippedPicture) -> str:
    """The file's name of a picture."""
    return picture.path.name if isinstance(picture, FilePicture) else picture.member


def _templates(folder: Path, root: Path, task: str) -> list[Path]:
    places = (root, folder, folder / "Your_Results", folder / "eval_tool/Your_Results")
    return [place / f"{task}.txt" for place in places]


def _template(path: Path) -> Iterator[Record]:
    """Rows of TASK.txt; a fourth cell, where a model's answer belongs, may be there and is not read."""
    for number, line in enumerate(_lines(path), 1):
        cells = line.split("\t")
        where = f"{path}, line {number}"
        if len(cells) not in (3, 4):
            raise HarmonError(f"{where} has {len(cells)} cells, not picture, question and answer; fetch MME anew.")
        yield Record(where, {"picture": cells[0], "question": cells[1], "answer": cells[2].strip()})


def _texts(root: Path, task: str) -> Iterator[Record]:
    """Rows of the small files, one a picture."""
    apart = root / task / "questions_answers_YN"
    for path in files_of(apart if apart.is_dir() else root / task, "*.txt", named=f"questions of {task}"):
        for number, line in enumerate(_lines(path), 1):
            where, cells = f"{path}, line {number}", line.split("\t")
            if len(cells) != 2:
                raise HarmonError(f"{where} has {len(cells)} cells, not question and answer; fetch MME anew.")
            yield Record(where, {"picture": path.stem, "question": cells[0], "answer": cells[1].strip()})


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > MAX_TEXT:
        raise HarmonError(f"{path} has more than {MAX_TEXT:,} bytes; it is no file of MME.")
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise HarmonError(f"{path} is not UTF-8 ({error.reason}); fetch MME anew.") from None
