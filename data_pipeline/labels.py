"""Class labels from sample attributes."""

from data_pipeline.config import LabelConfig
from data_pipeline.manifest import Attribute, SampleEntry
from data_pipeline.selection import Selected, check_values
from data_pipeline.sets.survey import Survey
from mezzotint.common.errors import UserError


class Labels:
    """The classes of the selected samples of a set.

    Raises:
        UserError: No sample has the attribute or one of the values, or a sample has no class.
    """

    def __init__(self, survey: Survey, selected: Selected, config: LabelConfig) -> None:
        self._config = config
        values = range(config.count) if config.values is None else config.values
        self._classes: dict[Attribute, int] = {value: row for row, value in enumerate(values)}
        manifest, indexes = survey.stored.manifest, survey.stored.indexes
        check_values(manifest, "data.label", config.attribute, config.values or ())
        counts = manifest.attributes[config.attribute]
        every = counts.samples == manifest.sample_count and counts.values is not None
        if every and all(value in self._classes for value, _ in counts.values or ()):
            return

        def check(shard: int) -> int:
            index = indexes.of(shard)
            found = index.among(config.attribute, list(values))
            for row in selected.rows(shard).tolist():
                if not found[row]:
                    self.of(index.sample(row))
            return 1

        survey.of(
            selected.shards, f"labels {config.model_dump_json()} of {selected.described}", check
        )

    def of(self, sample: SampleEntry) -> int:
        """The class of a sample.

        Raises:
            UserError: It has none.
        """
        value = sample.attributes.get(self._config.attribute)
        if value not in self._classes:
            raise UserError(
                f"data.label: sample '{sample.key}' has {self._config.attribute} {value!r}, which "
                f"is no class ({_range(self._config)}); add its value, or exclude it by "
                "data.select.where"
            )
        return self._classes[value]


def _range(config: LabelConfig) -> str:
    if config.values is None:
        return f"integers 0 to {config.count - 1}"
    return f"{len(config.values)} values starting with {config.values[0]!r}"
