"""Training from the shards with webdataset and torch alone: docs/filtering.md shows this file.

It needs nothing of this project, and reads the JSON view beside each picture.
"""

import torch
import webdataset
from PIL import Image
from torchvision.transforms.functional import center_crop, resize, to_tensor


def sample(image: Image.Image, view: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture as [3, 32, 32], and what is learned here: its mean colour."""
    picture = to_tensor(center_crop(resize(image.convert("RGB"), 32), [32, 32]))
    assert view["caption"]
    assert view["bucket"]
    return picture, picture.mean(dim=(1, 2))


def train(shards: list[str], steps: int) -> list[float]:
    """Losses of a few train steps."""
    torch.manual_seed(0)
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(100)
    dataset = dataset.decode("pil").to_tuple("jpg;png;webp", "json")
    dataset = dataset.map(lambda pair: sample(*pair)).repeat()
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _, (pictures, colours) in zip(range(steps), loader):
        loss = torch.nn.functional.mse_loss(model(pictures), colours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
