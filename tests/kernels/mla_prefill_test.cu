// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/mla_prefill/mla_prefill.h"
#include "tests/kernels/support.cuh"
#include "tests/support/latent_reference.h"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

struct Lengths {
  int query = 0;
  int context = 0;
};

// Lays sequences out with `gap` unused rows between them, in queries and in keys.
std::vector<PrefillSequence> lay_out(const std::vector<Lengths>& lengths, int gap) {
  std::vector<PrefillSequence> sequences;
  int query = gap;
  int key = 0;
  for (const Lengths& length : lengths) {
    sequences.push_back({.query_begin = query,
                         .query_len = length.query,
                         .context_len = length.context,
                         .num_positions = length.context,
                         .key_begin = key});
    query += length.query + gap;
    key += length.context + gap;
  }
  return sequences;
}

// Seeded bf16 noise; large arrays repeat it with an odd period.
std::vector<uint16_t> noise(int64_t count, uint64_t seed, float spread = 1) {
  constexpr int64_t kPeriod = (1 << 18) + 1;
  const std::vector<uint16_t> period =
      test::to_bf16(test::random_floats(std::min(count, kPeriod), seed, spread));
  std::vector<uint16_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = period[i % kPeriod];
  return values;
}

// A step's inputs on the host and the device. The rows of gaps are NaN.
class Step {
 public:
  Step(std::vector<PrefillSequence> sequences, int heads, uint64_t seed, float spread = 1)
      : sequences_(std::move(sequences)),
        heads_(heads),
        scale_(1 / std::sqrt(192.0F)),
        tokens_(sequences_.back().query_begin + sequences_.back().query_len),
        keys_(sequences_.back().key_begin + sequences_.back().context_len),
        q_(noise(int64_t{tokens_} * heads * 192, seed, spread)),
        kv_(noise(int64_t{keys_} * heads * 256, seed + 1)),
        k_pe_(noise(int64_t{keys_} * 64, seed + 2)),
        q_device_(q_),
        kv_device_(kv_),
        k_pe_device_(k_pe_),
        counter_(1, 0),
        out_(int64_t{tokens_} * heads * 128) {
    std::vector<bool> used(keys_, false);
    for (const PrefillSequence& s : sequences_) {
      std::fill_n(used.begin() + s.key_begin, s.num_positions, true);
    }
    for (int row = 0; row < keys_; ++row) {
      if (used[row]) continue;
      std::fill_n(kv_.begin() + int64_t{row} * heads * 256, heads * 256, uint16_t{0x7FFF});
      std::fill_n(k_pe_.begin() + int64_t{row} * 64, 64, uint16_t{0x7FFF});
    }
    kv_device_.upload(kv_);
    k_pe_device_.upload(k_pe_);
  }

  int tokens() const { return tokens_; }
  int heads() const { return heads_; }
  const std::vector<PrefillSequence>& sequences() const { return sequences_; }
  std::vector<uint16_t>& kv() { return kv_; }
  const std::vector<uint16_t>& k_pe() const { return k_pe_; }
  uint32_t counter() const { return counter_.download()[0]; }
  void poison() { out_.poison(); }
  void upload() {
    q_device_.upload(q_);
    kv_device_.upload(kv_);
    k_pe_device_.upload(k_pe_);
  }

