"""A control moved to another base (ControlNet's tool_transfer_control.py)."""

import json
from dataclasses import asdict, dataclass

from mezzotint.common.errors import UserError
from mezzotint.inference.model_lookup import find_model
from models import store
from models.base_record import BaseRecord
from models.diffusion.control.network import Control, ControlConfig


@dataclass(frozen=True)
class Transferred:
    """What was written."""

    model: str
    base: str
    moved: int
    """Parameters that the difference of the bases was added to."""
    kept: int
    """Parameters of the hint encoder and the zero layers, which are the old ones."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        return (
            f"{self.model}: a control of {self.base}; {self.moved:,} parameters moved, "
            f"{self.kept:,} kept"
        )


def transfer_control(directory: str, out: str, *, old: str | None, new: str) -> Transferred:
    """Write control + new - old, for every weight that the control has copied from its base.

    `old` is by default the base that the control's directory records.

    Raises:
        UserError: no control, or bases of other settings than its own.
    """
    directory = find_model(directory).directory
    info = store.describe(directory)
    if not isinstance(info.config, ControlConfig):
        raise UserError(f"{directory}: holds a {info.config.kind}, not a control")
    if old is None and info.base is None:
        raise UserError(f"{directory}: names no base in its {store.CONFIG}; give it with --old")
    recorded = info.base.model if info.base else ""
    before = find_model(old or recorded).directory
    after = find_model(new).directory
    _check_bases(directory, info, before, after)
    control = store.load(directory)
    assert isinstance(control, Control), "described as one"
    state, moved = dict(control.state_dict()), 0
    here, there = (store.load(each).state_dict() for each in (before, after))
    for name, base_name in control.copied():
        # in float64: equal bases give the same control again
        change = there[base_name].double() - here[base_name].double()
        state[name] = (state[name].double() + change).float()
        moved += change.numel()
    total = sum(weight.numel() for weight in control.parameters())
    base = store.describe(after)
    card = (
        f"# Control of {after}\n\nThe control {directory} moved from the base {before}: control + "
        "new - old for every weight that it copied. It was not trained further.\n"
    )
    store.save(
        out,
        info.config,
        state,
        card=card,
        tokenizer=store.tokenizer_bytes(after) if base.tokenizer_sha256 else None,
        text_length=base.text_length,
        text_encoder=base.text_encoder,
        preprocessing=info.preprocessing,
        first_stage=base.first_stage,
        base=BaseRecord(model=after, digest=base.digest),
        hint=info.hint,
        embeddings=base.embeddings,
    )
    return Transferred(out, after, moved, total - moved)


def _check_bases(directory: str, info: store.ModelInfo, before: str, after: str) -> None:
    assert isinstance(info.config, ControlConfig), "described as one"
    known = {before: store.describe(before), after: store.describe(after)}
    if info.base is not None and known[before].digest != info.base.digest:
        raise UserError(
            f"--old {before}: is not the base that {directory} was trained for "
            f"({info.base.digest[:12]}); give that one"
        )
    for each, base in known.items():
        if base.config != info.config.base:
            raise UserError(
                f"{each}: has other settings than the base of {directory}; a control moves only to "
                "a network of the same settings, such as a fine-tuned one"
            )
    stages = [base.first_stage for base in known.values()]
    if len({None if stage is None else stage.digest for stage in stages}) > 1:
        raise UserError(f"{after}: generates latents of another first stage than {before}")
