// SPDX-License-Identifier: Apache-2.0
// The device's sampler against the CPU's own (engine::sample_token, behind sampler_reference.h).
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>

#include "r1d/base/random.h"

#include "kernels/sampler/sampler.h"
#include "tests/kernels/sampler_reference.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::reference_sample;
using test::ReferenceRow;
using test::ReferenceSample;

constexpr int32_t kTopStride = 24;

struct Case {
  std::vector<float> logits;
  ReferenceRow row;
};

struct Got {
  SampledRow sampled;
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
};

// Ids from this one on are never sampled; the columns behind them hold NaN.
struct Shape {
  int32_t vocab;
  int32_t row_stride;
};

SamplerPlan plan_for(int32_t rows, int32_t vocab, bool teams) {
  const int capability = test::compute_capability();
  return plan_sampler(rows, vocab, teams ? capability : std::min(capability, 80), 132);
}

int32_t num_output(const ReferenceRow& row) {
  return static_cast<int32_t>(row.history.size()) - row.num_prompt_tokens;
}

// Flattens the rows as the engine would.
struct Inputs {
  std::vector<float> logits;
  std::vector<SamplerRow> rows;
  std::vector<SamplerTokenCount> penalties{{}};  // never empty, so that there is an address
  std::vector<SamplerTokenBias> biases{{}};
  std::vector<int32_t> masked{0};
};
Inputs flatten(const std::vector<Case>& cases, const Shape& shape) {
  Inputs inputs;
  inputs.logits.assign(cases.size() * static_cast<size_t>(shape.row_stride), NAN);
  for (size_t r = 0; r < cases.size(); ++r) {
    const ReferenceRow& from = cases[r].row;
    std::copy(cases[r].logits.begin(),
              cases[r].logits.end(),
              inputs.logits.begin() + static_cast<int64_t>(r) * shape.row_stride);
    SamplerRow row;
    row.temperature = from.temperature;
    row.top_p = from.top_p;
    row.min_p = from.min_p;
    row.repetition_penalty = from.repetition_penalty;
    row.frequency_penalty = from.frequency_penalty;
    row.presence_penalty = from.presence_penalty;
    row.seed = from.seed;
    row.draw = static_cast<uint64_t>(num_output(from));
    row.top_k = from.top_k;
    row.forced = from.forced;
    row.num_logprobs = from.num_logprobs;
    std::map<int32_t, int32_t> counts;
    for (size_t i = 0; i < from.history.size(); ++i)
      counts[from.history[i]] += i >= static_cast<size_t>(from.num_prompt_tokens);
    row.first_penalty = static_cast<int32_t>(inputs.penalties.size());
    if (from.repetition_penalty != 1 || from.frequency_penalty != 0 || from.presence_penalty != 0) {
      for (const auto& [token, count] : counts) inputs.penalties.push_back({token, count});
    }
    row.num_penalties = static_cast<int32_t>(inputs.penalties.size()) - row.first_penalty;
    row.first_bias = static_cast<int32_t>(inputs.biases.size());
    for (const auto& [token, bias] : from.logit_bias) inputs.biases.push_back({token, bias});
    row.num_biases = static_cast<int32_t>(inputs.biases.size()) - row.first_bias;
    row.first_masked = static_cast<int32_t>(inputs.masked.size());
    if (num_output(from) < from.min_tokens) {
      inputs.masked.insert(
          inputs.masked.end(), from.stop_token_ids.begin(), from.stop_token_ids.end());
    }
    row.num_masked = static_cast<int32_t>(inputs.masked.size()) - row.first_masked;
    inputs.rows.push_back(row);
  }
  return inputs;
}

