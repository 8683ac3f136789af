"""Shared fixtures of the evaluations' tests."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.samples import INDEX, EvaluationPrompt, SampleSet


@pytest.fixture
def read_samples():
    """Reads back what `evaluation.samples.write` wrote."""

    def read(directory):
        lines = (directory / INDEX).read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        candidates = []
        for entry in entries:
            image = Image.open(directory / entry.get("candidates", entry["sample"]))
            strip = torch.from_numpy(np.array(image.convert("RGB")))
            candidates.append(torch.stack(torch.split(strip, strip.shape[0], dim=1)))
        ranked = all("scores" in entry for entry in entries)
        prompts = [
            EvaluationPrompt(entry["part"], entry["key"], entry["caption"], entry["repeat"])
            for entry in entries
        ]
        scores = torch.tensor([entry["scores"] for entry in entries]) if ranked else None
        return SampleSet(tuple(prompts), torch.stack(candidates), scores)

    return read
