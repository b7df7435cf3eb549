# SPDX-License-Identifier: Apache-2.0
"""FP8 e4m3 weights with a float32 scale per 128 x 128 block, as DeepSeek-V3 and R1 store them."""

import contextlib

import torch
import torch.nn.functional as F

BLOCK = 128
LARGEST = 448.0  # of e4m3


def _blocks(matrix):
    """[..., rows, cols] -> [..., row blocks, 128, column blocks, 128], ragged edges filled with zeros."""
    rows, cols = matrix.shape[-2:]
    padded = F.pad(matrix, (0, -cols % BLOCK, 0, -rows % BLOCK))
    return padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))


def _matrix(blocks, like):
    return blocks.flatten(-2).flatten(-3, -2)[..., : like.shape[-2], : like.shape[-1]]


def quantize(matrix):
    """e4m3 values [..., rows, cols] and scales [..., ceil(rows / 128), ceil(cols / 128)]; value * scale undoes it."""
    blocks = _blocks(matrix.float())
    largest = blocks.abs().amax((-3, -1), keepdim=True)
    scale = largest.clamp(min=1e-12) / LARGEST
    values = (blocks / scale).clamp(-LARGEST, LARGEST)  # the division may round above it, and e4m3 has no infinity
    return _matrix(values, matrix).to(torch.float8_e4m3fn).contiguous(), scale.squeeze(-1).squeeze(-2)


def dequantize(values, scale):
    blocks = _blocks(values.float()) * scale[..., :, None, :, None]
    return _matrix(blocks, values).contiguous()


def is_quantized(name):
    """Whether R1 stores this weight in FP8: every matrix of a layer but the router's and the MTP input projection."""
    in_layer = name.startswith("model.layers.")
    return in_layer and "_proj" in name and "eh_proj" not in name


@torch.no_grad()
def as_stored(name, parameter):
    """The value that a reader of the FP8 checkpoint gets for a parameter."""
    if is_quantized(name):
        return dequantize(*quantize(parameter))
    return parameter.bfloat16().float()


@contextlib.contextmanager
def stored_weights(model, enabled=True):
    """Within it the parameters have the values of the FP8 checkpoint; afterwards their own again.

    Gradients taken inside go to the parameters as they are: the straight-through estimator.
    """
    if not enabled:
        yield
        return
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(as_stored(name, parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(own[name])
