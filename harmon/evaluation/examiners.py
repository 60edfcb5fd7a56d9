"""Which examiner looks at the pictures of a benchmark, by what a person has at hand."""

from pathlib import Path

from harmon.evaluation.examiner import Examiner, Missing
from harmon.evaluation.geneval_results import GenEvalResults
from pipelines.settings import Settings


class Means(Settings):
    """What a person has to examine pictures with: `harmon evaluate … --examine results=FILE`."""

    results: Path | None = None
    """results.jsonl of GenEval's own evaluate_images.py over the pictures of these prompts."""


NOTHING = Means()
MISSING = {
    "geneval": Missing(
        "GenEval's detector",
        "Run its evaluation/evaluate_images.py over the folder that --export writes, then name its results.jsonl with "
        "--examine results=FILE.",
    ),
    "wise-legacy": Missing("WISE's judge", "Judge the pictures that --export writes with its gpt_eval.py."),
    "wise-verified": Missing("WISE's judge", "Judge the pictures that --export writes with its vllm_eval.py."),
    "dpg-bench": Missing(
        "DPG-Bench's judge",
        "Run its compute_dpg_bench.py over the pictures that --export writes, two by two in a file.",
    ),
    "mjhq-30k": Missing("FID's Inception network", "Compute FID of the pictures that --export writes."),
    "mscoco-30k": Missing("FID's Inception network", "Compute FID of the pictures that --export writes."),
}
"""What is told where nobody looks."""


def open_examiner(benchmark: str, means: Means, data: Path) -> Examiner | Missing:
    """Who looks at the pictures of `benchmark`, whose published files lie in `data`; else what is missing.

    Raises:
        ConfigurationError: what was named cannot be used.
    """
    if benchmark == "geneval" and means.results:
        return GenEvalResults(means.results)
    return MISSING[benchmark]
