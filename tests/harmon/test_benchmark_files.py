"""Benchmarks' published files as questions and prompts: counts, traps, wordings, and files that cannot be trusted."""

import base64
import csv
import hashlib
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harmon.evaluation import benchmark as benchmarks
from harmon.evaluation.benchmark import GENERATION, UNDERSTANDING, Count, read_prompts, read_questions
from harmon.evaluation.benchmarks import mme, wise
from harmon.evaluation.files import images, tsv
from harmon.evaluation.files.parquet import read_parquet
from harmon.evaluation.files.tsv import read_table
from harmon.evaluation.prompting import LETTER, WORD
from harmon.evaluation.question import Question, decoded
from pipelines.errors import ConfigurationError, HarmonError
from tests.harmon import benchmark_miniatures as mini

QUESTIONS = {
    "pope": (mini.pope, 9000),
    "mme": (mini.mme_published, 2374),
    "mmbench-dev-en": (mini.mmbench, 4329),
    "seed-bench-image": (mini.seed, 14233),
    "gqa": (mini.gqa, 12578),
    "mmmu-val": (mini.mmmu, 900),
    "mmmu-pro-standard-10": (mini.mmmu_pro, 1730),
    "mmstar": (mini.mmstar, 1500),
    "ai2d": (mini.ai2d, 3088),
    "ocrbench": (mini.ocr, 1000),
}
PROMPTS = {
    "geneval": (mini.geneval_file, 553),
    "wise-legacy": (mini.wise_files, 1000),
    "dpg-bench": (mini.dpg, 1065),
    "mjhq-30k": (mini.mjhq, 30000),
    "mscoco-30k": (mini.coco, 30000),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The published files of a benchmark, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            make, _ = {**QUESTIONS, **PROMPTS}[name]
            make(made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("name", QUESTIONS)
def test_published_files_give_as_many_questions_as_were_published(data: Callable[[str], Path], name: str) -> None:
    questions = read_questions(name, data(name))
    assert len(questions) == QUESTIONS[name][1]
    assert len({question.id for question in questions}) == len(questions)
    for question in (questions[0], questions[-1]):
        again = pickle.loads(pickle.dumps(question))  # as it goes to another process
        assert again == question
        assert again.answer
        assert not again.options or again.answer in again.options
        assert [decoded(picture).mode for picture in again.pictures] == ["RGB"] * len(again.pictures)


@pytest.mark.parametrize("name", PROMPTS)
def test_published_files_give_as_many_prompts_as_were_published(data: Callable[[str], Path], name: str) -> None:
    prompts = read_prompts(name, data(name))
    assert len(prompts) == PROMPTS[name][1]
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert prompts[0].images == {"geneval": 4, "dpg-bench": 4}.get(name, 1)


def test_every_benchmark_can_be_asked_in_each_of_its_variants(data: Callable[[str], Path]) -> None:
    for name in QUESTIONS:
        for variant in UNDERSTANDING[name].variants:
            assert read_questions(name, data(name), variant, limit=1)[0].prompt


def test_a_limit_takes_the_first_items_and_cuts_no_group_apart(data: Callable[[str], Path]) -> None:
    assert [q.id for q in read_questions("gqa", data("gqa"), limit=3)] == ["201000", "201001", "201002"]
    pairs = read_questions("mme", data("mme"), limit=3)
    assert [q.group for q in pairs] == [pairs[0].group] * 2 + [pairs[2].group] * 2
    turned = read_questions("mmbench-dev-en", data("mmbench-dev-en"), limit=1)
    assert [q.facts["rotation"] for q in turned] == ["0", "1", "2", "3"]
    assert len(read_prompts("geneval", data("geneval"), limit=5)) == 5


def test_an_unknown_name_or_variant_is_told_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'pope-popular'"):
        read_questions("pope-populer", tmp_path)
    with pytest.raises(ConfigurationError, match="draws pictures"):
        read_questions("geneval", tmp_path)
    with pytest.raises(ConfigurationError, match="asks questions"):
        read_prompts("mme", tmp_path)
    with pytest.raises(ConfigurationError, match="llava, lmms-eval, vlmevalkit"):
        read_questions("mmmu-val", tmp_path, "qwen")
    with pytest.raises(ConfigurationError, match="is no folder"):
        read_questions("ocrbench", tmp_path / "nowhere")
    for name in UNDERSTANDING:
        with pytest.raises(ConfigurationError, match=r"docs/benchmarks-data\.md"):
            read_questions(name, tmp_path)
    for name in GENERATION:
        with pytest.raises(ConfigurationError, match=r"docs/benchmarks-data\.md"):
            read_prompts(name, tmp_path)


# POPE


def test_the_old_random_file_of_pope_is_refused(tmp_path: Path) -> None:
    mini.pope(tmp_path)
    path = tmp_path / "output/coco/coco_pope_random.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in mini.pope_lines("random", 2910)))
    with pytest.raises(HarmonError, match="2,910 items, where 3,000 were published"):
        read_questions("pope-random", tmp_path)
    with pytest.raises(HarmonError, match="2,910 with the split 'random'"):
        read_questions("pope", tmp_path)
    assert len(read_questions("pope-random", tmp_path, limit=2910)) == 2910
    assert len(read_questions("pope-popular", tmp_path)) == 3000


def test_pope_is_the_same_from_the_hub_as_published(data: Callable[[str], Path], tmp_path: Path) -> None:
    mini.pope_hub(tmp_path)
    published, hub = read_questions("pope", data("pope")), read_questions("pope", tmp_path)
    assert [replace(q, pictures=()) for q in published] == [replace(q, pictures=()) for q in hub]
    assert Counter(q.answer for q in hub) == {"yes": 4500, "no": 4500}


def test_pope_is_asked_with_and_without_a_suffix(data: Callable[[str], Path]) -> None:
    text = "Is there a random 0 in the image?"
    asked = {v: read_questions("pope-random", data("pope"), v, 1)[0].prompt for v in UNDERSTANDING["pope"].variants}
    assert asked == {"llava": f"{text}\n{WORD}", "lmms-eval": f"{text}\n{WORD}", "vlmevalkit": text}


def test_a_damaged_line_of_pope_names_file_line_and_field(tmp_path: Path) -> None:
    mini.pope(tmp_path)
    path = tmp_path / "output/coco/coco_pope_random.json"
    good = mini.pope_lines("random", 1)[0]

    def problem(line: str) -> str:
        path.write_text(json.dumps(good) + "\n\n" + line + "\n")
        with pytest.raises(HarmonError) as caught:
            read_questions("pope-random", tmp_path, limit=9)
        return str(caught.value)

    assert "coco_pope_random.json, line 3 is no JSON" in problem('{"question_id": ')
    assert "line 3 is no JSON object, but list" in problem("[1]")
    assert "line 3: the field 'label' is 'maybe'" in problem(json.dumps(good | {"label": "maybe", "question_id": 9}))
    assert "line 3 has no field 'text'" in problem(json.dumps({"image": good["image"], "question": "?"}))
    assert "line 3: its picture gone.jpg is not in" in problem(json.dumps(good | {"image": "gone.jpg"}))
    assert "has the item random/1 twice" in problem(json.dumps(good))
    assert "line 3 is no JSON" in problem("[" * 200_000)


# MME


def test_names_that_repeat_across_tasks_of_mme_are_pairs_of_their_own(data: Callable[[str], Path]) -> None:
    questions = read_questions("mme", data("mme"))
    assert Counter(q.facts["category"] for q in questions) == mme.TASKS
    assert set(Counter(q.group for q in questions).values()) == {2}
    assert len({q.group for q in questions}) == 1187
    assert len({q.facts["picture"] for q in questions}) < 1187
    for first, second in zip(questions[::2], questions[1::2], strict=True):
        assert first.group == second.group
        assert {first.answer, second.answer} == {"yes", "no"}


def test_mme_is_the_same_from_the_hub_but_for_the_ending_of_names(data: Callable[[str], Path], tmp_path: Path) -> None:
    mini.mme_hub(tmp_path)
    hub = read_questions("mme", tmp_path)
    assert len(hub) == 2374
    assert [q.facts["category"] for q in hub] == [q.facts["category"] for q in read_questions("mme", data("mme"))]


def test_the_ending_of_mme_stays_where_the_official_wording_is_asked_for(data: Callable[[str], Path]) -> None:
    official = read_questions("mme", data("mme"), "official", 1)[0].prompt
    assert official == "Is this existence 0? Please answer yes or no."
    assert read_questions("mme", data("mme"), "lmms-eval", 1)[0].prompt == f"Is this existence 0?\n{WORD}"


def test_a_picture_of_mme_without_its_second_question_is_refused(tmp_path: Path) -> None:
    mini.mme_published(tmp_path)
    base = tmp_path / "MME_Benchmark_release_version/MME_Benchmark"
    words = base / "scene/questions_answers_YN/0003.txt"
    whole = words.read_text()
    words.write_text(whole.split("\n")[0])
    with pytest.raises(HarmonError, match=r"0003\.txt, line 1: the picture 0003\.png of scene has 1 questions"):
        read_questions("mme", tmp_path)
    words.write_text(whole.replace("\tNo", "\tNo\tyes, it is"))
    with pytest.raises(HarmonError, match=r"0003\.txt, line 2 has 3 cells"):
        read_questions("mme", tmp_path)
    words.write_text(whole)
    (base / "count/0000.jpg").unlink()
    with pytest.raises(
        HarmonError, match=r"0000\.txt, line 1: its picture 0000\.jpg or 0000\.png or 0000\.jpeg is not in"
    ):
        read_questions("mme", tmp_path)


# MMBench


def test_rotations_of_mmbench_stand_together_and_share_their_base_rows_picture(data: Callable[[str], Path]) -> None:
    questions = read_questions("mmbench-dev-en", data("mmbench-dev-en"))
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.group, []).append(question)
    assert [q.group for q in questions] == [q.group for group in groups.values() for q in group]
    for base, group in groups.items():
        assert [q.facts["rotation"] for q in group] == [str(turn) for turn in range(len(group[0].options))]
        assert {q.options[str(q.answer)] for q in group} == {"a rabbit"}
        assert {q.pictures[0].read() for q in group[:: len(group) - 1]} == {mini.jpeg(int(base) % 7)}
    assert Counter(len(group) for group in groups.values()) == {4: 900, 3: 201, 2: 63}


def test_options_that_are_nan_are_absent_and_cells_keep_tabs_and_lines(data: Callable[[str], Path]) -> None:
    questions = read_questions("mmbench-dev-en", data("mmbench-dev-en"), "lmms-eval")
    four, two = questions[0], questions[-3]
    assert four.options == {"A": "a teddy bear", "B": "a rabbit", "C": 'a "cat"', "D": "a dog\tor\nso"}
    assert four.facts["hint"] == "A passage.\nOf two lines."
    assert list(two.options) == ["A", "B"]
    assert "nan" not in two.prompt.lower()


def test_mmbench_is_asked_in_three_ways(data: Callable[[str], Path]) -> None:
    folder = data("mmbench-dev-en")
    first = {
        v: read_questions("mmbench-dev-en", folder, v, 1)[0].prompt for v in UNDERSTANDING["mmbench-dev-en"].variants
    }
    hint, listed = "A passage.\nOf two lines.", 'A. a teddy bear\nB. a rabbit\nC. a "cat"\nD. a dog\tor\nso'
    assert first == {
        "llava": f"{hint}\n{mini.MCQ}\n{listed}\n{LETTER}",
        "lmms-eval": f"{hint} {mini.MCQ} There are several options:\n{listed}\n\n{LETTER}",
        "vlmevalkit": f"Hint: {hint}\nQuestion: {mini.MCQ}\nOptions:\n{listed}\n"
        "Please select the correct answer from the options above. \n",
    }
    hintless = read_questions("mmbench-dev-en", folder, "vlmevalkit", 8)[4].prompt
    assert hintless.startswith("Question: ")


def test_a_table_of_mmbench_that_is_not_as_published_names_row_and_column(tmp_path: Path) -> None:
    good = mini.mmbench_rows((2, 0, 0))

    def problem(change: Callable[[list[list[str]]], object], head: tuple[str, ...] = mini.MMBENCH) -> str:
        rows = [[*row] for row in good]
        change(rows)
        mini.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows, head)
        with pytest.raises(HarmonError) as caught:
            read_questions("mmbench-dev-en", tmp_path, limit=99)
        return str(caught.value)

    def put(row: int, column: str, value: str) -> Callable[[list[list[str]]], None]:
        return lambda rows: rows[row].__setitem__(mini.MMBENCH.index(column), value)

    assert "row 3: the field 'image' is '77'" in problem(put(2, "image", "77"))
    assert "row 3: the field 'image' is '2000000'" in problem(put(2, "image", "2000000"))  # which has none of its own
    assert "row 1: the cell 'image' is empty" in problem(put(0, "image", ""))
    assert "row 2: the field 'index' is '1.0'" in problem(put(1, "index", "1.0"))
    assert "row 2: the field 'index' is 0, which an earlier row has" in problem(put(1, "index", "0"))
    assert "row 4: the field 'answer' is 'E'" in problem(put(3, "answer", "E"))
    assert "the question 1 has the rows [1, 1000001, 2000001], not one for each" in problem(lambda rows: rows.pop())
    assert "row 1: the field 'A' is one of the options A, C, D" in problem(put(0, "B", "nan"))
    assert "row 5 has 13 cells, not 14" in problem(lambda rows: rows[4].pop())
    assert "has no column 'answer', but index, question" in problem(
        lambda rows: None, tuple("gold" if name == "answer" else name for name in mini.MMBENCH)
    )


