# SPDX-License-Identifier: Apache-2.0
"""Which of PyTorch's attention kernels trains fastest here, for heads whose keys are wider than their values.

The flash kernel wants one width: values are padded for it. What a kernel gives is compared with the
first that works, for there have been versions that were fast and wrong.
"""

import contextlib
import dataclasses
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import causal

ROWS, LENGTH, TRIES = 32, 1024, 5
TOLERANCE = 0.03  # relative L2; bf16 rounding alone is below 0.01


@dataclasses.dataclass(frozen=True)
class Kernel:
    name: str
    backend: SDPBackend | None = None
    pads_values: bool = False
    seconds: float = 0.0

    def allowed(self):
        """A context in which SDPA takes this kernel."""
        return sdpa_kernel(self.backend) if self.backend else contextlib.nullcontext()

    def attend(self, shape):
        plain = causal(shape)
        if not self.pads_values:
            return plain
        width, extra = shape.v_head_dim, shape.qk_head_dim - shape.v_head_dim
        return lambda q, k, v: plain(q, k, F.pad(v, (0, extra)))[..., :width]


KERNELS = (
    Kernel("efficient", SDPBackend.EFFICIENT_ATTENTION),
    Kernel("flash", SDPBackend.FLASH_ATTENTION, pads_values=True),
    Kernel("cudnn", SDPBackend.CUDNN_ATTENTION),
)


def _run(kernel, shape, tensors):
    """Output and gradients."""
    with kernel.allowed():
        output = kernel.attend(shape)(*tensors)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), tensors)]


def _time(kernel, shape, tensors):
    results = _run(kernel, shape, tensors)
    torch.cuda.synchronize()
    begin = time.monotonic()
    for _ in range(TRIES):
        _run(kernel, shape, tensors)
    torch.cuda.synchronize()
    return results, (time.monotonic() - begin) / TRIES


def relative_error(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def kernels(shape, device, say):
    """Those that work on this device, the fastest first."""
    if device.type != "cuda":
        return [Kernel("plain")]
    heads, wide, narrow = shape.num_attention_heads, shape.qk_head_dim, shape.v_head_dim
    tensors = [
        torch.randn(ROWS, LENGTH, heads, width, device=device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for width in (wide, wide, narrow)
    ]
    usable, expected = [], None
    for kernel in KERNELS:
        try:
            results, seconds = _time(kernel, shape, tensors)
        except RuntimeError as error:
            say(f"attention {kernel.name}: not here ({str(error).splitlines()[0]})")
            continue
        expected = expected or results
        errors = [relative_error(found, right) for found, right in zip(results, expected, strict=True)]
        agrees = max(errors) < TOLERANCE
        verdict = "" if agrees else ", refused"
        say(f"attention {kernel.name}: {seconds * 1e3:.2f} ms, differs by {max(errors):.1e}{verdict}")
        if agrees:
            usable.append(dataclasses.replace(kernel, seconds=seconds))
    return sorted(usable, key=lambda kernel: kernel.seconds)