std::vector<Got> run(const std::vector<Case>& cases,
                     const Shape& shape,
                     bool teams,
                     bool greedy = false) {
  const auto rows = static_cast<int32_t>(cases.size());
  const Inputs host = flatten(cases, shape);
  DeviceArray<float> logits(host.logits);
  DeviceArray<SamplerRow> params(host.rows);
  DeviceArray<SamplerTokenCount> penalties(host.penalties);
  DeviceArray<SamplerTokenBias> biases(host.biases);
  DeviceArray<int32_t> masked(host.masked);
  DeviceArray<SampledRow> sampled(cases.size());
  DeviceArray<int32_t> top_tokens(cases.size() * kTopStride);
  DeviceArray<float> top_logprobs(cases.size() * kTopStride);
  const SamplerPlan plan = plan_for(rows, shape.vocab, teams);
  DeviceArray<uint8_t> workspace(static_cast<size_t>(plan.workspace_bytes), 0);
  const SamplerInput input{.logits = logits.data(),
                           .row_stride = shape.row_stride,
                           .rows = rows,
                           .vocab = shape.vocab,
                           .params = greedy ? nullptr : params.data(),
                           .penalties = penalties.data(),
                           .biases = biases.data(),
                           .masked = masked.data()};
  const SamplerOutput output{.sampled = sampled.data(),
                             .top_tokens = top_tokens.data(),
                             .top_logprobs = top_logprobs.data(),
                             .top_stride = kTopStride};
  for (int repeat = 0; repeat < 2;
       ++repeat) {  // the second finds the workspace as the first left it
    sampled.poison();
    R1D_MUST(greedy ? sample_greedy(input, sampled.data(), plan, workspace.data(), {})
                    : sample_tokens(input, output, plan, workspace.data(), {}));
  }
  const std::vector<SampledRow> got = sampled.download();
  const std::vector<int32_t> tokens = top_tokens.download();
  const std::vector<float> logprobs = top_logprobs.download();
  const std::vector<float> after = logits.download();
  EXPECT_TRUE(std::equal(after.begin(), after.end(), host.logits.begin(), [](float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
  })) << "the raw logits were written to";
  std::vector<Got> result;
  for (int64_t r = 0; r < rows; ++r) {
    result.push_back(
        {got[static_cast<size_t>(r)],
         {tokens.begin() + r * kTopStride, tokens.begin() + (r + 1) * kTopStride},
         {logprobs.begin() + r * kTopStride, logprobs.begin() + (r + 1) * kTopStride}});
  }
  return result;
}

// Whether rounding decides the row's draw: the draw, or a cut before it, lies within rounding of a
// boundary. `logits` are the edited ones.
bool on_boundary(const std::vector<float>& logits, const ReferenceRow& row) {
  constexpr long double kNear = 1e-9L;  // of the sum
  const float highest = *std::max_element(logits.begin(), logits.end());
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<long double>(logits[static_cast<size_t>(id)]) - highest) /
                    row.temperature);
  };
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    const long double share = weight(id);
    if (row.min_p > 0 && std::fabs(share - row.min_p) < 1e-13L * row.min_p) return true;
    if (share > 0 && share >= row.min_p) ids.push_back(id);
  }
  const bool cuts = row.top_k > 0 || row.top_p < 1 || row.min_p > 0;
  if (cuts) {
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    if (row.top_k > 0 && static_cast<size_t>(row.top_k) < ids.size())
      ids.resize(static_cast<size_t>(row.top_k));
  }
  long double kept = 0;
  for (const int32_t id : ids) kept += weight(id);
  if (row.top_p < 1) {
    const long double total = kept;
    kept = 0;
    for (const int32_t id : ids) {
      kept += weight(id);
      if (std::fabs(kept - row.top_p * total) < kNear * total) return true;
      if (kept > row.top_p * total) break;
    }
  }
  const long double target =
      base::random_unit(row.seed, static_cast<uint64_t>(num_output(row))) * kept;
  long double sum = 0;
  for (const int32_t id : ids) {
    sum += weight(id);
    if (std::fabs(sum - target) < kNear * kept) return true;
  }
  return false;
}

