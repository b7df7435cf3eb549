// SPDX-License-Identifier: Apache-2.0
#include "tests/ops/attention_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include <gtest/gtest.h>

#include "r1d/base/random.h"

#include "tests/support/latent_reference.h"

namespace r1d::ops::test {
namespace {

std::vector<float> norm_weight(int64_t count, uint64_t seed) {
  std::vector<float> weight = random_floats(static_cast<size_t>(count), seed, 0.5);
  for (float& w : weight) w += 1;
  return weight;
}

void rotate(const ModelDims& dims, int64_t position, double* x) {
  const size_t pairs = dims.rope_inv_freq.size();
  for (size_t j = 0; j < pairs; ++j) {
    const double angle = static_cast<float>(position) * dims.rope_inv_freq[j];
    const double c = std::cos(angle) * dims.rope_cos_sin_scale;
    const double s = std::sin(angle) * dims.rope_cos_sin_scale;
    double& a = x[dims.rope_interleave ? 2 * j : j];
    double& b = x[dims.rope_interleave ? 2 * j + 1 : j + pairs];
    const double rotated = a * c - b * s;
    b = a * s + b * c;
    a = rotated;
  }
}

// softmax(scores) . values over `keys` rows of `dim` values, added to out.
void weigh(
    std::vector<double>& scores, const double* values, size_t stride, size_t dim, double* out) {
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - max);
  for (size_t k = 0; k < scores.size(); ++k) {
    for (size_t i = 0; i < dim; ++i) out[i] += scores[k] / sum * values[k * stride + i];
  }
}

// Latents and rope values as an e4m3 cache gives them back.
void quantize(std::vector<double>& c, std::vector<double>& k_pe, size_t latent, size_t rope) {
  const size_t length = c.size() / latent;
  r1d::test::Fp8Cache cache(
      static_cast<int64_t>(length), 1, static_cast<int>(latent), static_cast<int>(rope));
  for (size_t t = 0; t < length; ++t) {
    std::vector<float> row(c.begin() + static_cast<int64_t>(t * latent),
                           c.begin() + static_cast<int64_t>((t + 1) * latent));
    row.insert(row.end(),
               k_pe.begin() + static_cast<int64_t>(t * rope),
               k_pe.begin() + static_cast<int64_t>((t + 1) * rope));
    const auto slot = static_cast<int64_t>(t);
    cache.store(slot, row.data());
    for (size_t i = 0; i < latent; ++i) c[t * latent + i] = cache.value(slot, static_cast<int>(i));
    for (size_t i = 0; i < rope; ++i) {
      k_pe[t * rope + i] = cache.value(slot, static_cast<int>(latent + i));
    }
  }
}

int32_t total(const Chunks& chunks) {
  return std::accumulate(chunks.begin(), chunks.end(), 0);
}

std::vector<BlockId> shuffled_blocks(int32_t count, uint64_t seed) {
  std::vector<BlockId> blocks(static_cast<size_t>(count));
  std::iota(blocks.begin(), blocks.end(), 0);
  for (size_t i = blocks.size(); i-- > 1;) {
    std::swap(blocks[i], blocks[base::random_bits(seed, i) % (i + 1)]);
  }
  return blocks;
}

// A sequence on its way through the steps.
struct Progress {
  std::vector<float> x;
  std::vector<BlockId> blocks;
  std::vector<float> out;
  int32_t done = 0;
};

// One step: chunk `step` of every sequence that has one.
void run_step(Ops& ops,
              const AttentionModel& model,
              const LatentPages& pages,
              const std::vector<std::pair<uint64_t, Chunks>>& sequences,
              size_t step,
              std::vector<Progress>& progress) {
  const auto hidden = static_cast<size_t>(model.dims.hidden_size);
  std::vector<float> x;
  std::vector<int32_t> positions;
  std::vector<SequenceSpan> spans;
  std::vector<size_t> owners;
  for (size_t s = 0; s < sequences.size(); ++s) {
    if (step >= sequences[s].second.size()) continue;
    const int32_t count = sequences[s].second[step];
    Progress& p = progress[s];
    spans.push_back({.query_begin = static_cast<int32_t>(positions.size()),
                     .query_len = count,
                     .context_len = p.done + count,
                     .block_table = p.blocks});
    owners.push_back(s);
    const auto begin = p.x.begin() + static_cast<int64_t>(static_cast<size_t>(p.done) * hidden);
    x.insert(x.end(), begin, begin + static_cast<int64_t>(static_cast<size_t>(count) * hidden));
    for (int32_t i = 0; i < count; ++i) positions.push_back(p.done + i);
    p.done += count;
  }
  const std::vector<TokenId> ids(positions.size(), 0);
  ASSERT_TRUE(
      ops.begin_step(
             {.token_ids = ids, .positions = positions, .sequences = spans, .logit_rows = {}})
          .ok());
  Guarded out(x.size());
  const auto rows = static_cast<int64_t>(positions.size());
  ASSERT_TRUE(ops.attention(model.weights(),
                            pages,
                            tensor_of(x, rows, model.dims.hidden_size),
                            out.tensor(rows, model.dims.hidden_size))
                  .ok());
  ASSERT_TRUE(ops.end_step().ok());
  out.expect_intact();
  for (size_t i = 0; i < spans.size(); ++i) {
    const auto part = out.values().subspan(static_cast<size_t>(spans[i].query_begin) * hidden,
                                           static_cast<size_t>(spans[i].query_len) * hidden);
    std::vector<float>& collected = progress[owners[i]].out;
    collected.insert(collected.end(), part.begin(), part.end());
  }
}

}  // namespace

