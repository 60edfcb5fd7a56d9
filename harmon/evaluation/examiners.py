"""Which examiner looks at the pictures of a benchmark, by what a person has at hand."""

from pathlib import Path
from typing import Literal

from harmon.evaluation.benchmark import read_prompts
from harmon.evaluation.detectors.official import GenEvalResults
from harmon.evaluation.examiner import Examiner, Missing
from harmon.evaluation.judges.judge import JudgeSettings
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings


class Means(Settings):
    """What a person has to examine pictures with: `harmon evaluate … --examine results=FILE`."""

    results: Path | None = None
    """results.jsonl of GenEval's own evaluate_images.py over the pictures of these prompts; without its verdicts, boxes
    of another detector."""
    detector: Path | None = None
    """Folder of a Transformers Mask2Former of COCO instances: GenEval by another detector."""
    clip: Path | None = None
    """Weights of OpenAI's CLIP ViT-L/14, which tells colours beside that detector."""
    judge: str | None = None
    """Address of an OpenAI-compatible API, for WISE and DPG-Bench; its key stands in OPENAI_API_KEY."""
    judge_model: str | None = None
    """Name of the model there."""
    judge_prompt: Path | None = None
    """WISE's own gpt_eval.py (verified: vllm_eval.py), whose prompt the judge is asked with; else our own."""
    answers: Path | None = None
    """…_detail.txt of DPG-Bench's own compute_dpg_bench.py, which holds mPLUG's answers."""
    extractor: Literal["torch-fidelity", "clean-fid", "torchvision"] | None = None
    """Network of FID (harmon.evaluation.fid.inception)."""
    inception: Path | None = None
    """Its weights, where they do not lie in torch's hub folder."""
    protocol: str | None = None
    """Of FID (harmon.evaluation.fid.protocols); the benchmark's first where left out."""
    statistics: Path | None = None
    """Published statistics (.npz) in place of the real pictures."""
    features: Path = Path("data/fid")
    """Folder that features of pictures are kept in."""
    device: str = "cpu"
    """Of detector, colours and FID's network."""


NOTHING = Means()
_JUDGE = "Name one with --examine judge=URL --examine judge_model=NAME"
_FID = Missing(
    "FID's Inception network",
    "Name one with --examine extractor=torch-fidelity|clean-fid|torchvision, and its weights with --examine "
    "inception=FILE; or compute FID of the pictures that --export writes.",
)
MISSING = {
    "geneval": Missing(
        "GenEval's detector",
        "Run its evaluation/evaluate_images.py over the folder that --export writes, then name its results.jsonl with "
        "--examine results=FILE; or name another detector with --examine detector=FOLDER --examine clip=FILE.",
    ),
    "wise-legacy": Missing("WISE's judge", f"{_JUDGE}, and its gpt_eval.py with --examine judge_prompt=FILE."),
    "wise-verified": Missing("WISE's judge", f"{_JUDGE}, and its vllm_eval.py with --examine judge_prompt=FILE."),
    "dpg-bench": Missing(
        "DPG-Bench's judge",
        "Run its compute_dpg_bench.py over the pictures that --export writes, two by two in a file, then name its "
        f"…_detail.txt with --examine answers=FILE. {_JUDGE} for another.",
    ),
    "mjhq-30k": _FID,
    "mscoco-30k": _FID,
}
"""What is told where nobody looks."""


def check_means(benchmark: str, means: Means) -> None:
    """What can be known before pictures are drawn, which may take hours: nothing is loaded.

    Raises:
        ConfigurationError: half of what an examiner of `benchmark` needs is named, or a file that is not there.
    """
    for first, second, who in _PAIRS:
        if benchmark in _USED[first] and (getattr(means, first) is None) != (getattr(means, second) is None):
            raise ConfigurationError(f"{who} needs both: --examine {first}=… and --examine {second}=….")
    for name, benchmarks in _USED.items():
        path = getattr(means, name)
        if benchmark in benchmarks and isinstance(path, Path) and not path.exists():
            raise ConfigurationError(f"There is no {path}, which --examine {name} names.")