// Every field of every row against the CPU; returns how many draws differed on a boundary.
int compare(const std::vector<Case>& cases,
            const Shape& shape,
            const std::vector<Got>& got,
            bool with_draws = true) {
  int on_boundaries = 0;
  for (size_t r = 0; r < cases.size(); ++r) {
    SCOPED_TRACE("row " + std::to_string(r));
    const ReferenceRow& row = cases[r].row;
    std::vector<float> logits = cases[r].logits;
    const ReferenceSample want =
        reference_sample(logits.data(), static_cast<int64_t>(logits.size()), shape.vocab - 1, row);
    logits.resize(
        static_cast<size_t>(std::min<int64_t>(shape.vocab, static_cast<int64_t>(logits.size()))));
    const SampledRow& sampled = got[r].sampled;
    EXPECT_EQ(sampled.status == kSamplerOk, want.ok) << want.message.data();
    if (!want.ok) {
      EXPECT_EQ(sampled.token, -1);
      continue;
    }
    if (sampled.token != want.token && row.temperature > 0 && on_boundary(logits, row)) {
      ++on_boundaries;
      continue;
    }
    EXPECT_EQ(sampled.token, want.token) << "T " << row.temperature << " top_p " << row.top_p
                                         << " top_k " << row.top_k << " min_p " << row.min_p;
    if (!with_draws) continue;
    // Two roundings of a logprob to f32, and a sum of weights to 2^-28.
    const auto near = [](float a, float b) {
      return std::fabs(a - b) <= 1e-7F + 2.4e-7F * std::fabs(b);
    };
    EXPECT_TRUE(near(sampled.logprob, want.logprob)) << sampled.logprob << " for " << want.logprob;
    for (size_t i = 0; i < want.top.size(); ++i) {
      EXPECT_EQ(got[r].top_tokens[i], want.top[i].first) << "top " << i;
      EXPECT_TRUE(near(got[r].top_logprobs[i], want.top[i].second)) << "top " << i;
    }
    for (size_t i = want.top.size(); i < kTopStride; ++i)
      EXPECT_EQ(got[r].top_tokens[i], -1) << "top " << i;
  }
  return on_boundaries;
}

// ---- rows that look like a model's, and rows that do not

class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  double unit() { return base::random_unit(seed_, counter_++); }
  double uniform(double low, double high) { return low + (high - low) * unit(); }
  int32_t below(int32_t end) { return static_cast<int32_t>(unit() * end); }
  template <typename T>
  T pick(const std::vector<T>& from) {
    return from[static_cast<size_t>(below(static_cast<int32_t>(from.size())))];
  }

 private:
  uint64_t seed_;
  uint64_t counter_ = 0;
};

std::vector<float> random_row(int32_t size, Random& random) {
  const double spread = random.pick<double>({0.01, 0.5, 2, 5, 30});
  std::vector<float> logits = test::random_floats(static_cast<size_t>(size),
                                                  static_cast<uint64_t>(random.below(1 << 30)),
                                                  static_cast<float>(spread));
  const int kind = random.below(8);
  const int32_t peaks = 1 + random.below(20);
  for (int32_t i = 0; i < peaks && kind < 3;
       ++i) {  // a head far above the rest, as a trained model has
    logits[static_cast<size_t>(random.below(size))] += static_cast<float>(random.uniform(0, 15));
  }
  for (float& logit : logits) {
    if (kind == 1 || kind == 4)
      logit = bf16_to_f32(f32_to_bf16(logit));             // as the output projection may round
    if (kind == 5) logit = std::nearbyint(logit * 4) / 4;  // many equals
    if (kind == 6) logit = logit > 0 ? 0.0F : -0.0F;       // one value with two signs
    if (kind == 7) logit *= 1e30F;
  }
  return logits;
}

