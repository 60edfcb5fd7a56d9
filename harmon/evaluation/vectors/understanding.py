"""Replays of the understanding benchmarks' groups, by file and group."""

from collections.abc import Mapping
from typing import Any

from harmon.evaluation.scorers import gqa, mmbench, mme, mmmu, mmmu_choice, mmmu_open, mmstar, ocrbench, pope, seed, vqa
from harmon.evaluation.scorers.choices import (
    extract_lmms_eval,
    infer_lmms_eval,
    infer_vlmevalkit,
    present_options,
)
from harmon.evaluation.scorers.exact_match import exact_match
from harmon.evaluation.scorers.yes_no import read_vlmevalkit
from harmon.evaluation.vectors.case import Case, Replay, replayed

_OPTIONS = {"A": "teddy bear", "B": "rabbit", "C": "cat", "D": "dog"}  # of mcq/parse, named in its note
_SEED_GOLD = "C"
_INITIALS = {"Y": "yes", "N": "no", "m": "maybe"}


@replayed("text")
def _pope_parse(case: Case) -> Mapping[str, Any]:
    return {
        "official_llava": pope.read_official(case["text"]),
        "vlmevalkit": read_vlmevalkit(case["text"]),
        "lmms_eval_raw_prediction": pope.read_lmms_eval(case["text"]),
    }


@replayed("name", "answers", "labels")
def _pope_aggregate(case: Case) -> Mapping[str, Any]:
    official, lmms_eval, vlmevalkit = (
        pope.score_answers(case["labels"], case["answers"], reading)
        for reading in ("official", "lmms-eval", "vlmevalkit")
    )
    undefined = None in (official.precision, official.recall, official.f1)
    return {
        "official": {"error": "ZeroDivisionError"}
        if undefined
        else {
            "TP": official.true_positive,
            "FP": official.false_positive,
            "TN": official.true_negative,
            "FN": official.false_negative,
            "Accuracy": official.accuracy,
            "Precision": official.precision,
            "Recall": official.recall,
            "F1 score": official.f1,
            "Yes ratio": official.yes_ratio,
        },
        "lmms_eval": {
            "accuracy": lmms_eval.accuracy,
            "precision": lmms_eval.precision,
            "recall": lmms_eval.recall,
            "f1_score": lmms_eval.f1,
            "yes_ratio": lmms_eval.yes_ratio,
        },
        "vlmevalkit_overall": {
            "Overall": _percent(vlmevalkit.f1),
            "acc": _percent(vlmevalkit.accuracy),
            "precision": _percent(vlmevalkit.precision),
            "recall": _percent(vlmevalkit.recall),
        },
    }


@replayed("text")
def _mme_parse(case: Case) -> Mapping[str, Any]:
    return {
        "official_after_lower": mme.read_official(case["text"]),
        "lmms_eval": mme.read_lmms_eval(case["text"]),
    }


