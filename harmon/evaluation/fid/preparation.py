"""What happens to a picture before a FID network sees it, on both sides alike: a number without it says little."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Resample = Literal["bicubic", "lanczos"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class Preparation:
    """How a decoded picture becomes the one that is compared."""

    side: int | None = None
    """Pixels of the square that it is resized to, by Pillow, in 8 bits; None: it stays as large as it is."""
    resample: Resample = "bicubic"
    """Filter of that."""
    shape: Literal["squash", "centre-crop"] = "squash"
    """What becomes of a picture that is no square: its sides are resized apart, or its middle is cut out first."""

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture as uint8 [H, W, 3]."""
        if self.shape == "centre-crop":
            short = min(image.size)
            left, top = (image.width - short) // 2, (image.height - short) // 2
            image = image.crop((left, top, left + short, top + short))
        if self.side is not None and image.size != (self.side, self.side):
            image = image.resize((self.side, self.side), _FILTERS[self.resample])
        return np.array(image)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
