"""State dicts of other projects."""

import warnings

import pytest
import torch

from mezzotint.common.errors import UserError
from models.weights_file import read_weights


def test_a_torchscript_archive_is_refused_with_the_way_to_a_state_dict(tmp_path):
    layer = torch.nn.Linear(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(layer), tmp_path / "program.pt")
    with pytest.raises(UserError, match=r"program\.pt: is a TorchScript archive, .* state dict"):
        read_weights(tmp_path / "program.pt")
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    assert torch.equal(read_weights(tmp_path / "state.pt")["weight"], layer.weight)


def test_the_older_format_is_read_as_tensors_only(tmp_path):
    state = {"weight": torch.ones(2)}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pt")["weight"], state["weight"])
