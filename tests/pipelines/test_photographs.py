"""The photographs of installed packages are there, and each has a caption and a licence."""

import pytest
from PIL import Image

from pipelines import photographs as photographs_module
from pipelines.errors import HarmonError
from pipelines.photographs import photographs


def test_every_photograph_opens_and_is_described() -> None:
    shown = photographs()
    assert len(shown) >= 20
    assert len({p.name for p in shown}) == len({p.path for p in shown}) == len({p.caption for p in shown}) == len(shown)
    for photograph in shown:
        assert photograph.caption.endswith(".") and photograph.licence
        with Image.open(photograph.path) as image:
            assert min(image.size) >= 100


@pytest.mark.parametrize("file", ["skimage/data/no-such.png", "no_such_package/x.png"])
def test_a_photograph_that_is_not_there_is_named(file: str) -> None:
    with pytest.raises(HarmonError, match=r"no-such\.png|no_such_package"):
        photographs_module._located(file)