def test_a_cell_that_is_no_picture_is_told_when_it_is_read(tmp_path: Path) -> None:
    rows = mini.mmbench_rows((1, 0, 0))
    column = mini.MMBENCH.index("image")
    rows[0][column] = "!" * 100
    mini.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    picture = read_questions("mmbench-dev-en", tmp_path, limit=9)[0].pictures[0]
    with pytest.raises(HarmonError, match="row 1: its picture is not base64"):
        picture.read()
    rows[0][column] = base64.b64encode(b"<html>" * 30).decode()
    mini.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    with pytest.raises(HarmonError, match="row 1: its picture cannot be decoded"):
        decoded(read_questions("mmbench-dev-en", tmp_path, limit=9)[0].pictures[0])


def test_a_cell_larger_than_any_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsv, "MAX_ROW", 4000)
    rows = mini.mmbench_rows((1, 0, 0))
    rows[1][mini.MMBENCH.index("image")] = "A" * 8000
    mini.write_tsv(tmp_path / "t.tsv", rows)
    with pytest.raises(HarmonError, match="row 2 has more than 4,000 bytes"):
        list(read_table(tmp_path / "t.tsv", mini.MMBENCH[:2]))


def test_a_picture_of_a_table_is_read_in_a_process_that_never_read_the_table(tmp_path: Path) -> None:
    """The csv module's limit is of the process, and by default smaller than most pictures."""
    rows = mini.mmbench_rows((1, 0, 0))
    rows[0][mini.MMBENCH.index("image")] = base64.b64encode(bytes(300_000)).decode()
    mini.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    picture = read_questions("mmbench-dev-en", tmp_path, limit=9)[0].pictures[0]
    before = csv.field_size_limit(131_072)
    try:
        assert picture.read() == bytes(300_000)
    finally:
        csv.field_size_limit(before)


