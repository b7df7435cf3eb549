// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels/random_fill_reference.h"

#include "r1d/base/check.h"
#include "r1d/checkpoint/weight_source.h"

namespace r1d::kernels::test {
namespace {

checkpoint::ModelConfig config() {
  checkpoint::ModelConfig config;
  config.architecture = "DeepseekV3ForCausalLM";
  config.model_type = "deepseek_v3";
  config.vocab_size = 1001;
  config.hidden_size = 320;
  config.intermediate_size = 384;
  config.moe_intermediate_size = 128;
  config.num_hidden_layers = 2;
  config.first_k_dense_replace = 1;
  config.num_attention_heads = 2;
  config.q_lora_rank = 128;
  config.kv_lora_rank = 128;
  config.qk_nope_head_dim = 32;
  config.qk_rope_head_dim = 16;
  config.v_head_dim = 32;
  config.n_routed_experts = 4;
  config.n_shared_experts = 1;
  config.num_experts_per_tok = 2;
  config.quantization = checkpoint::QuantizationConfig{};
  return config;
}

}  // namespace

std::vector<ReferenceTensor> reference_tensors() {
  const auto source = checkpoint::make_dummy_source(config(), 0);
  std::vector<ReferenceTensor> tensors;
  for (const char* name : {"model.embed_tokens.weight",
                           "model.norm.weight",
                           "model.layers.1.mlp.gate.e_score_correction_bias",
                           "model.layers.0.mlp.gate_proj.weight",
                           "model.layers.0.mlp.gate_proj.weight_scale_inv"}) {
    const auto stored = source->find(name);
    R1D_CHECK(stored.ok());
    tensors.push_back({name, stored->dtype, stored->rows, stored->cols});
  }
  return tensors;
}

std::vector<uint8_t> reference_read(uint64_t seed,
                                    const ReferenceTensor& tensor,
                                    int64_t row_begin,
                                    int64_t row_end,
                                    int64_t col_begin,
                                    int64_t col_end) {
  const auto source = checkpoint::make_dummy_source(config(), seed);
  std::vector<uint8_t> bytes(static_cast<size_t>((row_end - row_begin) * (col_end - col_begin) *
                                                 dtype_bytes(tensor.dtype)));
  const checkpoint::TensorSlice slice{.rows = {row_begin, row_end}, .cols = {col_begin, col_end}};
  const absl::Status status =
      source->read(tensor.name, slice, std::as_writable_bytes(std::span(bytes)));
  R1D_CHECK(status.ok());
  return bytes;
}

}  // namespace r1d::kernels::test
