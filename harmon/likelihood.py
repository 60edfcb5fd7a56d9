"""How likely a model finds answers that it is given: what benchmarks of multiple choice ask beside spoken answers.

Shape letters: B chats, L chat length, R labelled tokens, H LLM width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch.nn import functional as F

from harmon.ask import encoded, side_of
from harmon.model.language import read_causally
from harmon.prompts import padded
from harmon.text import IGNORED
from harmon.trained import Trained


@torch.no_grad()
def answer_losses(
    trained: Trained,
    pictures: Sequence[Image.Image] | None,
    questions: Sequence[str],
    answers: Sequence[str],
    px: int | None = None,
) -> list[tuple[float, bool]]:
    """For each question its answer's mean cross-entropy a token, the end of the answer included, and whether greedy
    answering would say just that; one batch.

    Pictures as `harmon.ask.answer_questions` takes them. Raises ConfigurationError as it does.
    """
    side = side_of(trained, px)
    model, text = trained.model, trained.text
    slots = 0 if pictures is None else trained.slots(side)
    room = model.config.llm.max_position_embeddings - slots
    chats = [text.encode_pair(*pair, slots, room) for pair in zip(questions, answers, strict=True)]
    image_BSH = None if pictures is None else model.picture_embeddings(encoded(trained, pictures, side))
    ids_BL, _ = padded([chat.ids for chat in chats], text.pad, model.device)
    labels_BL, _ = padded([chat.labels for chat in chats], IGNORED, model.device)
    hidden_BLH = read_causally(model.llm.model, model.prompt_embeddings(ids_BL, image_BSH))
    rows_R, columns_R = (labels_BL[:, 1:] != IGNORED).nonzero(as_tuple=True)
    wanted_R = labels_BL[rows_R, columns_R + 1]
    logits_RV = model.llm.lm_head(hidden_BLH[rows_R, columns_R]).float()
    losses_R, greedy_R = F.cross_entropy(logits_RV, wanted_R, reduction="none"), logits_RV.argmax(-1) == wanted_R
    return [(float(losses_R[rows_R == row].mean()), bool(greedy_R[rows_R == row].all())) for row in range(len(chats))]