  // Runs over `sequences` (their windows) and returns out.
  std::vector<float> run(const std::vector<PrefillSequence>& sequences,
                         const MlaPrefillState& state = {},
                         const __nv_bfloat16* kv = nullptr,
                         const __nv_bfloat16* k_pe = nullptr,
                         const QuantizedRows& codes = {}) {
    const std::vector<MlaPrefillTile> tiles =
        plan_mla_prefill(sequences.data(), static_cast<int>(sequences.size()));
    const DeviceArray<MlaPrefillTile> tiles_device(tiles);
    MlaPrefill problem;
    problem.q = reinterpret_cast<const __nv_bfloat16*>(q_device_.data());
    problem.kv = kv != nullptr ? kv : reinterpret_cast<const __nv_bfloat16*>(kv_device_.data());
    problem.k_pe =
        k_pe != nullptr ? k_pe : reinterpret_cast<const __nv_bfloat16*>(k_pe_device_.data());
    problem.out = reinterpret_cast<__nv_bfloat16*>(out_.data());
    problem.codes = codes;
    problem.num_tokens = tokens_;
    problem.num_keys = sequences.back().key_begin + sequences.back().num_positions;
    problem.num_heads = heads_;
    problem.scale = scale_;
    problem.tiles = tiles_device.data();
    problem.num_tiles = static_cast<int32_t>(tiles.size());
    problem.counter = counter_.data();
    problem.state = state;
    R1D_MUST(mla_prefill(problem, {}));
    return test::from_bf16(out_.download());
  }
  std::vector<float> run() {
    out_.poison();
    return run(sequences_);
  }

  // One row of one head, in f64.
  std::vector<double> reference(const PrefillSequence& s, int row, int head) const {
    const int visible = s.context_len - s.query_len + row + 1;
    const uint16_t* q = q_.data() + (int64_t{s.query_begin + row} * heads_ + head) * 192;
    std::vector<double> weights(visible);
    for (int i = 0; i < visible; ++i) {
      const int64_t key = s.key_begin + i;
      const uint16_t* nope = kv_.data() + (key * heads_ + head) * 256;
      const uint16_t* rope = k_pe_.data() + key * 64;
      float dot = 0;
      for (int d = 0; d < 128; ++d) dot += bf16_to_f32(q[d]) * bf16_to_f32(nope[d]);
      for (int d = 0; d < 64; ++d) dot += bf16_to_f32(q[128 + d]) * bf16_to_f32(rope[d]);
      weights[i] = static_cast<double>(dot) * scale_;
    }
    const double top = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& w : weights) sum += w = std::exp(w - top);
    std::vector<double> out(128, 0);
    for (int i = 0; i < visible; ++i) {
      const uint16_t* v = kv_.data() + (int64_t{s.key_begin + i} * heads_ + head) * 256 + 128;
      for (int d = 0; d < 128; ++d) out[d] += weights[i] / sum * bf16_to_f32(v[d]);
    }
    return out;
  }

  // Compares up to `samples` rows of every sequence with the reference, its first and last ones
  // among them.
  void check(const std::vector<float>& out, int samples, double bound = 4e-3) const {
    std::mt19937 random(7);
    for (const PrefillSequence& s : sequences_) {
      std::vector<int> rows(s.query_len);
      std::iota(rows.begin(), rows.end(), 0);
      std::shuffle(rows.begin(), rows.end(), random);
      if (static_cast<int>(rows.size()) > samples) {
        rows.resize(samples);
        rows[0] = 0;
        rows[1] = s.query_len - 1;
      }
      for (const int row : rows) {
        const int head = static_cast<int>(random() % heads_);
        const std::vector<double> want = reference(s, row, head);
        const auto at = out.begin() + (int64_t{s.query_begin + row} * heads_ + head) * 128;
        const std::vector<float> got(at, at + 128);
        ASSERT_LT(test::relative_l2(got, want), 2 * bound)
            << "row " << row << " head " << head << " of " << s.query_len << "/" << s.context_len;
        gots_.insert(gots_.end(), got.begin(), got.end());
        wants_.insert(wants_.end(), want.begin(), want.end());
      }
    }
    const double error = test::relative_l2(gots_, wants_);
    std::printf("relative l2 %.2e\n", error);
    EXPECT_LT(error, bound);
    gots_.clear();
    wants_.clear();
  }

 private:
  std::vector<PrefillSequence> sequences_;
  int heads_;
  float scale_;
  int tokens_;
  int keys_;
  std::vector<uint16_t> q_;
  std::vector<uint16_t> kv_;
  std::vector<uint16_t> k_pe_;
  DeviceArray<uint16_t> q_device_;
  DeviceArray<uint16_t> kv_device_;
  DeviceArray<uint16_t> k_pe_device_;
  DeviceArray<uint32_t> counter_;
  DeviceArray<uint16_t> out_;
  mutable std::vector<float> gots_;
  mutable std::vector<double> wants_;
};

