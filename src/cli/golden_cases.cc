// SPDX-License-Identifier: Apache-2.0
#include "cli/golden_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numbers>
#include <sstream>

#include <nlohmann/json.hpp>

#include "r1d/base/status.h"
#include "r1d/checkpoint/tensor_file.h"

namespace r1d::cli {
namespace {

constexpr double kExact = 1e-3;  // f32 throughout

absl::StatusOr<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return not_found("{}: cannot be opened; a golden directory has golden.json beside its weights",
                     path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Reads the fields of one case; nlohmann's exceptions stop in load_golden_cases.
GoldenCase parse_case(const nlohmann::json& json) {
  GoldenCase result;
  json.at("prompt").get_to(result.prompt);
  json.at("greedy").get_to(result.greedy);
  json.at("gap").get_to(result.gap);
  json.at("logit_std").get_to(result.logit_std);
  if (json.contains("prompt_router_margin")) {
    json.at("router_margin").get_to(result.router_margin);
    result.prompt_router_margin = json.at("prompt_router_margin").get<double>();
  }
  result.e4m3 = json.value("activations", "f32") == "e4m3";
  if (result.e4m3 || json.contains("e4m3_error"))
    result.e4m3_error = json.at("e4m3_error").get<double>();
  return result;
}

absl::StatusOr<std::vector<GoldenCase>> parse_cases(const std::string& text,
                                                    const std::string& path) {
  std::vector<GoldenCase> cases;
  try {
    const nlohmann::json document = nlohmann::json::parse(text);
    for (const nlohmann::json& json : document.at("cases")) {
      cases.push_back(parse_case(json));
      cases.back().number = cases.size() - 1;
    }
  } catch (const nlohmann::json::exception& error) {
    return invalid_argument("{}: case {}: {}", path, cases.size(), error.what());
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    if (cases[i].prompt.empty() || cases[i].greedy.empty() ||
        cases[i].gap.size() != cases[i].greedy.size()) {
      return invalid_argument(
          "{}: case {}: prompt and greedy must not be empty, gap needs one value a greedy token",
          path,
          i);
    }
    if (cases[i].prompt_router_margin && cases[i].router_margin.size() != cases[i].greedy.size())
      return invalid_argument("{}: case {}: router_margin needs one value a greedy token", path, i);
  }
  if (cases.empty()) return invalid_argument("{}: no cases", path);
  return cases;
}

double relative_l2(const std::vector<float>& found, const std::vector<float>& expected) {
  double difference = 0;
  double total = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double delta = static_cast<double>(found[i]) - expected[i];
    difference += delta * delta;
    total += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(difference / total);
}

// Whether rounding may change the experts of a token of the prompt.
bool prompt_is_undecided(const GoldenCase& expected, double tolerance) {
  return tolerance > kExact && expected.prompt_router_margin &&
         *expected.prompt_router_margin < undecided_below(tolerance);
}

double allowed_error(const GoldenCase& expected, double tolerance) {
  const bool by_rounding = expected.e4m3_error && !prompt_is_undecided(expected, tolerance);
  return by_rounding ? std::numbers::sqrt2 * *expected.e4m3_error : tolerance;
}

// Whether rounding may change the token of a step: by its own gap, or by the experts of a position
// before it.
bool token_is_undecided(const GoldenCase& expected, size_t step, double tolerance) {
  const double error = allowed_error(expected, tolerance);
  if (expected.gap[step] <= undecided_below(error) * expected.logit_std) return true;
  if (tolerance <= kExact) return false;
  if (!expected.prompt_router_margin) return true;
  const auto* margins = expected.router_margin.data();
  return prompt_is_undecided(expected, tolerance) ||
         *std::min_element(margins, margins + step + 1) < undecided_below(tolerance);
}

}  // namespace

absl::StatusOr<std::vector<GoldenCase>> load_golden_cases(const std::string& dir,
                                                          int64_t vocab_size) {
  const std::string json_path = dir + "/golden.json";
  R1D_ASSIGN_OR_RETURN(const std::string text, read_text(json_path));
  R1D_ASSIGN_OR_RETURN(std::vector<GoldenCase> cases, parse_cases(text, json_path));
  const std::string tensors_path = dir + "/golden.safetensors";
  R1D_ASSIGN_OR_RETURN(auto tensors, checkpoint::read_f32_tensors(tensors_path));
  for (size_t i = 0; i < cases.size(); ++i) {
    cases[i].last_logits = std::move(tensors[fmt::format("prompt{}.last_logits", i)]);
    if (static_cast<int64_t>(cases[i].last_logits.size()) != vocab_size) {
      return invalid_argument("{}: prompt{}.last_logits has {} values, expected vocab_size {}",
                              tensors_path,
                              i,
                              cases[i].last_logits.size(),
                              vocab_size);
    }
    const auto in_vocabulary = [&](TokenId id) { return id >= 0 && id < vocab_size; };
    if (!std::all_of(cases[i].prompt.begin(), cases[i].prompt.end(), in_vocabulary)) {
      return invalid_argument(
          "{}: case {}: prompt has a token outside the vocabulary of {}", json_path, i, vocab_size);
    }
  }
  return cases;
}

GoldenVerdict judge(const GoldenCase& expected,
                    const std::vector<TokenId>& tokens,
                    const std::vector<float>& logits,
                    double tolerance) {
  GoldenVerdict verdict;
  verdict.logits_error = logits.size() == expected.last_logits.size()
                             ? relative_l2(logits, expected.last_logits)
                             : INFINITY;
  verdict.allowed_error = allowed_error(expected, tolerance);
  const size_t length = std::min(tokens.size(), expected.greedy.size());
  size_t same = 0;
  while (same < length && tokens[same] == expected.greedy[same]) ++same;
  verdict.matching_tokens = static_cast<int32_t>(same);
  const bool complete = same == expected.greedy.size() && tokens.size() == same;
  verdict.excused = !complete && same < length && token_is_undecided(expected, same, tolerance);
  if (verdict.logits_error <= verdict.allowed_error && (complete || verdict.excused)) {
    verdict.outcome = GoldenOutcome::kPassed;
  } else if (prompt_is_undecided(expected, tolerance) && std::isfinite(verdict.logits_error) &&
             tokens.size() == expected.greedy.size()) {
    verdict.outcome = GoldenOutcome::kNearTie;
  }
  return verdict;
}

}  // namespace r1d::cli
