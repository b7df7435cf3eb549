// SPDX-License-Identifier: Apache-2.0
#include "r1d/engine/executor.h"

namespace r1d::engine {

const char* recovery_cause_name(RecoveryCause cause) {
  switch (cause) {
    case RecoveryCause::kStall:
      return "stall";
    case RecoveryCause::kCommunicator:
      return "communicator";
    case RecoveryCause::kMemory:
      return "memory";
  }
  return "other";
}

std::optional<RecoveryCause> recovery_cause(const absl::Status& failure) {
  switch (failure.code()) {
    case absl::StatusCode::kDeadlineExceeded:
      return RecoveryCause::kStall;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
      return RecoveryCause::kCommunicator;
    case absl::StatusCode::kResourceExhausted:
      return RecoveryCause::kMemory;
    default:
      return std::nullopt;
  }
}

}  // namespace r1d::engine
