// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/workload.h"

#include <cstdio>
#include <functional>

#include "r1d/base/file.h"
#include "r1d/base/json.h"
#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

#include "cli/bench/units.h"

namespace r1d::cli::bench {
namespace {

constexpr int64_t kMostFileBytes = int64_t{256} << 20;
constexpr JsonLimits kLineLimits{
    .max_bytes = 16 << 20, .max_depth = 32, .max_key_bytes = 4096, .max_values = 2 << 20};

// Streams of random numbers of one seed, apart from each other.
enum Stream : uint64_t { kInputLength = 1, kOutputLength, kPrefix, kFirstPrompt };

uint64_t stream_seed(uint64_t seed, uint64_t stream) {
  return base::mix64(seed) + stream;
}

// Calls `take(line)` for each line that is neither empty nor a comment (#).
absl::Status each_line(const std::string& path,
                       const std::function<absl::Status(const std::string&)>& take) {
  const auto text = read_text_file(path, kMostFileBytes);
  if (!text.ok()) return with_context(text.status(), path);
  int64_t number = 0;
  int64_t taken = 0;
  for (const std::string& line : split(*text, '\n')) {
    ++number;
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') continue;
    const absl::Status status = take(line);
    if (!status.ok()) return with_context(status, fmt::format("{}:{}", path, number));
    ++taken;
  }
  return taken > 0 ? absl::OkStatus() : invalid_argument("{}: it has no line", path);
}

// The type names of a request's parts in a file.
absl::Status bad_field(const char* name, const char* expected) {
  return invalid_argument("{}: expected {}", name, expected);
}

absl::Status read_messages(const Json& json, v1::ChatRequest& request) {
  if (!json.is_array() || json.empty()) return bad_field("messages", "a list of messages");
  for (const Json& message : json) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
        !message.contains("content") || !message["content"].is_string()) {
      return bad_field("messages", "objects with \"role\" and \"content\", both texts");
    }
    v1::Message& out = *request.add_messages();
    out.set_role(message["role"].get<std::string>());
    out.set_content(message["content"].get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status read_ids(const Json& json, int32_t last_token_id, v1::TokenIds& ids) {
  if (!json.is_array() || json.empty()) return bad_field("token_ids", "a list of token ids");
  for (const Json& id : json) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > last_token_id)
      return invalid_argument("token_ids: expected ids from 0 to {}", last_token_id);
    ids.add_ids(id.get<int32_t>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Workload> Workload::open(const WorkloadOptions& options, int32_t last_token_id) {
  Workload workload(options, last_token_id);
  if (!options.lengths_file.empty()) R1D_RETURN_IF_ERROR(workload.read_lengths());
  if (!options.requests_file.empty()) R1D_RETURN_IF_ERROR(workload.read_requests());
  return workload;
}

absl::Status Workload::read_lengths() {
  return each_line(options_.lengths_file, [this](const std::string& line) {
    Pair pair;
    char rest = 0;
    // NOLINTNEXTLINE(cert-err34-c): what is no number is not counted as read
    const int count =
        std::sscanf(line.c_str(), " %d%*[ \t,]%d %c", &pair.input, &pair.output, &rest);
    if (count != 2 || pair.input < 1 || pair.output < 1 || pair.input > kMostTokens ||
        pair.output > kMostTokens) {
      return invalid_argument("expected two numbers, input and output tokens, each 1 to {}",
                              kMostTokens);
    }
    listed_.push_back(pair);
    return absl::OkStatus();
  });
}

absl::Status Workload::read_requests() {
  return each_line(options_.requests_file, [this](const std::string& line) -> absl::Status {
    R1D_ASSIGN_OR_RETURN(Ask ask, parse_request(line));
    requests_.push_back(std::move(ask));
    return absl::OkStatus();
  });
}

absl::StatusOr<Ask> Workload::parse_request(const std::string& line) const {
  R1D_ASSIGN_OR_RETURN(const Json json, parse_json(line, kLineLimits));
  const bool text = json.contains("text");
  const bool ids = json.contains("token_ids");
  const bool chat = json.contains("messages");
  if (!json.is_object() || text + ids + chat != 1)
    return invalid_argument("expected an object with one of \"text\", \"token_ids\", \"messages\"");
  int32_t max_tokens = options_.output.draw(stream_seed(options_.seed, kOutputLength),
                                            static_cast<uint64_t>(requests_.size()));
  if (json.contains("max_tokens")) {
    const Json& value = json["max_tokens"];
    if (!value.is_number_integer() || value.get<int64_t>() < 1 ||
        value.get<int64_t>() > kMostTokens)
      return invalid_argument("max_tokens: expected 1 to {}", kMostTokens);
    max_tokens = value.get<int32_t>();
  }
  if (chat) {
    v1::ChatRequest request;
    R1D_RETURN_IF_ERROR(read_messages(json["messages"], request));
    set_sampling(max_tokens, *request.mutable_sampling());
    return Ask(std::move(request));
  }
  v1::GenerateRequest request;
  if (ids) {
    R1D_RETURN_IF_ERROR(read_ids(
        json["token_ids"], last_token_id_, *request.mutable_prompt()->mutable_token_ids()));
  } else {
    if (!json["text"].is_string()) return bad_field("text", "a text");
    request.mutable_prompt()->set_text(json["text"].get<std::string>());
  }
  set_sampling(max_tokens, *request.mutable_sampling());
  return Ask(std::move(request));
}

Workload::Pair Workload::lengths(int64_t index) const {
  if (!listed_.empty()) return listed_[static_cast<size_t>(index) % listed_.size()];
  const auto counter = static_cast<uint64_t>(index);
  return {.input = options_.input.draw(stream_seed(options_.seed, kInputLength), counter),
          .output = options_.output.draw(stream_seed(options_.seed, kOutputLength), counter)};
}

Ask Workload::ask(int64_t index) const {
  if (!requests_.empty()) return requests_[static_cast<size_t>(index) % requests_.size()];
  const Pair pair = lengths(index);
  v1::GenerateRequest request;
  v1::TokenIds& ids = *request.mutable_prompt()->mutable_token_ids();
  ids.mutable_ids()->Reserve(options_.shared_prefix + pair.input);
  add_random_ids(kPrefix, options_.shared_prefix, ids);
  add_random_ids(kFirstPrompt + static_cast<uint64_t>(index), pair.input, ids);
  set_sampling(pair.output, *request.mutable_sampling());
  return request;
}

void Workload::set_sampling(int32_t max_tokens, v1::SamplingParams& sampling) const {
  sampling.set_max_tokens(max_tokens);
  sampling.set_temperature(options_.temperature);
  sampling.set_seed(options_.seed);
  sampling.set_ignore_eos(options_.ignore_eos.value_or(options_.requests_file.empty()));
}

void Workload::add_random_ids(uint64_t stream, int32_t count, v1::TokenIds& ids) const {
  const uint64_t seed = stream_seed(options_.seed, stream);
  const auto num_ids = static_cast<uint64_t>(last_token_id_) + 1;
  for (int32_t i = 0; i < count; ++i) {
    const uint64_t bits = base::random_bits(seed, static_cast<uint64_t>(i));
    ids.add_ids(static_cast<int32_t>(bits % num_ids));
  }
}

}  // namespace r1d::cli::bench
