"""WISE and DPG-Bench by a judge: a real HTTP server on loopback speaks the API, and fails in every way that it can."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harmon.evaluation.drawn import DrawnBytes
from harmon.evaluation.judges import judge as judge_module
from harmon.evaluation.judges.dpg import JudgeVqa, MplugAnswers, yes_or_no
from harmon.evaluation.judges.examiners import DpgExaminer, WiseExaminer
from harmon.evaluation.judges.judge import Judge, JudgeSettings, Question
from harmon.evaluation.judges.wise import judge_wise
from harmon.evaluation.judges.wording import official_wording
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.wise import Judgement
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.workspace import Journal

Answering = Callable[[dict[str, Any]], tuple[int, Any]]
PNG = b"\x89PNG\r\n\x1a\n"
GOOD = "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"


class Server(ThreadingHTTPServer):
    """Answers each request by `answering`: a status and a text, or a status and bytes or a dict as they are."""

    daemon_threads = True

    def __init__(self, answering: Answering) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answering = answering
        self.asked: list[dict[str, Any]] = []
        self.paths: list[tuple[str, str | None]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(told)
        self.server.paths.append((self.path, self.headers.get("Authorization")))
        status, answer = self.server.answering(told)
        if isinstance(answer, str):
            choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "model": f"{told['model']}-2024", "choices": [choice]}
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(answering: Answering) -> Iterator[Server]:
    server = Server(answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def judging(server: Server, path: Path, **settings: Any) -> Iterator[Judge]:
    told = JudgeSettings(endpoint=server.endpoint, model="gpt-4o", **{"attempts": 3, **settings})
    with Judge(told, Journal(path / "judge.jsonl")) as judge:
        yield judge


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module.time, "sleep", lambda seconds: None)


def wise(number: int, benchmark: str = "wise-legacy", data: bytes = PNG) -> DrawnBytes:
    record = {"Prompt": f"Drawing {number}", "Explanation": "A {Prompt} in braces"}
    return DrawnBytes(Prompt(benchmark, str(number), record["Prompt"], 1, {}, record), 0, data + bytes([number % 256]))


def question_of(told: dict[str, Any]) -> str:
    return str(told["messages"][-1]["content"][0]["text"])


def test_a_judge_is_sent_the_picture_and_its_scores_are_kept_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with serving(lambda told: (200, GOOD)) as server, judging(server, tmp_path, seed=3) as judge:
        (row,) = judge_wise([wise(401)], judge)
        (told,) = server.asked
    assert server.paths == [("/v1/chat/completions", "Bearer a-key")]
    assert (told["model"], told["temperature"], told["max_tokens"], told["seed"]) == ("gpt-4o", 0.0, 2000, 3)
    assert [message["role"] for message in told["messages"]] == ["system", "user"]
    kind, data = told["messages"][1]["content"][1]["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == wise(401).data
    assert 'Text: "Drawing 401"\nExplanation: "A {Prompt} in braces"' in question_of(told)
    assert row.judgement == Judgement(2, 1, 0)
    assert row.answered_as == "gpt-4o-2024"
    assert b"a-key" not in (tmp_path / "judge.jsonl").read_bytes()


def test_an_unreadable_reply_is_asked_thrice_and_then_a_row_with_a_reason(tmp_path: Path) -> None:
    def answering(told: dict[str, Any]) -> tuple[int, str]:
        return 200, "I would rather not say." if "Drawing 2" in question_of(told) else GOOD

    with serving(answering) as server, judging(server, tmp_path) as judge:
        rows = list(judge_wise([wise(1), wise(2), wise(3)], judge))
        assert len(server.asked) == 2 + 3
    assert [(row.prompt, row.judgement is None, row.reason) for row in rows] == [
        (1, False, ""), (2, True, "unreadable_reply"), (3, False, ""),
    ]  # fmt: skip
    assert rows[1].text == "I would rather not say."


def test_a_killed_run_asks_only_what_was_not_answered(tmp_path: Path) -> None:
    pictures = [wise(number) for number in range(1, 7)]
    with serving(lambda told: (200, GOOD)) as server:
        with judging(server, tmp_path, concurrency=1) as judge:
            rows = judge_wise(pictures, judge)
            next(rows)
            rows.close()  # type: ignore[attr-defined]
        before = len(server.asked)
        assert 1 <= before < 6
        journal = tmp_path / "judge.jsonl"
        journal.write_bytes(journal.read_bytes() + b'{"key": "torn')  # as a kill leaves it
        with judging(server, tmp_path) as judge:
            assert [row.judgement for row in judge_wise(pictures, judge)] == [Judgement(2, 1, 0)] * 6
        assert len(server.asked) == 6
        with judging(server, tmp_path) as judge:
            list(judge_wise(pictures, judge))
        assert len(server.asked) == 6
        with judging(server, tmp_path, temperature=0.5) as judge:  # another question
            list(judge_wise(pictures[:1], judge))
        assert len(server.asked) == 7


@pytest.mark.parametrize(
    "trouble",
    [(429, "busy"), (500, "oops"), (200, b"no json"), (200, {"choices": []}), (200, b"x" * 100), (200, {"choices": 1})],
)
def test_passing_troubles_are_asked_again(tmp_path: Path, trouble: tuple[int, Any]) -> None:
    with serving(lambda told: trouble if len(server.asked) < 3 else (200, GOOD)) as server:
        with judging(server, tmp_path) as judge:
            (row,) = judge_wise([wise(1)], judge)
        assert len(server.asked) == 3
    assert row.judgement == Judgement(2, 1, 0)


def test_what_never_goes_well_is_a_row_with_its_reason_and_is_asked_anew_by_the_next_run(tmp_path: Path) -> None:
    def answering(told: dict[str, Any]) -> tuple[int, Any]:
        number = question_of(told).split("Drawing ")[1].split('"')[0]
        refused = {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}
        return {"1": (500, "oops"), "2": (400, "too long"), "3": (200, refused)}.get(number, (200, GOOD))

    with serving(answering) as server:
        for _ in range(2):
            with judging(server, tmp_path) as judge:
                rows = list(judge_wise([wise(number) for number in range(1, 5)], judge))
            assert [row.reason for row in rows] == ["server_error", "refused_by_server", "refused_by_judge", ""]
        assert rows[1].text.startswith("400:")
        assert len(server.asked) == 2 * (3 + 1 + 1) + 1


@pytest.mark.parametrize(("status", "wants"), [(401, "set its key in OPENAI_API_KEY"), (404, "the model's name")])
def test_a_judge_that_lets_nobody_in_ends_the_run(tmp_path: Path, status: int, wants: str) -> None:
    with serving(lambda told: (status, "no")) as server, judging(server, tmp_path) as judge:
        with pytest.raises(HarmonError, match=wants):
            list(judge_wise([wise(1)], judge))
        assert len(server.asked) == 1


def test_a_judge_that_has_gone_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "FAILED_IN_A_ROW", 4)
    settings = JudgeSettings(endpoint="http://127.0.0.1:9", model="x", attempts=2, concurrency=2)
    with Judge(settings, Journal(tmp_path / "j.jsonl")) as judge:
        with pytest.raises(HarmonError, match=r"answered none of \d questions in a row.*answers so far are kept"):
            list(judge_wise([wise(number) for number in range(1, 30)], judge))
        with pytest.raises(ConfigurationError, match="is no http address"):
            Judge(settings.model_copy(update={"endpoint": "localhost:1"}), Journal(tmp_path / "k.jsonl"))


def test_a_reply_past_the_deadline_or_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = threading.Event()

    def slow(told: dict[str, Any]) -> tuple[int, str]:
        slept.wait(0.6)
        return 200, GOOD

    with serving(slow) as server, judging(server, tmp_path, deadline_seconds=0.2, attempts=2) as judge:
        before = time.monotonic()
        (row,) = judge_wise([wise(1)], judge)
        assert (row.reason, time.monotonic() - before < 5) == ("timed_out", True)
        slept.set()
    monkeypatch.setattr(judge_module, "MOST_REPLY_BYTES", 1000)
    with serving(lambda told: (200, GOOD * 100)) as server, judging(server, tmp_path, attempts=1) as judge:
        (row,) = judge_wise([wise(2)], judge)
        assert row.reason == "malformed_reply"
    with judging(server, tmp_path) as judge:
        monkeypatch.setattr(judge_module, "MOST_PICTURE_BYTES", 5)
        assert judge.ask(Question("?", PNG)).reason == "picture_too_large"


def test_verified_wise_is_another_question_and_another_score(tmp_path: Path) -> None:
    with serving(lambda told: (200, "Score: 1")) as server, judging(server, tmp_path) as judge:
        rows = list(judge_wise([wise(1, "wise-verified"), wise(2, "wise-verified")], judge))
        assert "Score: <0 or 1>" in question_of(server.asked[0])
    assert [row.judgement for row in rows] == [1.0, 1.0]


SCRIPT = '''
def build_evaluation_messages(prompt_data, image_base64):
    return [
        {"role": "system", "content": [{"type": "text", "text": "You judge."}]},
        {"role": "user", "content": [
            {"type": "text", "text": f"""Strictly, {{please}}.
