"""Benchmarks as people name them: families, and the variants that papers mix up.

A variant is one of: a form of the benchmark (a split of POPE, WISE's version), the number that heads it (vanilla or
circular), or a way of asking and reading (llava, lmms-eval, vlmevalkit, official): that of a harness where it has both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harmon.evaluation.benchmark import GENERATION, UNDERSTANDING
from harmon.evaluation.marks import MARKINGS
from pipelines.errors import ConfigurationError
from pipelines.settings import nearest

FAMILIES: dict[str, dict[str, str]] = {
    "pope": {"all": "pope", "random": "pope-random", "popular": "pope-popular", "adversarial": "pope-adversarial"},
    "mmbench": {"v1.0": "mmbench-dev-en", "v1.1": "mmbench-dev-en-v11"},
    "seed": {"image": "seed-bench-image"},
    "mmmu": {"val": "mmmu-val"},
    "mmmu-pro": {
        "standard-10": "mmmu-pro-standard-10",
        "standard-4": "mmmu-pro-standard-4",
        "vision": "mmmu-pro-vision",
    },
    "ai2d": {"mask": "ai2d", "no-mask": "ai2d-no-mask"},
    "wise": {"legacy": "wise-legacy", "verified": "wise-verified"},
    "dpg": {"bench": "dpg-bench"},
    "mjhq": {"30k": "mjhq-30k"},
    "mscoco": {"30k": "mscoco-30k"},
}
"""Family to variant to benchmark; the first variant where nothing is said."""
HEADLINES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mmbench-dev-en", "mmbench-dev-en-v11"), ("circular", "vanilla")),
    **dict.fromkeys(FAMILIES["pope"].values(), ("accuracy", "F1")),
}
"""Numbers that may head a benchmark; the first measure where nothing is said."""


@dataclass(frozen=True)
class Chosen:
    """One benchmark in one variant."""

    benchmark: str
    asked_as: str = ""
    """Wording; empty for pictures."""
    reading: str = ""
    """Of answers; empty for pictures."""
    headline: str = ""

    @property
    def draws(self) -> bool:
        """Whether it is about pictures that the model draws."""
        return self.benchmark in GENERATION


def chosen(names: Sequence[str], variants: Mapping[str, Sequence[str]]) -> list[Chosen]:
    """The benchmarks that `names` say, in the `variants` given for these names.

    Raises:
        ConfigurationError: there is no such benchmark or variant, a variant is of a benchmark that is not asked for,
            or one comes twice.
    """
    if stray := [name for name in variants if name not in names]:
        raise ConfigurationError(f"--variant {stray[0]}=… is of a benchmark that is not asked for; name it, too.")
    found = [_chosen(name, variants.get(name, ())) for name in names]
    every = [one.benchmark for one in found]
    if again := [name for name in every if every.count(name) > 1]:
        raise ConfigurationError(f"{again[0]} is asked for twice; name it once.")
    return found


def _chosen(name: str, variants: Sequence[str]) -> Chosen:
    forms = FAMILIES.get(name, {})
    if not forms and name not in UNDERSTANDING and name not in GENERATION:
        known = sorted({*FAMILIES, *UNDERSTANDING, *GENERATION})
        raise ConfigurationError(f"There is no benchmark {name!r}; {nearest(name, known)}")
    of_form = [one for one in variants if one in forms]
    if len(of_form) > 1:
        raise ConfigurationError(f"{name} is asked for as {' and '.join(of_form)}; ask for one of them at a time.")
    benchmark = forms[of_form[0]] if of_form else next(iter(forms.values()), name)
    wordings = UNDERSTANDING[benchmark].variants if benchmark in UNDERSTANDING else ()
    readings = MARKINGS[benchmark].readings if benchmark in MARKINGS else ()
    headlines = HEADLINES.get(benchmark, ())
    asked_as, reading, headline = next(iter(wordings), ""), next(iter(readings), ""), ""
    for one in variants:
        if one not in (*forms, *wordings, *readings, *headlines):
            known = list(dict.fromkeys((*forms, *headlines, *wordings, *readings)))
            raise ConfigurationError(f"{name} has no variant {one!r}; it has {', '.join(known) or 'none'}.")
        asked_as = one if one in wordings else asked_as
        reading = one if one in readings else reading
        headline = one if one in headlines else headline
    return Chosen(benchmark, asked_as, reading, headline)
