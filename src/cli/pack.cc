// SPDX-License-Identifier: Apache-2.0
// `r1d pack` and `r1d verify`: a checkpoint as one file a rank, and whether its bytes are still
// those.
#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_source.h"

#include "cli/commands.h"
#include "cli/lifecycle.h"
#include "cli/progress_bar.h"

namespace r1d::cli {
namespace {

int32_t threads_of(int32_t asked) {
  if (asked > 0) return asked;
  return static_cast<int32_t>(std::max(std::thread::hardware_concurrency(), 1U));
}

class Stopwatch {
 public:
  // "85.30 GB in 41.2 s, 2.07 GB/s".
  [[nodiscard]] std::string rate(int64_t bytes) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const double gigabytes = static_cast<double>(bytes) / 1e9;
    return fmt::format(
        "{:.2f} GB in {:.1f} s, {:.2f} GB/s", gigabytes, seconds, gigabytes / seconds);
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

// Draws the bar; a signal ends the work.
checkpoint::PackProgress progress_on(ProgressBar& bar,
                                     const Lifecycle& lifecycle,
                                     const char* stopped) {
  return [&bar, &lifecycle, stopped](double fraction) -> absl::Status {
    if (lifecycle.stop_requested()) return cancelled("{}", stopped);
    bar.update(fraction);
    return absl::OkStatus();
  };
}

absl::Status verify_files(const std::string& dir, int32_t threads, const Lifecycle& lifecycle) {
  const Stopwatch watch;
  checkpoint::VerifiedPack verified;
  {
    ProgressBar bar("verifying");
    R1D_ASSIGN_OR_RETURN(
        verified,
        checkpoint::verify_packed(
            dir, threads, progress_on(bar, lifecycle, "stopped; not all of it was read")));
  }
  for (const std::string& finding : verified.findings) fmt::print(stderr, "{}\n", finding);
  if (verified.num_damaged > 0) {
    return data_loss("{}: {} of {} sections are damaged: pack the checkpoint again",
                     dir,
                     verified.num_damaged,
                     verified.num_sections);
  }
  fmt::print("{}: {} sections have their checksums; {}\n",
             dir,
             verified.num_sections,
             watch.rate(verified.num_bytes));
  return absl::OkStatus();
}

absl::Status verify_checkpoint(const std::string& dir) {
  R1D_ASSIGN_OR_RETURN(const auto source, checkpoint::open_hugging_face(dir));
  const auto tensors = checkpoint::expected_tensors(source->config(), source->has_mtp());
  fmt::print(
      "{}: {} weights have the shapes and sizes that config.json and the index say; safetensors "
      "files have no checksums\n",
      dir,
      tensors.size());
  return absl::OkStatus();
}

}  // namespace

absl::Status pack(const PackCommandOptions& options) {
  const Lifecycle lifecycle;  // before any other thread
  R1D_RETURN_IF_ERROR(arm_faults({}));
  const int32_t threads = threads_of(options.num_threads);
  const Stopwatch watch;
  checkpoint::Packed packed;
  {
    ProgressBar bar("packing");
    R1D_ASSIGN_OR_RETURN(
        packed,
        checkpoint::pack_checkpoint(
            options.model,
            options.output,
            {.world_size = options.world_size,
             .expert_split = options.expert_parallel ? checkpoint::ExpertSplit::kExpert
                                                     : checkpoint::ExpertSplit::kTensor,
             .num_threads = threads,
             .progress = progress_on(bar, lifecycle, "stopped; nothing of the packing is left")}));
  }
  const int64_t bytes =
      std::accumulate(packed.file_bytes.begin(), packed.file_bytes.end(), packed.copied_bytes);
  fmt::print("{}: {} files, {} sections; {}\n",
             options.output,
             packed.file_bytes.size(),
             packed.num_sections,
             watch.rate(bytes));
  if (!options.verify) return absl::OkStatus();
  return verify_files(options.output, threads, lifecycle);
}

absl::Status verify(const VerifyOptions& options) {
  if (!checkpoint::is_packed(options.dir)) return verify_checkpoint(options.dir);
  const Lifecycle lifecycle;
  return verify_files(options.dir, threads_of(options.num_threads), lifecycle);
}

}  // namespace r1d::cli