// ---- the plan (no GPU) -------------------------------------------------------------------------

TEST(MlaPrefillPlanTest, EveryRowIsInOneTileLongestFirst) {
  const std::vector<PrefillSequence> sequences =
      lay_out({{1, 1}, {127, 127}, {128, 500}, {129, 129}, {1000, 4096}}, 3);
  const std::vector<MlaPrefillTile> tiles =
      plan_mla_prefill(sequences.data(), static_cast<int>(sequences.size()));
  std::vector<int> seen(sequences.back().query_begin + sequences.back().query_len, 0);
  int last = INT32_MAX;
  for (const MlaPrefillTile& tile : tiles) {
    for (int r = 0; r < tile.num_rows; ++r) ++seen[tile.query_begin + r];
    const int blocks =
        (std::min(tile.num_keys, tile.first_visible + tile.num_rows - 1) + 127) / 128;
    EXPECT_LE(blocks, last);
    last = blocks;
  }
  for (const PrefillSequence& s : sequences) {
    for (int r = 0; r < s.query_len; ++r) EXPECT_EQ(seen[s.query_begin + r], 1);
  }
  EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), 0), 1 + 127 + 128 + 129 + 1000);
}

TEST(MlaPrefillPlanTest, FlopsCountTheVisibleHalf) {
  const PrefillSequence s = {.query_len = 4, .context_len = 10, .num_positions = 10};
  EXPECT_EQ(mla_prefill_flops(&s, 1, 2), 2.0 * 320 * (7 + 8 + 9 + 10) * 2);
}

// ---- attention ---------------------------------------------------------------------------------

TEST(MlaPrefillTest, SmallOneTokenGivesItsValue) {
  R1D_NEEDS_GPU(90);
  Step step(lay_out({{1, 1}}, 0), 2, 1);
  const std::vector<float> out = step.run();
  for (int head = 0; head < 2; ++head) {
    for (int d = 0; d < 128; ++d) {
      EXPECT_EQ(out[head * 128 + d], bf16_to_f32(step.kv()[head * 256 + 128 + d]));
    }
  }
}

TEST(MlaPrefillTest, SmallOneTileMatchesTheReference) {
  R1D_NEEDS_GPU(90);
  Step step(lay_out({{128, 128}}, 0), 1, 2);
  step.check(step.run(), 128);
}

TEST(MlaPrefillTest, SmallRaggedSequencesWithPrefixesMatchTheReference) {
  R1D_NEEDS_GPU(90);
  for (const int heads : {1, 3, 16}) {
    Step step(
        lay_out(
            {{1, 1}, {1, 300}, {64, 64}, {127, 127}, {129, 129}, {100, 513}, {200, 333}, {7, 135}},
            heads == 3 ? 5 : 0),
        heads,
        3,
        3);
    step.check(step.run(), 40);
    EXPECT_EQ(step.counter(), 0U);
  }
}

TEST(MlaPrefillTest, RowsOfNoSequenceAreNotWritten) {
  R1D_NEEDS_GPU(90);
  Step step(lay_out({{5, 5}, {130, 200}, {1, 40}}, 4), 2, 4);
  const std::vector<float> out = step.run();
  std::vector<bool> used(step.tokens(), false);
  for (const PrefillSequence& s : step.sequences()) {
    std::fill_n(used.begin() + s.query_begin, s.query_len, true);
  }
  for (int t = 0; t < step.tokens(); ++t) {
    for (int i = 0; i < step.heads() * 128; ++i) {
      ASSERT_EQ(std::isnan(out[t * step.heads() * 128 + i]), !used[t]) << "token " << t;
    }
  }
}