AttentionWeights AttentionModel::weights() const {
  return {.q_a = q_a.view,
          .q_a_norm = q_a_norm.data(),
          .q_b = q_b.view,
          .kv_a = kv_a.view,
          .kv_a_norm = kv_a_norm.data(),
          .kv_b = kv_b.view,
          .o = o.view};
}

AttentionModel random_attention(const AttentionShape& s, uint64_t seed) {
  AttentionModel m;
  m.dims.hidden_size = s.hidden;
  m.dims.num_heads = static_cast<int32_t>(s.heads);
  m.dims.q_lora_rank = s.q_lora;
  m.dims.kv_lora_rank = s.latent;
  m.dims.qk_nope_head_dim = s.nope;
  m.dims.qk_rope_head_dim = s.rope;
  m.dims.v_head_dim = s.value;
  m.dims.max_intermediate = 16;
  m.dims.vocab_size = 16;
  m.dims.softmax_scale = 2.5F / std::sqrt(static_cast<float>(s.nope + s.rope));
  for (int64_t j = 0; j < s.rope / 2; ++j) {
    m.dims.rope_inv_freq.push_back(
        std::pow(10000.0F, -2.0F * static_cast<float>(j) / static_cast<float>(s.rope)));
  }
  m.dims.rope_cos_sin_scale = 1.1F;
  m.dims.rope_interleave = s.interleave;
  const int64_t q_in = s.q_lora > 0 ? s.q_lora : s.hidden;
  if (s.q_lora > 0) {
    m.q_a = random_matrix(s.q_lora, s.hidden, s.dtype, seed);
    m.q_a_norm = norm_weight(s.q_lora, seed + 100);
  }
  m.q_b = random_matrix(s.heads * (s.nope + s.rope), q_in, s.dtype, seed + 200);
  m.kv_a = random_matrix(s.latent + s.rope, s.hidden, s.dtype, seed + 300);
  m.kv_a_norm = norm_weight(s.latent, seed + 400);
  m.kv_b = random_matrix(s.heads * (s.nope + s.value), s.latent, s.dtype, seed + 500);
  m.o = random_matrix(s.hidden, s.heads * s.value, s.dtype, seed + 600);
  return m;
}

AttentionModel slice(const AttentionModel& model, int32_t rank, int32_t world) {
  AttentionModel part = model;
  const ModelDims& d = model.dims;
  const int64_t heads = d.num_heads / world;
  part.dims.num_heads = static_cast<int32_t>(heads);
  const auto rows_of_heads = [&](const TestMatrix& m, int64_t per_head) {
    const int64_t begin = rank * heads * per_head;
    return slice(m, begin, begin + heads * per_head, 0, m.view.cols);
  };
  part.q_b = rows_of_heads(model.q_b, d.qk_nope_head_dim + d.qk_rope_head_dim);
  part.kv_b = rows_of_heads(model.kv_b, d.qk_nope_head_dim + d.v_head_dim);
  const int64_t columns = heads * d.v_head_dim;
  part.o = slice(model.o, 0, d.hidden_size, rank * columns, (rank + 1) * columns);
  return part;
}

