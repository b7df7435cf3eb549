// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/v1/inference.pb.h"

#include "cli/bench/lengths.h"

namespace r1d::cli::bench {

struct WorkloadOptions {
  Lengths input;
  Lengths output;
  std::string lengths_file;   // "INPUT OUTPUT" a line, in turn; instead of the two above
  std::string requests_file;  // a JSON object a line, in turn; instead of random tokens
  int32_t shared_prefix = 0;  // tokens that all prompts begin with, besides their own
  double temperature = 0;
  std::optional<bool> ignore_eos;  // default: with random tokens, so that lengths are as asked
  uint64_t seed = 1;
};

using Ask = std::variant<v1::GenerateRequest, v1::ChatRequest>;

// What request number i asks, the same for the same options. Threads: const after open().
class Workload {
 public:
  // `last_token_id`: random prompts are of ids up to it. Errors name file and line.
  [[nodiscard]] static absl::StatusOr<Workload> open(const WorkloadOptions& options,
                                                     int32_t last_token_id);

  [[nodiscard]] Ask ask(int64_t index) const;

 private:
  struct Pair {
    int32_t input = 0;
    int32_t output = 0;
  };

  Workload(const WorkloadOptions& options, int32_t last_token_id)
      : options_(options), last_token_id_(last_token_id) {}

  [[nodiscard]] absl::Status read_lengths();
  [[nodiscard]] absl::Status read_requests();
  [[nodiscard]] absl::StatusOr<Ask> parse_request(const std::string& line) const;
  [[nodiscard]] Pair lengths(int64_t index) const;
  void set_sampling(int32_t max_tokens, v1::SamplingParams& sampling) const;
  void add_random_ids(uint64_t stream, int32_t count, v1::TokenIds& ids) const;

  WorkloadOptions options_;
  int32_t last_token_id_;
  std::vector<Pair> listed_;
  std::vector<Ask> requests_;
};

}  // namespace r1d::cli::bench
