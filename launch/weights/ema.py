"""`mezzotint average`: a model with another EMA length, post hoc (arXiv 2312.02696, sec. 3)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mezzotint.common.errors import UserError
from models import store
from trainer.averages.config import WIDEST
from trainer.averages.snapshots import synthesize
from trainer.run import RunDirectory


@dataclass(frozen=True)
class AveragedModel:
    """The model that was written."""

    model: str
    """The model directory."""
    sigma_rel: float
    update: int
    snapshots: int
    """Number of snapshots that were combined."""
    error: float
    """Relative distance of its weighting of the updates from the requested one; 0 is exact."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def to_text(self) -> str:
        return (
            f"{self.model}: EMA of relative width {self.sigma_rel:g} at update {self.update}, from "
            f"{self.snapshots} snapshots, off by {100 * self.error:.2g} %"
        )


def average_run(run: Path, sigma_rel: float, update: int | None, out: Path | None) -> AveragedModel:
    """Write the model directory of another EMA of a finished run.

    Raises:
        UserError: an impossible width, no snapshot up to that update, or no model yet.
    """
    if not 0 < sigma_rel < WIDEST:
        raise UserError(f"--sigma-rel: {sigma_rel:g} must lie between 0 and {WIDEST}")
    directory = RunDirectory(run)
    averaged = synthesize(directory.averages, sigma_rel, update)
    source = str(directory.model)
    info, model = store.describe(source), store.load(source)
    target = out or run / f"model-{sigma_rel:g}-{averaged.profile.update}"
    card = (
        f"# {run.resolve().name}, post-hoc EMA\n\nThe model of `{source}` with the EMA of "
        f"its weights of relative width {sigma_rel:g} at update {averaged.profile.update}.\n"
    )
    store.save(
        str(target),
        info.config,
        {**model.state_dict(), **averaged.weights},
        card=card,
        tokenizer=store.tokenizer_bytes(source) if info.tokenizer_sha256 else None,
        text_length=info.text_length,
        text_encoder=info.text_encoder,
        preprocessing=info.preprocessing,
        first_stage=info.first_stage,
        base=info.base,
        hint=info.hint,
        embeddings=info.embeddings,
    )
    profile, error = averaged.profile, averaged.combination.error
    return AveragedModel(str(target), profile.sigma_rel, profile.update, averaged.snapshots, error)