TEST(MlaPrefillTest, LongSequencesMatchTheReference) {
  R1D_NEEDS_GPU(90);
  {
    Step step(lay_out({{8192, 8192}}, 0), 16, 5, 2);
    step.check(step.run(), 150);
  }
  {
    Step step(lay_out({{2048, 8192}}, 0), 16, 6);
    step.check(step.run(), 100);
  }
  {
    Step step(lay_out({{512, 512}, {300, 1500}}, 0), 128, 7);
    step.check(step.run(), 100);
  }
}

TEST(MlaPrefillTest, LargeScoresStayFinite) {
  R1D_NEEDS_GPU(90);
  Step step(lay_out({{400, 400}, {33, 900}}, 0), 4, 8, 60);
  step.check(step.run(), 100, 8e-3);
}

TEST(MlaPrefillTest, AnotherSequencesInfinitiesStayThere) {
  R1D_NEEDS_GPU(90);
  Step step(lay_out({{50, 50}, {60, 200}, {70, 70}}, 0), 2, 9);
  const PrefillSequence& sick = step.sequences()[1];
  std::fill_n(step.kv().begin() + int64_t{sick.key_begin} * 2 * 256,
              int64_t{sick.num_positions} * 2 * 256,
              uint16_t{0x7F80});
  step.upload();
  const std::vector<float> out = step.run();
  for (const int i : {0, 2}) {
    const PrefillSequence& s = step.sequences()[i];
    for (int64_t at = int64_t{s.query_begin} * 2 * 128;
         at < int64_t{s.query_begin + s.query_len} * 2 * 128;
         ++at) {
      ASSERT_TRUE(std::isfinite(out[at]));
    }
  }
}

TEST(MlaPrefillTest, BitsDoNotDependOnBatchOrChunking) {
  R1D_NEEDS_GPU(90);
  Step step(lay_out({{300, 300}, {515, 1000}, {90, 90}}, 0), 5, 10, 2);
  const std::vector<float> together = step.run();
  const auto same = [&](const std::vector<float>& other, int begin, int count) {
    for (int64_t i = int64_t{begin} * 5 * 128; i < int64_t{begin + count} * 5 * 128; ++i) {
      ASSERT_EQ(together[i], other[i]) << i;
    }
  };
  const PrefillSequence s = step.sequences()[1];
  same(step.run({s}), s.query_begin, s.query_len);
  // The same queries as three chunks, as if each were its own step.
  int row = 0;
  for (const int count : {101, 300, 114}) {
    PrefillSequence chunk = s;
    chunk.query_begin += row;
    chunk.query_len = count;
    chunk.context_len = s.context_len - s.query_len + row + count;
    chunk.num_positions = chunk.context_len;
    same(step.run({chunk}), chunk.query_begin, count);
    row += count;
  }
}

// The codes of the output and their scales, as quantize_rows defines them.
void expect_codes(const Step& step,
                  const std::vector<float>& out,
                  const std::vector<uint8_t>& codes,
                  const std::vector<float>& scales,
                  int64_t stride) {
  for (int t = 0; t < step.tokens(); ++t) {
    for (int head = 0; head < step.heads(); ++head) {
      const int64_t at = (int64_t{t} * step.heads() + head) * 128;
      if (std::isnan(out[at])) {  // a gap
        for (int d = 0; d < 128; ++d) ASSERT_EQ(codes[at + d], 0xFF) << "token " << t;
        ASSERT_TRUE(std::isnan(scales[head * stride + t])) << "token " << t;
        continue;
      }
      float largest = 0;
      for (int d = 0; d < 128; ++d) largest = std::max(largest, std::abs(out[at + d]));
      const float scale = largest > 0 ? largest / 448 : 1;
      ASSERT_EQ(scales[head * stride + t], scale) << "token " << t << " head " << head;
      for (int d = 0; d < 128; ++d) {
        const uint8_t want = f32_to_f8e4m3(out[at + d] / scale);
        const bool zero = (want & 0x7F) == 0 && (codes[at + d] & 0x7F) == 0;
        ASSERT_TRUE(zero || codes[at + d] == want)
            << "token " << t << " head " << head << " column " << d;
      }
    }
  }
}

