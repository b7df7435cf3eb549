// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace r1d::cli::bench {

// What happened to one request. Times are seconds since the measured part began. Every latency
// counts from `intended`: a generator that falls behind, or a server that makes it wait, may not
// shorten what is measured.
struct Record {
  double intended = 0;  // when it was due
  double sent = 0;      // when it was given to gRPC
  std::optional<double> first_token = {};
  std::optional<double> last_token = {};
  double end = 0;           // its status came
  std::string code = "OK";  // the status' name
  bool unfinished = false;  // we cancelled it: neither a success nor a failure of the server's
  int32_t num_input_tokens = 0;
  int32_t num_cached_tokens = 0;
  int32_t num_output_tokens = 0;
  std::optional<double> queue = {};  // as the server tells
  std::vector<float> gaps = {};  // between its tokens; those that came in one message are 0 apart

  [[nodiscard]] bool ok() const { return !unfinished && code == "OK"; }
  [[nodiscard]] double e2e() const { return end - intended; }
  [[nodiscard]] std::optional<double> ttft() const {
    if (!first_token) return std::nullopt;
    return *first_token - intended;
  }
  // Mean gap; none with fewer than two tokens, or when the answer came whole.
  [[nodiscard]] std::optional<double> tpot() const {
    if (!first_token || num_output_tokens < 2) return std::nullopt;
    return (*last_token - *first_token) / (num_output_tokens - 1);
  }
};

// A run's raw outcome.
struct RunLog {
  static constexpr double kBinSeconds = 0.1;

  std::vector<Record> records;         // in the order of their ends
  std::vector<int64_t> tokens_by_bin;  // output tokens received in each kBinSeconds
  double seconds = 0;                  // from the first intended time to the last end
  std::string ended_early;             // why, when it was not by plan
};

}  // namespace r1d::cli::bench
