// SPDX-License-Identifier: Apache-2.0
// absl::Status carries everything that can go wrong at run time. The makers below format with fmt
// (Debian's absl has a string_view of its own, so the std one does not convert).
#pragma once

#include <string>
#include <utility>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

namespace r1d {

// One maker per code in use: `invalid_argument("{}: expected {}", name, shape)`.
#define R1D_DEFINE_ERROR(name, code)                                                    \
  template <typename... Args>                                                           \
  [[nodiscard]] absl::Status name(fmt::format_string<Args...> format, Args&&... args) { \
    return absl::Status(code, fmt::format(format, std::forward<Args>(args)...));        \
  }
R1D_DEFINE_ERROR(cancelled, absl::StatusCode::kCancelled)
R1D_DEFINE_ERROR(invalid_argument, absl::StatusCode::kInvalidArgument)
R1D_DEFINE_ERROR(deadline_exceeded, absl::StatusCode::kDeadlineExceeded)
R1D_DEFINE_ERROR(not_found, absl::StatusCode::kNotFound)
R1D_DEFINE_ERROR(resource_exhausted, absl::StatusCode::kResourceExhausted)
R1D_DEFINE_ERROR(failed_precondition, absl::StatusCode::kFailedPrecondition)
R1D_DEFINE_ERROR(unimplemented, absl::StatusCode::kUnimplemented)
R1D_DEFINE_ERROR(internal_error, absl::StatusCode::kInternal)
R1D_DEFINE_ERROR(unavailable, absl::StatusCode::kUnavailable)
R1D_DEFINE_ERROR(data_loss, absl::StatusCode::kDataLoss)
#undef R1D_DEFINE_ERROR

// The message as a std::string.
[[nodiscard]] inline std::string message_of(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

}  // namespace r1d

#define R1D_CONCAT_INNER(a, b) a##b
#define R1D_CONCAT(a, b) R1D_CONCAT_INNER(a, b)

#define R1D_RETURN_IF_ERROR(expression)                                                   \
  do {                                                                                    \
    if (::absl::Status r1d_status_ = (expression); !r1d_status_.ok()) return r1d_status_; \
  } while (false)

// `R1D_ASSIGN_OR_RETURN(auto config, ModelConfig::parse(text));`
#define R1D_ASSIGN_OR_RETURN(lhs, expression) \
  R1D_ASSIGN_OR_RETURN_INNER(R1D_CONCAT(r1d_status_or_, __LINE__), lhs, expression)
#define R1D_ASSIGN_OR_RETURN_INNER(holder, lhs, expression) \
  auto holder = (expression);                               \
  if (!holder.ok()) return std::move(holder).status();      \
  lhs = std::move(holder).value()