TEST(MlaPrefillTest, WindowsMergeToTheWhole) {
  R1D_NEEDS_GPU(90);
  const std::vector<Lengths> lengths = {{300, 300}, {65, 1000}, {400, 700}};
  Step step(lay_out(lengths, 0), 6, 11, 2);
  const std::vector<float> whole = step.run();
  const int64_t rows = int64_t{step.tokens()} * 6;
  for (const bool backwards : {false, true}) {
    DeviceArray<float> running(rows * 128);
    DeviceArray<float> lse(rows);
    std::vector<float> out;
    constexpr int kWindow = 260;
    step.poison();
    const int64_t stride = (step.tokens() + 3) / 4 * 4;
    DeviceArray<uint8_t> codes(rows * 128);
    DeviceArray<float> scales(6 * stride);
    const auto run_window = [&](int window, const QuantizedRows& to) {
      std::vector<PrefillSequence> sequences;
      std::vector<uint16_t> kv;
      std::vector<uint16_t> k_pe;
      for (PrefillSequence s : step.sequences()) {
        const int64_t old_key = s.key_begin;
        s.key_begin = static_cast<int32_t>(k_pe.size() / 64);
        s.position_begin = std::min((backwards ? 3 - window : window) * kWindow, s.context_len);
        s.num_positions = std::min(kWindow, s.context_len - s.position_begin);
        const int64_t first = old_key + s.position_begin;
        const int64_t last = first + s.num_positions;
        kv.insert(
            kv.end(), step.kv().begin() + first * 6 * 256, step.kv().begin() + last * 6 * 256);
        k_pe.insert(k_pe.end(), step.k_pe().begin() + first * 64, step.k_pe().begin() + last * 64);
        sequences.push_back(s);
      }
      const DeviceArray<uint16_t> kv_device(kv);
      const DeviceArray<uint16_t> k_pe_device(k_pe);
      out = step.run(sequences,
                     {running.data(), lse.data(), window == 0, window == 3},
                     reinterpret_cast<const __nv_bfloat16*>(kv_device.data()),
                     reinterpret_cast<const __nv_bfloat16*>(k_pe_device.data()),
                     to);
    };
    // The last window leaves the running sums alone, so it gives codes and then values.
    for (int window = 0; window < 3; ++window) run_window(window, {});
    run_window(3, {codes.data(), scales.data(), 6 * 128, stride});
    run_window(3, {});
    step.check(out, 100);
    EXPECT_LT(test::relative_l2(out, whole), 4e-3);
    expect_codes(step, out, codes.download(), scales.download(), stride);
    running.download();
    lse.download();
  }
}

TEST(MlaPrefillTest, CodesAreThoseOfTheOutput) {
  R1D_NEEDS_GPU(90);
  for (const int heads : {1, 3, 16}) {
    Step step(lay_out({{1, 1}, {130, 200}, {77, 400}, {64, 64}}, heads == 3 ? 5 : 0), heads, 22, 2);
    if (heads == 1) {  // outputs of zeros
      std::fill_n(
          step.kv().begin() + int64_t{step.sequences()[3].key_begin} * 256, 64 * 256, uint16_t{0});
      step.upload();
    }
    const std::vector<float> out = step.run();
    const int64_t stride = (step.tokens() + 3) / 4 * 4 + 4;
    DeviceArray<uint8_t> codes(int64_t{step.tokens()} * heads * 128);
    DeviceArray<float> scales(heads * stride);
    step.poison();
    const std::vector<float> untouched = step.run(
        step.sequences(), {}, nullptr, nullptr, {codes.data(), scales.data(), heads * 128, stride});
    for (const float x : untouched) ASSERT_TRUE(std::isnan(x));
    expect_codes(step, out, codes.download(), scales.download(), stride);
  }
}