_WISE, _FID_SETS = ("wise-legacy", "wise-verified"), ("mjhq-30k", "mscoco-30k")
_USED: dict[str, tuple[str, ...]] = {
    "results": ("geneval",),
    "detector": ("geneval",),
    "clip": ("geneval",),
    "judge": (*_WISE, "dpg-bench"),
    "judge_model": (*_WISE, "dpg-bench"),
    "judge_prompt": _WISE,
    "answers": ("dpg-bench",),
    "inception": _FID_SETS,
    "statistics": _FID_SETS,
}
"""Means by the benchmarks that they are of."""
_PAIRS = ("detector", "clip", "GenEval by another detector"), ("judge", "judge_model", "A judge")


def open_examiner(benchmark: str, means: Means, data: Path) -> Examiner | Missing:
    """Who looks at the pictures of `benchmark`, whose published files lie in `data`; else what is missing.

    Raises:
        ConfigurationError: what was named cannot be used.
    """
    check_means(benchmark, means)
    if benchmark == "geneval":
        found = _geneval(means)
    elif benchmark == "dpg-bench":
        found = _dpg(means)
    elif benchmark.startswith("wise-"):
        found = _wise(benchmark, means)
    else:
        found = _fid(benchmark, means, data)
    return found or MISSING[benchmark]


def _geneval(means: Means) -> Examiner | None:
    if means.results:
        return GenEvalResults(means.results)
    if not means.detector or not means.clip:
        return None
    from harmon.evaluation.detectors.colours import ClipColours
    from harmon.evaluation.detectors.examiner import GenEvalExaminer
    from harmon.evaluation.detectors.mask2former import Mask2FormerDetector

    colours = ClipColours(means.clip, device=means.device)
    return GenEvalExaminer(Mask2FormerDetector(means.detector, means.device), colours)


def _wise(benchmark: str, means: Means) -> Examiner | None:
    from harmon.evaluation.judges.examiners import WiseExaminer
    from harmon.evaluation.judges.wise import BENCHMARKS
    from harmon.evaluation.judges.wording import official_wording

    settings = _judge(means)
    if settings is None:
        return None
    wording = official_wording(means.judge_prompt) if means.judge_prompt else None
    return WiseExaminer(settings, BENCHMARKS[benchmark], wording)


def _dpg(means: Means) -> Examiner | None:
    from harmon.evaluation.judges.dpg import MplugAnswers
    from harmon.evaluation.judges.examiners import DpgExaminer

    if means.answers:
        return DpgExaminer(MplugAnswers(means.answers))
    settings = _judge(means)
    return DpgExaminer(settings) if settings else None


def _judge(means: Means) -> JudgeSettings | None:
    if means.judge is None or means.judge_model is None:
        return None
    return JudgeSettings(endpoint=means.judge, model=means.judge_model)


def _fid(benchmark: str, means: Means, data: Path) -> Examiner | None:
    if means.extractor is None:
        return None
    from harmon.evaluation.fid.examiner import FidExaminer
    from harmon.evaluation.fid.inception import load_extractor
    from harmon.evaluation.fid.protocols import protocols_of, references
    from harmon.evaluation.fid.statistics import published_statistics

    known = {protocol.name: protocol for protocol in protocols_of(benchmark)}
    name = means.protocol or next(iter(known))
    if name not in known:
        raise ConfigurationError(f"{benchmark} has no FID protocol {name!r}; it has {', '.join(known)}.")
    extractor = load_extractor(means.extractor, means.inception, means.device)
    if means.statistics:
        return FidExaminer(known[name], extractor, published_statistics(means.statistics), means.features)
    prompts = read_prompts(benchmark, data, references=True)
    return FidExaminer(known[name], extractor, references(known[name], prompts, data), means.features)