Case random_case(int32_t size, int32_t vocab, Random& random) {
  Case made;
  made.logits = random_row(size, random);
  ReferenceRow& row = made.row;
  row.temperature = random.pick<double>({0, 0.01, 0.3, 0.6, 0.6, 1, 1, 1.5, 2});
  if (random.below(2) == 0)
    row.top_p = random.pick<double>({0.95, 0.95, 0.5, 0.999, 0.01, 0.999999});
  if (random.below(3) == 0)
    row.top_k = random.pick<int32_t>({1, 2, 50, 50, 1000, 1500, vocab - 1, vocab, 2 * vocab});
  if (random.below(4) == 0) row.min_p = random.pick<double>({0.05, 0.5, 1e-6, 1e-12, 0.999});
  row.seed = static_cast<uint64_t>(random.below(1 << 30)) << 30 |
             static_cast<uint64_t>(random.below(1 << 30));
  if (random.below(3) == 0) row.num_logprobs = random.pick<int32_t>({0, 1, 5, 20});
  const int32_t history = random.below(200);
  for (int32_t i = 0; i < history; ++i) row.history.push_back(random.below(std::min(vocab, 300)));
  row.num_prompt_tokens = random.below(history + 1);
  if (random.below(3) == 0) {
    row.repetition_penalty = random.pick<double>({1, 1.1, 0.7, 2});
    row.frequency_penalty = random.pick<double>({0, 0.5, -1, 2});
    row.presence_penalty = random.pick<double>({0, 0.3, -2});
  }
  if (random.below(4) == 0) {
    std::set<int32_t> biased;
    while (static_cast<int32_t>(biased.size()) < std::min(20, size))
      biased.insert(random.below(random.below(2) == 0 ? std::min(size, 300) : size));
    for (const int32_t token : biased)
      row.logit_bias.emplace_back(token, static_cast<float>(random.uniform(-10, 10)));
  }
  if (random.below(4) == 0) {
    row.min_tokens = 100;
    const float best = *std::max_element(made.logits.begin(), made.logits.begin() + vocab);
    for (int32_t id = 0; id < vocab && row.stop_token_ids.size() < 5; ++id) {
      if (made.logits[static_cast<size_t>(id)] == best) row.stop_token_ids.push_back(id);
    }
    row.stop_token_ids.push_back(size + 7);  // none of ours
  }
  if (random.below(20) == 0) row.forced = random.below(vocab);
  return made;
}

std::vector<Case> random_cases(int count, int32_t size, int32_t vocab, uint64_t seed) {
  Random random(seed);
  std::vector<Case> cases;
  for (int i = 0; i < count; ++i) cases.push_back(random_case(size, vocab, random));
  return cases;
}

// ---- tests

TEST(SamplerTest, SmallRowsOfEverySortEqualTheCpu) {
  R1D_NEEDS_GPU(80);
  for (const bool teams : {true, false}) {
    for (const Shape shape : {Shape{1, 1},
                              Shape{2, 4},
                              Shape{31, 32},
                              Shape{100, 101},
                              Shape{257, 260},
                              Shape{4099, 4100}}) {
      SCOPED_TRACE(std::to_string(shape.vocab) + (teams ? " teams" : " alone"));
      const auto cases =
          random_cases(40, shape.row_stride, shape.vocab, static_cast<uint64_t>(shape.vocab));
      EXPECT_LE(compare(cases, shape, run(cases, shape, teams)), 0);
    }
  }
}

TEST(SamplerTest, ThousandsOfRandomRowsEqualTheCpu) {
  R1D_NEEDS_GPU(80);
  int differ = 0;
  for (uint64_t batch = 0; batch < 10; ++batch) {
    const Shape shape{.vocab = 3000 + 700 * static_cast<int32_t>(batch),
                      .row_stride = 3004 + 700 * static_cast<int32_t>(batch)};
    const auto cases = random_cases(400, shape.row_stride, shape.vocab, 100 + batch);
    differ += compare(cases, shape, run(cases, shape, batch % 4 != 3));
  }
  EXPECT_LE(differ, 1) << "draws on a boundary, of 4000";
}