// Many tiles a CTA: shared memory given back too early shows here.
TEST(MlaPrefillTest, EveryRunGivesTheSameBits) {
  R1D_NEEDS_GPU(90);
  constexpr int kHeads = 128;
  Step step(lay_out({{700, 1500}, {1, 900}}, 0), kHeads, 17, 2);
  const std::vector<float> first = step.run();
  for (int i = 0; i < 8; ++i) {
    const std::vector<float> again = step.run();
    size_t differing = 0;
    size_t last = 0;
    for (size_t at = 0; at < first.size(); ++at) {
      if (std::memcmp(&first[at], &again[at], sizeof(float)) == 0) continue;
      ++differing;
      last = at;
    }
    ASSERT_EQ(differing, 0U) << "run " << i << ", the last one at token " << last / (kHeads * 128)
                             << " head " << last / 128 % kHeads;
  }
}

TEST(MlaPrefillTest, RefusesNonsenseAndSkipsNoWork) {
  MlaPrefill problem;
  problem.num_heads = 16;
  EXPECT_EQ(mla_prefill(problem, {}), cudaSuccess);
  problem.num_tiles = 1;
  EXPECT_EQ(mla_prefill(problem, {}), cudaErrorInvalidValue);
}

// ---- gather ------------------------------------------------------------------------------------

class GatherTest : public ::testing::TestWithParam<int> {};