def test_an_open_quote_does_not_swallow_the_rest_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('index\tquestion\timage\n1\t"open\tAAAA\n2\twell\tBBBB\n')
    with pytest.raises(HarmonError, match="row 1 cannot be read"):
        list(read_table(path, ("index",)))
    path.write_bytes(b"index\timage\n1\t\xff\xfe\n")
    with pytest.raises(HarmonError, match="row 1 is not UTF-8"):
        list(read_table(path, ("index",)))


def test_a_table_is_read_alike_with_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes("\ufeffindex\timage\r\n1\tAAAA\r\n2\tBBBB\r\n".encode())
    rows = list(read_table(tmp_path / "t.tsv", ("index",)))
    assert [row.values["index"] for row in rows] == ["1", "2"]
    assert [row.picture.read() for row in rows] == [b"\0\0\0", b"\x04\x10A"]


def test_version_1_1_of_mmbench_is_known_by_its_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "MMBench_DEV_EN_V11.tsv"
    mini.write_tsv(path, mini.mmbench_rows((3, 2, 1)))
    with pytest.raises(HarmonError, match="where the published file has 30c05be8f2f347a50be25aa067248184"):
        read_questions("mmbench-dev-en-v11", tmp_path)
    assert len(read_questions("mmbench-dev-en-v11", tmp_path, limit=100)) == 20
    known = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    v11 = replace(UNDERSTANDING["mmbench-dev-en-v11"], count=Count((), file=(path.name, known)))
    monkeypatch.setitem(benchmarks.UNDERSTANDING, "mmbench-dev-en-v11", v11)
    assert {q.benchmark for q in read_questions("mmbench-dev-en-v11", tmp_path)} == {"mmbench-dev-en-v11"}


