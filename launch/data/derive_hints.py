"""`mezzotint data derive --hint`: the hints of a set's images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.hints.config import of_settings
from launch.progress import Reporter
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing


@dataclass(frozen=True)
class HintOptions:
    """What hints are made, and how."""

    url: str
    out: str
    kind: str
    size: int | None
    """Side of the images in pixels."""
    settings: tuple[str, ...] = ()
    """Of the detector, as `low=100`."""
    name: str | None = None
    """Of the member; the kind where None."""
    workers: int | None = None
    as_json: bool = False
    preprocessing: StatedPreprocessing = MODELS_OWN


def check_one_way(model: str | None, hint: str | None, only_hints: Mapping[str, object]) -> None:
    """Refuse neither or both of an encoder and a detector, and options of hints without one.

    Raises:
        UserError: with what to leave out or to add.
    """
    if (model is None) == (hint is None):
        raise UserError("data derive: give either --model, which encodes images, or --hint")
    stated = [name for name, value in only_hints.items() if value]
    if hint is None and stated:
        raise UserError(f"{stated[0]}: is for hints; add --hint, or leave it out")


def derive_hint_set(options: HintOptions) -> str:
    """Make the hints; the report as text or JSON.

    Raises:
        UserError: no such set, detector or setting, or a damaged image.
    """
    from data_pipeline.hints.derive import derive_hints

    detector = of_settings(options.kind, options.settings)
    if options.size is None:
        raise UserError(
            "--size: hints are made at the size of the images that a control generates; give it, "
            "for instance --size 64"
        )
    stated = {**options.preprocessing.values, "size": options.size}
    data = DataConfig(url=options.url, image=ImageConfig.model_validate(stated))
    with Reporter(None, shows=not options.as_json) as reporter:
        manifest = derive_hints(
            data,
            options.out,
            detector,
            name=options.name,
            workers=options.workers,
            progress=reporter.callback("hints"),
        )
    name, samples = options.name or options.kind, manifest.sample_count
    record = detector.record
    if options.as_json:
        tree = {"url": options.out, "samples": samples, "name": name, "channels": detector.channels}
        return json.dumps({**tree, "detector": record.model_dump()})
    return (
        f"{options.out}: {samples:,} hints by {record}\n"
        f"train on them with 'data.join=[{options.out}]' data.hint.name={name} "
        f"data.hint.channels={detector.channels}"
    )
