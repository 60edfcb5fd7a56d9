"""How many items each benchmark has, and the refusal to score another number of them.

Numbers of published files, from EVALS.md; those that nobody has counted there are marked so.
"""

from collections.abc import Collection, Mapping

from pipelines.errors import HarmonError

POPE_SPLITS = ("random", "popular", "adversarial")
POPE_SPLIT = 3000
POPE_OLD_RANDOM = 2910  # RUCAIBox/POPE at e3e3926, which LLaVA's eval.zip uses; its order of labels differs

MME_PERCEPTION = {
    "existence": 60,
    "count": 60,
    "position": 60,
    "color": 60,
    "posters": 294,
    "celebrity": 340,
    "scene": 400,
    "landmark": 400,
    "artwork": 400,
    "OCR": 40,
}
MME_COGNITION = {
    "commonsense_reasoning": 140,
    "numerical_calculation": 40,
    "text_translation": 40,
    "code_reasoning": 40,
}

MMBENCH_DEV_EN_ROWS = 4329  # v1.0, from memory; v1.1 has its own and is checked for whole circles only
MMBENCH_DEV_EN_QUESTIONS = 1164

SEED_IMAGE = (14_232, 14_233)  # two releases, from memory
GQA_TESTDEV_BALANCED = 12_578
GQA_STRUCTURAL = {"choose": 1129, "compare": 589, "logical": 1803}

MMMU_SUBJECTS = 30
MMMU_A_SUBJECT = 30
MMMU_CHOICE, MMMU_OPEN = 847, 53
MMMU_PRO_SETTING = 1730

MMSTAR = 1500
AI2D_TEST = 3088  # from memory
OCRBENCH = {
    "Regular Text Recognition": 50,
    "Irregular Text Recognition": 50,
    "Artistic Text Recognition": 50,
    "Handwriting Recognition": 50,
    "Digit String Recognition": 50,
    "Non-Semantic Text Recognition": 50,
    "Scene Text-centric VQA": 200,
    "Doc-oriented VQA": 200,
    "Key Information Extraction": 200,
    "Handwritten Mathematical Expression Recognition": 100,
}

GENEVAL_IMAGES_A_PROMPT = 4
GENEVAL_PROMPTS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
WISE_PROMPTS = 1000
DPG_PROMPTS = 1065
DPG_IMAGES_A_PROMPT = 4
FID_IMAGES = 30_000
COCO_VAL2014 = 40_504
MJHQ_CATEGORY = 3000


def require(what: str, got: int, wanted: int | Collection[int], partial: bool = False) -> None:
    """Refuse `got` items of `what` where the benchmark has `wanted` (one number, or any of several).

    A part (`partial`) may hold fewer, but never none and never more than there are.

    Raises:
        HarmonError: another number of items.
    """
    allowed = (wanted,) if isinstance(wanted, int) else tuple(wanted)
    if got in allowed or (partial and 0 < got < max(allowed)):
        return
    published = " or ".join(f"{number:,}" for number in allowed)
    raise HarmonError(
        f"{what} counts {got:,}, but the benchmark has {published}, so no score is given; "
        "score every item once, or say that this is a part of it (--limit)."
    )


def require_each(what: str, got: Mapping[str, int], wanted: Mapping[str, int], partial: bool = False) -> None:
    """`require` for every category of `wanted`; a category that the benchmark does not have is refused always.

    A part may lack whole categories, but not all of them.
    """
    if unknown := sorted(set(got) - set(wanted)):
        raise HarmonError(f"{what} has no {unknown[0]!r}; its categories are {', '.join(wanted)}.")
    if partial and not sum(got.values()):
        raise HarmonError(f"{what}: there is no item to score; give at least one.")
    for name, number in wanted.items():
        if not (partial and not got.get(name)):
            require(f"{what}, {name}", got.get(name, 0), number, partial)