TEST(SamplerTest, RowsOfR1sVocabularyEqualTheCpu) {
  R1D_NEEDS_GPU(80);
  const Shape shape{.vocab = 128815, .row_stride = 129280};
  for (const bool teams : {true, false}) {
    const auto cases = random_cases(150, shape.row_stride, shape.vocab, teams ? 1 : 2);
    EXPECT_LE(compare(cases, shape, run(cases, shape, teams)), 1);
  }
}

TEST(SamplerTest, TheLargestVocabularyEqualsTheCpu) {
  R1D_NEEDS_GPU(80);
  const Shape shape{.vocab = kSamplerMaxVocab, .row_stride = kSamplerMaxVocab};
  auto cases = random_cases(12, shape.row_stride, shape.vocab, 5);
  Case equal;
  equal.logits.assign(static_cast<size_t>(shape.vocab), 3.5F);  // the largest sum of weights
  equal.row.top_p = 0.75;
  equal.row.seed = 9;
  cases.push_back(equal);
  equal.row.top_p = 1;
  cases.push_back(equal);
  equal.row.top_k = 100000;
  cases.push_back(equal);
  EXPECT_LE(compare(cases, shape, run(cases, shape, true)), 1);
}

TEST(SamplerTest, GreedyRowsByTheFastPathEqualTheCpu) {
  R1D_NEEDS_GPU(80);
  for (const int count : {1, 3, 64}) {
    for (const Shape shape : {Shape{1, 1}, Shape{4099, 4101}, Shape{128815, 129280}}) {
      auto cases = random_cases(count, shape.row_stride, shape.vocab, 77);
      for (Case& c : cases) {
        c.row = {};
        c.row.temperature = 0;
      }
      cases.back().logits.back() = NAN;  // padding, but for the first shape
      compare(cases, shape, run(cases, shape, true, /*greedy=*/true), /*with_draws=*/false);
    }
  }
}

TEST(SamplerTest, TheLowestIdThatIsNotFiniteIsNamed) {
  R1D_NEEDS_GPU(80);
  const Shape shape{.vocab = 20000, .row_stride = 20000};
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int32_t at : {0, 1, 2499, 9999, 19999}) {
      auto cases = random_cases(3, shape.row_stride, shape.vocab, 3);
      for (Case& c : cases) c.row = {};
      cases[1].logits[static_cast<size_t>(at)] = bad;
      cases[1].logits[19999] = bad;
      for (const bool greedy : {false, true}) {
        for (const bool teams : {false, true}) {
          const auto got = run(cases, shape, teams, greedy);
          EXPECT_EQ(got[0].sampled.status, kSamplerOk);
          EXPECT_EQ(got[1].sampled.status, kSamplerNotFinite);
          EXPECT_EQ(got[1].sampled.bad_token, at);
          EXPECT_EQ(std::bit_cast<uint32_t>(got[1].sampled.bad_logit) & 0x7FFFFFFFU,
                    std::bit_cast<uint32_t>(bad) & 0x7FFFFFFFU);
          EXPECT_EQ(got[1].sampled.token, -1);
          EXPECT_EQ(got[2].sampled.status, kSamplerOk);
        }
      }
    }
  }
}

TEST(SamplerTest, ARowWithEveryTokenMaskedSaysSoAndAForcedTokenStillComesOut) {
  R1D_NEEDS_GPU(80);
  const Shape shape{.vocab = 10, .row_stride = 12};
  std::vector<Case> cases(2);
  for (Case& c : cases) {
    c.logits.assign(12, 1.0F);
    c.row.min_tokens = 1;
    for (int32_t id = 0; id < 10; ++id) c.row.stop_token_ids.push_back(id);
  }
  cases[1].row.forced = 4;
  const auto got = run(cases, shape, true);
  EXPECT_EQ(got[0].sampled.status, kSamplerAllMasked);
  EXPECT_EQ(got[0].sampled.token, -1);
  EXPECT_EQ(got[1].sampled.status, kSamplerOk);
  EXPECT_EQ(got[1].sampled.token, 4);
  compare(cases, shape, got);
}

