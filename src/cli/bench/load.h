// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cli/bench/record.h"
#include "cli/bench/workload.h"

namespace r1d::cli::bench {

struct LoadOptions {
  std::string address;
  int32_t num_connections = 1;
  bool unary = false;          // GenerateOnce and ChatOnce instead of streams
  std::optional<double> rate;  // requests a second: open loop; none: closed loop
  bool poisson = true;
  int32_t concurrency = 1;              // closed loop: requests in flight
  std::optional<int64_t> num_requests;  // sent at most; one of the two is set
  std::optional<double> seconds;        // nothing is sent later
  double timeout_seconds = 600;         // of a request
  uint64_t seed = 1;
};

// Sends requests of a workload and measures each.
//
// In open loop a thread of its own sends each request when it is due, whatever became of those
// before; in closed loop the end of one sends the next. One thread, the caller of run(), reads all
// answers from one completion queue, so that a core drives thousands of streams.
//
// Lifecycle: run() once. Threads: stop() from any; the rest belongs to the owner.
class Load {
 public:
  // `workload` outlives it. `progress` (may be empty) hears the share that is done, on run()'s
  // thread.
  Load(const LoadOptions& options, const Workload& workload, std::function<void(double)> progress);
  ~Load();

  // Returns when all that was sent has ended. Ends early, saying so in the log: after stop(), when
  // the server cannot be reached, and when it has fallen hopelessly behind.
  [[nodiscard]] RunLog run();

  // Sends no more and cancels what is in flight.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::cli::bench