# SEED-Bench and GQA


def test_questions_about_videos_are_passed_over(data: Callable[[str], Path], tmp_path: Path) -> None:
    questions = read_questions("seed-bench-image", data("seed-bench-image"))
    assert {q.facts["type_id"] for q in questions} == {str(n) for n in range(1, 10)}
    assert questions[0].options == {"A": "One", "B": "Two", "C": "3", "D": "None"}
    assert questions[0].prompt == f"How many, number 0?\nA. One\nB. Two\nC. 3\nD. None\n{LETTER}"
    mini.seed_hub(tmp_path)
    hub = read_questions("seed-bench-image", tmp_path, limit=40)
    assert [replace(q, pictures=()) for q in hub] == [replace(q, pictures=()) for q in questions[:40]]
    with pytest.raises(HarmonError, match="40 items, where 14,232 or 14,233 were published"):
        read_questions("seed-bench-image", tmp_path)


def test_gqa_is_the_same_from_the_hub_as_published(data: Callable[[str], Path], tmp_path: Path) -> None:
    mini.gqa_hub(tmp_path)
    published, hub = read_questions("gqa", data("gqa")), read_questions("gqa", tmp_path)
    assert [replace(q, pictures=()) for q in published] == [replace(q, pictures=()) for q in hub]
    assert [q.pictures[0].read() for q in published[:7]] == [q.pictures[0].read() for q in hub[:7]]
    assert hub[0].facts["structural"] == "verify"


