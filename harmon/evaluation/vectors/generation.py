"""Replays of the generation benchmarks' groups, by file and group."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from harmon.evaluation.scorers import dpg, fid, geneval, geneval_scores, wise
from harmon.evaluation.vectors.case import Case, Replay, replayed
from harmon.evaluation.vectors.rule import Rule
from pipelines.errors import HarmonError

_FID_TOLERANCE = 1e-4
_FOUND = re.compile(r", found (.*) target$", re.MULTILINE)
_ROUNDED = 0.01  # parts rounded to 0.005 and a whole rounded to 0.005


@replayed("box_a", "box_b", "position_threshold")
def _geometry(case: Case) -> Mapping[str, Any]:
    seen = geneval.relations(case["box_a"], case["box_b"], case.get("position_threshold", 0.1))
    return {"relations": sorted(seen), "iou": float(geneval.overlap(case["box_a"], case["box_b"]))}


@replayed("name", "metadata", "detections")
def _decision(case: Case) -> Mapping[str, Any]:
    detections = {name: [_detection(one) for one in some] for name, some in case["detections"].items()}
    verdict = geneval.judge(geneval.Prompt.of(case["metadata"]), detections)
    reason = verdict.reason
    if isinstance(recorded := case.get("reason"), str) and _alphabetical(recorded) == _alphabetical(reason):
        reason = recorded  # several directions are recorded in the order of a set, which is any
    return {"correct": verdict.correct, "reason": reason}


@replayed("name", "correct_matrix")
def _geneval_aggregate(case: Case) -> Mapping[str, Any]:
    judged = [
        geneval_scores.Judged(tag, str(prompt), bool(correct))
        for tag, prompts in case["correct_matrix"].items()
        for prompt, images in enumerate(prompts)
        for correct in images
    ]
    scores = geneval_scores.score(judged, partial=True)
    return {
        "stdout": scores.summary(),
        "overall": float(f"{scores.overall:.5f}"),
        "mean_over_images": scores.over_images,
    }


@replayed("name", "tasks", "reported_overall", tolerance=1e-4)
def _geneval_paper(case: Case) -> Mapping[str, Any]:
    mean = sum(case["tasks"]) / len(case["tasks"])
    _near(case, "reported_overall", mean)
    return {"mean_of_rounded": mean}


@replayed("text")
def _wise_parse(case: Case) -> Mapping[str, Any]:
    verified = wise.read_verified(case["text"])
    return {
        "legacy": wise.named_scores(case["text"]),
        "legacy_complete": wise.read_legacy(case["text"]) is not None,
        "verified": {} if verified is None else {"score": verified},
    }


@replayed("consistency", "realism", "aesthetic_quality")
def _wiscore(case: Case) -> Mapping[str, Any]:
    return {"wiscore": wise.Judgement(case["consistency"], case["realism"], case["aesthetic_quality"]).wiscore}


@replayed("name", "rule", "dropped_ids")
def _wise_legacy(case: Case) -> Mapping[str, Any]:
    rule, dropped = Rule.of(case["rule"], ("c", "r", "a")), set(case.get("dropped_ids", ()))
    judgements = {
        prompt: wise.Judgement(*(rule.value(name, prompt) for name in ("c", "r", "a")))
        for prompt in range(1, 1001)
        if prompt not in dropped
    }
    scores = wise.score_legacy(judgements, partial=True)
    overall, last_line = None, "Aborting overall evaluation due to incomplete data."
    if not _refused(judgements):
        overall = scores.overall
        last_line = "{}\t\t{}\t{}\t{}\t{}\t{}\t\t{}".format(
            *(f"{mean:.2f}" for mean in scores.categories.values()), f"{overall:.2f}"
        )
    return {
        "category_means": scores.categories,
        "category_counts": scores.counts,
        "official_printed_overall": None if overall is None else float(f"{overall:.2f}"),
        "full_precision_weighted": overall,
        "tail_of_stdout": last_line,
    }


@replayed("name", "rule", "dropped_ids")
def _wise_verified(case: Case) -> Mapping[str, Any]:
    rule, dropped = Rule.of(case["rule"], ("score",)), set(case.get("dropped_ids", ()))
    kept = [prompt for prompt in range(1, 1001) if prompt not in dropped]
    scores = wise.score_verified({prompt: rule.value("score", prompt) for prompt in kept}, partial=True)
    return {
        "category_means": scores.categories,
        "category_counts": scores.counts,
        "official_printed_overall": None if scores.overall is None else float(f"{scores.overall:.2f}"),
        "full_precision_weighted": scores.overall,
    }


@replayed("name", "cats", "reported", tolerance=1e-4)
def _wise_paper(case: Case) -> Mapping[str, Any]:
    weighted = wise.weighted(dict(zip(wise.CATEGORIES["legacy"], case["cats"], strict=True)), "legacy")
    _near(case, "reported", weighted)
    return {"weighted_of_rounded": weighted}


@replayed("name", "dependency", "answers_per_image")
def _dpg(case: Case) -> Mapping[str, Any]:
    dependency = {int(number): parents for number, parents in case["dependency"].items()}
    result = dpg.score_prompt(dependency, case["answers_per_image"])
    before = {str(number): value for number, value in result.before_dependency.items()}
    return {"score": result.score, "pre_dependency_scores_last_image": before}


@replayed("name", "feats1", "feats2", tolerance=_FID_TOLERANCE)
def _fid_features(case: Case) -> Mapping[str, Any]:
    return {"fid": fid.frechet_distance(fid.moments(case["feats1"]), fid.moments(case["feats2"]))}


@replayed("name", "mu1", "mu2", "diag_cov1", "diag_cov2", "cov1", "cov2", tolerance=_FID_TOLERANCE)
def _fid_moments(case: Case) -> Mapping[str, Any]:
    first, second = (
        fid.Moments(
            np.array(case[f"mu{number}"], dtype=np.float64),
            np.array(case[f"cov{number}"], dtype=np.float64)
            if f"cov{number}" in case
            else np.diag(np.array(case[f"diag_cov{number}"], dtype=np.float64)),
        )
        for number in (1, 2)
    )
    distance = fid.frechet_distance(first, second)
    return {"fid": distance, "closed_form": distance}


@replayed("tokens", "iters")
def _schedule(case: Case) -> Mapping[str, Any]:
    from harmon.sampling import plan  # loads torch, which the other files do without

    iterations = plan(case["tokens"], case["iters"], cfg=1.0, cfg_schedule="constant")
    # The recorded formula leaves one position in the last step too, which that step then draws with the rest.
    left = [*(one.masked_next for one in iterations[:-1]), 1]
    drawn = [one.masked - one.masked_next for one in iterations]
    return {"mask_len_after_step": left, "predicted_per_step": drawn, "sum_predicted": sum(drawn)}


def _detection(published: list[Any]) -> geneval.Detection:
    x0, y0, x1, y1, score, *colour = published
    return geneval.Detection((x0, y0, x1, y1), score, colour[0] if colour else None)


def _alphabetical(reason: str) -> str:
    return _FOUND.sub(lambda found: f", found {' and '.join(sorted(found[1].split(' and ')))} target", reason)


def _refused(judgements: Mapping[int, wise.Judgement]) -> bool:
    try:
        wise.score_legacy(judgements)
    except HarmonError:
        return True
    return False


def _near(case: Case, name: str, value: float) -> None:
    if abs(case[name] - value) > _ROUNDED:
        raise HarmonError(f"{name} is {case[name]}, but its rounded parts give {value:.4f}.")


GROUPS: dict[tuple[str, str], Replay] = {
    ("geneval", "geometry"): _geometry,
    ("geneval", "decision"): _decision,
    ("geneval", "aggregate"): _geneval_aggregate,
    ("geneval", "paper_consistency"): _geneval_paper,
    ("wise", "parse"): _wise_parse,
    ("wise", "wiscore"): _wiscore,
    ("wise", "aggregate_legacy"): _wise_legacy,
    ("wise", "aggregate_verified"): _wise_verified,
    ("wise", "paper_consistency"): _wise_paper,
    ("dpg", "one_prompt"): _dpg,
    ("fid_math", "from_features"): _fid_features,
    ("fid_math", "from_moments"): _fid_moments,
    ("mar_schedule", ""): _schedule,
}
