"""`python -m harmon.parity DIR`: replay recorded outputs of the published model and compare.

DIR holds a manifest, weights, inputs, outputs and the random draws that led to them. One line a quantity: its
name, the largest relative error (largest absolute difference over largest absolute value) and its tolerance
from the manifest. Exit 1 when one is above, or when something recorded was not replayed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from harmon.parity import parts, samples, training
from harmon.parity.golden import Golden, Line
from pipelines.errors import HarmonError

_PARTS = (
    parts.autoencoder,
    parts.encoders_and_decoder,
    parts.chain,
    parts.head,
    parts.single_steps,
    training.text_to_image,
    training.image_to_text,
    samples.answers,
    samples.generations,
    training.weight_decay,
    training.source_order,
)


def replay(golden: Golden) -> Iterator[Line]:
    """Every recorded quantity, part after part; then one failed line for each that no part replayed."""
    seen: set[str] = set()
    for part in _PARTS:
        for line in part(golden):
            seen.add(line.name)
            yield line
    recorded = {name.removeprefix("out.") for name in golden.tensors if name.startswith("out.")}
    for name in sorted((recorded | set(golden.scalars)) - seen):
        yield Line(f"{name} (not replayed)", math.inf, 0.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harmon.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the golden data")
    parser.add_argument("--compile", action="store_true", help="with torch.compile over the model's regions")
    parser.add_argument("--bf16", action="store_true", help="with bfloat16 weights, within BF16_BOUNDS")
    asked = parser.parse_args(arguments)
    failed = count = 0
    try:
        for line in replay(Golden(asked.folder, compiled=asked.compile, bf16=asked.bf16)):
            print(line, flush=True)
            count += 1
            failed += not line.passed
    except HarmonError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{count} quantities, {failed} above tolerance" if failed else f"{count} quantities, all within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