def test_a_question_of_gqa_that_is_not_balanced_is_refused(tmp_path: Path) -> None:
    mini.pictures(tmp_path / "images", ["n0.jpg"])
    rows = mini.gqa_questions(1)
    rows["201000"]["isBalanced"] = False
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    with pytest.raises(HarmonError, match="item 201000: the field 'isBalanced' is not true"):
        read_questions("gqa", tmp_path, limit=1)


# MMMU


def test_pictures_of_mmmu_are_those_that_question_and_options_name(data: Callable[[str], Path]) -> None:
    questions = read_questions("mmmu-val", data("mmmu-val"))
    first = questions[0]
    assert first.numbers == (1, 2)
    assert [picture.read() for picture in first.pictures] == [mini.jpeg(0), mini.jpeg(1)]
    assert first.options == {"A": "$6", "B": "$7", "C": "it's 8", "D": "<image 2>"}
    assert first.facts["subject"] == "Subject_0"
    one, text, two, end = first.parts
    assert (one, two) == first.pictures
    assert (text, end) == (
        " What of it, 0?\n\n(A) $6\n(B) $7\n(C) it's 8\n(D) ",
        f"\n\n\n{LETTER}",
    )
    opened = [q for q in questions if not q.options]
    assert len(opened) == 53
    assert opened[0].prompt == f"<image 1> What of it, 28?\n\n{WORD}"
    assert opened[0].numbers == (1,)
    assert {q.answer for q in opened} == {"36", ("24/7", "3.429")}


def test_lists_of_mmmu_are_read_as_literals_and_nothing_is_run(tmp_path: Path) -> None:
    def change(key: str, value: object) -> Callable[[dict[str, object]], None]:
        return lambda row: row.update({key: value})

    for key, value, said in (
        ("options", "__import__('os').system('touch made')", "where a list is written out"),
        ("options", "[" * 5000, "where a list is written out"),
        ("options", "['only']", "a list of 1"),
        ("answer", "I", "'I', which is none of A, B, C, D"),
        ("image_1", None, "named as|without a picture, which the question names as <image 1>"),
        ("question_type", "choice", "which is none of multiple-choice, open"),
        ("id", "validation_1", "where split, subject and number are read"),
    ):
        mini.mmmu(tmp_path / key, change(key, value), subjects=1)
        with pytest.raises(HarmonError, match=f"row 1: the field '{key}' is .*({said})"):
            read_questions("mmmu-val", tmp_path / key, limit=1)
    assert not (Path.cwd() / "made").exists()


