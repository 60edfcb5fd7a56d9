"""Pictures with planted duplicates: smooth noise and crops of photographs as originals, and known changes of them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (320, 240)


def original(draw: np.random.Generator) -> Image.Image:
    """A picture like no other: noise whose energy falls with frequency as photographs' does."""
    squared = np.fft.fftfreq(64)[:, None] ** 2 + np.fft.fftfreq(64)[None] ** 2
    squared[0, 0] = 1.0
    planes = []
    for _ in range(3):
        plane = np.fft.ifft2(np.fft.fft2(draw.standard_normal((64, 64))) / squared**0.6).real
        planes.append((plane - plane.min()) / np.ptp(plane) * 255)
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)


def photographs() -> list[Image.Image]:
    """Different photographs that installed packages carry, at least 300 pixels a side."""
    import skimage

    found = []
    for path in sorted((Path(skimage.__file__).parent / "data").iterdir()):
        if path.suffix in (".png", ".jpg") and path.stem != "motorcycle_right":  # nearly its left twin
            with Image.open(path) as image:
                if min(image.size) >= 300 and image.mode == "RGB":
                    found.append(image.copy())
    return found


def encoded(picture: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def disguised(picture: Image.Image, draw: np.random.Generator) -> bytes:
    """Cropped by up to 2% on every side, resized by 0.5 to 1.5, compressed again at quality 50 to 90."""
    width, height = picture.size
    left, top, right, bottom = draw.uniform(0, 0.02, 4)
    box = (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    cropped, scale = picture.crop(box), draw.uniform(0.5, 1.5)
    size = (round(cropped.width * scale), round(cropped.height * scale))
    return encoded(cropped.resize(size, Image.Resampling.LANCZOS), int(draw.integers(50, 91)))


@dataclass(frozen=True)
class Truth:
    """Encoded pictures by name, and which of them are planted: name to the original's."""

    pictures: dict[str, bytes]
    exact: dict[str, str]
    perceptual: dict[str, str]
    evaluation: dict[str, bytes]
    """Evaluation pictures by item: half stand in `pictures` byte for byte, half compressed again."""
    contaminated: set[str]


def plant(originals: int, exact: int, perceptual: int, evaluation: int, seed: int = 0) -> Truth:
    """`originals` pictures of which the first ones have duplicates, and evaluation pictures among them."""
    draw = np.random.default_rng(seed)
    made = photographs()
    made = [*made, *(original(draw) for _ in range(originals - len(made)))]
    pictures = {f"original {n}": encoded(picture) for n, picture in enumerate(made)}
    copies = {f"exact {n}": f"original {n}" for n in range(exact)}
    near = {f"near {n}": f"original {n % originals}" for n in range(perceptual)}
    pictures |= {name: pictures[of] for name, of in copies.items()}
    pictures |= {name: disguised(made[int(of.split()[1])], draw) for name, of in near.items()}
    held_out = [original(draw) for _ in range(evaluation)]
    items = {f"item {n}": encoded(picture) for n, picture in enumerate(held_out)}
    inside = {f"leaked {n}": encoded(picture, 90 if n % 2 else 70) for n, picture in enumerate(held_out)}
    return Truth(pictures | inside, copies, near, items, set(inside))


def planted_embeddings(count: int, planted: int, cosine: float, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors [count + planted, 768]; row count + n has the cosine `cosine` with row n, all others are random."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((count, 768), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    beside = draw.standard_normal((planted, 768), np.float32)
    beside -= (beside * vectors[:planted]).sum(axis=1, keepdims=True) * vectors[:planted]
    beside /= np.linalg.norm(beside, axis=1, keepdims=True)
    return np.concatenate([vectors, cosine * vectors[:planted] + (1 - cosine**2) ** 0.5 * beside])
