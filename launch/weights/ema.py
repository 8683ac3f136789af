"""A model directory of another average of a run's weights (arXiv 2312.02696, 3)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mezzotint.common.errors import UserError
from models import store
from trainer.averages.config import WIDEST
from trainer.averages.snapshots import make
from trainer.run import RunDirectory


@dataclass(frozen=True)
class AveragedModel:
    """What was made."""

    model: str
    """The model directory."""
    sigma_rel: float
    update: int
    snapshots: int
    """Of how many it consists."""
    error: float
    """The distance of its weighting of all updates from the wanted one, relative; 0 is exact."""

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1)

    def to_text(self) -> str:
        """One line."""
        return (
            f"{self.model}: the average of relative width {self.sigma_rel:g} at update "
            f"{self.update}, from {self.snapshots} snapshots, off by {100 * self.error:.2g} %"
        )


def average_run(run: Path, sigma_rel: float, update: int | None, out: Path | None) -> AveragedModel:
    """Write the model directory of an average of a finished run.

    Raises:
        UserError: the width is impossible.
        UserError: the run has no snapshots, or none that early.
        UserError: the run has not handed over its model yet.
    """
    if not 0 < sigma_rel < WIDEST:
        raise UserError(f"--sigma-rel: {sigma_rel:g} must lie between 0 and {WIDEST}")
    directory = RunDirectory(run)
    made = make(directory.averages, sigma_rel, update)
    source = str(directory.model)
    known, model = store.describe(source), store.load(source)
    place = out or run / f"model-{sigma_rel:g}-{made.profile.update}"
    card = (
        f"# {run.resolve().name}, averaged again\n\nThe model of `{source}` with the average of "
        f"its weights of relative width {sigma_rel:g} that ends at update {made.profile.update}.\n"
    )
    store.save(
        str(place),
        known.config,
        {**model.state_dict(), **made.weights},
        card=card,
        tokenizer=store.tokenizer_bytes(source) if known.tokenizer_sha256 else None,
        text_length=known.text_length,
        text_encoder=known.text_encoder,
    )
    profile, error = made.profile, made.combination.error
    return AveragedModel(str(place), profile.sigma_rel, profile.update, made.snapshots, error)
