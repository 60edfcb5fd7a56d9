"""Failures that a new start only meets again, and what ends a Ray training on one at once."""

from typing import Any

from pipelines.errors import ConfigurationError, HarmonError


class FinalError(HarmonError):
    """Training cannot go on, and starting it again unchanged ends in the same place."""


class ToldToStop(HarmonError):
    """Training was told to stop, and its checkpoint stands."""


def words_of(error: BaseException) -> str:
    """What an error of another's package says in its last line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def final_error(failures: dict[int, Exception]) -> HarmonError | None:
    """The first of the workers' `failures`, by rank, that starting again does not mend; None where each may pass."""
    final = (error for _, error in sorted(failures.items()) if isinstance(error, FinalError | ConfigurationError))
    return next(final, None)


def ending_callback() -> Any:
    """A callback of Ray Train that ends the training with a final error.

    Ray's failure policy starts workers again whatever they raised. It has one way out that it does not try again: an
    error of its own controller, such as one that a callback raises there.
    """
    from ray.train import UserCallback

    class Ending(UserCallback):  # type: ignore[misc]  # Ray has no types here
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            error = final_error(worker_exceptions)
            if error is not None:
                raise error

    return Ending()
