# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-V3's architecture in plain PyTorch, for training: MLA, routed experts, YaRN, one MTP layer.

Modules carry the names of the checkpoint's tensors. Only the routed experts differ: they are stacked
as `mlp.experts.gate_proj` [E, I, D] here and stored one by one there (export.py). Parameters are
float32; arithmetic is in the type that `forward` is asked for, norms, rotary values and the router in
float32.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes, named as in config.json. What 8 ranks cut is divisible by 8."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 1536
    moe_intermediate_size: int = 64
    num_hidden_layers: int = 4
    num_nextn_predict_layers: int = 1
    first_k_dense_replace: int = 1
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096
    rope_factor: float = 4.0
    original_max_position_embeddings: int = 1024

    @property
    def qk_head_dim(self):
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_moe(self, layer):
        return layer >= self.first_k_dense_replace


BETA_FAST, BETA_SLOW = 32, 1  # YaRN, as in R1's config


def yarn_frequencies(shape):
    """[rope / 2] angles per position: fast pairs as they are, slow ones divided by the factor, a ramp between."""
    dim = shape.qk_rope_head_dim
    plain = shape.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def pair_that_turns(times):
        length = shape.original_max_position_embeddings
        return dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(shape.rope_theta))

    low = max(math.floor(pair_that_turns(BETA_FAST)), 0)
    high = min(math.ceil(pair_that_turns(BETA_SLOW)), dim - 1)
    span = max(high - low, 0.001)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / span).clamp(0, 1)
    return (plain / shape.rope_factor * ramp + plain * (1 - ramp)).float()


def softmax_scale(shape):
    """One over the root of the head size, times YaRN's mscale squared (mscale_all_dim 1)."""
    mscale = 0.1 * math.log(shape.rope_factor) + 1 if shape.rope_factor > 1 else 1.0
    return shape.qk_head_dim**-0.5 * mscale**2


class Linear(nn.Module):
    """y = x W^T, W [out, in] float32, in the type of x."""

    def __init__(self, out_features, in_features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * 0.7 * in_features**-0.5)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


