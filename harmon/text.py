"""Text as the language model reads it: Qwen's chat template without a system turn, prompts and labels.

A turn is `<|im_start|>user\\n{input}<|im_end|>\\n<|im_start|>assistant\\n{answer}<|im_end|>`; turns are
joined by a newline. The paper prints "User: Generate an image <caption>"; the released code and weights use
this template and "Generate an image: <caption>", with "Generate an image." as the prompt without a caption
(classifier-free guidance).

Content never becomes a special token: a caption that spells `<|im_end|>` is read as ordinary characters.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from pipelines.errors import ConfigurationError, HarmonError

IMAGE_SLOT = -200  # stands where the model writes an image embedding (released code: IMAGE_TOKEN_INDEX)
IGNORED = -100  # a label that is not supervised (torch cross_entropy's ignore_index)
PROMPT_WITHOUT_CAPTION = "Generate an image."
DESCRIBE_QUESTIONS = (
    "Describe this picture in detail.",
    "What does the picture show?",
    "Give a full description of the image.",
    "Write down everything you see in this image.",
    "Explain the content of the picture at length.",
)  # the release varies the instruction for dense captions among 13 sentences; these are our own

RECONSTRUCT_REQUESTS = (
    *DESCRIBE_QUESTIONS,
    "Describe the image.",
    "What is this?",
    "Say briefly what is shown.",
    "Sum up the picture in one sentence.",
    "Tell me what is in the picture, where it stands and what it looks like.",
)  # long and short ones, as reconstruction alignment (arXiv 2509.07295) asks; the sentences are our own


# Questions come again and again, and small datasets whole. Documents do not: so many of them would take gigabytes.
KEPT_TEXTS, KEPT_CHARACTERS = 65_536, 1_024


@dataclass(frozen=True)
class Chat:
    """Token ids of one chat and, at the same places, what is supervised (IGNORED elsewhere)."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


class ChatText:
    """Builds prompts and labels with the tokenizer in `folder` (a Hugging Face folder with tokenizer.json).

    Raises ConfigurationError where the file or Qwen's `<|im_start|>`, `<|im_end|>` are missing, and HarmonError
    where the file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationError(f"There is no tokenizer at {path}; name a folder that holds tokenizer.json.")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise HarmonError(
                f"The tokenizer {path} cannot be read ({error}); copy it again from the model's source."
            ) from None
        self.tokenizer.encode_special_tokens = True
        self._kept: Callable[[str], tuple[int, ...]] | None = None  # until it knows its own words
        self.start = self._special("<|im_start|>", path)
        self.eos = self._special("<|im_end|>", path)
        self.pad = self.eos  # padded places are masked, so the id is of no consequence (release: 151645 too)
        self.user = self._ids("user\n")
        self.newline = self._ids("\n")
        self.suffix = (self.eos, *self.newline, self.start, *self._ids("assistant\n"))
        self._kept = lru_cache(maxsize=KEPT_TEXTS)(self._read)

    def forgetting(self) -> "ChatText":
        """The same, keeping no text that it has read: for the texts of strangers, which would fill the memory."""
        one = copy.copy(self)
        one._kept = None
        return one

    def generation_prompt(self, caption: str | None, max_length: int | None = None) -> list[int]:
        """Prompt that asks for an image; None gives the prompt without a caption.

        A prompt over `max_length` tokens loses the end of its caption, never the assistant suffix. None cuts
        nothing, as the release in drawing; in training it takes 128.
        """
        text = PROMPT_WITHOUT_CAPTION if caption is None else f"Generate an image: {caption.strip()}"
        room = None if max_length is None else max_length - 1 - len(self.suffix)
        return [self.start, *self._ids(f"user\n{text}")[:room], *self.suffix]

    def question_prompt(self, question: str, image_tokens: int, max_length: int | None = None) -> list[int]:
        """Prompt that asks `question` about an image of `image_tokens` embeddings (grid + buffers); 0: no
        image. Over `max_length` tokens of text (None: no bound) it loses the end of the question.
        """
        fixed = 1 + len(self.suffix) + (len(self.user) if image_tokens else 0)
        room = None if max_length is None else max_length - fixed
        if image_tokens == 0:
            return [self.start, *self._ids(f"user\n{question}")[:room], *self.suffix]
        asked = self._ids(f"\n{question}")[:room]
        return [self.start, *self.user, *[IMAGE_SLOT] * image_tokens, *asked, *self.suffix]

    def conversation_prompt(
        self, said: Sequence[tuple[str, str]], question: str, image_tokens: int, pictured: int = 0
    ) -> list[int]:
        """Prompt that asks `question` after question-answer pairs, as `chat` lays them out; the image stands before
        question number `pictured` of all, which training knows as 0 alone.
        """
        ids: list[int] = []
        for number, (asked, answered) in enumerate((*said, (question, None))):
            if number:
                ids += self.newline
            ids += self.question_prompt(asked, image_tokens if number == pictured else 0)
            if answered is not None:
                ids += [*self._ids(answered.strip()), self.eos]
        return ids

    def encode_pair(self, question: str, answer: str, image_tokens: int, max_length: int = 512) -> Chat:
        """One question with its answer; see `chat`."""
        return self.chat([(question, answer)], image_tokens, max_length)

    def chat(self, pairs: Sequence[tuple[str, str]], image_tokens: int, max_length: int = 512) -> Chat:
        """Question-answer pairs as one chat; the image stands before the first question.

        `max_length` counts text tokens only, so image slots are never cut. A later pair that does not fit is
        left out whole. A first pair that does not fit loses the end of its question (to half the length),
        then of its answer, which then has no EOS to learn. Answers and their one EOS are supervised; the
        newline between turns is not.
        """
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(pairs):
            reply = [*self._ids(answer.strip()), self.eos]
            if number:
                turn = [*self.newline, *self.question_prompt(question, 0, max_length)]
            else:
                turn = self.question_prompt(question, image_tokens, max(max_length // 2, max_length - len(reply)))
            room = max_length + image_tokens - len(ids) - len(turn)
            if number and room < len(reply):
                break
            ids += [*turn, *reply[:room]]
            labels += [IGNORED] * len(turn) + reply[:room]
        return Chat(tuple(ids), tuple(labels))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _ids(self, text: str) -> tuple[int, ...]:
        return self._read(text) if self._kept is None or len(text) > KEPT_CHARACTERS else self._kept(text)

    def _read(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _special(self, token: str, path: Path) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ConfigurationError(f"The tokenizer {path} lacks {token}, which Qwen's chat template needs.")
        return int(found)