TEST_P(GatherTest, PagesBecomePackedRows) {
  R1D_NEEDS_GPU(90);
  const int block_size = GetParam();
  std::vector<PrefillSequence> sequences = lay_out({{1, 1}, {5, 130}, {9, 1000}, {3, 64}}, 2);
  sequences[2].position_begin = 333;
  sequences[2].num_positions = 500;
  std::vector<int32_t> block_ids;
  for (PrefillSequence& s : sequences) {
    s.block_begin = static_cast<int32_t>(block_ids.size());
    for (int i = 0; i < (s.context_len + block_size - 1) / block_size; ++i) block_ids.push_back(0);
  }
  std::iota(block_ids.begin(), block_ids.end(), 1);
  std::shuffle(block_ids.begin(), block_ids.end(), std::mt19937(3));
  const int64_t blocks = static_cast<int64_t>(block_ids.size()) + 1;
  std::vector<float> values = test::random_floats(blocks * block_size * 576, 12);
  std::fill_n(
      values.begin() + block_ids[0] * block_size * 576, 128, 0.0F);  // a group of zeros: scale 1
  const std::vector<uint16_t> cache = test::to_bf16(values);
  const int64_t keys = sequences.back().key_begin + sequences.back().num_positions;

  DeviceArray<uint16_t> cache_device(cache);
  const DeviceArray<int32_t> ids_device(block_ids);
  const DeviceArray<PrefillSequence> sequences_device(sequences);
  DeviceArray<uint16_t> c_device(keys * 512);
  DeviceArray<uint16_t> k_pe_device(keys * 64);
  DeviceArray<uint8_t> data_device(keys * 512);
  const int64_t stride = (keys + 3) / 4 * 4 + 4;
  DeviceArray<float> scale_device(4 * stride);
  GatherLatents gather;
  gather.cache = {cache_device.data(), block_size, 576};
  gather.block_ids = ids_device.data();
  gather.sequences = sequences_device.data();
  gather.num_sequences = static_cast<int32_t>(sequences.size());
  gather.num_keys = keys;
  gather.k_pe = reinterpret_cast<__nv_bfloat16*>(k_pe_device.data());
  R1D_MUST(gather_latents(gather, reinterpret_cast<__nv_bfloat16*>(c_device.data()), {}));
  const std::vector<uint16_t> k_pe_first = k_pe_device.download();
  k_pe_device.poison();
  R1D_MUST(gather_latents(
      gather, QuantizedRows{data_device.data(), scale_device.data(), 512, stride}, {}));
  EXPECT_EQ(k_pe_device.download(), k_pe_first);
  const std::vector<uint16_t> c = c_device.download();
  const std::vector<uint8_t> data = data_device.download();
  const std::vector<float> scale = scale_device.download();

  std::vector<bool> used(keys, false);
  for (const PrefillSequence& s : sequences) {
    for (int i = 0; i < s.num_positions; ++i) {
      const int position = s.position_begin + i;
      const int64_t row = s.key_begin + i;
      used[row] = true;
      const int64_t id = block_ids[s.block_begin + position / block_size];
      const uint16_t* want = cache.data() + (id * block_size + position % block_size) * 576;
      for (int d = 0; d < 64; ++d) ASSERT_EQ(k_pe_first[row * 64 + d], want[512 + d]);
      for (int group = 0; group < 4; ++group) {
        float largest = 0;
        for (int d = 0; d < 128; ++d) {
          ASSERT_EQ(c[row * 512 + group * 128 + d], want[group * 128 + d]);
          largest = std::max(largest, std::abs(bf16_to_f32(want[group * 128 + d])));
        }
        const float expected = largest > 0 ? largest / 448 : 1;
        ASSERT_EQ(scale[group * stride + row], expected);
        for (int d = 0; d < 128; ++d) {
          const float x = bf16_to_f32(want[group * 128 + d]) / expected;
          ASSERT_EQ(data[row * 512 + group * 128 + d], f32_to_f8e4m3(x)) << x;
        }
      }
    }
  }
  for (int64_t row = 0; row < keys; ++row) {
    if (used[row]) continue;
    for (int d = 0; d < 512; ++d) ASSERT_EQ(c[row * 512 + d], 0xFFFF);
    for (int d = 0; d < 512; ++d) ASSERT_EQ(data[row * 512 + d], 0xFF);
  }
}
TEST_P(GatherTest, AnFp8CachesCodesComeAsTheyAre) {
  R1D_NEEDS_GPU(90);
  const int block_size = GetParam();
  std::vector<PrefillSequence> sequences = lay_out({{1, 1}, {5, 130}, {3, 64}}, 2);
  std::vector<int32_t> block_ids;
  for (PrefillSequence& s : sequences) {
    s.block_begin = static_cast<int32_t>(block_ids.size());
    for (int i = 0; i < (s.context_len + block_size - 1) / block_size; ++i) block_ids.push_back(0);
  }
  std::iota(block_ids.begin(), block_ids.end(), 1);
  std::shuffle(block_ids.begin(), block_ids.end(), std::mt19937(3));
  r1d::test::Fp8Cache cache(static_cast<int64_t>(block_ids.size()) + 1, block_size, 512, 64);
  const auto slot_of = [&](const PrefillSequence& s, int position) {
    return int64_t{block_ids[s.block_begin + position / block_size]} * block_size +
           position % block_size;
  };
  const std::vector<float> values = test::random_floats(1000 * 576, 12);
  for (const PrefillSequence& s : sequences) {
    for (int i = 0; i < s.context_len; ++i) {
      cache.store(slot_of(s, i), &values[(s.key_begin + i) * 576]);
    }
  }
  const int64_t keys = sequences.back().key_begin + sequences.back().num_positions;
  DeviceArray<uint8_t> cache_device(cache.bytes);
  const DeviceArray<int32_t> ids_device(block_ids);
  const DeviceArray<PrefillSequence> sequences_device(sequences);
  DeviceArray<uint16_t> c_device(keys * 512);
  DeviceArray<uint16_t> k_pe_device(keys * 64);
  DeviceArray<uint8_t> data_device(keys * 512);
  const int64_t stride = (keys + 3) / 4 * 4 + 4;
  DeviceArray<float> scale_device(4 * stride);
  const GatherLatents gather{.cache = {cache_device.data(), block_size, 576, DType::kF8E4M3},
                             .block_ids = ids_device.data(),
                             .sequences = sequences_device.data(),
                             .num_sequences = static_cast<int32_t>(sequences.size()),
                             .num_keys = keys,
                             .k_pe = reinterpret_cast<__nv_bfloat16*>(k_pe_device.data())};
  R1D_MUST(gather_latents(gather, reinterpret_cast<__nv_bfloat16*>(c_device.data()), {}));
  const std::vector<uint16_t> k_pe_first = k_pe_device.download();
  k_pe_device.poison();
  R1D_MUST(gather_latents(
      gather, QuantizedRows{data_device.data(), scale_device.data(), 512, stride}, {}));
  EXPECT_EQ(k_pe_device.download(), k_pe_first);
  const std::vector<uint16_t> c = c_device.download();
  const std::vector<uint8_t> data = data_device.download();
  const std::vector<float> scale = scale_device.download();
  for (const PrefillSequence& s : sequences) {
    for (int i = 0; i < s.context_len; ++i) {
      const int64_t row = s.key_begin + i;
      const int64_t slot = slot_of(s, i);
      for (int d = 0; d < 64; ++d) {
        ASSERT_EQ(bf16_to_f32(k_pe_first[row * 64 + d]), cache.value(slot, 512 + d));
      }
      for (int d = 0; d < 512; ++d) {
        const float want = cache.value(slot, d);
        ASSERT_EQ(bf16_to_f32(c[row * 512 + d]), want);
        ASSERT_EQ(f8e4m3_to_f32(data[row * 512 + d]) * scale[d / 128 * stride + row], want);
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(BlockSizes, GatherTest, ::testing::Values(1, 16, 64));

// ---- rotation ----------------------------------------------------------------------------------

TEST(RotateQueriesTest, TurnsTheRopeValuesAndNothingElse) {
  R1D_NEEDS_GPU(90);
  for (const bool interleave : {false, true}) {
    for (const auto& [tokens, heads] : {std::pair{1, 1}, {3, 5}, {257, 16}, {33, 128}}) {
      const std::vector<uint16_t> q =
          test::to_bf16(test::random_floats(int64_t{tokens} * heads * 192, 13));
      const std::vector<float> cos_sin = test::random_floats(int64_t{tokens} * 64, 14);
      DeviceArray<uint16_t> q_device(q);
      const DeviceArray<float> cos_sin_device(cos_sin);
      R1D_MUST(rotate_queries(reinterpret_cast<__nv_bfloat16*>(q_device.data()),
                              cos_sin_device.data(),
                              tokens,
                              heads,
                              interleave,
                              {}));
      const std::vector<uint16_t> got = q_device.download();
      for (int64_t row = 0; row < int64_t{tokens} * heads; ++row) {
        const uint16_t* before = q.data() + row * 192;
        const uint16_t* after = got.data() + row * 192;
        for (int d = 0; d < 128; ++d) ASSERT_EQ(before[d], after[d]);
        for (int i = 0; i < 32; ++i) {
          const int first = 128 + (interleave ? 2 * i : i);
          const int second = 128 + (interleave ? 2 * i + 1 : i + 32);
          const float x = bf16_to_f32(before[first]);
          const float y = bf16_to_f32(before[second]);
          const float c = cos_sin[row / heads * 64 + i];
          const float s = cos_sin[row / heads * 64 + 32 + i];
          const float bound = 0.005F * (std::abs(x) + std::abs(y)) * (std::abs(c) + std::abs(s));
          ASSERT_NEAR(bf16_to_f32(after[first]), x * c - y * s, bound);
          ASSERT_NEAR(bf16_to_f32(after[second]), x * s + y * c, bound);
        }
      }
    }
  }
}

}  // namespace
}  // namespace r1d::kernels
