"""A dataset's page on the loopback interface."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.dataset import Dataset
from pipelines.loopback import serve
from pipelines.show.build import ShowSettings, write_page


@contextmanager
def serve_page(dataset: Dataset, settings: ShowSettings, port: int = 0) -> Iterator[str]:
    """Serve the page at the address that is yielded, to this machine alone. Port 0 takes any free port.

    Raises HarmonError where the port is taken or a file of the dataset cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="harmon-show-") as folder:
        page = write_page(dataset, settings, Path(folder) / f"{dataset.name}.html")
        with serve(Path(folder), port) as address:
            yield f"{address}/{page.name}"
