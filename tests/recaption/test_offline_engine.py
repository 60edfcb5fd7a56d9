"""What the batch engine in Ray actors makes of lots and of what vLLM says; tests/recaption/test_vllm.py runs it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from recaption.engines import Question, with_images
from recaption.offline_engine import LOT, PICTURES, OfflineEngine, _answer, _spoken
from recaption.prompt import Sampling

SAMPLING = Sampling(method="random", max_tokens=8, temperature=0.5, seed=3)


@pytest.mark.parametrize("finish", ["abort", "error", "repetition"])
def test_a_text_that_the_model_did_not_end_is_a_failure_with_its_reason(finish: str) -> None:
    answer = _answer({"text": "A dog and", "finish_reason": finish, "tokens_in": 3, "tokens_out": 2, "seconds": 0.1})
    assert (answer.text, answer.refusal, answer.detail) == (None, "unfinished", f"ended its text by '{finish}'")


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_other_texts_are_handed_on_for_the_checks(finish: str) -> None:
    answer = _answer({"text": "A dog.", "finish_reason": finish, "tokens_in": 3, "tokens_out": 2, "seconds": 0.1})
    assert (answer.text, answer.refusal, answer.finish_reason) == ("A dog.", None, finish)


def test_a_lot_is_asked_without_the_pictures_that_cannot_be_had() -> None:
    lot = [
        Question(str(n), 0, "Describe it.", SAMPLING, lambda n=n: b"\xff\xd8" if n % 2 else None)  # type: ignore[misc]
        for n in range(6)
    ]
    with ThreadPoolExecutor(2) as threads:
        asked, blind = with_images([*lot, Question("6", 0, "Rewrite it.", SAMPLING)], threads)
    assert [question.work for question, _ in asked] == ["1", "3", "5", "6"]
    assert [question.work for question in blind] == ["0", "2", "4"]
    spoken = [_spoken(question, image) for question, image in asked]
    assert spoken[0]["messages"][0]["content"][0]["image_url"]["url"] == "data:image/jpeg;base64,/9g="
    assert spoken[3]["messages"] == [{"role": "user", "content": "Rewrite it."}]
    assert spoken[3]["sampling"] | {"seed": 3, "top_k": 0, "presence_penalty": 0.0} == spoken[3]["sampling"]


def test_a_lot_of_pictures_is_small() -> None:
    assert (OfflineEngine.batch_rows, OfflineEngine.batch_pictures) == (LOT, PICTURES)
    assert PICTURES < LOT / 4
