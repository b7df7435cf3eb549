// SPDX-License-Identifier: Apache-2.0
// mla_decode against a plain double-precision reference. Reference data is computed here.
#include <cstring>

#include "kernels/mla_decode/mla_decode.h"
#include "kernels/quantize/quantize.h"
#include "tests/kernels/support.cuh"
#include "tests/support/latent_reference.h"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

constexpr int kLatent = 512;
constexpr int kRope = 64;
constexpr int kRow = kLatent + kRope;
constexpr int kNope = 128;
constexpr int kValue = 128;
constexpr int kSharedBlocks = 40;  // whose ids sequences draw at random

struct Sequence {
  int context = 0;
  int queries = 1;
};

struct Case {
  int heads = 16;
  int block_size = 64;
  std::vector<Sequence> sequences;
  bool deterministic = false;
  bool interleave = true;
  bool fp8 = true;         // kv_b
  bool dependent = false;  // programmatic launch
  float query_scale = 1;
  uint64_t seed = 1;
  int padding_tokens = 0;  // that belong to no sequence
  bool fp8_cache = false;
  float cache_scale = 1.2F;  // the largest cached value
};

// A layer's inputs on the host, then on the device.
class Layer {
 public:
  explicit Layer(const Case& c) : c_(c) {
    for (const Sequence& s : c.sequences) {
      query_begin_.push_back(tokens_);
      query_len_.push_back(s.queries);
      context_len_.push_back(s.context);
      tokens_ += s.queries;
      max_query_ = std::max(max_query_, s.queries);
    }
    tokens_ += c.padding_tokens;
    make_weights();
    make_cache();
    q_ = test::to_bf16(test::random_floats(
        static_cast<size_t>(tokens_) * c.heads * (kNope + kRope), c.seed + 2, c.query_scale));
    const auto angles = test::random_floats(static_cast<size_t>(tokens_) * 32, c.seed + 3, 10);
    table_.resize(static_cast<size_t>(tokens_) * kRope);
    for (int t = 0; t < tokens_; ++t) {
      for (int i = 0; i < 32; ++i) {
        table_[t * kRope + i] = std::cos(angles[t * 32 + i]);
        table_[t * kRope + 32 + i] = std::sin(angles[t * 32 + i]);
      }
    }
  }

  MlaShape shape() const {
    return {.heads = c_.heads,
            .num_tokens = tokens_,
            .num_sequences = static_cast<int32_t>(c_.sequences.size()),
            .max_query_len = max_query_,
            .num_sms = 132,
            .deterministic = c_.deterministic};
  }

  // Runs the layer `runs` times into the same poisoned buffers. Its two outputs are the same rows.
  void run(int runs = 1) {
    const MlaShape shape = this->shape();
    DeviceArray<uint8_t> kv_b(kv_b_);
    DeviceArray<float> scales(scales_);
    DeviceArray<uint8_t> absorbed(mla_absorbed_bytes(c_.heads));
    DeviceArray<uint8_t> cache(cache_bytes_);
    DeviceArray<int32_t> query_begin(query_begin_), query_len(query_len_),
        context_len(context_len_), block_begin(block_begin_), block_ids(block_ids_);
    DeviceArray<uint16_t> q(q_);
    DeviceArray<float> table(table_);
    DeviceArray<uint8_t> plan(mla_plan_bytes(shape));
    DeviceArray<uint8_t> workspace(mla_workspace_bytes(shape));
    DeviceArray<uint16_t> q_latent(static_cast<size_t>(tokens_) * c_.heads * kRow);
    DeviceArray<uint16_t> attention(static_cast<size_t>(tokens_) * c_.heads * kValue);
    Quantized quantized(*this);
    Quantized expected(*this);
    auto* rows = reinterpret_cast<__nv_bfloat16*>(attention.data());
    const StepSequences sequences{query_begin.data(),
                                  query_len.data(),
                                  context_len.data(),
                                  block_begin.data(),
                                  block_ids.data(),
                                  shape.num_sequences};
    const Launch launch;
    const ops::Matrix matrix{.data = kv_b.data(),
                             .dtype = c_.fp8 ? DType::kF8E4M3 : DType::kBF16,
                             .rows = c_.heads * (kNope + kValue),
                             .cols = kLatent,
                             .scale = c_.fp8 ? scales.data() : nullptr,
                             .scale_cols = kLatent / 128};
    R1D_MUST(mla_absorb_weights(matrix, c_.heads, absorbed.data(), launch));
    R1D_MUST(mla_plan(sequences, shape, plan.data(), launch));
    for (int i = 0; i < runs; ++i) {
      R1D_MUST(mla_attend(
          q.data(),
          mla_weights(absorbed.data(), c_.heads),
          {cache.data(), c_.block_size, kRow, c_.fp8_cache ? DType::kF8E4M3 : DType::kBF16},
          static_cast<int64_t>(cache_.size()) / kRow / c_.block_size,
          {.shape = shape,
           .sequences = sequences,
           .rope = {table.data(), c_.interleave},
           .softmax_scale = kScale,
           .plan = plan.data(),
           .q_latent = q_latent.data(),
           .workspace = workspace.data()},
          {.bf16 = i % 3 == 2 ? nullptr : rows,
           .quantized = i % 3 == 1 ? QuantizedRows{} : quantized.view()},
          {.dependent = c_.dependent && i > 0}));
    }
    const int64_t cols = int64_t{c_.heads} * kValue;
    R1D_MUST(quantize_rows(rows, cols, tokens_, expected.view(), launch));
    EXPECT_EQ(quantized.codes.download(), expected.codes.download());
    EXPECT_EQ(quantized.scale_bits(), expected.scale_bits());
    q_latent_ = test::from_bf16(q_latent.download());
    attention_bits_ = attention.download();
    attention_ = test::from_bf16(attention_bits_);
    plan.download();
    workspace.download();
  }