def test_lmms_eval_asks_mmmu_with_letters_and_full_stops(data: Callable[[str], Path]) -> None:
    first = read_questions("mmmu-val", data("mmmu-val"), "lmms-eval", 1)[0]
    assert first.prompt == f"<image 1> What of it, 0?\nA. $6\nB. $7\nC. it's 8\nD. <image 2>\n\n{LETTER}"


def test_mmmu_pro_has_three_forms(data: Callable[[str], Path]) -> None:
    folder = data("mmmu-pro-standard-10")
    ten, four = (read_questions(f"mmmu-pro-standard-{many}", folder, limit=1)[0] for many in (10, 4))
    assert list(ten.options) == list("ABCDEFGHIJ")
    assert list(four.options) == list("ABCD")
    assert ten.id == four.id
    vision = read_questions("mmmu-pro-vision", folder)
    assert len(vision) == 1730
    assert vision[0].text == ""
    assert vision[0].prompt.startswith("Answer with the option letter from the given choices directly.")


# MMStar, AI2D, OCRBench


def test_mmstar_of_lmms_eval_is_asked_without_a_full_stop(data: Callable[[str], Path]) -> None:
    first = read_questions("mmstar", data("mmstar"), "lmms-eval", 1)[0]
    assert first.prompt.endswith("directly")
    assert first.facts["l2_category"] == "image scene and topic"


def test_an_answer_of_ai2d_is_a_place_among_its_options(data: Callable[[str], Path], tmp_path: Path) -> None:
    questions = read_questions("ai2d", data("ai2d"), limit=3)
    assert [q.answer for q in questions] == ["A", "B", "C"]
    assert {q.benchmark for q in read_questions("ai2d-no-mask", data("ai2d"), limit=1)} == {"ai2d-no-mask"}
    path = data("ai2d") / "data/test-00000-of-00002.parquet"
    table = pq.read_table(path)
    wrong = table.set_column(1, "answer", pa.array(["4"] * table.num_rows))
    (tmp_path / "data").mkdir()
    pq.write_table(wrong, tmp_path / "data/test-0.parquet")
    with pytest.raises(HarmonError, match="row 1: the field 'answer' is 4, of 4 options"):
        read_questions("ai2d", tmp_path, limit=1)


def test_ocrbench_keeps_every_answer_and_its_dataset(data: Callable[[str], Path]) -> None:
    first = read_questions("ocrbench", data("ocrbench"), limit=1)[0]
    assert first.answer == ("CHAIN", "Chain")
    assert first.facts == {"type": "Regular Text Recognition", "dataset": "HME100k"}


# prompts to draw


def test_geneval_keeps_each_line_for_the_folder_of_its_number(data: Callable[[str], Path]) -> None:
    prompts = read_prompts("geneval", data("geneval"))
    assert (prompts[0].id, prompts[-1].id) == ("00000", "00552")
    assert [dict(prompt.record) for prompt in prompts] == mini.geneval_lines()


def test_544_prompts_are_no_geneval(tmp_path: Path) -> None:
    lines = mini.geneval_lines()[:544]
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(HarmonError, match="544 items, where 553 were published"):
        read_prompts("geneval", tmp_path)


def test_one_wise_is_not_read_for_the_other(data: Callable[[str], Path], tmp_path: Path) -> None:
    legacy = read_prompts("wise-legacy", data("wise-legacy"))
    assert [p.id for p in legacy] == [str(n) for n in range(1, 1001)]
    assert Counter(p.facts["category"] for p in legacy) == {name: len(ids) for name, ids in wise.LEGACY.items()}
    with pytest.raises(HarmonError, match="row says BIOLOGY"):
        read_prompts("wise-verified", data("wise-legacy"))
    mini.wise_files(tmp_path, wise.VERIFIED)
    assert len(read_prompts("wise-verified", tmp_path)) == 1000
    with pytest.raises(HarmonError, match="the row says BIOLOGY"):
        read_prompts("wise-legacy", tmp_path)


def test_a_missing_id_of_wise_is_refused(data: Callable[[str], Path], tmp_path: Path) -> None:
    for file in wise.FILES:
        rows = json.loads((data("wise-legacy") / file).read_text())
        (tmp_path / file).write_text(json.dumps(rows[: -1 if file == wise.FILES[0] else None]))
    with pytest.raises(HarmonError, match="999 items, where 1,000 were published; 399 with the category 'CULTURE'"):
        read_prompts("wise-legacy", tmp_path)


