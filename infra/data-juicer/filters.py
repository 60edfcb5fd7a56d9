"""Data-Juicer's two filters over a list of files, timed: a script for the Python of its own environment.

    python -I infra/data-juicer/filters.py FILES.txt

Prints one JSON line: images, images kept, CPU-seconds (children included) of making the dataset and running both.
"""

import json
import resource
import sys
from pathlib import Path

from data_juicer.core.data import NestedDataset
from data_juicer.ops.filter.image_aspect_ratio_filter import ImageAspectRatioFilter
from data_juicer.ops.filter.image_size_filter import ImageSizeFilter


def seconds() -> float:
    """CPU time of this process and those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    files = Path(sys.argv[1]).read_text().splitlines()
    before = seconds()
    dataset = NestedDataset.from_list([{"text": "", "images": [file]} for file in files])
    filters = [ImageSizeFilter(min_size="1", num_proc=1), ImageAspectRatioFilter(1 / 3, 3.0, num_proc=1)]
    kept = dataset.process(filters, open_monitor=False)
    print(json.dumps({"images": len(files), "kept": len(kept), "seconds": seconds() - before}))