PROMPT: "{prompt_data['Prompt']}"
EXPLANATION: "{prompt_data["Explanation"]}"
Follow."""},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image_base64}"}}]}]
raise SystemExit("it was run")
'''


def test_the_official_wording_is_read_from_the_official_script_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "gpt_eval.py").write_text(SCRIPT)
    words = official_wording(tmp_path / "gpt_eval.py")
    assert words.system == "You judge."
    record = {"Prompt": "a {x}", "Explanation": "b"}
    assert words.fill(record) == 'Strictly, {please}.\nPROMPT: "a {x}"\nEXPLANATION: "b"\nFollow.'
    assert words.label.startswith("official gpt_eval.py (")
    with serving(lambda told: (200, GOOD)) as server:
        settings = JudgeSettings(endpoint=f"{server.endpoint}/v1", model="gpt-4o-2024-05-13")
        examiner = WiseExaminer(settings, "legacy", words)
        (seen,) = examiner.examine([wise(1)], Journal(tmp_path / "j.jsonl"))
    assert (seen["consistency"], seen["status"]) == (2, "ok")
    assert tuple(examiner.differs) == ()  # judge, prompt and temperature are the official ones
    for wrong in (
        SCRIPT.replace("prompt_data['Prompt']", "open('/etc/passwd')"),
        SCRIPT.replace('"user"', '"model"'),
        "(",
    ):
        (tmp_path / "gpt_eval.py").write_text(wrong)
        with pytest.raises(HarmonError, match=r"is another version|is no Python script"):
            official_wording(tmp_path / "gpt_eval.py")


def dpg(item: str) -> Prompt:
    def one(number: int, text: str, parents: list[int], kind: str) -> dict[str, Any]:
        return {"id": number, "question": text, "dependency": parents, "tuple": kind}

    questions = [
        one(1, "Is there a dog?", [0], "entity - whole (dog)"),
        one(2, "Is the dog red, or reddish?", [1], "attribute - color (dog, red)"),
    ]
    return Prompt("dpg-bench", item, "a red dog", 4, {}, {"questions": questions})


def dpg_pictures(*items: str) -> list[DrawnBytes]:
    return [
        DrawnBytes(dpg(item), number, PNG + item.encode() + bytes([number])) for item in items for number in range(4)
    ]


def test_dpg_is_answered_by_a_model_that_is_named_not_official(tmp_path: Path) -> None:
    def answering(told: dict[str, Any]) -> tuple[int, str]:
        return 200, "Yes." if "Is there" in question_of(told) else "**No**, it is blue."

    with serving(answering) as server, judging(server, tmp_path) as judge:
        rows = list(JudgeVqa(judge).each(dpg_pictures("a", "b")))
        assert len(server.asked) == 16
    assert rows[0].answers == {1: "yes", 2: "no"}


def test_an_answer_that_is_neither_yes_nor_no_is_no_silent_no(tmp_path: Path) -> None:
    def answering(told: dict[str, Any]) -> tuple[int, str]:
        unclear = "red" in question_of(told) and base64.b64encode(PNG + b"b")[:12].decode() in json.dumps(told)
        return 200, "It is hard to tell." if unclear else "yes"

    with serving(answering) as server, judging(server, tmp_path) as judge:
        rows = list(JudgeVqa(judge).each(dpg_pictures("a", "b")))
    assert [row.reasons for row in rows] == [{}] * 4 + [{2: "unreadable_reply"}] * 4
    assert rows[4].answers == {1: "yes", 2: None}


def test_mplugs_answers_are_read_from_the_official_file(tmp_path: Path) -> None:
    tiles = [(0, 0, 512, 512), (512, 0, 1024, 512), (0, 512, 512, 1024), (512, 512, 1024, 1024)]
    lines = [
        f"out/a.png, {tile}, {one['question']}, {'yes' if number != 3 else 'no idea'}\n"
        for number, tile in enumerate(tiles)
        for one in dpg("a").record["questions"]
    ]
    path = tmp_path / "results_detail.txt"
    path.write_text("".join(lines))
    rows = list(MplugAnswers(path).each(dpg_pictures("a")))
    assert [row.answers[1] for row in rows] == ["yes", "yes", "yes", "no idea"]  # of mPLUG's words only "yes" counts
    path.write_text("".join(lines[1:]))  # as the script leaves it, which skips a row
    (first, *_) = MplugAnswers(path).each(dpg_pictures("a"))
    assert first.reasons == {1: "not_in_the_file"}
    for wrong, why in (("something", "it is another file"), (lines[0].replace("yes", "no"), "than an earlier line")):
        path.write_text(lines[0] + wrong + "\n")
        with pytest.raises(HarmonError, match=why):
            MplugAnswers(path)


@pytest.mark.parametrize(
    ("text", "read"),
    [("Yes", "yes"), ("**no**.", "no"), (" yes, there is", "yes"), ("Not sure", None), ("", None), ("1", None)],
)
def test_the_first_word_of_a_reply_is_its_answer(text: str, read: str | None) -> None:
    assert yes_or_no(text) == read


def test_examiners_give_the_columns_of_each_picture_and_end_on_what_may_pass(tmp_path: Path) -> None:
    def answering(told: dict[str, Any]) -> tuple[int, str]:
        if "Drawing 2" in question_of(told):
            return 200, "Never."
        return (200, GOOD) if len(server.asked) > 5 or "Drawing 1" in question_of(told) else (500, "oops")

    with serving(answering) as server:
        settings = JudgeSettings(endpoint=server.endpoint, model="m", attempts=1, concurrency=1)
        examiner, journal = WiseExaminer(settings, "legacy"), Journal(tmp_path / "j.jsonl")
        pictures = [wise(1), wise(2), wise(3)]
        with pytest.raises(HarmonError, match=r"did not answer 1 questions \(server_error 1\).*are kept"):
            examiner.examine(pictures, journal)
        assert len(server.asked) == 5
        seen = examiner.examine(pictures, journal)
        assert len(server.asked) == 6  # the one that had no answer
    told = {"status": "ok", "reason": None, "answered_as": "m-2024"}
    assert seen == [
        {"consistency": 2, "realism": 1, "aesthetic_quality": 0, "raw": GOOD, **told},
        {"consistency": None, "realism": None, "aesthetic_quality": None, "raw": "Never.",
         **told, "status": "failed", "reason": "unreadable_reply"},
        {"consistency": 2, "realism": 1, "aesthetic_quality": 0, "raw": GOOD, **told},
    ]  # fmt: skip
    assert "endpoint" not in json.dumps(examiner.configuration)
    assert examiner.differs[0] == "judge: m, officially gpt-4o-2024-05-13"


def test_dpg_examiners_give_answers_in_the_order_of_the_questions(tmp_path: Path) -> None:
    def answering(told: dict[str, Any]) -> tuple[int, str]:
        return 200, "yes" if "Is there" in question_of(told) else "Maybe"

    with serving(answering) as server:
        examiner = DpgExaminer(JudgeSettings(endpoint=server.endpoint, model="m"))
        (seen, *_) = examiner.examine(dpg_pictures("a"), Journal(tmp_path / "j.jsonl"))
    assert seen == {"answers": None, "status": "failed", "reason": "question 2: unreadable_reply"}
    assert examiner.differs[0] == "m answers the questions, officially mPLUG-large"
    lines = [f"a.png, (0, 0, 8, 8), {one['question']}, yes\n" for one in dpg("a").record["questions"]]
    (tmp_path / "x_detail.txt").write_text("".join(lines))
    official = DpgExaminer(MplugAnswers(tmp_path / "x_detail.txt"))
    (first, second, *_) = official.examine(dpg_pictures("a"), Journal(tmp_path / "j.jsonl"))
    assert first == {"answers": ["yes", "yes"], "status": "ok", "reason": None}
    assert second["status"] == "failed"
    assert official.differs == ()
