// SPDX-License-Identifier: Apache-2.0
#include "r1d/engine/roofline.h"

#include <algorithm>
#include <cmath>

namespace r1d::engine {
namespace {

using checkpoint::ModelConfig;

// Up to so many tokens every rank sends its sum to all others; above, each adds up its part of the
// rows and sends that on.
constexpr int64_t kOneShotTokens = 64;

// Adds up the time of operators.
class Clock {
 public:
  explicit Clock(const Rates& rates) : rates_(rates) {}
  void add(double bytes, double flops, double rate) {
    seconds_ += std::max(bytes / rates_.memory, flops / rate);
  }
  [[nodiscard]] double seconds() const { return seconds_; }

 private:
  const Rates& rates_;
  double seconds_ = 0;
};

// P(X <= k) of a binomial distribution with n trials.
double binomial_at_most(int64_t k, int64_t n, double p) {
  if (p >= 1) return k >= n ? 1 : 0;
  double sum = 0;
  for (int64_t i = 0; i <= k; ++i) {
    const auto x = static_cast<double>(i);
    const auto trials = static_cast<double>(n);
    const double log_ways =
        std::lgamma(trials + 1) - std::lgamma(x + 1) - std::lgamma(trials - x + 1);
    sum += std::exp(log_ways + x * std::log(p) + (trials - x) * std::log1p(-p));
  }
  return std::min(sum, 1.0);
}

class Roofline {
 public:
  Roofline(const RooflineModel& model, const Rates& rates)
      : c_(model.config),
        s_(model.shard),
        rates_(rates),
        fp8_(model.fp8_weights),
        cache_width_(static_cast<double>(model.cache_token_bytes)),
        hidden_(static_cast<double>(c_.hidden_size)),
        heads_(static_cast<double>(s_.heads.size())),
        latent_(static_cast<double>(c_.kv_lora_rank)),
        row_(static_cast<double>(c_.latent_width())),
        key_(static_cast<double>(c_.qk_head_dim())),
        nope_(static_cast<double>(c_.qk_nope_head_dim)),
        value_(static_cast<double>(c_.v_head_dim)),
        query_in_(static_cast<double>(c_.q_lora_rank > 0 ? c_.q_lora_rank : c_.hidden_size)),
        joint_(static_cast<double>(c_.q_lora_rank) + row_) {}

  [[nodiscard]] StepFloor decode(double batch, double context) const {
    StepFloor floor;
    floor.active_experts = active_experts(batch);
    Clock attention(rates_);
    add_projections(attention, batch);
    attention.add(batch * (4 * joint_ + cache_width_), 0, rates_.bf16);  // norms, rope, new rows
    // Absorbed: W_UK in front of the latents, W_UV behind.
    add_absorbed(attention, batch, nope_);
    attention.add(batch * context * cache_width_ + 2 * batch * heads_ * (row_ + latent_),
                  2 * batch * heads_ * context * (row_ + latent_),
                  rates_.bf16);
    add_absorbed(attention, batch, value_);
    Clock moe(rates_);
    add_moe(moe, batch, floor.active_experts, /*expert_values=*/0);
    finish(floor, attention, moe, batch, batch, num_layers() * 2 + 1);  // + the embedding
    return floor;
  }

  [[nodiscard]] StepFloor prefill(double tokens) const {
    StepFloor floor;
    floor.active_experts = active_experts(tokens);
    Clock attention(rates_);
    add_projections(attention, tokens);
    add_gemm(attention, tokens, heads_ * (nope_ + value_), latent_);
    attention.add(2 * tokens * heads_ * (2 * key_ + 2 * value_),
                  heads_ * tokens * tokens * (key_ + value_),  // causal: half of the pairs
                  rates_.bf16);
    attention.add(tokens * (6 * hidden_ + 6 * joint_), 0, rates_.bf16);
    Clock moe(rates_);
    add_moe(moe, tokens, floor.active_experts, /*expert_values=*/1);
    finish(floor, attention, moe, tokens, 1, num_layers() * 2);
    return floor;
  }

 private:
  [[nodiscard]] double num_layers() const { return c_.num_hidden_layers; }

  // [out, in] as stored: FP8 with an f32 scale a block, or bf16.
  [[nodiscard]] double weight_bytes(double out, double in) const {
    if (!fp8_) return 2 * out * in;
    const double block_rows =
        c_.quantization ? static_cast<double>(c_.quantization->block_rows) : 128;
    const double block_cols =
        c_.quantization ? static_cast<double>(c_.quantization->block_cols) : 128;
    return out * in + 4 * std::ceil(out / block_rows) * std::ceil(in / block_cols);
  }

  void add_gemm(Clock& clock, double tokens, double out, double in) const {
    clock.add(weight_bytes(out, in) + 2 * tokens * (out + in),
              2 * tokens * out * in,
              fp8_ ? rates_.fp8 : rates_.bf16);
  }
  void add_bf16_gemm(Clock& clock, double tokens, double out, double in) const {
    clock.add(2 * out * in + 2 * tokens * (out + in), 2 * tokens * out * in, rates_.bf16);
  }

  void add_projections(Clock& clock, double tokens) const {
    add_gemm(clock, tokens, joint_, hidden_);
    add_gemm(clock, tokens, heads_ * key_, query_in_);
    add_gemm(clock, tokens, hidden_, heads_ * value_);
  }

  void add_absorbed(Clock& clock, double tokens, double width) const {
    const double weights = (fp8_ ? 1 : 2) * heads_ * latent_ * width;
    clock.add(weights + 2 * tokens * heads_ * (latent_ + width),
              2 * tokens * heads_ * latent_ * width,
              rates_.bf16);
  }

