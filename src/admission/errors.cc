// SPDX-License-Identifier: Apache-2.0
// What an error says beyond code and message travels as absl::Status payloads, so that every door
// can put it into its own format.
#include <charconv>

#include <absl/strings/cord.h>

#include "r1d/admission/frontend.h"
#include "r1d/base/status.h"

namespace r1d::admission {
namespace {

constexpr char kFieldPayload[] = "r1d/field";
constexpr char kRetryAfterPayload[] = "r1d/retry-after-ms";

std::optional<std::string> payload(const absl::Status& status, const char* url) {
  const auto cord = status.GetPayload(url);
  if (!cord.has_value()) return std::nullopt;
  return std::string(*cord);
}

}  // namespace

absl::Status field_error(const std::string& field, const std::string& problem) {
  absl::Status status = invalid_argument("{}: {}", field, problem);
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

std::string field_of(const absl::Status& status) {
  return payload(status, kFieldPayload).value_or("");
}

absl::Status with_retry_after(absl::Status status, Duration delay) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(delay).count();
  status.SetPayload(kRetryAfterPayload, absl::Cord(std::to_string(ms)));
  return status;
}

std::optional<Duration> retry_after_of(const absl::Status& status) {
  const auto text = payload(status, kRetryAfterPayload);
  if (!text.has_value()) return std::nullopt;
  int64_t ms = 0;
  std::from_chars(text->data(), text->data() + text->size(), ms);
  return std::chrono::milliseconds(ms);
}

}  // namespace r1d::admission
