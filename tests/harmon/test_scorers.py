"""Scores agree with the official code in what papers stumble over, and are refused over the wrong number of items."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmon.evaluation.scorers import (
    ai2d,
    counts,
    dpg,
    fid,
    geneval,
    geneval_scores,
    gqa,
    mmbench,
    mme,
    mmmu,
    mmmu_choice,
    mmmu_open,
    mmstar,
    ocrbench,
    pope,
    seed,
    vqa,
    wise,
)
from harmon.evaluation.scorers.choices import extract_lmms_eval, infer_lmms_eval, infer_vlmevalkit, present_options
from pipelines.errors import HarmonError

few = settings(deadline=None, max_examples=50)

OPTIONS = {"A": "teddy bear", "B": "rabbit", "C": "cat", "D": "dog"}
POPE_READINGS: tuple[pope.Reading, ...] = ("official", "lmms-eval", "vlmevalkit")
NOISE = st.text(alphabet="ABCDyesno .,()*:\n1", max_size=24)


def whole_pope(given: str | None = None) -> list[pope.Answer]:
    """All three splits, answered with the truth, or with `given` throughout."""
    labels: tuple[pope.Label, ...] = ("yes", "no")
    splits: tuple[pope.Split, ...] = ("random", "popular", "adversarial")
    return [pope.Answer(split, label, given or label) for split in splits for label in labels for _ in range(1500)]


def whole_mme() -> list[mme.Answer]:
    sizes = counts.MME_PERCEPTION | counts.MME_COGNITION
    return [
        mme.Answer(task, f"{number}.jpg", label, label)
        for task, size in sizes.items()
        for number in range(size // 2)
        for label in ("yes", "no")
    ]


def circle(question: int, options: int, gold: int, category: str = "") -> list[mmbench.Answer]:
    """Every rotation of one question, answered right."""
    texts = [f"text {number}" for number in range(options)]
    rows = []
    for turn in range(options):
        rotated = dict(zip("ABCD", texts[turn:] + texts[:turn]))
        letter = "ABCD"[(gold - turn) % options]
        rows.append(mmbench.Answer(question + turn * mmbench.ROTATION, rotated, letter, letter, category))
    return rows


def whole_mmmu() -> list[mmmu.Answer]:
    subjects = [name for names in mmmu.DOMAINS.values() for name in names]
    answers = []
    for place, subject in enumerate(subjects):
        for number in range(30):
            is_open = place * 30 + number < 53
            answers.append(
                mmmu.Answer(f"validation_{subject}_{number + 1}", "open", (), "7", "the answer is 7")
                if is_open
                else mmmu.Answer(f"validation_{subject}_{number + 1}", "multiple-choice", ("x", "y"), "B", "(B)")
            )
    return answers


def whole_geneval(correct: bool = True) -> list[geneval_scores.Judged]:
    return [
        geneval_scores.Judged(tag, f"{tag} {number}", correct)
        for tag, prompts in counts.GENEVAL_PROMPTS.items()
        for number in range(prompts)
        for _ in range(4)
    ]


def whole_ocrbench() -> list[ocrbench.Answer]:
    return [
        ocrbench.Answer("IIIT5K", kind, ("Word",), "the WORD") for kind, n in counts.OCRBENCH.items() for _ in range(n)
    ]


def whole_gqa() -> list[gqa.Answer]:
    structures = dict(counts.GQA_STRUCTURAL, query=6805, verify=2252)
    return [gqa.Answer("red", structure, "Red.") for structure, number in structures.items() for _ in range(number)]


def whole_mmstar() -> list[mmstar.Answer]:
    return [mmstar.Answer(f"c{n % 6}", f"l{n % 18}", "B", "B. because") for n in range(1500)]


def whole_dpg() -> list[dpg.Answers]:
    dependency, categories = {1: [0], 2: [1]}, {1: "entity - whole ", 2: "attribute - color "}
    return [dpg.Answers(str(n), dependency, [["yes", "yes"]] * 4, categories) for n in range(1065)]


SCORES: dict[str, tuple[Callable[..., Any], list[Any], Callable[[Any], float]]] = {
    "pope": (pope.score, whole_pope(), lambda s: s.mean_f1),
    "mme perception": (mme.score, whole_mme(), lambda s: s.perception / 2000),
    "mme cognition": (mme.score, whole_mme(), lambda s: s.cognition / 800),
    "gqa": (gqa.score, whole_gqa(), lambda s: s.accuracy),
    "seed": (seed.score, [seed.Answer(1 + n % 9, "C", "C") for n in range(14_232)], lambda s: s.accuracy),
    "mmmu": (mmmu.score, whole_mmmu(), lambda s: s.accuracy),
    "mmstar": (mmstar.score, whole_mmstar(), lambda s: s.mean_of_finer),
    "ai2d": (
        lambda answers, **kw: ai2d.score(answers, "mask", **kw),
        [ai2d.Answer(OPTIONS, "C", " C. cat")] * 3088,
        lambda s: s.accuracy,
    ),
    "ocrbench": (ocrbench.score, whole_ocrbench(), lambda s: s.points / s.n),
    "geneval": (geneval_scores.score, whole_geneval(), lambda s: s.overall),
    "dpg": (dpg.score, whole_dpg(), lambda s: s.overall / 100),
    "mmbench": (
        lambda answers, **kw: mmbench.score(answers, version="v1.1", **kw),
        [row for number in range(40) for row in circle(number, 2 + number % 3, number % 2)],
        lambda s: s.circular,
    ),
}
COUNTED = [name for name in SCORES if name != "mmbench"]


@pytest.mark.parametrize("name", SCORES)
def test_truth_scores_everything(name: str) -> None:
    score, truth, share = SCORES[name]
    assert share(score(truth)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", COUNTED)
def test_one_item_short_is_refused_unless_it_is_said_to_be_a_part(name: str) -> None:
    score, truth, share = SCORES[name]
    short = truth[:-2] if name.startswith("mme") else truth[:-1]
    with pytest.raises(HarmonError, match="counts"):
        score(short)
    assert share(score(short, partial=True)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", COUNTED)
def test_more_items_than_there_are_is_refused_even_of_a_part(name: str) -> None:
    score, truth, _ = SCORES[name]
    with pytest.raises(HarmonError):
        score([*truth, *truth], partial=True)


@pytest.mark.parametrize("name", SCORES)
def test_nothing_at_all_is_refused_even_of_a_part(name: str) -> None:
    score, _, _ = SCORES[name]
    with pytest.raises(HarmonError):
        score([], partial=True)


@pytest.mark.parametrize("name", ["pope", "mme perception", "gqa", "mmstar", "geneval", "ocrbench"])
def test_the_order_of_items_does_not_matter(name: str) -> None:
    score, truth, share = SCORES[name]
    wrong = [replace(one, given="???") if hasattr(one, "given") else replace(one, correct=False) for one in truth[::3]]
    mixed = [one for n, one in enumerate(truth) if n % 3] + wrong
    shuffled = random.Random(0).sample(mixed, len(mixed))
    assert share(score(shuffled)) == pytest.approx(share(score(mixed)))


# --- POPE


@pytest.mark.parametrize("text", ["NO", "No!", "", "Nope", "There isn't one", "no\n"])
def test_pope_officially_takes_for_yes_whatever_has_no_exact_no(text: str) -> None:
    assert pope.read_official(text) == "yes"


def test_pope_of_only_no_has_no_precision_officially_but_zero_elsewhere() -> None:
    scores = {reading: pope.score(whole_pope("No"), reading) for reading in POPE_READINGS}
    assert scores["official"].overall.precision is None and scores["official"].mean_f1 is None
    assert scores["official"].overall.accuracy == 0.5
    assert scores["vlmevalkit"].mean_f1 == 0.0


def test_pope_yes_ratio_counts_answers_officially_and_labels_in_lmms_eval() -> None:
    answers = whole_pope("yes")
    assert pope.score(answers, "official").overall.yes_ratio == 1.0
    assert pope.score(answers, "lmms-eval").overall.yes_ratio == 0.5


def test_pope_of_the_old_random_file_is_refused_by_its_name() -> None:
    with pytest.raises(HarmonError, match="e3e3926"):
        pope.score(whole_pope()[90:])


def test_pope_mean_of_splits_is_not_the_score_of_all_answers() -> None:
    answers = [pope.Answer("random", "yes", "yes"), pope.Answer("popular", "yes", "no")]
    answers += [pope.Answer("popular", "no", "no"), pope.Answer("popular", "yes", "yes")]
    scores = pope.score(answers, partial=True)
    assert scores.mean_accuracy == pytest.approx((1 + 2 / 3) / 2)
    assert scores.overall.accuracy == 0.75


@few
@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), NOISE), min_size=1, max_size=20))
def test_pope_shares_stay_within_bounds(pairs: list[tuple[pope.Label, str]]) -> None:
    for reading in POPE_READINGS:
        score = pope.score_answers([label for label, _ in pairs], [text for _, text in pairs], reading)
        shares = (score.accuracy, score.precision, score.recall, score.f1, score.yes_ratio)
        assert all(share is None or 0 <= share <= 1 for share in shares)


# --- MME


@pytest.mark.parametrize(
    ("text", "word"), [("  yes", "other"), ("not sure", "no"), ("know", "no"), ("eyes", "yes"), ("yesterday", "yes")]
)
def test_mme_officially_looks_into_the_first_four_characters(text: str, word: str) -> None:
    assert mme.read_official(text) == word


def test_mme_pairs_questions_by_task_and_picture_since_names_repeat() -> None:
    same_name = [mme.Answer(task, "1.jpg", label, "yes") for task in ("count", "color") for label in ("yes", "no")]
    scores = mme.score(same_name, partial=True)
    assert {task: one.score for task, one in scores.tasks.items()} == {"count": 50.0, "color": 50.0}
    assert scores.perception is None


def test_mme_refuses_a_picture_with_one_question() -> None:
    with pytest.raises(HarmonError, match=r"1\.jpg has 1 questions"):
        mme.score([mme.Answer("count", "1.jpg", "yes", "yes")], partial=True)


def test_mme_keeps_tabs_and_line_breaks_of_an_answer_out_of_the_pairs() -> None:
    answers = [replace(one, given="yes\tno\n") if one.label == "yes" else one for one in whole_mme()]
    assert mme.score(answers).perception == 2000


# --- multiple choice


def test_vlmevalkit_reads_any_word_after_answer_is_by_its_first_letter() -> None:
    assert infer_vlmevalkit("the answer is a dog, I believe, so there", OPTIONS) == "A"


def test_a_bare_a_may_be_the_article() -> None:
    assert infer_vlmevalkit("The image shows A dog running on grass", OPTIONS) == "D"
    assert infer_lmms_eval("The image shows A dog running on grass", OPTIONS) == "D"
    assert extract_lmms_eval("The image shows A dog running on grass", "ABCD") == "A"


def test_a_refusal_is_no_option_and_does_not_go_to_the_judge() -> None:
    assert infer_vlmevalkit("Cannot determine the answer", OPTIONS) == "Z"


def test_missing_options_are_absent_however_a_table_writes_them() -> None:
    assert present_options({"A": "x", "B": float("nan"), "C": "nan", "D": None}) == {"A": "x"}


@few
@given(NOISE)
def test_every_rule_names_an_option_or_none(text: str) -> None:
    assert infer_vlmevalkit(text, OPTIONS) in {*OPTIONS, "Z", None}
    assert infer_lmms_eval(text, OPTIONS) in {*OPTIONS, "E", None}
    assert extract_lmms_eval(text, "ABCD") in {*OPTIONS, None}


def test_mmbench_counts_a_question_only_if_every_rotation_is_right() -> None:
    rows = circle(7, 4, 1, "recognition") + circle(8, 2, 0, "recognition")
    rows[1] = replace(rows[1], given="Z")
    scores = mmbench.score(rows, version="v1.1")
    assert (scores.circular, scores.vanilla) == (0.5, 1.0)
    assert scores.circular_by_category == {"recognition": 0.5}


def test_mmbench_takes_unread_rows_for_wrong_and_lets_a_judge_decide_them() -> None:
    rows = [replace(row, given="???") if row.index < mmbench.ROTATION else row for row in circle(7, 4, 1)]
    assert mmbench.circular_hit(rows) is None
    assert mmbench.score(rows, version="v1.1").circular == 0
    judged = mmbench.score(rows, version="v1.1", judged={7: "B"})
    assert (judged.circular, judged.unparsed, judged.judged) == (1.0, 1, 1)


def test_mmbench_refuses_a_question_that_lacks_a_rotation() -> None:
    with pytest.raises(HarmonError, match="every rotation"):
        mmbench.score(circle(7, 4, 1)[:-1], partial=True)


def test_seed_takes_the_first_character_in_any_case() -> None:
    assert seed.first_character_is_right("cat", "C") and not seed.first_character_is_right("(C)", "C")
    assert not seed.equals("C.", "C")


def test_seed_is_the_mean_over_questions_not_over_types() -> None:
    answers = [seed.Answer(1, "A", "A")] * 3 + [seed.Answer(2, "A", "B")]
    assert seed.score(answers, partial=True).accuracy == 0.75


def test_seed_refuses_questions_about_videos() -> None:
    with pytest.raises(HarmonError, match="type 10"):
        seed.score([seed.Answer(10, "A", "A")], partial=True)


def test_mmstar_average_differs_between_harnesses_where_groups_differ_in_size() -> None:
    answers = [mmstar.Answer("math", "geometry", "A", "A")] * 3 + [mmstar.Answer("math", "numbers", "A", "B")]
    scores = mmstar.score(answers, partial=True)
    assert (scores.mean_of_finer, scores.plain) == (0.5, 0.75)


# --- GQA


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [("bus..", "bus", {"llava", "lmms-eval"}), (" bus", "bus", {"vlmevalkit"}), ("tshirt", "t-shirt", {"lmms-eval"})],
)
def test_gqa_equalities_differ(text: str, gold: str, right: set[str]) -> None:
    readings: tuple[gqa.Reading, ...] = ("llava", "official", "lmms-eval", "vlmevalkit")
    assert {reading for reading in readings if gqa.is_right(text, gold, reading)} == right


# --- MMMU


def test_mmmu_parsers_differ_on_a_letter_before_a_full_stop() -> None:
    assert mmmu_choice.parse("C. blue", ["red", "green", "blue"], "official") is None
    assert mmmu_choice.parse("C. blue", ["red", "green", "blue"], "lmms-eval") == "C"


def test_mmmu_pro_reads_the_letter_after_the_last_answer_mark() -> None:
    options = ["x"] * 10
    assert mmmu_choice.parse("(A) no. Answer: J", options, "mmmu-pro") == "J"
    assert mmmu_choice.parse("(A) no. Answer: J", options, "lmms-eval") == "A"


def test_mmmu_guesses_are_seeded_once_and_told_apart() -> None:
    answers = [mmmu.Answer(f"validation_Art_{n}", "multiple-choice", ("x", "y", "z"), "B", "") for n in range(300)]
    scores = mmmu.score(answers, partial=True)
    assert scores == mmmu.score(answers, partial=True)
    assert scores.unparsed == 300 and scores.accuracy_without_guesses == 0
    assert 0.2 < scores.accuracy < 0.47
    generator = random.Random(42)
    assert scores.accuracy == pytest.approx(sum(generator.choice("ABC") == "B" for _ in range(300)) / 300)


@pytest.mark.parametrize(
    ("response", "gold", "right"), [("36 watts", "30", False), ("$1,000", "1000", True), ("4%", "0.04", False)]
)
def test_mmmu_open_numbers_are_compared_without_units_or_percents(response: str, gold: str, right: bool) -> None:
    assert mmmu_open.is_right(mmmu_open.parse(response), gold) is right


def test_vlmevalkit_makes_open_questions_easy_choices() -> None:
    question = mmmu.Answer("validation_Art_1", "open", (), "a long gold answer", "a long gold answer indeed")
    assert mmmu.score([question], "vlmevalkit", partial=True).accuracy == 1
    assert mmmu.score([replace(question, given="A")], "vlmevalkit", partial=True).accuracy == 1


@few
@given(NOISE)
def test_mmmu_parsers_name_an_option_or_none(text: str) -> None:
    for parser in ("official", "lmms-eval", "mmmu-pro"):
        assert mmmu_choice.parse(text, ["red", "green"], parser) in {"A", "B", None}


@few
@given(st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: f"{number:.2f}"))
def test_mmmu_a_number_answers_itself(number: str) -> None:
    assert mmmu_open.is_right(mmmu_open.parse(f"So the answer is {number}"), number)


# --- OCRBench and VQA


def test_ocrbench_finds_the_gold_within_words_and_in_full_width() -> None:
    assert ocrbench.credit("textVQA", "nonstop", ["stop"]) == 1
    assert ocrbench.credit("FUNSD", "１２３", ["123"]) == 1
    assert ocrbench.credit("FUNSD", "①", ["1"]) == 0


def test_ocrbench_formulas_keep_their_case_and_lose_their_blanks() -> None:
    assert ocrbench.credit("HME100k", "X ^ { 2 }", ["X^{2}"]) == 1
    assert ocrbench.credit("HME100k", "x ^ { 2 }", ["X^{2}"]) == 0


def test_ocrbench_runs_do_not_add_up() -> None:
    assert ocrbench.score(whole_ocrbench()).points == ocrbench.score(whole_ocrbench()).points == 1000


def test_vqa_soft_score_leaves_each_human_out_in_turn() -> None:
    humans = ["coke"] * 3 + ["pepsi"] * 7
    assert vqa.soft_accuracy("Coke.", humans) == pytest.approx((3 * 2 / 3 + 7) / 10)
    with pytest.raises(HarmonError, match="ten"):
        vqa.soft_accuracy("coke", humans[:9])


# --- GenEval


def boxes(*scored: tuple[float, ...]) -> list[geneval.Detection]:
    """Boxes 10 wide, given by x0 and score."""
    return [geneval.Detection((x, 0, x + 10, 10), score) for x, score in scored]


def prompt(tag: str, include: list[dict[str, Any]], exclude: list[dict[str, Any]] | None = None) -> geneval.Prompt:
    return geneval.Prompt.of({"tag": tag, "prompt": "x", "include": include, "exclude": exclude or []})


def test_geneval_thresholds_are_strict_and_higher_for_counting() -> None:
    clock = {"class": "clock", "count": 1}
    assert not geneval.judge(prompt("single_object", [clock]), {"clock": boxes((0, 0.3))}).correct
    assert geneval.judge(prompt("single_object", [clock]), {"clock": boxes((0, 0.31))}).correct
    assert not geneval.judge(prompt("counting", [clock]), {"clock": boxes((0, 0.9))}).correct


def test_geneval_looks_for_colours_at_the_most_certain_boxes_only() -> None:
    wanted = prompt("colors", [{"class": "car", "count": 1, "color": "pink"}])
    red, pink = (geneval.Detection((0, 0, 10, 10), score, colour) for score, colour in ((0.9, "red"), (0.8, "pink")))
    assert geneval.judge(wanted, {"car": [pink, red]}).reason == "expected pink car>=1, found 0 pink; and 1 red"


def test_geneval_needs_colours_where_they_decide() -> None:
    wanted = prompt("colors", [{"class": "car", "count": 1, "color": "pink"}])
    with pytest.raises(HarmonError, match="no colour"):
        geneval.judge(wanted, {"car": boxes((0, 0.9))})


def test_geneval_keeps_overlapping_boxes_unless_told_otherwise() -> None:
    twice = boxes((0, 0.95), (0, 0.94))
    assert len(geneval.kept(twice, "counting")) == 2
    assert len(geneval.kept(twice, "counting", geneval.Rules(max_overlap=0.5))) == 1


def test_geneval_tells_that_a_target_is_missing() -> None:
    wanted = prompt("position", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}])
    reason = geneval.judge(wanted, {"dog": boxes((0, 0.9))}).reason
    assert reason == "expected cat>=1, found 0\nno target for dog to be above"


@few
@given(st.lists(st.integers(0, 200), min_size=4, max_size=4), st.lists(st.integers(0, 200), min_size=4, max_size=4))
def test_geneval_directions_are_opposite_from_the_other_side(box_a: list[int], box_b: list[int]) -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    seen = geneval.relations(box_a, box_b)
    assert {opposite[one] for one in seen} == geneval.relations(box_b, box_a)
    assert len(seen) <= 2


def test_geneval_is_the_mean_over_tasks_not_over_pictures_and_not_any_of_four() -> None:
    judged = [replace(one, correct=one.tag == "counting") for one in whole_geneval()]
    scores = geneval_scores.score(judged)
    assert scores.overall == pytest.approx(1 / 6)
    assert scores.over_images == pytest.approx(320 / 2212)
    assert "Total images: 2212\nTotal prompts: 553\n" in scores.summary()


def test_geneval_of_544_prompts_is_refused() -> None:
    with pytest.raises(HarmonError, match="color_attr"):
        geneval_scores.score(whole_geneval()[:-36])


# --- WISE and DPG


@pytest.mark.parametrize("text", ["**Consistency:** 2", "Consistency (0-2): 2", "Consistency：2", "Consistency= 2"])
def test_wise_does_not_read_scores_in_other_shapes(text: str) -> None:
    assert wise.named_scores(text) == {}


def test_wise_reads_the_last_of_several_and_digits_above_two() -> None:
    text = "Consistency: 1\nConsistency: 3\nRealism: 1.5\nAesthetic Quality: 0"
    assert wise.read_legacy(text) == wise.Judgement(3.0, 1.0, 0.0)


def test_wise_reads_three_bare_lines() -> None:
    assert wise.read_legacy("2\n1\n0") == wise.Judgement(2.0, 1.0, 0.0)


def test_wise_versions_weigh_and_range_differently() -> None:
    time_only = {prompt: float(401 <= prompt <= 567) for prompt in range(1, 1001)}
    legacy = wise.score_legacy({prompt: wise.Judgement(2 * v, 2 * v, 2 * v) for prompt, v in time_only.items()})
    verified = wise.score_verified(time_only)
    assert legacy.overall == pytest.approx(0.167)
    assert verified.overall == pytest.approx(0.12 + 0.12 * 47 / 120)


@pytest.mark.parametrize("version", ["legacy", "verified"])
def test_wise_without_one_prompt_is_refused(version: wise.Version) -> None:
    prompts = range(2, 1001)
    with pytest.raises(HarmonError, match="999"):
        if version == "legacy":
            wise.score_legacy(dict.fromkeys(prompts, wise.Judgement(2, 2, 2)))
        else:
            wise.score_verified(dict.fromkeys(prompts, 1.0))


def test_wise_verified_refuses_scores_of_the_other_benchmark() -> None:
    with pytest.raises(HarmonError, match="0 or 1"):
        wise.score_verified(dict.fromkeys(range(1, 1001), 2.0))


def test_wise_weights_sum_to_one_and_ranges_hold_every_prompt() -> None:
    for categories in wise.CATEGORIES.values():
        assert sum(category.weight for category in categories.values()) == pytest.approx(1)
        held = [n for category in categories.values() for n in range(category.first, category.last + 1)]
        assert held == list(range(1, 1001))


def test_dpg_zeroes_children_of_a_no_and_scores_categories_before_that() -> None:
    result = dpg.score_prompt({1: [0], 2: [1]}, [["no", "yes"]])
    assert result.score == 0 and result.before_dependency == {1: 0.0, 2: 1.0}


def test_dpg_goes_through_questions_once_in_the_order_given() -> None:
    child_first = dpg.score_prompt({3: [2], 2: [1], 1: [0]}, [["yes", "yes", "no"]])
    assert child_first.score == pytest.approx(1 / 3)


@few
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.data())
def test_dpg_a_better_answer_never_lowers_the_score(yes: list[bool], data: st.DataObject) -> None:
    numbers = range(1, len(yes) + 1)
    dependency = {n: [data.draw(st.integers(0, n - 1))] for n in numbers}
    better = [one or data.draw(st.booleans()) for one in yes]
    words = [["yes" if one else "no" for one in some] for some in (yes, better)]
    low, high = (dpg.score_prompt(dependency, [some]).score for some in words)
    assert 0 <= low <= high <= 1


# --- FID


@few
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 20))
def test_fid_is_zero_of_a_set_with_itself_symmetric_and_not_negative(number: int, width: int, n: int) -> None:
    generator = np.random.default_rng(number)
    first = fid.moments(generator.normal(size=(n, width)))
    second = fid.moments(generator.normal(size=(n, width)) * 2 + 1)
    assert fid.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert fid.frechet_distance(first, second) == pytest.approx(fid.frechet_distance(second, first))
    assert fid.frechet_distance(first, second) >= -1e-9


def test_fid_equals_its_closed_form_for_diagonal_covariances() -> None:
    generator = np.random.default_rng(0)
    mean_1, mean_2, a, b = generator.uniform(0.1, 4, size=(4, 32))
    distance = fid.frechet_distance(fid.Moments(mean_1, np.diag(a)), fid.Moments(mean_2, np.diag(b)))
    assert distance == pytest.approx(((mean_1 - mean_2) ** 2).sum() + ((a**0.5 - b**0.5) ** 2).sum())


def test_fid_of_fewer_pictures_than_features_keeps_its_digits() -> None:
    features = np.random.default_rng(0).normal(size=(20, 64))
    one = fid.moments(features)
    assert fid.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert fid.frechet_distance(one, fid.moments(features + 1)) == pytest.approx(64)


def test_fid_of_another_number_of_pictures_is_refused() -> None:
    features = np.random.default_rng(0).normal(size=(100, 4))
    with pytest.raises(HarmonError, match="30,000"):
        fid.score(features, fid.moments(features))
    assert fid.score(features, fid.moments(features), partial=True).n == 100


def test_fid_refuses_features_of_another_extractor_and_numbers_that_are_none() -> None:
    features = np.random.default_rng(0).normal(size=(10, 4))
    with pytest.raises(HarmonError, match="same extractor"):
        fid.frechet_distance(fid.moments(features), fid.moments(features[:, :3]))
    features[0, 0] = np.nan
    with pytest.raises(HarmonError, match="not finite"):
        fid.moments(features)
