"""The model card that travels with a model directory."""

from collections.abc import Mapping

from data_pipeline.manifest import Manifest
from trainer.recipe import Recipe, dump


def model_card(
    recipe: Recipe, manifest: Manifest, parameters: int, metrics: Mapping[str, float]
) -> str:
    """Data, recipe and last training metrics, in Markdown."""
    shown = "\n".join(
        f"| {name} | {value:.5g} |"
        for name, value in sorted(metrics.items())
        if "second" not in name and "wait" not in name
    )
    return f"""# {recipe.name}

{recipe.description or "A model trained with Mezzotint."}

- Kind: `{recipe.model.kind}`, {parameters:,} parameters (exponential moving average)
- Data: {manifest.name}, {manifest.licence}; manifest sha256 `{manifest.fingerprint}`
- Training: {recipe.steps:,} updates of {recipe.batch} samples, seed {recipe.seed}

## Metrics at the last step

These are training metrics; they say nothing of captions the model was not trained on.

| metric | value |
|---|---|
{shown}

## Recipe

```yaml
{dump(recipe).rstrip()}
```
"""
