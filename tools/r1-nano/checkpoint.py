# SPDX-License-Identifier: Apache-2.0
"""Hugging Face checkpoints of DeepSeek-V3's layout: writing, reading back, and transformers as the reference."""

import json
import pathlib
import tempfile

import torch
from safetensors.torch import load_file, save_file

import fp8
from model import BETA_FAST, BETA_SLOW

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SCALE_SUFFIX = "_scale_inv"  # it multiplies, despite its name
QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [fp8.BLOCK, fp8.BLOCK],
}
PLAIN_SIZES = (
    "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_nextn_predict_layers "
    "first_k_dense_replace num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim "
    "n_routed_experts n_shared_experts num_experts_per_tok n_group topk_group routed_scaling_factor rms_norm_eps "
    "max_position_embeddings"
).split()


def config_of(shape, quantized):
    """config.json, with every field that R1's has."""
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "num_key_value_heads": shape.num_attention_heads,
        "rope_theta": shape.rope_theta,
        "rope_scaling": {
            "type": "yarn",
            "factor": shape.rope_factor,
            "original_max_position_embeddings": shape.original_max_position_embeddings,
            "beta_fast": BETA_FAST,
            "beta_slow": BETA_SLOW,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    config |= {name: getattr(shape, name) for name in PLAIN_SIZES}
    if quantized:
        config["quantization_config"] = QUANTIZATION
    return dict(sorted(config.items()))


def weights_of(model):
    """Float32 weights by their names in the checkpoint: each routed expert by itself."""
    for name, tensor in model.state_dict().items():
        if ".mlp.experts." not in name:
            yield name, tensor
            continue
        prefix, projection = name.rsplit(".", 1)
        for expert, matrix in enumerate(tensor):
            yield f"{prefix}.{expert}.{projection}.weight", matrix


def stored_tensors(model, quantized):
    """Name -> tensor, as the files have them. The MTP layer's copies of embedding and head are left out."""
    tensors = {}
    for name, tensor in weights_of(model):
        tensor = tensor.detach().cpu()
        if quantized and fp8.is_quantized(name):
            tensors[name], tensors[name + SCALE_SUFFIX] = fp8.quantize(tensor)
        elif name.endswith("e_score_correction_bias"):
            tensors[name] = tensor.float()
        else:
            tensors[name] = tensor.bfloat16()
    return tensors


def shards(tensors, file_bytes):
    """Splits a dictionary of tensors, in its order, into dictionaries of at most `file_bytes` each."""
    parts, size = [{}], 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > file_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    return parts


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def save_tensors(tensors, path):
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # the library makes files that only their owner can read


def write_tensors(directory, tensors, file_bytes):
    """One model.safetensors, or with an index where it would be larger than `file_bytes`."""
    parts = shards(tensors, file_bytes)
    if len(parts) == 1:
        save_tensors(parts[0], directory / "model.safetensors")
        return
    places = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):06d}.safetensors"
        save_tensors(part, directory / file)
        places |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def write(directory, model, quantized, file_bytes):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for stale in [*directory.glob("model*.safetensors"), *directory.glob(INDEX)]:
        stale.unlink()
    write_json(directory / CONFIG, config_of(model.shape, quantized))
    write_tensors(directory, stored_tensors(model, quantized), file_bytes)


def read(directory):
    """The config, and every weight in float32 with its scale multiplied in."""
    directory = pathlib.Path(directory)
    stored = {}
    for path in sorted(directory.glob("model*.safetensors")):
        stored |= load_file(path)
    weights = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        scale = stored.get(name + SCALE_SUFFIX)
        weights[name] = tensor.float() if scale is None else fp8.dequantize(tensor, scale)
    return json.loads((directory / CONFIG).read_text()), weights


def reference(directory):
    """Hugging Face transformers' own model, float32 arithmetic on exactly the stored values. Without the MTP layer."""
    from transformers import DeepseekV3ForCausalLM

    config, weights = read(directory)
    layers = config["num_hidden_layers"]
    config |= {"num_nextn_predict_layers": 0, "torch_dtype": "float32"}
    config.pop("quantization_config", None)
    main = {name: tensor for name, tensor in weights.items() if not name.startswith(f"model.layers.{layers}.")}
    with tempfile.TemporaryDirectory() as plain:
        write_json(pathlib.Path(plain) / CONFIG, config)
        save_tensors(main, pathlib.Path(plain) / "model.safetensors")
        model, report = DeepseekV3ForCausalLM.from_pretrained(plain, dtype=torch.float32, output_loading_info=True)
    problems = {kind: names for kind, names in report.items() if names}
    if problems:
        raise RuntimeError(f"transformers does not load {directory} as a whole: {problems}")
    return model.eval()