def test_dpg_keeps_the_first_row_and_every_dependency(data: Callable[[str], Path], tmp_path: Path) -> None:
    first = read_prompts("dpg-bench", data("dpg-bench"), limit=1)[0]
    assert [(one["id"], one["dependency"]) for one in first.record["questions"]] == [(1, [0]), (2, [1]), (3, [1, 2])]
    text = (data("dpg-bench") / "dpg_bench.csv").read_text()
    (tmp_path / "dpg_bench.csv").write_text(text.replace('"1,2"', '"1,9"', 1))
    with pytest.raises(HarmonError, match="row 3: the field 'dependency' is 9, which is no question of item0"):
        read_prompts("dpg-bench", tmp_path)


def test_captions_come_with_their_pictures_where_those_are_wanted(data: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none of mjhq30k_imgs, images, mjhq30k_imgs\.zip"):
        read_prompts("mjhq-30k", data("mjhq-30k"), references=True)
    mini.coco(tmp_path)
    mini.pictures(tmp_path / "val2014", (f"COCO_val2014_{n + 42:012}.jpg" for n in range(3)))
    prompts = read_prompts("mscoco-30k", tmp_path, limit=3, references=True)
    assert [prompt.pictures[0].read() for prompt in prompts] == [mini.jpeg(n) for n in range(3)]
    with pytest.raises(HarmonError, match=r"row 4: its picture COCO_val2014_000000000045\.jpg is not in"):
        read_prompts("mscoco-30k", tmp_path, limit=4, references=True)


# files from strangers


def pope_with(root: Path, image: str) -> list[Question]:
    (root / "coco_pope_random.json").write_text(json.dumps(mini.pope_lines("random", 1)[0] | {"image": image}) + "\n")
    return read_questions("pope-random", root, limit=1)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "a\\..\\secret.jpg", "\0.jpg"])
def test_a_name_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(mini.jpeg())
    mini.pictures(tmp_path / "pope/val2014", ["x.jpg"])
    with pytest.raises(HarmonError, match=r"line 1: .*is no name below a folder"):
        pope_with(tmp_path / "pope", name)


def test_a_link_out_of_the_folder_of_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(mini.jpeg())
    mini.pictures(tmp_path / "val2014", ["x.jpg"])
    (tmp_path / "val2014/link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(HarmonError, match=r"line 1: link\.jpg is a link out of"):
        pope_with(tmp_path, "link.jpg")


def test_a_folder_of_pictures_may_be_a_link(tmp_path: Path) -> None:
    mini.pictures(tmp_path / "elsewhere", ["x.jpg"])
    (tmp_path / "val2014").symlink_to(tmp_path / "elsewhere")
    assert pope_with(tmp_path, "x.jpg")[0].pictures[0].read() == mini.jpeg(0)


def test_pictures_are_found_in_a_zip_with_or_without_its_folder(tmp_path: Path) -> None:
    mini.zipped(tmp_path / "val2014.zip", ["val2014/x.jpg", "y.jpg"])
    assert pope_with(tmp_path, "x.jpg")[0].pictures[0].read() == mini.jpeg(0)
    assert pope_with(tmp_path, "y.jpg")[0].pictures[0].read() == mini.jpeg(1)
    with pytest.raises(HarmonError, match=r"its picture z\.jpg is not in .*val2014\.zip"):
        pope_with(tmp_path, "z.jpg")


def test_a_member_that_unpacks_to_more_than_any_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PICTURE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "val2014.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.jpg", b"\0" * (2 << 20))
    with pytest.raises(HarmonError, match=r"line 1: x\.jpg says more than"):
        pope_with(tmp_path, "x.jpg")[0].pictures[0].read()
    (tmp_path / "val2014.zip").unlink()
    mini.pictures(tmp_path / "val2014", ["x.jpg"])
    (tmp_path / "val2014/x.jpg").write_bytes(b"\0" * (2 << 20))
    with pytest.raises(HarmonError, match=r"x\.jpg has more than 1,048,576 bytes"):
        pope_with(tmp_path, "x.jpg")[0].pictures[0].read()


