"""Pictures as CLIP reads them: decoded, resized to its side, cropped at the centre. Bytes in, uint8 out.

The steps are open_clip's (shorter side to 224 by bicubic with antialiasing, centre crop, mean and deviation), with the
pixels normalised where the model runs: four times fewer bytes go there.

- `pillow` resizes as open_clip does, and agrees with it to the last bit.
- `torch` resizes with torch's uint8 kernel, several times faster: it differs from Pillow by one level of 255 in about
  three of a thousand values (benchmarks/filtering.py prints both).

Of a picture more than STRIP times as long as wide only the middle is resized, of which the crop keeps a sixteenth: the
whole strip, with its shorter side at 224, would not fit into memory.
"""

from functools import cache
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from filtering.decode import MOST_PIXELS, decoded

Resizer = Literal["pillow", "torch"]
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP training data, red, green, blue (open_clip.constants)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
STRIP = 16


def pixels(data: bytes, side: int, resizer: Resizer = "pillow") -> NDArray[np.uint8]:
    """[side, side, 3] of an encoded picture. Raises Undecodable for what is none, or has too many pixels."""
    picture = _middle(_decoded(data))
    height, width = picture.shape[:2]
    width, height = resized_size(width, height, side)
    if resizer == "pillow":
        small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    else:
        planes = torch.from_numpy(picture).permute(2, 0, 1)[None]
        size = (height, width)
        resized = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", antialias=True)
        small = resized[0].permute(1, 2, 0).numpy()
    top, left = (round((length - side) / 2) for length in small.shape[:2])
    cut: NDArray[np.uint8] = small[top : top + side, left : left + side]
    return cut


def resized_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with the shorter one made `side`, as torchvision's Resize rounds them."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def normalised(batch: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3, side, side], channels last in memory, of uint8 [B, side, side, 3], on the device of `batch`."""
    many, side = batch.shape[:2]
    scale, shift = _constants(side, batch.device)
    found = batch.reshape(many, side, 3 * side).float().mul_(scale).sub_(shift)
    return found.view(many, side, side, 3).permute(0, 3, 1, 2)


@cache
def _constants(side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and shift of a whole row of pixels [3 * side]: over three colours alone a processor's vectors would stay
    nearly empty."""
    mean, deviation = (torch.tensor(one, device=device) for one in (MEAN, DEVIATION))
    return (1 / (255 * deviation)).repeat(side), (mean / deviation).repeat(side)


def _decoded(data: bytes) -> NDArray[np.uint8]:
    """RGB [H, W, 3]; a plain JPEG by simplejpeg, whose pixels are Pillow's, anything else by Pillow."""
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("YCbCr", "Gray") and width * height <= MOST_PIXELS:
                found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
                return found
        except ValueError:
            pass  # Pillow decides: it mends some of what simplejpeg refuses
    return np.array(decoded(data))


def _middle(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [H, W, 3], of a strip the middle."""
    most = STRIP * min(picture.shape[:2])
    top, left = (max(0, length - most) // 2 for length in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + most, left : left + most]) if top or left else picture
