"""vLLM's own batch engine, in the environment that has it: `python offline_worker.py CONFIGURATION`, which is JSON.

It knows nothing of this project. A line of JSON on stdin is a lot of questions; a line on stdout is their answers.
The first line on stdout says that it is ready. It ends when stdin does.
"""

import importlib
import json
import os
import sys
from typing import Any, TextIO


def main() -> None:
    """Answer lots until stdin ends."""
    out = os.fdopen(os.dup(1), "w")  # what vLLM and its processes print goes to stderr
    os.dup2(2, 1)
    vllm: Any = importlib.import_module("vllm")
    model = vllm.LLM(**json.loads(sys.argv[1]))
    _say(out, {"version": f"vllm {vllm.__version__} offline"})
    for line in sys.stdin:
        lot = json.loads(line)
        try:
            answers = _answer(vllm, model, lot)
        except ValueError:  # one of them does not fit: find out which
            answers = [answer for question in lot for answer in _alone(vllm, model, question)]
        _say(out, answers)


def _alone(vllm: Any, model: Any, question: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return _answer(vllm, model, [question])
    except ValueError as problem:
        too_long = "maximum" in str(problem) and ("context" in str(problem) or "model length" in str(problem))
        return [{"refusal": "prompt_too_long" if too_long else "refused_by_server"}]


def _answer(vllm: Any, model: Any, lot: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chats = [question["messages"] for question in lot]
    sampling = [vllm.SamplingParams(**question["sampling"]) for question in lot]
    outputs = model.chat(chats, sampling, use_tqdm=False)
    return [
        {
            "text": output.outputs[0].text,
            "finish_reason": output.outputs[0].finish_reason,
            "tokens_in": len(output.prompt_token_ids),
            "tokens_out": len(output.outputs[0].token_ids),
        }
        for output in outputs
    ]


def _say(out: TextIO, what: object) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