def test_damage_inside_an_archive_is_told_with_the_row(tmp_path: Path) -> None:
    mini.zipped(tmp_path / "val2014.zip", ["x.jpg"])
    data = bytearray((tmp_path / "val2014.zip").read_bytes())
    data[200] ^= 255
    (tmp_path / "val2014.zip").write_bytes(data)
    with pytest.raises(HarmonError, match=r"line 1: x\.jpg in .* cannot be read"):
        pope_with(tmp_path, "x.jpg")[0].pictures[0].read()


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    mini.pictures(tmp_path / "val2014", ["x.png"])
    for side, said in ((9_000, "9000 x 9000"), (30_000, "DecompressionBombError")):  # 243 MB and 2.7 GB as RGB
        (tmp_path / "val2014/x.png").write_bytes(png_header(side))
        with pytest.raises(HarmonError, match=f"line 1: .*{said}"):
            decoded(pope_with(tmp_path, "x.png")[0].pictures[0])


def png_header(side: int) -> bytes:
    """A PNG that says that it is so large, and holds next to nothing."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_parquet_file_that_is_not_as_published_names_file_and_column(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "test-0.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(HarmonError, match=r"test-0\.parquet cannot be read as Parquet"):
        read_questions("ocrbench", tmp_path)
    pq.write_table(pa.table({"question": ["?"], "image": ["x.jpg"]}), path)
    with pytest.raises(HarmonError, match=r"test-0\.parquet has no column 'dataset', 'question_type', 'answer'"):
        read_questions("ocrbench", tmp_path)
    made = {"dataset": ["d"], "question": ["?"], "question_type": ["Doc-oriented VQA"], "answer": [["a"]]}
    pq.write_table(pa.table(made | {"image": ["x.jpg"]}), path)
    with pytest.raises(HarmonError, match="the column 'image' is string, and no bytes of pictures"):
        read_questions("ocrbench", tmp_path)
    for cell, said in ((None, "is 0 pictures, where one is read"), ({"bytes": None, "path": "x"}, "has no bytes")):
        pq.write_table(pa.table(made | {"image": pa.array([cell], mini.IMAGE)}), path)
        with pytest.raises(HarmonError, match=f"row 1: the field 'image' {said}"):
            read_questions("ocrbench", tmp_path, limit=1)[0].pictures[0].read()


def test_pictures_of_a_parquet_file_are_right_in_any_order(data: Callable[[str], Path]) -> None:
    questions = read_questions("ai2d", data("ai2d"), limit=500)
    for place in (0, 499, 3, 4, 250, 251, 99, 100, 0):
        assert questions[place].pictures[0].read() == mini.jpeg(place % 7)


def test_a_large_table_is_read_a_row_at_a_time(tmp_path: Path) -> None:
    rows = mini.mmbench_rows((10, 0, 0))
    for row in rows:
        row[mini.MMBENCH.index("image")] = "A" * 1_000_000
    mini.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    tracemalloc.start()
    try:
        questions = read_questions("mmbench-dev-en", tmp_path, limit=40)
        sizes = {len(question.pictures[0].read()) for question in questions}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(questions), sizes) == (40, {750_000})
    assert peak < 12_000_000, peak  # of a file of 40 MB


def test_of_a_parquet_file_one_page_is_held_at_a_time(tmp_path: Path) -> None:
    rows = [{"id": f"n{n}", "image": {"bytes": random.Random(n).randbytes(100_000), "path": ""}} for n in range(200)]
    schema = [("id", pa.string()), ("image", mini.IMAGE)]
    mini.parquet(tmp_path / "t.parquet", rows, schema, group=20)  # a page is a group here: 2 MB
    before, held = pa.total_allocated_bytes(), 0
    for row in read_parquet([tmp_path / "t.parquet"], ("id",)):
        assert len(row.picture().read()) == 100_000
        held = max(held, pa.total_allocated_bytes() - before)
    assert held < 8_000_000, held  # of a file of 20 MB


def test_a_json_file_larger_than_any_benchmarks_is_not_read(tmp_path: Path) -> None:
    mini.pictures(tmp_path / "images", ["n0.jpg"])
    with (tmp_path / "testdev_balanced_questions.json").open("wb") as stream:
        stream.truncate(300 << 20)
    with pytest.raises(HarmonError, match="has 314,572,800 bytes, more than any benchmark's"):
        read_questions("gqa", tmp_path)
