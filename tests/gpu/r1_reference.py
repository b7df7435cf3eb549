# SPDX-License-Identifier: Apache-2.0
"""The forward pass of DeepSeek-V3 / R1 in plain PyTorch, from a Hugging Face directory: what `r1d golden` compares with.

    r1_reference.py DIR [--activations f32|e4m3|both] [--lengths 1,2,5,12] [--steps 8] [--device cuda]
    r1_reference.py --complete GOLDEN_DIR... [--lengths 2,9,40]
    r1_reference.py --check GOLDEN_DIR...

The first form computes random prompts and their greedy continuations, and writes golden.json and golden.safetensors
into DIR (the format: tests/data/golden/README.md). The second adds to such a directory, for small models: how near
each recorded prompt comes to a tie of the router, and prompts that stay far from one. The third compares with what is
recorded.

f32    Stored weights, dequantized, times unquantized f32 activations: the model as its checkpoint states it.
e4m3   What GPUs with FP8 compute: the input of every FP8 Linear is rounded to e4m3 with a scale per 1x128 values
       (largest magnitude / 448), everything that one kernel hands to the next is rounded to bf16. Prefill multiplies
       quantized latents with kv_b; decode (and prompts of up to 4 tokens) takes MLA's absorbed form with kv_b in bf16.
       Where small batches keep f32 between two products, or bf16, that large ones do not, so does this.

Everything is summed in f32, without TF32. Sources: DeepSeek-V2 report, section 2.1 (MLA), DeepSeek-V3 report, sections
2.1.2 (router) and 3.3 (FP8), arXiv 2309.00071 (YaRN).
"""

import argparse
import concurrent.futures
import json
import math
import pathlib
import sys
import time

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

BLOCK = 128
# The most tokens of a step that take the forms made for decode: MLA, a Linear, the experts.
ABSORBED_TOKENS = 4
DECODE_TOKENS = 32
DECODE_EXPERT_TOKENS = 256
# Checkpoints up to this keep their weights in f32, too.
MOST_KEPT_BYTES = 1e9
# Tokens that a search for the next token of a prompt may compute at once.
CANDIDATE_TOKENS = 1024


class Checkpoint:
    """All tensors of a directory on one device, as stored."""

    def __init__(self, directory, device):
        self.directory = pathlib.Path(directory)
        self.config = json.loads((self.directory / "config.json").read_text())
        self.device = device
        files = sorted(self.directory.glob("model*.safetensors"))
        begin = time.monotonic()
        self.tensors = {}
        with concurrent.futures.ThreadPoolExecutor(len(files)) as pool:
            for tensors in pool.map(self._read, files):
                self.tensors.update(tensors)
        self.seconds = time.monotonic() - begin
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
        self.values = {} if self.bytes < MOST_KEPT_BYTES else None

    def _read(self, path):
        with safe_open(str(path), framework="pt", device=self.device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}

    def is_fp8(self, name):
        return name + "_scale_inv" in self.tensors

    def f32(self, name):
        """A tensor's values; W[r][c] * S[r / 128][c / 128] where it has scales. Kept for small models."""
        if self.values is None:
            return self._dequantized(name)
        if name not in self.values:
            self.values[name] = self._dequantized(name)
        return self.values[name]

    def _dequantized(self, name):
        weight = self.tensors[name].to(torch.float32)
        if not self.is_fp8(name):
            return weight
        rows, cols = weight.shape
        scale = self.tensors[name + "_scale_inv"].repeat_interleave(BLOCK, 0)[:rows]
        blocks = F.pad(weight, (0, scale.shape[1] * BLOCK - cols)).view(rows, -1, BLOCK)
        return (blocks * scale[:, :, None]).view(rows, -1)[:, :cols]


def quantized(x):
    """x with every 1x128 values rounded to e4m3 under one scale."""
    groups = x.view(*x.shape[:-1], -1, BLOCK)
    largest = groups.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / 448, torch.ones_like(largest))
    return ((groups / scale).to(torch.float8_e4m3fn).to(torch.float32) * scale).view(x.shape)