  const std::vector<uint16_t>& attention_bits() const { return attention_bits_; }

  // Checks token t, head h: the absorbed query against the product, the output against attention
  // over the query as the device rounded it.
  void check(int s, int query, int h) const {
    const int t = query_begin_[s] + query;
    const float* latent = &q_latent_[(static_cast<size_t>(t) * c_.heads + h) * kRow];
    EXPECT_LT(test::relative_l2(std::vector<float>(latent, latent + kRow), absorbed_query(t, h)),
              3e-3)
        << "q_latent, token " << t << " head " << h;
    const float* out = &attention_[(static_cast<size_t>(t) * c_.heads + h) * kValue];
    EXPECT_LT(test::relative_l2(std::vector<float>(out, out + kValue), attend(s, query, h, latent)),
              8e-3)
        << "attention, sequence " << s << " query " << query << " head " << h;
  }
  // By how much (base 2) a score of head h of sequence s exceeds all of the first page.
  double rise(int s, int h) const {
    const float* q = &q_latent_[(static_cast<size_t>(query_begin_[s]) * c_.heads + h) * kRow];
    double first = -INFINITY;
    double later = -INFINITY;
    for (int k = 0; k < context_len_[s] - query_len_[s] + 1; ++k) {
      const uint16_t* row = key(s, k);
      double score = 0;
      for (int i = 0; i < kRow; ++i) score += static_cast<double>(q[i]) * bf16_to_f32(row[i]);
      double& most = k < 64 ? first : later;
      most = std::max(most, score);
    }
    return later - first;
  }
  void check_all() const {
    for (int s = 0; s < static_cast<int>(c_.sequences.size()); ++s) {
      for (int i = 0; i < c_.sequences[s].queries; ++i) {
        for (int h = 0; h < c_.heads; ++h) check(s, i, h);
      }
    }
    check_padding();
  }
  void check_sample(int count) const {
    std::mt19937_64 random(99);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
    for (int i = 0; i < count; ++i) {
      const int s = below(static_cast<int>(c_.sequences.size()));
      check(s, below(c_.sequences[s].queries), below(c_.heads));
    }
    check_padding();
  }
  void check_padding() const {
    for (int t = tokens_ - c_.padding_tokens; t < tokens_; ++t) {
      for (int i = 0; i < c_.heads * kValue; ++i) {
        ASSERT_EQ(attention_bits_[static_cast<size_t>(t) * c_.heads * kValue + i], 0)
            << t << " " << i;
      }
    }
  }

 private:
  // The output as codes.
  struct Quantized {
    explicit Quantized(const Layer& layer)
        : cols(int64_t{layer.c_.heads} * kValue),
          scale_stride((layer.tokens_ + 3) / 4 * 4),
          codes(static_cast<size_t>(layer.tokens_ * cols)),
          scale(static_cast<size_t>(layer.c_.heads * scale_stride)) {}
    QuantizedRows view() { return {codes.data(), scale.data(), cols, scale_stride}; }
    std::vector<uint32_t> scale_bits() const {  // what no token owns is NaN
      const std::vector<float> values = scale.download();
      std::vector<uint32_t> bits(values.size());
      std::memcpy(bits.data(), values.data(), bits.size() * sizeof(uint32_t));
      return bits;
    }
    int64_t cols;
    int64_t scale_stride;
    DeviceArray<uint8_t> codes;
    DeviceArray<float> scale;
  };