  void add_mlp(Clock& clock, double tokens, double width) const {
    add_gemm(clock, tokens, 2 * width, hidden_);
    add_gemm(clock, tokens, hidden_, width);
  }

  // `expert_values`: 1 where every choice's output is written, 0 where it is summed in place.
  void add_moe(Clock& clock, double tokens, double active, double expert_values) const {
    if (c_.n_routed_experts == 0) return;
    const double experts = c_.n_routed_experts;
    const double top_k = c_.num_experts_per_tok;
    const double width = static_cast<double>(s_.expert_intermediate.size());
    const double choices = tokens * top_k * static_cast<double>(s_.experts.size()) / experts;
    const double rate = fp8_ ? rates_.fp8 : rates_.bf16;
    const double inputs = expert_values > 0 ? choices * hidden_ : tokens * hidden_;
    const double outputs = expert_values > 0 ? 2 * choices * hidden_ : 2 * tokens * hidden_;
    add_bf16_gemm(clock, tokens, experts, hidden_);
    clock.add(tokens * (4 * experts + 16 * top_k), 0, rates_.bf16);
    if (c_.n_shared_experts > 0) {
      add_mlp(clock, tokens, static_cast<double>(s_.shared_intermediate.size()));
    }
    clock.add(active * weight_bytes(2 * width, hidden_) + inputs + 4 * choices * width,
              4 * choices * width * hidden_,
              rate);
    clock.add(5 * (choices + tokens) * width + expert_values * 2 * (choices + tokens) * hidden_,
              0,
              rates_.bf16);
    clock.add(active * weight_bytes(hidden_, width) + choices * width + outputs,
              2 * choices * width * hidden_,
              rate);
  }

  void finish(StepFloor& floor,
              const Clock& attention,
              const Clock& moe,
              double tokens,
              double logit_rows,
              double num_all_reduces) const {
    double moe_layers = 0;
    for (int32_t layer = 0; layer < c_.num_hidden_layers; ++layer) {
      moe_layers += c_.is_moe_layer(layer) ? 1 : 0;
    }
    Clock dense(rates_);
    add_mlp(dense, tokens, static_cast<double>(s_.dense_intermediate.size()));
    Clock head(rates_);
    add_bf16_gemm(head, logit_rows, static_cast<double>(s_.vocab.size()), hidden_);
    floor.gpu_seconds = num_layers() * attention.seconds() + moe_layers * moe.seconds() +
                        (num_layers() - moe_layers) * dense.seconds() + head.seconds();
    floor.collective_seconds = num_all_reduces * all_reduce(tokens);
  }

  [[nodiscard]] double all_reduce(double tokens) const {
    if (s_.world_size == 1) return 0;
    const double bytes = 2 * tokens * hidden_;
    const double ranks = s_.world_size;
    const double received = tokens <= static_cast<double>(kOneShotTokens)
                                ? bytes * (ranks - 1)
                                : 2 * bytes * (ranks - 1) / ranks;
    return rates_.all_reduce + received / rates_.link;
  }

  // Experts of a layer that some token chose, on the rank that has most of them. A slice of every
  // expert: the same on every rank. Whole experts: the largest of the ranks' numbers, taken as
  // independent.
  [[nodiscard]] double active_experts(double tokens) const {
    if (c_.n_routed_experts == 0) return 0;
    const double experts = c_.n_routed_experts;
    const double chosen = 1 - std::pow(1 - c_.num_experts_per_tok / experts, tokens);
    const int64_t local = s_.experts.size();
    if (local == c_.n_routed_experts) return experts * chosen;
    const double ranks = s_.world_size;
    double expected = 0;
    for (int64_t k = 0; k < local; ++k) {
      expected += 1 - std::pow(binomial_at_most(k, local, chosen), ranks);
    }
    return expected;
  }

  const ModelConfig& c_;
  const checkpoint::RankShard& s_;
  const Rates& rates_;
  const bool fp8_;
  const double cache_width_;  // bytes of a token and layer
  const double hidden_;
  const double heads_;
  const double latent_;
  const double row_;
  const double key_;
  const double nope_;
  const double value_;
  const double query_in_;
  const double joint_;
};

}  // namespace

// The kernels that multiply FP8 by FP8 are made for sm_90a; others widen weights in registers.
bool runs_fp8_products(const device::GpuModel& gpu) {
  return gpu.fp8_flops > 0 && gpu.compute_capability == 90;
}

Rates reachable_rates(const device::GpuModel& gpu, double all_reduce_seconds) {
  // One H200: reads reach 4.3 of 4.8 TB/s and bf16 products 790 of 989 TFLOPS. FP8 1500 of 1979 and
  // NVLink 400 of 450 GB/s are assumed.
  constexpr double kMemory = 4.3 / 4.8;
  constexpr double kBf16 = 790 / 989.5;
  constexpr double kFp8 = 1500.0 / 1979;
  constexpr double kLink = 400.0 / 450;
  const double bf16 = gpu.bf16_flops * kBf16;
  return {.memory = gpu.memory_bandwidth * kMemory,
          .bf16 = bf16,
          .fp8 = runs_fp8_products(gpu) ? gpu.fp8_flops * kFp8 : bf16,
          .link = gpu.link_bandwidth * kLink,
          .all_reduce = all_reduce_seconds};
}

StepFloor decode_floor(const RooflineModel& model,
                       const Rates& rates,
                       int64_t batch,
                       int64_t context) {
  return Roofline(model, rates).decode(static_cast<double>(batch), static_cast<double>(context));
}

StepFloor prefill_floor(const RooflineModel& model, const Rates& rates, int64_t tokens) {
  return Roofline(model, rates).prefill(static_cast<double>(tokens));
}

}  // namespace r1d::engine
