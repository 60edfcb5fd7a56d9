"""What `harmon cluster` has the head of a cluster do, wherever that is.

    python -m flows.cluster.head status
    python -m flows.cluster.head scale --type train --count 4 --wait 600 [--stop] [--take-training]
    python -m flows.cluster.head ask --type train --count 4 [--seconds 90]

Prints one line of JSON that begins with MARK: launchers write lines of their own around it. Exit codes: 0 done, 3 not.
"""

import argparse
import sys

from flows.cluster.live import FOREVER, Live
from flows.cluster.scaling import Change, scale
from pipelines.errors import HarmonError

MARK = "harmon-cluster: "


def main(arguments: list[str] | None = None) -> int:
    """Answer one command of `harmon cluster`."""
    parser = argparse.ArgumentParser(prog="python -m flows.cluster.head")
    parser.add_argument("what", choices=["status", "scale", "ask"])
    parser.add_argument("--type", default="")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=FOREVER)
    parser.add_argument("--wait", type=float, default=600.0)
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--take-training", action="store_true")
    chosen = parser.parse_args(arguments)
    try:
        live = Live()
        if chosen.what == "scale":
            change = Change(chosen.type, chosen.count, chosen.wait, chosen.stop, chosen.take_training)
            said = scale(live, change).model_dump_json()
        else:
            if chosen.what == "ask":
                live.ask(chosen.type, chosen.count, chosen.seconds)
            said = live.state().model_dump_json()
    except HarmonError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{MARK}{said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