std::vector<double> attend(const AttentionModel& model,
                           std::span<const float> x,
                           DType page_dtype) {
  const ModelDims& d = model.dims;
  const auto hidden = static_cast<size_t>(d.hidden_size);
  const auto heads = static_cast<size_t>(d.num_heads);
  const auto dn = static_cast<size_t>(d.qk_nope_head_dim);
  const auto dr = static_cast<size_t>(d.qk_rope_head_dim);
  const auto dv = static_cast<size_t>(d.v_head_dim);
  const auto latent = static_cast<size_t>(d.kv_lora_rank);
  const size_t length = x.size() / hidden;
  const std::vector<double> in = to_double(x);

  std::vector<double> q = in;
  if (d.q_lora_rank > 0) q = rms_norm(multiply(in, model.q_a), model.q_a_norm, d.rms_norm_eps);
  q = multiply(q, model.q_b);
  const std::vector<double> kv = multiply(in, model.kv_a);
  std::vector<double> c;
  std::vector<double> k_pe;
  for (size_t t = 0; t < length; ++t) {
    const double* row = kv.data() + t * (latent + dr);
    const std::vector<double> normed =
        rms_norm(std::span(row, latent), model.kv_a_norm, d.rms_norm_eps);
    c.insert(c.end(), normed.begin(), normed.end());
    k_pe.insert(k_pe.end(), row + latent, row + latent + dr);
    rotate(d, static_cast<int64_t>(t), k_pe.data() + t * dr);
    for (size_t h = 0; h < heads; ++h) {
      rotate(d, static_cast<int64_t>(t), q.data() + (t * heads + h) * (dn + dr) + dn);
    }
  }
  if (page_dtype == DType::kBF16) {
    for (double& v : c) v = bf16_to_f32(f32_to_bf16(static_cast<float>(v)));
    for (double& v : k_pe) v = bf16_to_f32(f32_to_bf16(static_cast<float>(v)));
  }
  if (page_dtype == DType::kF8E4M3) quantize(c, k_pe, latent, dr);
  const std::vector<double> expanded = multiply(c, model.kv_b);  // [S, H, dn + dv]
  const size_t row = heads * (dn + dv);
  std::vector<double> out(length * heads * dv);
  for (size_t t = 0; t < length; ++t) {
    for (size_t h = 0; h < heads; ++h) {
      const double* query = q.data() + (t * heads + h) * (dn + dr);
      std::vector<double> scores;
      for (size_t s = 0; s <= t; ++s) {
        double sum = 0;
        for (size_t i = 0; i < dn; ++i) sum += query[i] * expanded[s * row + h * (dn + dv) + i];
        for (size_t i = 0; i < dr; ++i) sum += query[dn + i] * k_pe[s * dr + i];
        scores.push_back(sum * d.softmax_scale);
      }
      weigh(scores, expanded.data() + h * (dn + dv) + dn, row, dv, &out[(t * heads + h) * dv]);
    }
  }
  return multiply(out, model.o);
}

std::vector<float> sequence_input(const AttentionModel& model, uint64_t id, const Chunks& chunks) {
  return random_floats(static_cast<size_t>(total(chunks) * model.dims.hidden_size), id + 7000);
}

std::vector<std::vector<float>> run_attention(
    const AttentionModel& model,
    const std::vector<std::pair<uint64_t, Chunks>>& sequences,
    const AttentionRun& run) {
  int32_t tokens = 0;
  int32_t blocks = 3;  // some that nobody uses
  size_t steps = 0;
  for (const auto& [id, chunks] : sequences) {
    tokens += total(chunks);
    blocks += (total(chunks) + run.block_size - 1) / run.block_size;
    steps = std::max(steps, chunks.size());
  }
  auto ops = make_local_cpu_ops(
      {model.dims}, {.num_threads = run.threads, .mla_form = run.form, .max_tokens = tokens});
  const int64_t width = model.dims.kv_lora_rank + model.dims.qk_rope_head_dim;
  const LatentFormat format{.dtype = run.page_dtype,
                            .latent = model.dims.kv_lora_rank,
                            .rope = model.dims.qk_rope_head_dim};
  const auto bytes =
      static_cast<size_t>(int64_t{blocks} * run.block_size * format.bytes_per_token());
  std::vector<std::byte> memory(bytes, std::byte{0xFF});  // NaN in every slot not written yet
  const LatentPages pages{.data = memory.data(),
                          .dtype = run.page_dtype,
                          .num_blocks = blocks,
                          .block_size = run.block_size,
                          .width = width};
  const std::vector<BlockId> order = shuffled_blocks(blocks, run.seed);
  size_t next = 0;
  std::vector<Progress> progress;
  for (const auto& [id, chunks] : sequences) {
    Progress p;
    p.x = sequence_input(model, id, chunks);
    for (int32_t at = 0; at < total(chunks); at += run.block_size)
      p.blocks.push_back(order[next++]);
    progress.push_back(std::move(p));
  }
  for (size_t step = 0; step < steps; ++step) {
    run_step(*ops[0], model, pages, sequences, step, progress);
  }
  std::vector<std::vector<float>> out;
  for (Progress& p : progress) out.push_back(std::move(p.out));
  return out;
}

}  // namespace r1d::ops::test