TEST(SamplerTest, ARowsResultDoesNotDependOnItsBatchOrTeam) {
  R1D_NEEDS_GPU(80);
  const Shape shape{.vocab = 50000, .row_stride = 50000};
  const auto cases = random_cases(24, shape.row_stride, shape.vocab, 11);
  const auto together = run(cases, shape, true);
  for (size_t r = 0; r < cases.size(); ++r) {
    for (const bool teams : {true, false}) {
      const auto alone = run({cases[r]}, shape, teams);
      EXPECT_EQ(alone[0].sampled.token, together[r].sampled.token);
      EXPECT_EQ(alone[0].sampled.logprob, together[r].sampled.logprob);
      EXPECT_EQ(alone[0].top_tokens, together[r].top_tokens);
    }
  }
}

TEST(SamplerTest, OneWorkspaceServesBothLaunchersAtAnyNumberOfRows) {
  R1D_NEEDS_GPU(80);
  const Shape shape{.vocab = 3000, .row_stride = 3000};
  auto cases = random_cases(9, shape.row_stride, shape.vocab, 21);
  for (Case& c : cases) {
    c.row = {};
    c.row.temperature = 0;
  }
  const Inputs host = flatten(cases, shape);
  DeviceArray<float> logits(host.logits);
  DeviceArray<SamplerRow> params(host.rows);
  DeviceArray<SampledRow> sampled(cases.size());
  for (const bool teams : {true, false}) {
    const SamplerPlan plan = plan_for(9, shape.vocab, teams);
    DeviceArray<uint8_t> workspace(static_cast<size_t>(plan.workspace_bytes), 0);
    SamplerInput input{.logits = logits.data(),
                       .row_stride = shape.row_stride,
                       .vocab = shape.vocab,
                       .params = params.data()};
    for (const int32_t rows : {2, 9, 1, 9, 5}) {
      input.rows = rows;
      const SamplerOutput output{.sampled = sampled.data()};
      R1D_MUST(sample_tokens(input, output, plan, workspace.data(), {}));
      const auto slow = sampled.download();
      sampled.poison();
      R1D_MUST(sample_greedy(input, sampled.data(), plan, workspace.data(), {}));
      const auto fast = sampled.download();
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
        EXPECT_EQ(fast[r].token, slow[r].token);
    }
    input.rows = 10;
    EXPECT_EQ(sample_tokens(input, {}, plan, nullptr, {}), cudaErrorInvalidValue);
  }
}

TEST(SamplerTest, NoRowsEnqueueNothingAndBadShapesAreRefused) {
  R1D_NEEDS_GPU(80);
  const SamplerPlan plan = plan_for(1, 100, true);
  SamplerInput input{.row_stride = 100, .rows = 0, .vocab = 100};
  EXPECT_EQ(sample_tokens(input, {}, plan, nullptr, {}), cudaSuccess);
  EXPECT_EQ(sample_greedy(input, nullptr, plan, nullptr, {}), cudaSuccess);
  input.vocab = kSamplerMaxVocab + 1;
  input.row_stride = input.vocab;
  EXPECT_EQ(sample_tokens(input, {}, plan, nullptr, {}), cudaErrorInvalidValue);
  input.row_stride = 99;
  input.vocab = 100;
  EXPECT_EQ(sample_greedy(input, nullptr, plan, nullptr, {}), cudaErrorInvalidValue);
}

TEST(SamplerPlanTest, SplitsFillTheGpuAtOneRowAndStayFewAtMany) {
  EXPECT_EQ(plan_sampler(1, 129280, 90, 132).greedy_splits, 127);
  EXPECT_EQ(plan_sampler(256, 129280, 90, 132).greedy_splits, 3);
  EXPECT_EQ(plan_sampler(1, 10, 90, 132).greedy_splits, 1);
  EXPECT_EQ(plan_sampler(1, 129280, 89, 128).team, 1);
  EXPECT_EQ(plan_sampler(2, 129280, 80, 108).workspace_bytes, 2 * (16 + 4 * 129280));
}

}  // namespace
}  // namespace r1d::kernels
