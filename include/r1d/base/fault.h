// SPDX-License-Identifier: Apache-2.0
// Fault points: named places where a test makes happen what hardware, files and clients do rarely.
// Compiled in unless R1D_NO_FAULTS is defined (CMake option R1D_FAULTS); without them every call
// below is a constant. Armed by `r1d serve --fault` or the variable R1D_FAULT before the first
// stage is built; the table of what is armed is process-wide, as points stand in every stage, and
// is only read afterwards. A point that is not armed costs one relaxed load.
// Threads: all functions are thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <absl/status/status.h>

namespace r1d::base {

enum class FaultPoint : uint8_t {
  kLoadStart,
  kWeightRead,
  kStep,
  kLayer,
  kCollective,
  kRejoin,
  kSample,
  kPrepare,
  kSubmit,
  kRpc,
  kEvent,
  kMessage,
  kWrite,
  kHttp,
  kRender,
};

// What happens at a point. The first five happen inside hit_fault(), the others are for the place
// itself to do.
enum class FaultAction : uint8_t {
  kThrow,  // a std::runtime_error
  kOom,    // a std::bad_alloc
  kHang,   // waits until clear_faults() or the end of the process; FaultInfo::hangs_itself
  kDelay,  // waits for a time
  kKill,   // the process ends at once, as by SIGKILL
  kError,  // the call fails
  kShort,  // fewer bytes than there should be
  kNan,    // a number that is none
  kNone,
};

struct FaultInfo {
  FaultPoint point;
  std::string_view name;      // "engine.step"
  std::string_view where;     // which place, on which thread
  std::string_view actions;   // "error, throw, oom, hang, delay:TIME"; the first is the default
  std::string_view effect;    // what must follow, and no more
  bool per_rank = false;      // hit on the ranks' threads: `@rankN` picks one
  bool hangs_itself = false;  // kHang is returned: the place knows how to wait
};
[[nodiscard]] std::span<const FaultInfo> fault_points();

#ifdef R1D_NO_FAULTS
inline constexpr bool kFaultsCompiledIn = false;
inline FaultAction hit_fault(FaultPoint /*point*/, int32_t /*rank*/ = 0) {
  return FaultAction::kNone;
}
inline absl::Status fault_status(FaultPoint /*point*/, int32_t /*rank*/ = 0) {
  return absl::OkStatus();
}
#else
inline constexpr bool kFaultsCompiledIn = true;
namespace internal {
extern std::atomic<uint32_t> armed_faults;  // a bit a point
[[nodiscard]] FaultAction take_fault(FaultPoint point, int32_t rank);
[[nodiscard]] absl::Status injected_error(FaultPoint point);
}  // namespace internal

// Does what is armed at `point`; returns what is left for the caller to do. `rank`: whose thread
// hits it, where FaultInfo::per_rank.
inline FaultAction hit_fault(FaultPoint point, int32_t rank = 0) {
  const uint32_t armed = internal::armed_faults.load(std::memory_order_relaxed);
  if ((armed >> static_cast<uint32_t>(point) & 1U) == 0) [[likely]]
    return FaultAction::kNone;
  return internal::take_fault(point, rank);
}
// The same for a place that can fail with a Status.
[[nodiscard]] inline absl::Status fault_status(FaultPoint point, int32_t rank = 0) {
  return hit_fault(point, rank) == FaultAction::kError ? internal::injected_error(point)
                                                       : absl::OkStatus();
}
#endif

// Arms points by "NAME[=ACTION][@rankN][@[SKIP+]COUNT | @PROBABILITY]", comma separated:
// "engine.step", "model.layer=delay:200ms", "engine.sample=nan@10+1" (the eleventh),
// "grpc.write@0.01", "model.layer=hang@rank1@30+1" (the 31st layer of rank 1). Without @ a point
// fires every time; draws are the same in every run. kInvalidArgument names the part and what was
// expected; kFailedPrecondition when fault points are not compiled in.
[[nodiscard]] absl::Status arm_faults(std::string_view specs);

// What is armed, as given, comma separated; "" for nothing.
[[nodiscard]] std::string armed_fault_specs();

// Disarms all and lets go of what hangs.
void clear_faults();

}  // namespace r1d::base
