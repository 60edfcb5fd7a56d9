"""`python -m harmon.evaluation.vectors DIR`: do our scorers return what the official ones returned?

DIR is laid out as reference/vectors. One line a file, `name passed/total`; --groups: one line a group, with the
official function that it was recorded from; --json: one document with every group. What failed first in a group is
told on stderr. Exit 1 on a failure, or on anything recorded that no scorer here computes.
"""

import argparse
import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from harmon.evaluation.vectors.replay import replay_folder
from pipelines.errors import HarmonError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harmon.evaluation.vectors", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of recorded vectors")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--groups", action="store_true", help="one line a group instead of one a file")
    shown.add_argument("--json", action="store_true", help="one JSON document on stdout")
    asked = parser.parse_args(arguments)
    try:
        results = list(replay_folder(asked.folder))
    except HarmonError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    failed = [result for result in results if result.passed < result.total]
    if asked.json:
        print(json.dumps({"passed": not failed, "groups": [asdict(result) for result in results]}, indent=1))
    elif asked.groups:
        print("\n".join(map(str, results)))
    else:
        for file, some in groupby(results, key=lambda result: result.file):
            of_file = list(some)
            print(f"{file} {sum(one.passed for one in of_file)}/{sum(one.total for one in of_file)}")
    if not asked.groups:
        for result in failed:
            print(result, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