@replayed("name", "encoding", "data")
def _mme_aggregate(case: Case) -> Mapping[str, Any]:
    answers = [
        mme.Answer(task, str(place // 4), "yes" if pairs[place] == "Y" else "no", _INITIALS[pairs[place + 1]])
        for task, pairs in case["data"].items()
        for place in range(0, len(pairs), 2)
    ]
    official, lmms_eval, vlmevalkit = (
        mme.score(answers, reading, partial=True) for reading in ("official", "lmms-eval", "vlmevalkit")
    )
    return {
        "expected": {
            "perception": official.perception,
            "cognition": official.cognition,
            "per_task": {task: one.score for task, one in official.tasks.items()},
        },
        "lmms_eval": {"perception": lmms_eval.perception, "cognition": lmms_eval.cognition},
        "vlmevalkit": {"perception": vlmevalkit.perception, "reasoning": vlmevalkit.cognition},
    }


@replayed("text")
def _choice_parse(case: Case) -> Mapping[str, Any]:
    text = case["text"]
    return {
        "vlmevalkit_can_infer": infer_vlmevalkit(text, _OPTIONS) or False,
        "lmms_eval_mmbench_prefetch": infer_lmms_eval(text, _OPTIONS) or False,
        "lmms_eval_extract_mcq_answer": extract_lmms_eval(text, list(_OPTIONS)) or "",
        "seed_first_char_correct_vs_C": seed.first_character_is_right(text, _SEED_GOLD),
    }


@replayed("name", "rows")
def _circular(case: Case) -> Mapping[str, Any]:
    rows = [
        mmbench.Answer(row["index"], present_options(row), row["GT"], str(row["prediction"])) for row in case["rows"]
    ]
    return {"hit": mmbench.circular_hit(rows)}


@replayed("pred_answer")
def _seed_aggregate(case: Case) -> Mapping[str, Any]:
    answers = [seed.Answer(1, gold, given) for given, gold in case["pred_answer"]]
    return {"accuracy": seed.score(answers, partial=True).accuracy}


@replayed("dataset", "pred", "answer")
def _ocrbench(case: Case) -> Mapping[str, Any]:
    golds = [case["answer"]] if isinstance(case["answer"], str) else case["answer"]
    return {"score": ocrbench.credit(case["dataset"], case["pred"], golds)}


@replayed("l2_and_score")
def _mmstar(case: Case) -> Mapping[str, Any]:
    pairs = [(group, float(value)) for group, value in case["l2_and_score"]]
    return {
        "mean_of_l2_means": mmstar.mean_of_means(pairs),
        "plain_mean": sum(value for _, value in pairs) / len(pairs),
    }


@replayed("pred", "gold")
def _gqa(case: Case) -> Mapping[str, Any]:
    given, gold = case["pred"], case["gold"]
    return {
        "llava_converted": gqa.converted_by_llava(given),
        "official_correct_after_llava_conversion": gqa.is_right(given, gold, "llava"),
        "official_correct_raw": gqa.is_right(given, gold, "official"),
        "lmms_eval_exact_match": exact_match(given, gold),
    }


@replayed("response", "options")
def _mmmu_choice(case: Case) -> Mapping[str, Any]:
    def parsed(parser: mmmu_choice.Parser) -> Any:
        letter = mmmu_choice.parse(case["response"], case["options"], parser)
        return letter or {"random_choice_among": list(mmmu_choice.lettered(case["options"]))}

    return {
        "official_mmmu": parsed("official"),
        "lmms_eval": parsed("lmms-eval"),
        "mmmu_pro": parsed("mmmu-pro"),
    }


@replayed("response", "gold")
def _mmmu_open(case: Case) -> Mapping[str, Any]:
    parsed = mmmu_open.parse(case["response"])
    return {"parsed_sorted": sorted(map(repr, parsed)), "correct": mmmu_open.is_right(parsed, case["gold"])}


@replayed("text")
def _mmmu_normalise(case: Case) -> Mapping[str, Any]:
    return {
        "normalize_str": mmmu_open.normalised(case["text"]),
        "extract_numbers": mmmu_open.numbers(case["text"]),
    }


@replayed("samples")
def _mmmu_aggregate(case: Case) -> Mapping[str, Any]:
    right = [
        (mmmu.Answer(name, "multiple-choice", (), gold, "").subject, mmmu.right_choice(parsed, gold))
        for name, gold, parsed in case["samples"]
    ]
    subjects = mmmu.over_subjects(right)
    return {
        "per_subject": {name: {"acc": one.accuracy, "num_example": one.n} for name, one in subjects.items()},
        "overall_instance_level": mmmu.instance_level(list(subjects.values())),
        "mean_of_subjects": sum(one.accuracy for one in subjects.values()) / len(subjects),
    }


@replayed("text")
def _vqa(case: Case) -> Mapping[str, Any]:
    return {"processed": vqa.normalise(case["text"])}


@replayed("pred", "gts")
def _vqa_soft(case: Case) -> Mapping[str, Any]:
    return {"score": vqa.soft_accuracy(case["pred"], case["gts"])}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


GROUPS: dict[tuple[str, str], Replay] = {
    ("pope", "parse"): _pope_parse,
    ("pope", "aggregate"): _pope_aggregate,
    ("mme", "parse"): _mme_parse,
    ("mme", "aggregate"): _mme_aggregate,
    ("mcq", "parse"): _choice_parse,
    ("mcq", "circular"): _circular,
    ("mcq", "seed_aggregate"): _seed_aggregate,
    ("mcq", "ocrbench"): _ocrbench,
    ("mcq", "mmstar_aggregate"): _mmstar,
    ("gqa", "exact_match"): _gqa,
    ("mmmu", "mcq"): _mmmu_choice,
    ("mmmu", "open"): _mmmu_open,
    ("mmmu", "normalize"): _mmmu_normalise,
    ("mmmu", "aggregate"): _mmmu_aggregate,
    ("vqa_processor", "process"): _vqa,
    ("vqa_processor", "soft_accuracy"): _vqa_soft,
}
