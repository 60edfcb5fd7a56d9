"""A command of `harmon` done within a Prefect flow run: the same code as on the command line, heard and seen in the UI.

What it shows of its progress becomes progress artifacts, its JSON a table; its errors end the flow run in their
sentence.
"""

import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import copy_context
from functools import wraps
from typing import Any, ParamSpec

import click
import prefect
from prefect import Flow, State
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled as CancelledState

from flows.artifacts import show_result
from flows.flow_run import Cancelled, errors_in_one_sentence
from flows.progress import Show, progress_artifact
from flows.terminal import heard_by
from pipelines.errors import ConfigurationError, HarmonError

P = ParamSpec("P")
Value = str | int | float | bool | tuple[str, ...] | None


def deployed(name: str) -> Callable[[Callable[P, None]], Flow[P, Any]]:
    """Makes a function the flow `harmon-NAME`; one that is cancelled ends so, and an expected error in a sentence."""

    def decorate(body: Callable[P, None]) -> Flow[P, Any]:
        @wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> State[None] | None:
            errors_in_one_sentence()
            try:
                body(*args, **kwargs)
            except Cancelled as error:
                return CancelledState(message=str(error))
            return None

        return prefect.flow(name=f"harmon-{name}")(run)

    return decorate


def do_command(command: click.Command, subject: str, *arguments: str, **options: Value) -> None:
    """Do `command` on `arguments` as a task named after `subject`; an option that is None, False or empty is left out.

    Raises:
        ConfigurationError: a value that the command line refuses.
        HarmonError: it could not be done, or its answer is no.
    """
    words = [*_words(options), "--json", "--", *arguments]

    def do() -> None:
        _do(command, words)

    prefect.task(name=f"{command.name}:{subject}", cache_policy=NO_CACHE)(do)()


def _words(options: Mapping[str, Value]) -> Iterator[str]:
    """Each value in one word with its option, so that none is taken for an option itself."""
    for name, value in options.items():
        word = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, tuple) else (value,):
            if one is True:
                yield word
            elif one is not None and one is not False and one != "":
                yield f"{word}={one}"


def _do(command: click.Command, words: list[str]) -> None:
    assert command.name
    printed, code = io.StringIO(), 0
    try:
        with redirect_stdout(printed), _progress_in_ui():
            command.main(words, standalone_mode=False)
    except click.ClickException as error:
        raise ConfigurationError(f"harmon {command.name}: {error.format_message()}") from None
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        _show(command.name, printed.getvalue())
    if code:
        raise HarmonError(f"The answer of harmon {command.name} {words[-1]} is no; the table of its result says why.")


def _show(name: str, printed: str) -> None:
    lines = printed.strip().splitlines()
    if lines:
        said = json.loads(lines[-1])
        show_result(name, said if isinstance(said, dict) else {str(number): one for number, one in enumerate(said)})


@contextmanager
def _progress_in_ui() -> Iterator[None]:
    """Every progress that is shown within the block has an artifact of its own, made when it is first told of."""
    shows: dict[str, Show] = {}
    one_at_a_time, here = threading.Lock(), copy_context()  # other threads do not know the task run
    logger = prefect.get_run_logger()
    with ExitStack() as artifacts:

        def tell(label: str, done: int, total: int) -> None:
            with one_at_a_time:
                if label not in shows:
                    shows[label] = here.run(artifacts.enter_context, progress_artifact(label, logger=logger))
                shows[label](done, total, "")

        with heard_by(tell):
            yield