  static constexpr float kScale = 0.1147213867F;  // R1: 192^-0.5 and its yarn factor

  void make_weights() {
    const size_t rows = static_cast<size_t>(c_.heads) * (kNope + kValue);
    weights_.resize(rows * kLatent);
    if (c_.fp8) {
      kv_b_ = test::random_f8(weights_.size(), c_.seed);
      scales_ = test::random_floats(rows / 128 * (kLatent / 128), c_.seed + 7, 2e-4F);
      for (float& scale : scales_) scale = std::abs(scale) + 1e-4F;
      for (size_t r = 0; r < rows; ++r) {
        for (size_t k = 0; k < kLatent; ++k) {
          const float w =
              f8e4m3_to_f32(kv_b_[r * kLatent + k]) * scales_[r / 128 * (kLatent / 128) + k / 128];
          weights_[r * kLatent + k] = bf16_to_f32(f32_to_bf16(w));
        }
      }
    } else {
      const auto bits = test::to_bf16(test::random_floats(weights_.size(), c_.seed, 0.05F));
      weights_ = test::from_bf16(bits);
      kv_b_.resize(bits.size() * 2);
      std::memcpy(kv_b_.data(), bits.data(), kv_b_.size());
      scales_ = {0};
    }
  }
  // Each sequence's last block is its own, and holds NaN behind the context.
  void make_cache() {
    std::mt19937_64 random(c_.seed + 5);
    const int own = kSharedBlocks;
    const auto count = static_cast<int>(c_.sequences.size());
    const size_t row = kRow;
    cache_.resize(static_cast<size_t>(own + count) * c_.block_size * row);
    uint64_t state = c_.seed + 6;  // uniform in +-1.2: a faster generator than support.cuh's
    for (uint16_t& value : cache_) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      value = f32_to_bf16(static_cast<float>(static_cast<int32_t>(state >> 32)) *
                          (c_.cache_scale / 0x1p31F));
    }
    for (int s = 0; s < count; ++s) {
      block_begin_.push_back(static_cast<int32_t>(block_ids_.size()));
      const int context = c_.sequences[s].context;
      const int blocks = (context + c_.block_size - 1) / c_.block_size;
      for (int b = 0; b < blocks; ++b) {
        block_ids_.push_back(b + 1 < blocks ? static_cast<int32_t>(random() % kSharedBlocks)
                                            : own + s);
      }
      const int last_rows = blocks == 0 ? 0 : context - (blocks - 1) * c_.block_size;
      for (size_t i = (static_cast<size_t>(own + s) * c_.block_size + last_rows) * row;
           i < static_cast<size_t>(own + s + 1) * c_.block_size * row;
           ++i) {
        cache_[i] = 0x7FFF;
      }
    }
    if (block_ids_.empty()) block_ids_.push_back(0);
    cache_bytes_.resize(cache_.size() * sizeof(uint16_t));
    std::memcpy(cache_bytes_.data(), cache_.data(), cache_bytes_.size());
    if (c_.fp8_cache) quantize_cache();
  }
  // cache_ becomes what a reader of the quantized cache sees. Slots behind a context keep the NaN
  // in codes, rope and scales that they are made with.
  void quantize_cache() {
    const auto slots = static_cast<int64_t>(cache_.size() / kRow);
    r1d::test::Fp8Cache quantized(slots / c_.block_size, c_.block_size, kLatent, kRope);
    std::fill(quantized.bytes.begin(), quantized.bytes.end(), uint8_t{0xFF});
    for (int64_t slot = 0; slot < slots; ++slot) {
      uint16_t* row = &cache_[slot * kRow];
      if (row[0] == 0x7FFF) continue;
      float values[kRow];
      for (int i = 0; i < kRow; ++i) values[i] = bf16_to_f32(row[i]) * (1 + i / 128);
      quantized.store(slot, values);
      // A power of two times three bits of mantissa: exact in bf16.
      for (int i = 0; i < kRow; ++i) row[i] = f32_to_bf16(quantized.value(slot, i));
    }
    cache_bytes_ = quantized.bytes;
  }

  std::vector<double> absorbed_query(int t, int h) const {
    const uint16_t* q = &q_[(static_cast<size_t>(t) * c_.heads + h) * (kNope + kRope)];
    const double factor = static_cast<double>(kScale) * 1.4426950408889634;
    std::vector<double> out(kRow, 0);
    for (int d = 0; d < kNope; ++d) {
      const float* w = &weights_[(static_cast<size_t>(h) * (kNope + kValue) + d) * kLatent];
      for (int k = 0; k < kLatent; ++k) out[k] += static_cast<double>(bf16_to_f32(q[d])) * w[k];
    }
    for (int i = 0; i < 32; ++i) {
      const int low = c_.interleave ? 2 * i : i;
      const int high = c_.interleave ? 2 * i + 1 : i + 32;
      const double a = bf16_to_f32(q[kNope + low]);
      const double b = bf16_to_f32(q[kNope + high]);
      const double cos = table_[t * kRope + i];
      const double sin = table_[t * kRope + 32 + i];
      out[kLatent + low] = a * cos - b * sin;
      out[kLatent + high] = a * sin + b * cos;
    }
    for (double& value : out) value *= factor;
    return out;
  }

  const uint16_t* key(int s, int k) const {
    const int block = block_ids_[block_begin_[s] + k / c_.block_size];
    return &cache_[(static_cast<size_t>(block) * c_.block_size + k % c_.block_size) * kRow];
  }

  std::vector<double> attend(int s, int query, int h, const float* q) const {
    const int context = context_len_[s];
    const int keys = context == 0 ? 0 : context - query_len_[s] + 1 + query;
    std::vector<double> scores(keys);
    std::vector<const uint16_t*> rows(keys);
    double most = -INFINITY;
    for (int k = 0; k < keys; ++k) {
      rows[k] = key(s, k);
      double score = 0;
      for (int i = 0; i < kRow; ++i) score += static_cast<double>(q[i]) * bf16_to_f32(rows[k][i]);
      scores[k] = score;
      most = std::max(most, score);
    }
    std::vector<double> latent(kLatent, 0);
    double sum = 0;
    for (int k = 0; k < keys; ++k) {
      const double p = std::exp2(scores[k] - most);
      sum += p;
      for (int i = 0; i < kLatent; ++i) latent[i] += p * bf16_to_f32(rows[k][i]);
    }
    std::vector<double> out(kValue, 0);
    if (keys == 0) return out;
    for (int v = 0; v < kValue; ++v) {
      const float* w = &weights_[(static_cast<size_t>(h) * (kNope + kValue) + kNope + v) * kLatent];
      for (int i = 0; i < kLatent; ++i) out[v] += latent[i] / sum * w[i];
    }
    return out;
  }

  const Case c_;
  int tokens_ = 0;
  int max_query_ = 1;
  std::vector<int32_t> query_begin_, query_len_, context_len_, block_begin_, block_ids_;
  std::vector<uint8_t> kv_b_;
  std::vector<float> scales_;
  std::vector<float> weights_;   // kv_b as the kernels round it
  std::vector<uint16_t> cache_;  // as read
  std::vector<uint8_t> cache_bytes_;
  std::vector<uint16_t> q_;
  std::vector<float> table_;
  std::vector<float> q_latent_;
  std::vector<uint16_t> attention_bits_;
  std::vector<float> attention_;
};