def lead(values, count):
    """[T]: by how much the last of the `count` largest of values [T, N] is ahead of the next one."""
    if values.shape[-1] == count:
        return torch.full_like(values[:, 0], math.inf)
    top = values.topk(count + 1, -1).values
    return top[:, count - 1] - top[:, count]


def yarn_frequencies(config):
    """Frequencies of the rotary pairs, the factor of cos and sin, and the softmax scale."""
    dim = config["qk_rope_head_dim"]
    base = config["rope_theta"]
    scale = (config["qk_nope_head_dim"] + dim) ** -0.5
    plain = [base ** (-2 * j / dim) for j in range(dim // 2)]
    rope = config.get("rope_scaling")
    if not rope:
        return plain, 1.0, scale
    length, factor = rope["original_max_position_embeddings"], rope["factor"]

    def turns_at(rotations):
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(turns_at(rope["beta_fast"])), 0)
    high = min(math.ceil(turns_at(rope["beta_slow"])), dim - 1)
    high = high + 0.001 if low == high else high
    ramp = [min(max((j - low) / (high - low), 0), 1) for j in range(dim // 2)]

    def mscale(weight):
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    all_dim = rope.get("mscale_all_dim", 0)
    scale *= mscale(all_dim) ** 2 if all_dim else 1
    return ([f / factor * r + f * (1 - r) for f, r in zip(plain, ramp)],
            mscale(rope.get("mscale", 1)) / (mscale(all_dim) if all_dim else 1), scale)


class Model:
    """One forward pass over whole sequences, side by side; nothing is cached between calls."""

    def __init__(self, checkpoint, activations):
        self.w = checkpoint
        self.config = checkpoint.config
        self.e4m3 = activations == "e4m3"
        frequencies, self.rope_factor, self.softmax_scale = yarn_frequencies(self.config)
        self.frequencies = torch.tensor(frequencies, dtype=torch.float64, device=checkpoint.device)
        # Of the last call, one of each MoE layer: scores over their spread [T, E], experts chosen [T, k], and by how
        # much these won, in the spread of a score [T].
        self.scores, self.choices, self.margins = [], [], []
        self.rounds_h = self.rounds_expert = None  # [T]: where e4m3 mode rounds

    def round(self, x, rows=None):
        """To bf16 in e4m3 mode; `rows` [T] says which, when not all."""
        if not self.e4m3:
            return x
        rounded = x.to(torch.bfloat16).to(torch.float32)
        return rounded if rows is None else torch.where(rows[:, None], rounded, x)

    def in_large_step(self, spans, most):
        """[T]: tokens of prompts longer than `most`, which no other sequence shares a step with."""
        return torch.tensor([i < length and length > most for begin, end, length in spans for i in range(end - begin)],
                            device=self.w.device)

    def norm(self, x, name):
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return self.round(x * scale * self.w.f32(name))

    def linear(self, x, name):
        quantizes = self.e4m3 and self.w.is_fp8(name) and x.shape[-1] % BLOCK == 0
        return (quantized(x) if quantizes else x) @ self.w.f32(name).T

    def rotate(self, x, positions):
        """x [T, ..., dr]; pairs are neighbours (2j, 2j + 1)."""
        angles = positions.to(torch.float64)[:, None] * self.frequencies
        shape = (len(positions),) + (1,) * (x.dim() - 2) + (-1,)
        cos, sin = ((f(angles) * self.rope_factor).to(torch.float32).view(shape) for f in (torch.cos, torch.sin))
        if not self.config.get("rope_interleave", True):
            first, second = x.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def softmax_times(self, scores, first_query, values, equation):
        """softmax(scores [N, H, T, S]) over the keys that a query sees, times values."""
        count, keys = scores.shape[2:]
        hidden = (torch.arange(keys, device=scores.device)[None, :]
                  > torch.arange(first_query, first_query + count, device=scores.device)[:, None])
        scores = scores.masked_fill(hidden, -math.inf)
        e = torch.exp(scores - scores.amax(-1, keepdim=True))
        e, total = self.round(e), e.sum(-1).transpose(1, 2)[..., None]
        return torch.einsum(equation, e, values) / total

    def attend(self, q, latents, k_pe, prefix, prompt_length):
        """N sequences of T tokens. q [N, T, H, dn + dr] with its rope part rotated, latents [N, T, R],
        k_pe [N, T, dr] -> [N, T, H, dv]."""
        c = self.config
        heads, nope, v = c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"]
        name = prefix + "kv_b_proj.weight"
        count, tokens = q.shape[:2]
        absorbed = 0 if prompt_length <= ABSORBED_TOKENS else prompt_length
        first_absorbed = absorbed if self.e4m3 else tokens
        parts = []
        if first_absorbed > 0:
            kv = self.round(self.linear(latents, name)).view(count, tokens, heads, nope + v)
            keys = torch.cat([kv[..., :nope], k_pe[:, :, None].expand(-1, -1, heads, -1)], -1)
            scores = torch.einsum("nthd,nshd->nhts", q[:, :first_absorbed], keys) * self.softmax_scale
            parts.append(self.softmax_times(scores, 0, kv[..., nope:], "nhts,nshv->nthv"))
        if first_absorbed < tokens:
            weight = self.round(self.w.f32(name)).view(heads, nope + v, -1)
            late = q[:, first_absorbed:]
            q_latent = self.round(
                torch.einsum("nthd,hdr->nthr", late[..., :nope], weight[:, :nope]) * self.softmax_scale)
            q_pe = self.round(late[..., nope:] * self.softmax_scale)
            scores = (torch.einsum("nthr,nsr->nhts", q_latent, latents)
                      + torch.einsum("nthd,nsd->nhts", q_pe, k_pe))
            o_latent = self.softmax_times(scores, first_absorbed, latents, "nhts,nsr->nthr")
            parts.append(torch.einsum("nthr,hvr->nthv", self.round(o_latent), weight[:, nope:]))
        return self.round(torch.cat(parts, 1))

    def attention(self, x, prefix, sequences):
        c = self.config
        heads, rank, nope = c["num_attention_heads"], c["kv_lora_rank"], c["qk_nope_head_dim"]
        if c.get("q_lora_rank"):
            low = self.round(self.linear(x, prefix + "q_a_proj.weight"))
            q = self.linear(self.norm(low, prefix + "q_a_layernorm.weight"), prefix + "q_b_proj.weight")
        else:
            q = self.linear(x, prefix + "q_proj.weight")
        q = self.round(q).view(len(x), heads, -1)
        joint = self.round(self.linear(x, prefix + "kv_a_proj_with_mqa.weight"))
        latents = self.norm(joint[:, :rank], prefix + "kv_a_layernorm.weight")
        positions = torch.tensor([i for begin, end, _ in sequences for i in range(end - begin)], device=x.device)
        q = torch.cat([q[..., :nope], self.round(self.rotate(q[..., nope:], positions))], -1)
        k_pe = self.round(self.rotate(joint[:, rank:], positions))
        out = torch.empty(len(x), heads, c["v_head_dim"], device=x.device)
        alike = {}  # sequences of one shape are computed side by side
        for begin, end, prompt_length in sequences:
            alike.setdefault((end - begin, prompt_length), []).append(range(begin, end))
        for (_, prompt_length), rows in alike.items():
            rows = torch.tensor([list(row) for row in rows], device=x.device)
            out[rows] = self.attend(q[rows], latents[rows], k_pe[rows], prefix, prompt_length)
        return self.linear(out.flatten(1), prefix + "o_proj.weight")

    def mlp(self, x, prefix):
        gate = self.linear(x, prefix + "gate_proj.weight")
        up = self.linear(x, prefix + "up_proj.weight")
        return self.linear(self.round(F.silu(gate) * up, self.rounds_h), prefix + "down_proj.weight")

    def expert(self, x, prefix, rounds_out):
        gate = self.linear(x, prefix + "gate_proj.weight")
        up = self.linear(x, prefix + "up_proj.weight")
        return self.round(self.linear(F.silu(gate) * up, prefix + "down_proj.weight"), rounds_out)

    def route(self, x, prefix):
        """[T, k] experts and weights."""
        c = self.config
        scores = torch.sigmoid(self.linear(x, prefix + "gate.weight"))
        choice = scores + self.w.f32(prefix + "gate.e_score_correction_bias")
        groups = choice.view(len(x), c["n_group"], -1)
        best_two = groups.topk(2, -1).values.sum(-1)
        kept = torch.zeros_like(best_two).scatter_(1, best_two.topk(c["topk_group"], -1).indices, 1)
        choice = groups.masked_fill(kept[:, :, None] == 0, -math.inf).view(len(x), -1)
        experts = choice.topk(c["num_experts_per_tok"], -1).indices
        spread = scores.std(-1)
        self.scores.append(scores / spread[:, None])
        self.choices.append(experts)
        # A group's score is the sum of two, and errs by the root of two more.
        self.margins.append(torch.minimum(lead(choice, c["num_experts_per_tok"]),
                                          lead(best_two, c["topk_group"]) / math.sqrt(2)) / spread)
        weights = scores.gather(1, experts)
        if c["norm_topk_prob"]:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * c["routed_scaling_factor"]

    def moe(self, x, prefix):
        experts, weights = self.route(x, prefix)
        out = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            tokens, slots = (experts == expert).nonzero(as_tuple=True)
            y = self.expert(x[tokens], f"{prefix}experts.{expert}.", self.rounds_expert[tokens])
            out.index_add_(0, tokens, y * weights[tokens, slots, None])
        if self.config.get("n_shared_experts"):
            out += self.expert(x, prefix + "shared_experts.", self.rounds_expert)
        return out

    def is_moe(self, layer):
        c = self.config
        return (c.get("n_routed_experts") and layer >= c["first_k_dense_replace"]
                and layer % c.get("moe_layer_freq", 1) == 0)

    @torch.inference_mode()
    def logits(self, sequences, prompt_lengths):
        """sequences: token ids; -> for each, the logits of every position [T, V]."""
        ends = torch.tensor([len(ids) for ids in sequences]).cumsum(0).tolist()
        spans = list(zip([0] + ends[:-1], ends, prompt_lengths))
        ids = torch.tensor([token for sequence in sequences for token in sequence], device=self.w.device)
        self.scores, self.choices, self.margins = [], [], []
        self.rounds_h = ~self.in_large_step(spans, DECODE_TOKENS)
        self.rounds_expert = self.in_large_step(spans, DECODE_EXPERT_TOKENS)
        h = self.w.tensors["model.embed_tokens.weight"][ids].to(torch.float32)
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = self.norm(h, prefix + "input_layernorm.weight")
            h = self.round(h + self.round(self.attention(x, prefix + "self_attn.", spans)))
            x = self.norm(h, prefix + "post_attention_layernorm.weight")
            y = self.moe(x, prefix + "mlp.") if self.is_moe(layer) else self.mlp(x, prefix + "mlp.")
            h = self.round(h + self.round(y))
        head = "model.embed_tokens" if self.config.get("tie_word_embeddings") else "lm_head"
        logits = self.linear(self.norm(h, "model.norm.weight"), head + ".weight")
        return [logits[begin:end] for begin, end, _ in spans]


def relative_l2(found, expected):
    return (torch.linalg.vector_norm((found - expected).double())
            / torch.linalg.vector_norm(expected.double())).item()


def mean_nll(logits, prompt):
    if len(prompt) < 2:
        return None
    targets = torch.tensor(prompt[1:], device=logits.device)
    return F.cross_entropy(logits[:len(prompt) - 1], targets).item()


def router_margins(model, lengths):
    """Of the last call: for each sequence its tokens' smallest margins over the MoE layers."""
    if not model.margins:
        return [torch.full((length,), 100.0) for length in lengths]  # nothing to decide
    return torch.stack(model.margins).amin(0).cpu().split(lengths)


def grow_prompts(model, lengths, candidates, seed):
    """Random prompts that stay far from near-ties of the router at every position: token by token, of `candidates` (or
    as many as make CANDIDATE_TOKENS) the one that the router has least doubt about. Near a tie a rounding error changes
    an expert and with it the logits, whoever computes them; what comes later changes nothing at earlier positions."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [[] for _ in lengths]
    for prompt, length in zip(prompts, lengths):
        while len(prompt) < length:
            count = max(candidates, CANDIDATE_TOKENS // (len(prompt) + 1))
            tokens = torch.randint(2, model.config["vocab_size"], (count,), generator=generator).tolist()
            model.logits([prompt + [token] for token in tokens], [length] * count)
            margins = [part[-1].item() for part in router_margins(model, [len(prompt) + 1] * count)]
            prompt.append(tokens[max(range(count), key=margins.__getitem__)])
    return prompts


def margins_of(model, case):
    """What golden.json says of the router: [steps] at the positions that the tokens of `greedy` were computed at, and
    the smallest at any position of the prompt."""
    prompt, greedy = case["prompt"], case["greedy"]
    model.logits([prompt + greedy[:-1]], [len(prompt)])
    margins = router_margins(model, [len(prompt) + len(greedy) - 1])[0]
    return {"router_margin": [round(margin, 4) for margin in margins[len(prompt) - 1:].tolist()],
            "prompt_router_margin": round(margins[:len(prompt)].min().item(), 4)}


def make_cases(model, prompts, steps):
    """Greedy continuations, and what golden.json says of each prompt. Also: the experts of the prompts' tokens."""
    sequences = [list(prompt) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    cases, last_rows, experts = [], [], None
    for step in range(steps):
        rows = model.logits(sequences, lengths)
        if step == 0:
            experts = [chosen.sort(-1).values for chosen in model.choices]
        for i, logits in enumerate(rows):
            last = logits[-1]
            if step == 0:
                top = last.topk(8)
                last_rows.append(last.float().cpu())
                cases.append({"prompt": list(prompts[i]), "greedy": [], "gap": [],
                              "top8": [[t, round(v, 5)] for t, v in zip(top.indices.tolist(), top.values.tolist())],
                              "prompt_mean_nll": mean_nll(logits, prompts[i]),
                              "logit_std": last.std().item()})
            best = last.topk(2)
            cases[i]["greedy"].append(best.indices[0].item())
            cases[i]["gap"].append((best.values[0] - best.values[1]).item())
            sequences[i].append(best.indices[0].item())
    for case in cases:
        case.update(margins_of(model, case))
    return cases, last_rows, experts


def write_golden(directory, cases, rows, reference):
    tensors = {f"prompt{i}.last_logits": row.contiguous() for i, row in enumerate(rows)}
    save_file(tensors, str(directory / "golden.safetensors"))
    (directory / "golden.json").write_text(json.dumps({"reference": reference, "cases": cases}) + "\n")


def spread_router_bias(checkpoint, amplitude):
    """Draws the router's correction biases anew from -amplitude .. amplitude, in the files as well. Scores of random
    weights lie in 0 .. 1, and among 256 of them the eighth and the ninth best are always close: biases that spread
    further keep every token away from ties."""
    generator = torch.Generator().manual_seed(0)
    for path in sorted(checkpoint.directory.glob("model*.safetensors")):
        with path.open("r+b") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            for name, entry in json.loads(file.read(header_bytes)).items():
                if not name.endswith("e_score_correction_bias"):
                    continue
                bias = (torch.rand(entry["shape"], generator=generator) * 2 - 1) * amplitude
                file.seek(8 + header_bytes + entry["data_offsets"][0])
                file.write(bias.numpy().tobytes())
                checkpoint.tensors[name] = bias.to(checkpoint.device)


def record(options):
    checkpoint = Checkpoint(options.dir, options.device)
    if options.router_bias:
        spread_router_bias(checkpoint, options.router_bias)
    print(f"reference: {checkpoint.bytes / 1e9:.2f} GB read in {checkpoint.seconds:.1f} s", flush=True)
    begin = time.monotonic()
    prompts = grow_prompts(Model(checkpoint, "e4m3"), options.lengths, options.candidates, options.seed)
    print(f"reference: {len(prompts)} prompts in {time.monotonic() - begin:.1f} s", flush=True)
    kinds = ["f32", "e4m3"] if options.activations == "both" else [options.activations]
    cases, rows, experts = [], [], {}
    for kind in kinds:
        begin = time.monotonic()
        found, last, experts[kind] = make_cases(Model(checkpoint, kind), prompts, options.steps)
        for case in found:
            case["activations"] = kind
        cases += found
        rows += last
        print(f"reference: {len(found)} cases with {kind} activations in {time.monotonic() - begin:.1f} s", flush=True)
    if len(kinds) == 2:
        for i, length in enumerate(options.lengths):
            error = relative_l2(rows[len(prompts) + i], rows[i])
            cases[i]["e4m3_error"] = cases[len(prompts) + i]["e4m3_error"] = error
            print(f"reference: prompt of {length}, margin {cases[len(prompts) + i]['prompt_router_margin']:.3f}: e4m3 "
                  f"against f32 activations, logits relative L2 {error:.2e}")
        differing = [(a != b).any(-1).float().mean().item() for a, b in zip(experts["f32"], experts["e4m3"])]
        print("reference: tokens that choose other experts, by MoE layer: "
              + ", ".join(f"{share:.1%}" for share in differing))
    reference = f"torch {torch.__version__}, activations {options.activations}, float32 sums"
    write_golden(checkpoint.directory, cases, rows, reference)


def say_what_rounding_changes(exact, rounded, case, i):
    """How far e4m3 mode is from f32 on one prompt: what a device that computes so does to the router. -> of the logits."""
    prompt = [case["prompt"]], [len(case["prompt"])]
    expected = exact.logits(*prompt)[0][-1]
    found = rounded.logits(*prompt)[0][-1]
    errors = torch.stack([(a - b) for a, b in zip(exact.scores, rounded.scores)])
    flips = torch.stack([(a.sort(-1).values != b.sort(-1).values).any(-1)
                         for a, b in zip(exact.choices, rounded.choices)]).any(0)
    error = relative_l2(expected, found)
    print(f"reference: case {i}, prompt of {len(case['prompt'])}, margin {case['router_margin'][0]:.4f} at its end, "
          f"{case['prompt_router_margin']:.4f} anywhere: rounding moves scores by {errors.square().mean().sqrt():.4f} of "
          f"their spread ({errors.abs().max():.4f} at most), {int(flips.sum())} tokens' experts"
          f"{', the last one among them' if flips[-1] else ''}, logits by {error:.2e}", flush=True)
    return error


def quantizes_activations(checkpoint):
    """Whether FP8 kernels serve the checkpoint: those multiply 128 columns at a time."""
    return any(checkpoint.is_fp8(name) and tensor.shape[-1] % BLOCK == 0 for name, tensor in checkpoint.tensors.items())


def complete(directory, options):
    """Adds margins to recorded cases; puts prompts far from near-ties behind them, in place of those of an earlier call.
    Their reference rounds to e4m3 where FP8 kernels do."""
    checkpoint = Checkpoint(directory, options.device)
    kind = "e4m3" if quantizes_activations(checkpoint) else "f32"
    exact, rounded = Model(checkpoint, "f32"), Model(checkpoint, "e4m3")
    path = checkpoint.directory / "golden.json"
    golden = json.loads(path.read_text())
    recorded = load_file(str(checkpoint.directory / "golden.safetensors"))
    cases = [case for case in golden["cases"] if "activations" not in case]
    rows = [recorded[f"prompt{i}.last_logits"] for i in range(len(cases))]
    for case in cases:
        case.update(margins_of(exact, case))
    model = rounded if kind == "e4m3" else exact
    begin = time.monotonic()
    prompts = grow_prompts(model, options.lengths, options.candidates, options.seed)
    print(f"reference: {directory}: {len(prompts)} prompts, {kind}, in {time.monotonic() - begin:.1f} s", flush=True)
    added, added_rows, _ = make_cases(model, prompts, options.steps)
    for case in added:
        case["activations"] = kind
    for i, case in enumerate(cases + added):
        error = say_what_rounding_changes(exact, rounded, case, i)
        if case.get("activations") == "e4m3":
            case["e4m3_error"] = error
    write_golden(checkpoint.directory, cases + added, rows + added_rows, golden["reference"])


def check(directory, device):
    """True when our logits, continuations and gaps are those that the directory has recorded. Rounding to e4m3 is chaotic:
    of such cases, the logits after the prompt alone."""
    checkpoint = Checkpoint(directory, device)
    models = {kind: Model(checkpoint, kind) for kind in ("f32", "e4m3")}
    cases = json.loads((checkpoint.directory / "golden.json").read_text())["cases"]
    recorded = load_file(str(checkpoint.directory / "golden.safetensors"))
    passed = True
    for i, case in enumerate(cases):
        prompt, greedy = case["prompt"], case["greedy"]
        model = models[case.get("activations", "f32")]
        logits = model.logits([prompt + greedy[:-1]], [len(prompt)])[0]
        last = logits[len(prompt) - 1:].cpu()
        error = relative_l2(last[0], recorded[f"prompt{i}.last_logits"])
        best = last.topk(2)
        gap_error = (best.values[:, 0] - best.values[:, 1] - torch.tensor(case["gap"])).abs()
        same = best.indices[:, 0] == torch.tensor(greedy)
        near_tie = torch.tensor(case["gap"]) < 1e-3
        nll = mean_nll(logits.cpu(), prompt)
        nll_error = abs(nll - case["prompt_mean_nll"]) if nll is not None else 0
        good = (error < 1e-4 and bool((same | near_tie).all()) and gap_error[same].max() < 1e-3
                and nll_error < 2e-3)  # a near-tie of the router at one token moves it
        if model.e4m3:
            good = error < case["e4m3_error"]
        passed = passed and good
        print(f"{directory} case {i}: prompt {len(prompt)}, logits relative L2 {error:.1e}, "
              f"{int(same.sum())}/{len(greedy)} tokens, gaps within {gap_error.max():.1e}, "
              f"nll within {nll_error:.1e}: {'ok' if good else 'FAILED'}")
    return passed


def main():
    parser = argparse.ArgumentParser(description="PyTorch reference of DeepSeek-V3 / R1")
    parser.add_argument("dir", nargs="?", help="checkpoint directory; golden files are written into it")
    parser.add_argument("--complete", nargs="+", metavar="DIR", help="add margins and prompts to recorded golden files")
    parser.add_argument("--check", nargs="+", metavar="DIR", help="compare with recorded golden files")
    parser.add_argument("--activations", choices=["f32", "e4m3", "both"], default="f32")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 5, 12])
    parser.add_argument("--steps", type=int, default=8, help="tokens of each continuation")
    parser.add_argument("--candidates", type=int, default=64, help="for each token of a prompt")
    parser.add_argument("--router-bias", type=float, help="draw the router's biases from -BIAS .. BIAS, in DIR as well")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.device = {"cuda": "cuda:0"}.get(options.device, options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.check:
        sys.exit(0 if all([check(directory, options.device) for directory in options.check]) else 1)
    if options.complete:
        return [complete(directory, options) for directory in options.complete]
    if not options.dir:
        parser.error("a directory, --complete or --check is needed")
    record(options)


if __name__ == "__main__":
    main()
