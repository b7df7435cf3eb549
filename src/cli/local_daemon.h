// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <sys/types.h>

#include <absl/status/statusor.h>

namespace r1d::cli {

// `r1d serve` for a model directory as a child process on free loopback ports, which lives as long
// as this object; should this process die, the child dies too.
class LocalDaemon {
 public:
  // Returns when the model is loaded. kUnavailable when the child ended first; what it wrote to
  // standard error says why.
  [[nodiscard]] static absl::StatusOr<LocalDaemon> start(const std::string& model_dir);
  ~LocalDaemon();
  LocalDaemon(LocalDaemon&& other) noexcept;
  LocalDaemon& operator=(LocalDaemon&&) = delete;

  [[nodiscard]] const std::string& address() const { return address_; }

 private:
  explicit LocalDaemon(pid_t child) : child_(child) {}

  pid_t child_ = -1;
  std::string address_;
};

}  // namespace r1d::cli