std::vector<Sequence> repeat(int count, int context, int queries = 1) {
  return std::vector<Sequence>(count, {context, queries});
}
// Ragged lengths up to `most`, some empty.
std::vector<Sequence> ragged(int count, int most, int queries, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Sequence> sequences(count);
  for (Sequence& s : sequences) {
    s.queries = 1 + static_cast<int>(random() % queries);
    s.context = random() % 8 == 0 ? 0 : s.queries + static_cast<int>(random() % most);
    if (s.context == 0) s.queries = 1;
  }
  return sequences;
}

TEST(MlaDecodeTest, ServesMultiplesOfEightHeadsOfTheModelsSizes) {
  EXPECT_TRUE(mla_decode_serves({}));
  EXPECT_TRUE(mla_decode_serves({.heads = 128, .block_size = 16}));
  EXPECT_FALSE(mla_decode_serves({.heads = 4}));
  EXPECT_FALSE(mla_decode_serves({.heads = 136}));
  EXPECT_FALSE(mla_decode_serves({.latent = 256}));
  EXPECT_FALSE(mla_decode_serves({.block_size = 8}));
}

TEST(MlaDecodeTest, small_OneTokenSeesItself) {
  R1D_NEEDS_GPU(90);
  Layer layer({.sequences = {{1, 1}}});
  layer.run();
  layer.check_all();
}

