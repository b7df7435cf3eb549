# SPDX-License-Identifier: Apache-2.0
"""What training keeps between calls: float32 weights, the optimizer, and where the schedule stands."""

import dataclasses
import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file

from checkpoint import save_tensors, shards
from model import Nano, Shape

FILE_BYTES = 16_000_000  # of a weights file at most, so that each can be copied by tools with small limits


@dataclasses.dataclass
class Progress:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, without start-up and evaluation
    fraction: float = 0.0  # of the schedule


def save(directory, model, optimizer, progress):
    """Replaces the state as a whole: an interrupted save leaves the old one."""
    directory = pathlib.Path(directory)
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for i, part in enumerate(shards(tensors, FILE_BYTES)):
        save_tensors(part, fresh / f"weights-{i}.safetensors")
    torch.save(optimizer.state_dict(), fresh / "optimizer.pt")
    description = {"shape": dataclasses.asdict(model.shape), "progress": dataclasses.asdict(progress)}
    (fresh / "state.json").write_text(json.dumps(description, indent=2) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)


def progress_of(directory):
    """Where training stands; at its beginning if there is no state."""
    path = pathlib.Path(directory) / "state.json"
    return Progress(**json.loads(path.read_text())["progress"]) if path.exists() else Progress()


def load_model(directory):
    directory = pathlib.Path(directory)
    model = Nano(Shape(**json.loads((directory / "state.json").read_text())["shape"]))
    tensors = {}
    for path in sorted(directory.glob("weights-*.safetensors")):
        tensors |= load_file(path)
    model.load_state_dict(tensors)
    return model


def load_optimizer(directory, optimizer):
    """False where the state came without its optimizer, which then starts afresh."""
    path = pathlib.Path(directory) / "optimizer.pt"
    if not path.exists():
        return False
    optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return True
