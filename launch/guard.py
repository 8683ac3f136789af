"""Bad input ends with one clear message and exit code 2, never with a traceback."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from mezzotint.common.errors import UserError

BAD_INPUT = 2


def guarded(entry: Callable[[], None]) -> None:
    """Run an entry point; known refusals become `error: ...` on stderr."""
    try:
        entry()
    except UserError as error:
        refuse(str(error))
    except ValidationError as error:
        from trainer.recipe import explain

        refuse(explain(error, error.title))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from the last checkpoint\n")
        leave(130)


def refuse(message: str) -> None:
    """Say what is wrong and leave.

    Where several processes are ranks of one job, SLURM's exit code may be that of a rank which was
    stopped for this one's sake: the job's script finds the refusal in a file.
    """
    sys.stderr.write(f"error: {message}\n")
    job = os.environ.get("MEZZOTINT_JOB")
    if job:
        with suppress(OSError), (Path(job) / "refused").open("a", encoding="utf-8") as file:
            file.write(f"{message}\n")
    leave(BAD_INPUT)


def leave(code: int) -> None:
    """Exit at once: other processes of a run may be waiting in a collective for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