TEST(MlaDecodeTest, small_LengthsAroundAPage) {
  R1D_NEEDS_GPU(90);
  Layer layer({.sequences = {{63, 1}, {64, 1}, {65, 1}, {2, 1}, {128, 1}, {129, 1}}});
  layer.run();
  layer.check_all();
}

TEST(MlaDecodeTest, small_PaddingGivesZeros) {
  R1D_NEEDS_GPU(90);
  Layer layer(
      {.sequences = {{0, 1}, {100, 1}, {0, 1}, {0, 1}, {5, 1}, {0, 1}}, .padding_tokens = 3});
  layer.run();
  layer.check_all();
  Layer empty({.sequences = repeat(4, 0)});
  empty.run();
  empty.check_all();
}

TEST(MlaDecodeTest, small_SplitInHalvesPairsAndBf16Weights) {
  R1D_NEEDS_GPU(90);
  Layer layer({.sequences = {{300, 1}, {77, 1}}, .interleave = false, .fp8 = false});
  layer.run();
  layer.check_all();
}

TEST(MlaDecodeTest, HeadCountsAndQueryCounts) {
  R1D_NEEDS_GPU(90);
  const std::pair<int, int> cases[] = {{8, 1},
                                       {8, 4},
                                       {16, 2},
                                       {16, 3},
                                       {16, 4},
                                       {24, 3},
                                       {32, 1},
                                       {64, 1},
                                       {96, 2},
                                       {128, 1},
                                       {128, 4}};
  for (const auto& [heads, queries] : cases) {
    SCOPED_TRACE(testing::Message() << heads << " heads, " << queries << " queries");
    Layer layer(
        {.heads = heads,
         .sequences = {{queries, queries}, {700, 1}, {0, 1}, {65, queries}, {1301, queries}},
         .deterministic = heads == 24,
         .seed = static_cast<uint64_t>(heads + queries)});
    layer.run();
    layer.check_sample(24);
  }
}

TEST(MlaDecodeTest, SmallerBlocks) {
  R1D_NEEDS_GPU(90);
  for (const int block_size : {16, 32}) {
    SCOPED_TRACE(block_size);
    Layer layer({.block_size = block_size,
                 .sequences = {{1, 1}, {17, 2}, {48, 1}, {2500, 1}, {63, 2}, {1025, 1}}});
    layer.run();
    layer.check_sample(60);
  }
}

TEST(MlaDecodeTest, OneLongSequenceOverAllSms) {
  R1D_NEEDS_GPU(90);
  for (const bool deterministic : {false, true}) {
    for (const int context : {4096, 163840}) {
      SCOPED_TRACE(testing::Message() << context << (deterministic ? " deterministic" : ""));
      Layer layer({.sequences = {{context, 1}}, .deterministic = deterministic});
      layer.run();
      layer.check_sample(context > 100000 ? 2 : 6);
    }
  }
}

TEST(MlaDecodeTest, RaggedBatches) {
  R1D_NEEDS_GPU(90);
  for (const int count : {16, 64, 256, 700}) {
    for (const bool deterministic : {false, true}) {
      SCOPED_TRACE(testing::Message() << count << (deterministic ? " deterministic" : ""));
      Layer layer({.sequences = ragged(count, 2500, 1 + count % 3, 7),
                   .deterministic = deterministic,
                   .dependent = true,
                   .padding_tokens = 5});
      layer.run(3);
      layer.check_sample(60);
    }
  }
}

TEST(MlaDecodeTest, small_Fp8CacheAroundAPage) {
  R1D_NEEDS_GPU(90);
  Layer layer({.sequences = {{1, 1}, {63, 1}, {64, 1}, {0, 1}, {65, 1}, {129, 2}, {300, 3}},
               .padding_tokens = 2,
               .fp8_cache = true});
  layer.run();
  layer.check_all();
}

TEST(MlaDecodeTest, Fp8CacheOfAllHeadAndQueryCounts) {
  R1D_NEEDS_GPU(90);
  const std::pair<int, int> cases[] = {
      {8, 1}, {16, 1}, {16, 2}, {16, 4}, {24, 3}, {32, 1}, {64, 1}, {96, 2}, {128, 1}, {128, 4}};
  for (const auto& [heads, queries] : cases) {
    for (const int block_size : {16, 32, 64}) {
      SCOPED_TRACE(testing::Message()
                   << heads << " heads, " << queries << " queries, blocks of " << block_size);
      Layer layer(
          {.heads = heads,
           .block_size = block_size,
           .sequences = {{queries, queries}, {700, 1}, {0, 1}, {65, queries}, {1301, queries}},
           .deterministic = heads == 24,
           .seed = static_cast<uint64_t>(heads + queries),
           .fp8_cache = true});
      layer.run();
      layer.check_sample(24);
    }
  }
}

