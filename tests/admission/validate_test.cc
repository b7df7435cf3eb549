// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/admission/frontend.h"
#include "r1d/base/status.h"

#include "tests/admission/support.h"

namespace r1d::admission {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int32_t kIntMax = std::numeric_limits<int32_t>::max();
constexpr int32_t kIntMin = std::numeric_limits<int32_t>::min();

struct BadRequest {
  const char* name;
  std::function<void(GenerateRequest&)> spoil;
  const char* field;
  const char* message;
};

void PrintTo(const BadRequest& bad, std::ostream* out) {
  *out << bad.name;
}

using R = GenerateRequest;
const BadRequest kBadRequests[] = {
    {"NoPrompt", [](R& r) { r.prompt_token_ids.reset(); }, "prompt", "is missing"},
    {"TwoPrompts", [](R& r) { r.prompt_text = "hi"; }, "prompt", "not both"},
    {"TextWithoutTokenizer",
     [](R& r) {
       r.prompt_token_ids.reset();
       r.prompt_text = "hi";
     },
     "prompt.text",
     "this model has no tokenizer.json; send prompt.token_ids"},
    {"EmptyPrompt", [](R& r) { r.prompt_token_ids->clear(); }, "prompt.token_ids", "is empty"},
    {"PromptTakesWholeContext",
     [](R& r) { r.prompt_token_ids->assign(64, 5); },
     "prompt.token_ids",
     "has 64 tokens; at most 63 fit"},
    {"PromptFarTooLong",
     [](R& r) { r.prompt_token_ids->assign(100000, -1); },
     "prompt.token_ids",
     "has 100000 tokens"},
    {"NegativePromptId",
     [](R& r) {
       r.prompt_token_ids = {3, -1};
     },
     "prompt.token_ids.ids[1]",
     "in [0, 95], is -1"},
    {"PromptIdBeyondLastToken",
     [](R& r) { r.prompt_token_ids = {96}; },
     "prompt.token_ids.ids[0]",
     "in [0, 95], is 96"},
    {"PromptIdHuge",
     [](R& r) {
       r.prompt_token_ids = {1, 2, kIntMax};
     },
     "prompt.token_ids.ids[2]",
     "is 2147483647"},
    {"TemperatureNegative",
     [](R& r) { r.temperature = -0.1; },
     "sampling.temperature",
     "must be in [0, 2], is -0.1"},
    {"TemperatureTooHigh", [](R& r) { r.temperature = 2.01; }, "sampling.temperature", "is 2.01"},
    {"TemperatureNan", [](R& r) { r.temperature = kNan; }, "sampling.temperature", "is nan"},
    {"TemperatureInf", [](R& r) { r.temperature = kInf; }, "sampling.temperature", "is inf"},
    {"TopPZero", [](R& r) { r.top_p = 0; }, "sampling.top_p", "must be in (0, 1], is 0"},
    {"TopPAboveOne", [](R& r) { r.top_p = 1.5; }, "sampling.top_p", "is 1.5"},
    {"TopPNegative", [](R& r) { r.top_p = -1; }, "sampling.top_p", "is -1"},
    {"TopPNan", [](R& r) { r.top_p = kNan; }, "sampling.top_p", "is nan"},
    {"TopKNegative", [](R& r) { r.top_k = -1; }, "sampling.top_k", "must be in [0, 100], is -1"},
    {"TopKBeyondVocabulary", [](R& r) { r.top_k = 101; }, "sampling.top_k", "is 101"},
    {"MinPOne", [](R& r) { r.min_p = 1; }, "sampling.min_p", "must be in [0, 1), is 1"},
    {"MinPNegative", [](R& r) { r.min_p = -1e-9; }, "sampling.min_p", "is -1e-09"},
    {"MinPNan", [](R& r) { r.min_p = kNan; }, "sampling.min_p", "is nan"},
    {"RepetitionPenaltyZero",
     [](R& r) { r.repetition_penalty = 0; },
     "sampling.repetition_penalty",
     "must be in [0.01, 2], is 0"},
    {"RepetitionPenaltyDenormal",
     [](R& r) { r.repetition_penalty = 1e-310; },
     "sampling.repetition_penalty",
     "must be in [0.01, 2]"},
    {"RepetitionPenaltyTooHigh",
     [](R& r) { r.repetition_penalty = 2.5; },
     "sampling.repetition_penalty",
     "is 2.5"},
    {"RepetitionPenaltyNan",
     [](R& r) { r.repetition_penalty = kNan; },
     "sampling.repetition_penalty",
     "is nan"},
    {"FrequencyPenaltyTooLow",
     [](R& r) { r.frequency_penalty = -2.1; },
     "sampling.frequency_penalty",
     "must be in [-2, 2], is -2.1"},
    {"FrequencyPenaltyInf",
     [](R& r) { r.frequency_penalty = kInf; },
     "sampling.frequency_penalty",
     "is inf"},
    {"PresencePenaltyTooHigh",
     [](R& r) { r.presence_penalty = 3; },
     "sampling.presence_penalty",
     "is 3"},
    {"PresencePenaltyMinusInf",
     [](R& r) { r.presence_penalty = -kInf; },
     "sampling.presence_penalty",
     "is -inf"},
    {"LogprobsNegative",
     [](R& r) { r.logprobs = -1; },
     "sampling.logprobs",
     "must be in [0, 20], is -1"},
    {"LogprobsTooMany", [](R& r) { r.logprobs = 21; }, "sampling.logprobs", "is 21"},
    {"LogprobsHuge", [](R& r) { r.logprobs = kIntMax; }, "sampling.logprobs", "is 2147483647"},
    {"NZero", [](R& r) { r.n = 0; }, "sampling.n", "must be in [1, 8], is 0"},
    {"NTooMany", [](R& r) { r.n = 9; }, "sampling.n", "is 9"},
    {"NHuge", [](R& r) { r.n = kIntMax; }, "sampling.n", "is 2147483647"},
    {"NNegative", [](R& r) { r.n = kIntMin; }, "sampling.n", "is -2147483648"},
    {"MaxTokensZero",
     [](R& r) { r.max_tokens = 0; },
     "sampling.max_tokens",
     "must be in [1, 2147483647], is 0"},
    {"MaxTokensNegative", [](R& r) { r.max_tokens = -5; }, "sampling.max_tokens", "is -5"},
    {"MinTokensNegative",
     [](R& r) { r.min_tokens = -1; },
     "sampling.min_tokens",
     "must be in [0, 61], is -1"},
    {"MinTokensAboveMaxTokens",
     [](R& r) {
       r.max_tokens = 5;
       r.min_tokens = 6;
     },
     "sampling.min_tokens",
     "must be in [0, 5], is 6"},
    {"MinTokensAboveWhatFits",
     [](R& r) { r.min_tokens = 62; },
     "sampling.min_tokens",
     "must be in [0, 61], is 62"},
    {"BiasIdNegative",
     [](R& r) {
       r.logit_bias = {{-1, 1.F}};
     },
     "sampling.logit_bias",
     "has token id -1; ids are in [0, 99]"},
    {"BiasIdBeyondVocabulary",
     [](R& r) {
       r.logit_bias = {{100, 1.F}};
     },
     "sampling.logit_bias",
     "has token id 100"},
    {"BiasTooHigh",
     [](R& r) {
       r.logit_bias = {{3, 100.5F}};
     },
     "sampling.logit_bias",
     "the value of token id 3 must be in [-100, 100], is 100.5"},
    {"BiasNan",
     [](R& r) {
       r.logit_bias = {{3, std::nanf("")}};
     },
     "sampling.logit_bias",
     "is nan"},
    {"BiasTwice",
     [](R& r) {
       r.logit_bias = {{7, 1.F}, {3, 1.F}, {7, 2.F}};
     },
     "sampling.logit_bias",
     "has token id 7 twice"},
    {"TooManyBiases",
     [](R& r) {
       r.logit_bias.assign(5, {1, 1.F});
     },
     "sampling.logit_bias",
     "has 5 entries; at most 4"},
    {"StopIdNegative",
     [](R& r) {
       r.stop_token_ids = {4, -1};
     },
     "sampling.stop_token_ids[1]",
     "in [0, 99], is -1"},
    {"StopIdBeyondVocabulary",
     [](R& r) { r.stop_token_ids = {100}; },
     "sampling.stop_token_ids[0]",
     "is 100"},
    {"TooManyStopIds",
     [](R& r) { r.stop_token_ids.assign(4, 5); },
     "sampling.stop_token_ids",
     "has 4 entries; at most 3"},
    {"PriorityTooHigh",
     [](R& r) { r.priority = 101; },
     "priority",
     "must be in [-100, 100], is 101"},
    {"PriorityTooLow", [](R& r) { r.priority = kIntMin; }, "priority", "is -2147483648"},
    {"SaltTooLong",
     [](R& r) { r.cache_salt.assign(129, 'x'); },
     "cache_salt",
     "is 129 bytes long; at most 128"},
    {"SaltNotPrintable", [](R& r) { r.cache_salt = "a\nb"; }, "cache_salt", "printable ASCII"},
    {"SaltNotAscii", [](R& r) { r.cache_salt = "\xC3\xA9"; }, "cache_salt", "printable ASCII"},
    {"LabelTooLong",
     [](R& r) { r.request_id.assign(1 << 20, 'x'); },
     "request_id",
     "is 1048576 bytes long"},
    {"LabelWithNul",
     [](R& r) { r.request_id = std::string("a\0b", 3); },
     "request_id",
     "printable ASCII"},
    {"LabelWithEscape", [](R& r) { r.request_id = "\x1B[2J"; }, "request_id", "printable ASCII"},
};

class BadRequestTest : public ::testing::TestWithParam<BadRequest> {};

TEST_P(BadRequestTest, IsRefusedNamingTheField) {
  GenerateRequest request = good_request();
  GetParam().spoil(request);
  const auto checked = validate(request, small_limits(), 1);
  ASSERT_TRUE(absl::IsInvalidArgument(checked.status())) << checked.status();
  EXPECT_EQ(field_of(checked.status()), GetParam().field);
  EXPECT_THAT(message_of(checked.status()), HasSubstr(GetParam().message));
  EXPECT_THAT(message_of(checked.status()), HasSubstr(GetParam().field));
}

INSTANTIATE_TEST_SUITE_P(ValidateTest,
                         BadRequestTest,
                         ::testing::ValuesIn(kBadRequests),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(ValidateTest, FillsInDefaults) {
  const auto checked = validate(good_request(), small_limits(), 77);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_THAT(checked->prompt, ElementsAre(10, 11, 12));
  EXPECT_EQ(checked->n, 1);
  EXPECT_EQ(checked->priority, 0);
  EXPECT_FALSE(checked->deadline.has_value());
  const engine::SamplingParams& sampling = checked->sampling;
  EXPECT_EQ(sampling.temperature, 0.6);
  EXPECT_EQ(sampling.top_p, 0.95);
  EXPECT_EQ(sampling.top_k, 5);
  EXPECT_EQ(sampling.repetition_penalty, 1);
  EXPECT_EQ(sampling.seed, 77U);
  EXPECT_EQ(sampling.num_logprobs, -1);
  EXPECT_EQ(sampling.min_tokens, 0);
  EXPECT_EQ(sampling.max_tokens, 61);
  EXPECT_THAT(sampling.stop_token_ids, ElementsAre(1, 2));
}

TEST(ValidateTest, TakesTheEdgesOfEveryRange) {
  GenerateRequest request = good_request();
  request.prompt_token_ids = std::vector<TokenId>(63, 95);
  request.temperature = 2;
  request.top_p = 1;
  request.top_k = 100;
  request.min_p = 0.999;
  request.repetition_penalty = 2;
  request.frequency_penalty = -2;
  request.presence_penalty = 2;
  request.logit_bias = {{0, -100.F}, {99, 100.F}};
  request.logprobs = 20;
  request.n = 8;
  request.stop_token_ids = {0, 99};
  request.max_tokens = kIntMax;
  request.priority = -100;
  request.cache_salt.assign(128, '~');
  request.request_id.assign(128, ' ');
  const auto checked = validate(request, small_limits(), 1);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_EQ(checked->sampling.max_tokens, 1);
}

TEST(ValidateTest, CutsMaxTokensToWhatFitsAndMinTokensWithIt) {
  GenerateRequest request = good_request();
  request.max_tokens = 1000;
  request.min_tokens = 900;
  const auto checked = validate(request, small_limits(), 1);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_EQ(checked->sampling.max_tokens, 61);
  EXPECT_EQ(checked->sampling.min_tokens, 61);
}

TEST(ValidateTest, UsesTheOperatorsDefaultForMaxTokens) {
  Limits limits = small_limits();
  limits.max_tokens_default = 16;
  EXPECT_EQ(validate(good_request(), limits, 1)->sampling.max_tokens, 16);
  GenerateRequest request = good_request();
  request.min_tokens = 17;
  EXPECT_EQ(field_of(validate(request, limits, 1).status()), "sampling.min_tokens");
}

TEST(ValidateTest, LeavesOutEndTokensWithIgnoreEos) {
  GenerateRequest request = good_request();
  request.ignore_eos = true;
  EXPECT_THAT(validate(request, small_limits(), 1)->sampling.stop_token_ids, IsEmpty());
  request.stop_token_ids = {2, 9, 2};
  EXPECT_THAT(validate(request, small_limits(), 1)->sampling.stop_token_ids, ElementsAre(2, 9));
  request.ignore_eos = false;
  EXPECT_THAT(validate(request, small_limits(), 1)->sampling.stop_token_ids, ElementsAre(1, 2, 9));
}

TEST(ValidateTest, TreatsATinyTemperatureAsGreedy) {
  GenerateRequest request = good_request();
  request.temperature = 1e-300;
  EXPECT_EQ(validate(request, small_limits(), 1)->sampling.temperature, 0);
  request.temperature = -0.0;
  EXPECT_EQ(validate(request, small_limits(), 1)->sampling.temperature, 0);
}

TEST(ValidateTest, KeepsTheClientsSeed) {
  GenerateRequest request = good_request();
  request.seed = 0;
  EXPECT_EQ(validate(request, small_limits(), 99)->sampling.seed, 0U);
}

TEST(ValidateTest, AnswersNotFoundForAnotherModelWithoutRepeatingItsName) {
  GenerateRequest request = good_request();
  request.model = "small";
  EXPECT_TRUE(validate(request, small_limits(), 1).ok());
  request.model = "gpt-\x1B[2J";
  const auto checked = validate(request, small_limits(), 1);
  EXPECT_TRUE(absl::IsNotFound(checked.status()));
  EXPECT_EQ(message_of(checked.status()), "model: not served here; this server has \"small\"");
}

// Random requests built from values at and around the edges of every range.
class RandomRequests {
 public:
  explicit RandomRequests(uint64_t seed) : random_(seed) {}

  GenerateRequest next() {
    GenerateRequest request;
    request.prompt_token_ids.emplace();
    const int32_t length = pick({0, 1, 2, 30, 62, 63, 64}, {1, 2, 3});
    for (int32_t i = 0; i < length; ++i) {
      request.prompt_token_ids->push_back(pick({-1, 0, 95, 96}, {0, 50, 95}));
    }
    if (coin()) request.max_tokens = pick({-1, 0, 1, kIntMax}, {1, 7, 61, 1000});
    request.min_tokens = pick({-1, 1, 61, 62, kIntMax}, {0});
    if (coin()) request.temperature = real({0, 1e-6, 0.7, 2}, {-1, 2.1, kNan, kInf});
    if (coin()) request.top_p = real({1e-9, 0.5, 1}, {0, 1.1, kNan});
    if (coin()) request.top_k = pick({-1, 101, kIntMax}, {0, 1, 100});
    request.min_p = real({0, 0.5}, {1, -0.1, kNan});
    request.repetition_penalty = real({1, 0.01, 2}, {0, 1e-300, 2.1, kNan});
    request.frequency_penalty = real({0, -2, 2}, {2.1, kNan});
    request.presence_penalty = real({0, -2, 2}, {-2.1, kInf});
    if (coin()) request.logit_bias = {{pick({-1, 100}, {0, 99}), 1.F}, {pick({0}, {1}), -100.F}};
    if (coin()) request.logprobs = pick({-1, 21}, {0, 20});
    request.n = pick({0, 9, kIntMin}, {1, 8});
    if (coin()) request.stop_token_ids = {pick({-1, 100}, {0, 99})};
    request.ignore_eos = coin();
    request.priority = pick({-101, kIntMin}, {-100, 0, 100});
    return request;
  }

 private:
  bool coin() { return (random_() & 1U) != 0; }
  bool rarely() { return random_() % 32 == 0; }
  int32_t pick(std::vector<int32_t> odd, std::vector<int32_t> usual) {
    const auto& from = rarely() ? odd : usual;
    return from[random_() % from.size()];
  }
  double real(std::vector<double> usual, std::vector<double> bad) {
    const auto& from = rarely() ? bad : usual;
    return from[random_() % from.size()];
  }

  std::mt19937_64 random_;
};

void expect_in_range(const scheduler::Request& request, const Limits& limits) {
  const auto& params = request.sampling;
  const auto length = static_cast<int32_t>(request.prompt.size());
  EXPECT_TRUE(length >= 1 && length < limits.max_model_len);
  for (const TokenId id : request.prompt) EXPECT_TRUE(id >= 0 && id <= limits.last_token_id);
  EXPECT_TRUE(params.max_tokens >= 1 && params.max_tokens <= limits.max_model_len - length);
  EXPECT_TRUE(params.min_tokens >= 0 && params.min_tokens <= params.max_tokens);
  EXPECT_TRUE(params.temperature == 0 || (params.temperature >= 1e-5 && params.temperature <= 2));
  EXPECT_TRUE(params.top_p > 0 && params.top_p <= 1);
  EXPECT_TRUE(params.top_k >= 0 && params.top_k <= limits.vocab_size);
  EXPECT_TRUE(params.min_p >= 0 && params.min_p < 1);
  EXPECT_TRUE(params.repetition_penalty >= 0.01 && params.repetition_penalty <= 2);
  EXPECT_LE(std::abs(params.frequency_penalty), 2);
  EXPECT_LE(std::abs(params.presence_penalty), 2);
  EXPECT_TRUE(params.num_logprobs >= -1 && params.num_logprobs <= limits.max_logprobs);
  EXPECT_TRUE(request.n >= 1 && request.n <= limits.max_n);
  EXPECT_LE(std::abs(request.priority), limits.max_priority);
  for (const auto& [id, bias] : params.logit_bias) {
    EXPECT_TRUE(id >= 0 && id < limits.vocab_size && std::abs(bias) <= 100);
  }
  for (const TokenId id : params.stop_token_ids) EXPECT_TRUE(id >= 0 && id < limits.vocab_size);
}

TEST(ValidateTest, LetsNothingOutOfRangeThroughWhateverIsAsked) {
  constexpr uint64_t kSeed = 20240611;
  RecordProperty("seed", std::to_string(kSeed));
  RandomRequests requests(kSeed);
  const Limits limits = small_limits();
  int32_t num_good = 0;
  int32_t num_bad = 0;
  for (int32_t i = 0; i < 100000 && !HasFailure(); ++i) {
    const auto checked = validate(requests.next(), limits, 1);
    if (checked.ok()) {
      ++num_good;
      expect_in_range(*checked, limits);
    } else {
      ++num_bad;
      EXPECT_NE(field_of(checked.status()), "") << checked.status();
    }
  }
  EXPECT_GT(num_good, 10000) << "seed " << kSeed;
  EXPECT_GT(num_bad, 10000) << "seed " << kSeed;
}

TEST(ErrorsTest, CarryFieldAndRetryDelay) {
  const absl::Status plain = unavailable("gone");
  EXPECT_EQ(field_of(plain), "");
  EXPECT_FALSE(retry_after_of(plain).has_value());
  const absl::Status wrong = field_error("sampling.n", "is wrong");
  EXPECT_EQ(field_of(wrong), "sampling.n");
  EXPECT_EQ(message_of(wrong), "sampling.n: is wrong");
  const absl::Status full = with_retry_after(plain, std::chrono::milliseconds(1500));
  EXPECT_EQ(full.code(), plain.code());
  EXPECT_EQ(retry_after_of(full), Duration(std::chrono::milliseconds(1500)));
}

}  // namespace
}  // namespace r1d::admission
