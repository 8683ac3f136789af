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


def check_one_way(ways: Mapping[str, object], options: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse neither or several of the ways to derive a set, and options of another way.

    `options` are those of one way, by its name, or of two (`--model or --clip`), with their values.

    Raises:
        UserError: with what to leave out or to add.
    """
    chosen = [way for way, value in ways.items() if value is not None]
    if len(chosen) != 1:
        raise UserError(
            "data derive: give one of --model, which encodes images, --clip, which embeds images "
            "and captions, --text-encoder and --hint"
        )
    for way, values in options.items():
        stated = [name for name, value in values.items() if value]
        if stated and not set(way.split(" or ")) & set(chosen):
            raise UserError(f"{stated[0]}: belongs to {way}; add that, or leave it out")


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