TEST(MlaDecodeTest, Fp8CacheOfRaggedBatchesAndLongContexts) {
  R1D_NEEDS_GPU(90);
  for (const bool deterministic : {false, true}) {
    for (const int count : {1, 16, 256, 700}) {
      SCOPED_TRACE(testing::Message() << count << (deterministic ? " deterministic" : ""));
      Layer layer({.sequences = count == 1 ? repeat(1, 163840) : ragged(count, 2500, 1, 7),
                   .deterministic = deterministic,
                   .dependent = true,
                   .padding_tokens = 5,
                   .fp8_cache = true});
      layer.run(3);
      layer.check_sample(count == 1 ? 2 : 40);
    }
  }
}

TEST(MlaDecodeTest, Fp8CacheOfAnyMagnitude) {
  R1D_NEEDS_GPU(90);
  const std::pair<float, float> cases[] = {
      {1e-6F, 1}, {1e-3F, 100}, {300, 3e-3F}, {300, 0.1F}, {1e4F, 1e-4F}, {1e4F, 3e-3F}};
  for (const auto& [cache_scale, query_scale] : cases) {
    SCOPED_TRACE(testing::Message() << "cache " << cache_scale << ", queries " << query_scale);
    Layer layer({.sequences = {{3000, 1}, {640, 1}, {70, 1}},
                 .query_scale = query_scale,
                 .fp8_cache = true,
                 .cache_scale = cache_scale});
    layer.run();
    layer.check_sample(24);
  }
}

TEST(MlaDecodeTest, SharpAttentionKeepsItsMaximum) {
  R1D_NEEDS_GPU(90);
  Layer layer({.sequences = {{3000, 1}, {640, 1}}, .query_scale = 30});
  layer.run();
  layer.check_sample(24);
}

TEST(MlaDecodeTest, ScoresFarAboveThoseOfTheFirstPage) {
  R1D_NEEDS_GPU(90);
  struct Form {
    int heads;
    int queries;
  };
  for (const auto [heads, queries] : {Form{16, 1}, Form{16, 2}, Form{64, 1}}) {
    Layer layer({.heads = heads,
                 .sequences = {{512, queries}, {490, queries}, {300, 1}},
                 .deterministic = true,  // a block takes eight pages
                 .query_scale = 60});
    layer.run();
    layer.check_all();
    double most = 0;
    for (int h = 0; h < heads; ++h) most = std::max(most, layer.rise(0, h));
    EXPECT_GT(most, 80) << heads << " " << queries;
  }
}

TEST(MlaDecodeTest, DeterministicBitsDoNotDependOnTheBatch) {
  R1D_NEEDS_GPU(90);
  // The first sequence of each: same seed, so the same queries, weights and shared blocks.
  const auto bits = [](const std::vector<Sequence>& sequences, bool fp8_cache) {
    Layer layer({.sequences = sequences, .deterministic = true, .seed = 3, .fp8_cache = fp8_cache});
    layer.run();
    const auto& all = layer.attention_bits();
    return std::vector<uint16_t>(all.begin(), all.begin() + 16 * kValue);
  };
  const std::vector<Sequence> alone = {{3008, 1}};
  for (const bool fp8_cache : {false, true}) {
    const auto first = bits(alone, fp8_cache);
    for (const int others : {1, 15, 63, 255}) {
      std::vector<Sequence> batch = alone;
      for (const Sequence& s : ragged(others, 3000, 1, 5)) batch.push_back(s);
      EXPECT_EQ(first, bits(batch, fp8_cache)) << others << " " << fp8_cache;
    }
  }
}

TEST(MlaDecodeTest, RunsRepeatBitForBit) {
  R1D_NEEDS_GPU(90);
  for (const bool fp8_cache : {false, true}) {
    Layer layer({.sequences = ragged(40, 3000, 1, 9), .dependent = true, .fp8_cache = fp8_cache});
    layer.run();
    const auto once = layer.attention_bits();
    layer.run(5);
    EXPECT_EQ(once, layer.attention_bits()) << fp8_cache;
  }
}

}  // namespace
}  // namespace r1d::kernels
