"""The records of a submitted run on disk: its jobs, their starts and their ends.

    ROOT/submission.json        the cluster and the jobs, by stage
    DIRECTORY/job.sh            the batch script of a job
    DIRECTORY/attempts.jsonl    one line per start of the job: nodes, restart, checkpoint
    DIRECTORY/exit_code         written by the script when the job ends by itself
    DIRECTORY/refused           the message of an input error (exit code 2)
    DIRECTORY/cancelled         written by `mezzotint cancel`
    DIRECTORY/logs/job.log      the output of the job, all starts

DIRECTORY is the run directory of a stage; for a submitted recipe it is ROOT itself.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from launch.slurm.config import Cluster
from mezzotint.common.errors import UserError
from mezzotint.common.files import append_json, read_lines, write_json

TRAIN = "train"
"""The only stage of a submitted recipe."""


@dataclass(frozen=True)
class Job:
    """One SLURM job of a run. Its id is not unique: a new cluster counts from 1 again."""

    id: int
    stage: str
    name: str
    """SLURM's job name, `RUN/STAGE`."""
    submitted: float
    """Seconds since 1970."""
    nodes: int
    tasks: int
    after: tuple[str, ...] = ()
    """Stages whose jobs it waits for."""


@dataclass(frozen=True)
class JobStart:
    """One start of a job."""

    job: int
    restart: int
    """SLURM_RESTART_COUNT."""
    nodes: tuple[str, ...]
    step: int
    """Step of the newest checkpoint at the start; 0 without one."""
    time: float


@dataclass(frozen=True)
class Submission:
    """The last `submit` of a run directory."""

    run: str
    cluster: Cluster
    jobs: dict[str, Job] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        tree = TypeAdapter(Submission).dump_python(self, mode="json")
        write_json(root / "submission.json", tree)


def read_submission(root: Path) -> Submission | None:
    """The last submission of a run directory; None if there is none."""
    path = root / "submission.json"
    if not path.is_file():
        return None
    try:
        return TypeAdapter(Submission).validate_json(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read; remove the file, and cancel its jobs with scancel"
        ) from error


def stage_directory(root: Path, stage: str) -> Path:
    """The run directory of a stage; for a submitted recipe, `root` itself."""
    return root / stage if (root / "pipeline.yaml").is_file() else root


def read_job_starts(path: Path) -> list[JobStart]:
    """The starts of a stage's jobs, oldest first."""
    start = TypeAdapter(JobStart)
    return [start.validate_json(line) for line in read_lines(path / "attempts.jsonl")]


def append_job_start(path: Path, start: JobStart) -> None:
    """Record one more start."""
    append_json(path / "attempts.jsonl", asdict(start))
