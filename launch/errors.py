"""How a command ends: one clear message and exit code 2 for bad input, never a traceback."""

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from mezzotint.common.errors import UserError

BAD_INPUT = 2
RESUMED = {
    ("train",): "resumes from the newest checkpoint, or starts again if there is none",
    ("run",): "resumes the stages that are not finished",
    ("stage",): "resumes the stage",
    ("edit", "imagic"): "goes on from what is kept",
    ("data", "pack"): "goes on with the pairs that are not packed yet",
}
"""What a command does that is started again after an interruption."""
_codes: list[int] = []
"""The exit code of the command that has ended, if it was a number."""


class Stopped(Exception):
    """Training ended before its last step; `code` is the exit code of the process."""

    def __init__(self, code: int) -> None:
        super().__init__(f"training stopped with exit code {code}")
        self.code = code


def run_command(command: Callable[[], None]) -> None:
    """Run an entry point and exit: bad input becomes `error: ...` on stderr and exit code 2."""
    try:
        command()
        _codes.append(0)
    except SystemExit as ended:
        _codes.extend([ended.code or 0] if isinstance(ended.code, int | None) else [])
        raise
    except Stopped as stopped:
        _codes.append(stopped.code)
        sys.exit(stopped.code)
    except UserError as error:
        exit_with_error(str(error))
    except ValidationError as error:
        from trainer.recipe import explain

        exit_with_error(explain(error, error.title))
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted{after_interruption(sys.argv[1:])}\n")
        exit_now(130)


def after_interruption(words: Sequence[str]) -> str:
    """What the same command does after Ctrl-C, for those that keep what they have done."""
    for command, sequel in RESUMED.items():
        if words[: len(command)] == list(command):
            return f"; the same command {sequel}"
    return ""


def exit_with_error(message: str) -> None:
    """Print an error and exit with code 2.

    SLURM may report the exit code of a rank that was stopped because this one failed, so the job
    script looks for the message in a file.
    """
    sys.stderr.write(f"error: {message}\n")
    job = os.environ.get("MEZZOTINT_JOB")
    if job:
        with suppress(OSError), (Path(job) / "refused").open("a", encoding="utf-8") as file:
            file.write(f"{message}\n")
    exit_now(BAD_INPUT)


def exit_now(code: int) -> None:
    """Exit without cleanup: other ranks may be waiting in a collective for this process."""
    with suppress(OSError):  # the reader of a pipe is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


@atexit.register
def _exit_after_cleanup() -> None:
    """Exit before Python ends its interpreter; registered early, so this runs after other cleanup.

    While the interpreter ends, a thread of gloo that drops its last tensor aborts the process
    (torch 2.13): a run that has succeeded would exit with code 134.
    """
    if _codes:
        exit_now(_codes[-1])