def rotate(x, rope):
    """Turns the pairs (x[2j], x[2j+1]), interleaved as DeepSeek stores them. rope: cos and sin [..., T, 1, dim / 2]."""
    cos, sin = rope
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """MLA in its expanded form."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        heads, hidden = shape.num_attention_heads, shape.hidden_size
        self.q_a_proj = Linear(shape.q_lora_rank, hidden)
        self.q_a_layernorm = Norm(shape.q_lora_rank, shape.rms_norm_eps)
        self.q_b_proj = Linear(heads * shape.qk_head_dim, shape.q_lora_rank)
        self.kv_a_proj_with_mqa = Linear(shape.kv_lora_rank + shape.qk_rope_head_dim, hidden)
        self.kv_a_layernorm = Norm(shape.kv_lora_rank, shape.rms_norm_eps)
        self.kv_b_proj = Linear(heads * (shape.qk_nope_head_dim + shape.v_head_dim), shape.kv_lora_rank)
        self.o_proj = Linear(hidden, heads * shape.v_head_dim)

    def heads(self, x, rope):
        """q, k [B, heads, T, qk_head_dim] and v [B, heads, T, v_head_dim]."""
        shape, heads = self.shape, self.shape.num_attention_heads
        nope, rotary = shape.qk_nope_head_dim, shape.qk_rope_head_dim
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, (heads, -1))
        q_nope, q_rope = q.split([nope, rotary], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([shape.kv_lora_rank, rotary], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (heads, -1))
        k_nope, v = kv.split([nope, shape.v_head_dim], -1)
        q = torch.cat([q_nope, rotate(q_rope, rope)], -1)
        k_rope = rotate(k_rope.unsqueeze(-2), rope)
        k = torch.cat([k_nope, k_rope.expand(*k_nope.shape[:-1], rotary)], -1)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x, rope, attend):
        o = attend(*self.heads(x, rope))
        return self.o_proj(o.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.gate_proj = Linear(intermediate, hidden)
        self.up_proj = Linear(intermediate, hidden)
        self.down_proj = Linear(hidden, intermediate)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def best(scores, count):
    """Which `count` of the last dimension are largest, the lower index among equals: a mask.

    Counting who is larger costs one fused pass at these sizes; torch.topk would cost a kernel with
    a block per row.
    """
    index = torch.arange(scores.shape[-1], device=scores.device)
    mine, other = scores.unsqueeze(-1), scores.unsqueeze(-2)
    ahead = (other > mine) | ((other == mine) & (index < index.unsqueeze(-1)))
    return ahead.sum(-1) < count


class Router(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.randn(shape.n_routed_experts, shape.hidden_size) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.n_routed_experts))

    def forward(self, x):
        """The weight of every expert, 0 for those not chosen, and how often each was: [B, T, E], [E]."""
        shape = self.shape
        scores = torch.sigmoid(F.linear(x.float(), self.weight))
        choice = scores.detach() + self.e_score_correction_bias
        groups = choice.unflatten(-1, (shape.n_group, -1))
        group_scores = (groups * best(groups, 2)).sum(-1)
        kept = best(group_scores, shape.topk_group).unsqueeze(-1).expand_as(groups).flatten(-2)
        chosen = best(choice.masked_fill(~kept, -math.inf), shape.num_experts_per_tok)
        weights = scores * chosen
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * shape.routed_scaling_factor
        return weights, chosen.flatten(0, -2).sum(0)


class Experts(nn.Module):
    def __init__(self, shape):
        super().__init__()
        count, inner, hidden = shape.n_routed_experts, shape.moe_intermediate_size, shape.hidden_size
        self.gate_proj = nn.Parameter(torch.randn(count, inner, hidden) * 0.7 * hidden**-0.5)
        self.up_proj = nn.Parameter(torch.randn(count, inner, hidden) * 0.7 * hidden**-0.5)
        self.down_proj = nn.Parameter(torch.randn(count, hidden, inner) * 0.7 * inner**-0.5)


class Moe(nn.Module):
    """Routed and shared experts, computed as one wide MLP whose inner values carry the expert's weight.

    At this size the unused experts cost less than gathering the used ones would.
    """

    def __init__(self, shape):
        super().__init__()
        self.shared_width = shape.n_shared_experts * shape.moe_intermediate_size
        self.gate = Router(shape)
        self.experts = Experts(shape)
        self.shared_experts = Mlp(shape.hidden_size, self.shared_width)

    def forward(self, x):
        weights, load = self.gate(x)
        routed, shared = self.experts, self.shared_experts
        gate = torch.cat([routed.gate_proj.flatten(0, 1), shared.gate_proj.weight]).to(x.dtype)
        up = torch.cat([routed.up_proj.flatten(0, 1), shared.up_proj.weight]).to(x.dtype)
        down = torch.cat([routed.down_proj.transpose(0, 1).flatten(1), shared.down_proj.weight], 1).to(x.dtype)
        inner = F.silu(F.linear(x, gate)) * F.linear(x, up)
        count, width = routed.gate_proj.shape[:2]
        each, common = inner.split([count * width, self.shared_width], -1)
        each = each.unflatten(-1, (count, width)) * weights.to(x.dtype).unsqueeze(-1)
        inner = torch.cat([each.flatten(-2), common], -1)
        return F.linear(inner, down), load


class Layer(nn.Module):
    def __init__(self, shape, index):
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.is_moe = shape.is_moe(index)
        self.mlp = Moe(shape) if self.is_moe else Mlp(shape.hidden_size, shape.intermediate_size)

    def forward(self, x, rope, attend):
        """The residual stream, and the load of each expert (None in a dense layer)."""
        x = x + self.self_attn(self.input_layernorm(x), rope, attend)
        y = self.mlp(self.post_attention_layernorm(x))
        y, load = y if self.is_moe else (y, None)
        return x + y, load


class MtpLayer(Layer):
    """Predicts the token after the next from the hidden state and the next token."""

    def __init__(self, shape, index):
        super().__init__(shape, index)
        self.enorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.hnorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.eh_proj = Linear(shape.hidden_size, 2 * shape.hidden_size)
        self.shared_head = nn.Module()
        self.shared_head.norm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, hidden, embedded, rope, attend):
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], -1))
        x, load = super().forward(x, rope, attend)
        return self.shared_head.norm(x), load


class Trunk(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        main = [Layer(shape, i) for i in range(shape.num_hidden_layers)]
        self.layers = nn.ModuleList([*main, MtpLayer(shape, shape.num_hidden_layers)])
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)


class Nano(nn.Module):
    """The whole model. `attend(q, k, v)` is the attention over [B, heads, T, ...] that the caller wants."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.lm_head = Linear(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        self.register_buffer("frequencies", yarn_frequencies(shape), persistent=False)

    def rope(self, positions):
        """cos and sin [..., T, 1, rope / 2] of positions [..., T]."""
        angles = positions.unsqueeze(-1).unsqueeze(-1).float() * self.frequencies
        return angles.cos(), angles.sin()

    def embed(self, tokens, dtype):
        return self.model.embed_tokens(tokens).to(dtype)

    def hidden(self, tokens, rope, attends, dtype=torch.bfloat16):
        """Final normalized states [B, T, D], and the loads of the MoE layers. attends: one a main layer."""
        x, loads = self.embed(tokens, dtype), []
        for layer, attend in zip(self.model.layers[: self.shape.num_hidden_layers], attends, strict=True):
            x, load = layer(x, rope, attend)
            loads += [] if load is None else [load]
        return self.model.norm(x), loads

    def draft(self, hidden, next_tokens, rope, attend):
        """The MTP layer's state at each position, given the token that follows it."""
        return self.model.layers[-1](hidden, self.embed(next_tokens, hidden.dtype), rope, attend)

    def routers(self):
        return [layer.mlp.gate for layer in self.model.layers if layer.is_moe]


def causal(shape):
    """Attention over a whole row, each position seeing those before it."""
    scale = softmax_scale(shape)

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    return attend


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())
