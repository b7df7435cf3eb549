// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/fault.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <csignal>
#include <new>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "r1d/base/mutex.h"
#include "r1d/base/random.h"
#include "r1d/base/status.h"

namespace r1d::base {
namespace {

constexpr std::string_view kAnywhere = "error, throw, oom, hang, delay:TIME";
constexpr std::string_view kOnARank = "error, throw, oom, hang, kill, delay:TIME";

constexpr std::array kPoints{
    FaultInfo{FaultPoint::kLoadStart,
              "load.start",
              "before the checkpoint is opened; main thread",
              kAnywhere,
              "the daemon exits with status 1 and says why"},
    FaultInfo{FaultPoint::kWeightRead,
              "checkpoint.read",
              "a read of weights from a file; a reading thread",
              "error, short, throw, oom, hang, delay:TIME",
              "an error: the read is tried again, eight times in all; any other, and the eighth "
              "error: the load fails as "
              "a whole, exit status 1; a hang: no more progress is reported"},
    FaultInfo{
        FaultPoint::kStep,
        "engine.step",
        "the start of a step; the step loop's thread",
        kAnywhere,
        "error, throw: every request ends UNAVAILABLE, exit status 1; oom: running requests end "
        "UNAVAILABLE, the engine recovers, those that wait go on; a hang: the same and "
        "NOT_SERVING, "
        "but exit status 1 unless the step comes back within server.recovery_timeout"},
    FaultInfo{FaultPoint::kLayer,
              "model.layer",
              "before a layer of a step; a rank's thread",
              kOnARank,
              "as engine.step; kill: the process is gone, its clients see UNAVAILABLE",
              /*per_rank=*/true},
    FaultInfo{
        FaultPoint::kCollective,
        "ops.collective",
        "before a rank takes its part in a collective; a rank's thread",
        kOnARank,
        "error, oom: running requests end UNAVAILABLE, the ranks meet anew, requests that wait "
        "go on; hang (as if a peer were gone): the same and NOT_SERVING until then; throw: as "
        "engine.step",
        /*per_rank=*/true,
        /*hangs_itself=*/true},
    FaultInfo{FaultPoint::kRejoin,
              "engine.rejoin",
              "before a rank meets the others again after a failed step; a rank's thread",
              kOnARank,
              "every request ends UNAVAILABLE, exit status 1; a hang: after "
              "server.recovery_timeout",
              /*per_rank=*/true},
    FaultInfo{FaultPoint::kSample,
              "engine.sample",
              "the sampling of one sequence's token on the host; a pool's thread",
              "nan, throw, oom",
              "that sequence ends INTERNAL (oom: RESOURCE_EXHAUSTED)"},
    FaultInfo{FaultPoint::kPrepare,
              "admission.prepare",
              "before a request's text is rendered and tokenized; gRPC's thread",
              kAnywhere,
              "that call ends INTERNAL (oom: RESOURCE_EXHAUSTED)"},
    FaultInfo{FaultPoint::kSubmit,
              "admission.submit",
              "before a request is handed to the step loop; gRPC's thread",
              kAnywhere,
              "as admission.prepare"},
    FaultInfo{FaultPoint::kRpc,
              "grpc.handler",
              "the start of a call of r1d.v1.InferenceService; gRPC's thread",
              kAnywhere,
              "as admission.prepare"},
    FaultInfo{FaultPoint::kEvent,
              "grpc.event",
              "a token reaches its call's buffer; the step loop's thread",
              "oom, throw",
              "that call ends RESOURCE_EXHAUSTED (throw: INTERNAL)"},
    FaultInfo{FaultPoint::kMessage,
              "grpc.message",
              "a message is made of a call's tokens; the dispatcher's or gRPC's thread",
              "oom, throw, delay:TIME",
              "that call ends RESOURCE_EXHAUSTED (throw: INTERNAL)"},
    FaultInfo{FaultPoint::kWrite,
              "grpc.write",
              "a message was written to a stream; gRPC's thread",
              "error",
              "that stream ends CANCELLED, as if its client had left"},
    FaultInfo{FaultPoint::kHttp,
              "http.handler",
              "a request to the management port; its thread",
              "throw, oom, hang, delay:TIME",
              "that request is answered 500"},
    FaultInfo{FaultPoint::kRender,
              "metrics.render",
              "a scrape is rendered; the management port's thread",
              "throw, oom, hang, delay:TIME",
              "that scrape is answered 500"},
};
static_assert(kPoints.size() <= 32);

struct ActionName {
  std::string_view name;
  FaultAction action;
};
constexpr std::array kActions{ActionName{"throw", FaultAction::kThrow},
                              ActionName{"oom", FaultAction::kOom},
                              ActionName{"hang", FaultAction::kHang},
                              ActionName{"delay", FaultAction::kDelay},
                              ActionName{"kill", FaultAction::kKill},
                              ActionName{"error", FaultAction::kError},
                              ActionName{"short", FaultAction::kShort},
                              ActionName{"nan", FaultAction::kNan}};

// One armed point.
struct Armed {
  FaultAction action = FaultAction::kNone;
  std::chrono::milliseconds delay{0};
  uint64_t skip = 0;
  std::optional<uint64_t> count;
  std::optional<double> probability;
  std::optional<int32_t> rank;
};

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// The parts of a list, each trimmed.
std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t comma = list.find(',');
    parts.push_back(trim(list.substr(0, comma)));
    if (comma == std::string_view::npos) return parts;
    list.remove_prefix(comma + 1);
  }
}

template <class Number>
bool parse_number(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// "200ms", "2s".
bool parse_delay(std::string_view text, std::chrono::milliseconds& delay) {
  constexpr int64_t kLongestMs = 3600000;
  int64_t scale = 1;
  if (text.ends_with("ms")) {
    text.remove_suffix(2);
  } else if (text.ends_with("s")) {
    text.remove_suffix(1);
    scale = 1000;
  } else {
    return false;
  }
  int64_t count = 0;
  if (!parse_number(text, count) || count < 0 || count > kLongestMs / scale) return false;
  delay = std::chrono::milliseconds(count * scale);
  return true;
}

absl::Status parse_when(std::string_view text, Armed& armed) {
  if (text.find('.') != std::string_view::npos) {
    double probability = 0;
    if (!parse_number(text, probability) || probability < 0 || probability > 1) {
      return invalid_argument("expected a probability between 0.0 and 1.0 after @, found {}", text);
    }
    armed.probability = probability;
    return absl::OkStatus();
  }
  const size_t plus = text.find('+');
  const std::string_view count = plus == std::string_view::npos ? text : text.substr(plus + 1);
  const bool skip_read =
      plus == std::string_view::npos || parse_number(text.substr(0, plus), armed.skip);
  if (!skip_read || !parse_number(count, armed.count.emplace())) {
    return invalid_argument(
        "expected COUNT, SKIP+COUNT or a probability with a point after @, found {}", text);
  }
  return absl::OkStatus();
}

// What follows the first @: a rank, how often, or both.
absl::Status parse_conditions(const FaultInfo& info, std::string_view text, Armed& armed) {
  constexpr std::string_view kRank = "rank";
  if (!text.starts_with(kRank)) return parse_when(text, armed);
  const size_t at = text.find('@');
  const std::string_view number = text.substr(kRank.size(), at - kRank.size());
  if (!info.per_rank) return invalid_argument("no rank hits it, found {}", text.substr(0, at));
  if (!parse_number(number, armed.rank.emplace()) || *armed.rank < 0) {
    return invalid_argument("expected rankN after @, N from 0, found {}", text.substr(0, at));
  }
  return at == std::string_view::npos ? absl::OkStatus() : parse_when(text.substr(at + 1), armed);
}

absl::Status parse_action(const FaultInfo& info, std::string_view text, Armed& armed) {
  const std::vector<std::string_view> allowed = split(info.actions);
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const auto offered = std::find_if(allowed.begin(), allowed.end(), [&](std::string_view action) {
    return action.substr(0, action.find(':')) == name;
  });
  const auto known = std::find_if(
      kActions.begin(), kActions.end(), [&](const ActionName& a) { return a.name == name; });
  if (offered == allowed.end() || known == kActions.end()) {
    return invalid_argument("expected one of {} after =, found {}", info.actions, text);
  }
  armed.action = known->action;
  const bool delay = armed.action == FaultAction::kDelay;
  const std::string_view argument =
      colon == std::string_view::npos ? std::string_view() : text.substr(colon + 1);
  if (delay ? !parse_delay(argument, armed.delay) : colon != std::string_view::npos) {
    return invalid_argument(
        "expected {}, found {}", delay ? "delay:TIME, e.g. delay:200ms" : std::string(name), text);
  }
  return absl::OkStatus();
}

struct Parsed {
  const FaultInfo* info = nullptr;
  Armed armed;
};

absl::StatusOr<Parsed> parse_spec(std::string_view spec) {
  const size_t at = spec.find('@');
  const size_t equals = spec.substr(0, at).find('=');
  const std::string_view name = spec.substr(0, std::min(at, equals));
  const auto info = std::find_if(
      kPoints.begin(), kPoints.end(), [&](const FaultInfo& point) { return point.name == name; });
  if (info == kPoints.end()) {
    return invalid_argument("fault {}: no such fault point; `r1d faults` lists them", spec);
  }
  Parsed parsed{.info = &*info, .armed = {}};
  const std::string_view action = equals == std::string_view::npos
                                      ? split(info->actions).front()
                                      : spec.substr(equals + 1, at - equals - 1);
  absl::Status status = parse_action(*info, action, parsed.armed);
  if (status.ok() && at != std::string_view::npos) {
    status = parse_conditions(*info, spec.substr(at + 1), parsed.armed);
  }
  if (!status.ok()) return invalid_argument("fault {}: {}", spec, message_of(status));
  return parsed;
}

}  // namespace

std::span<const FaultInfo> fault_points() {
  return kPoints;
}

#ifdef R1D_NO_FAULTS

absl::Status arm_faults(std::string_view specs) {
  if (specs.empty()) return absl::OkStatus();
  for (const std::string_view spec : split(specs)) {
    R1D_RETURN_IF_ERROR(parse_spec(spec).status());
  }
  return failed_precondition(
      "fault {}: this build has no fault points; they are compiled in by -DR1D_FAULTS=ON", specs);
}
std::string armed_fault_specs() {
  return {};
}
void clear_faults() {}

#else

namespace internal {
std::atomic<uint32_t> armed_faults{0};
}  // namespace internal

namespace {

// What is armed. One a process: `armed_faults` stands in front of it and is set last.
class Table {
 public:
  void arm(const Parsed& parsed, std::string_view spec) {
    const MutexLock lock(mu_);
    const auto index = static_cast<size_t>(parsed.info->point);
    entries_[index] = parsed.armed;
    hits_[index] = 0;
    if (!specs_.empty()) specs_ += ", ";
    specs_ += spec;
    internal::armed_faults.fetch_or(1U << index);
  }

  void clear() {
    const MutexLock lock(mu_);
    internal::armed_faults.store(0);
    specs_.clear();
    ++generation_;
    changed_.notify_all();
  }

  std::string specs() {
    const MutexLock lock(mu_);
    return specs_;
  }

  // The action due at this hit; a delay or a hang has been waited out.
  FaultAction take(FaultPoint point, int32_t rank) {
    const MutexLock lock(mu_);
    const auto index = static_cast<size_t>(point);
    const Armed armed = entries_[index];
    if (armed.rank.value_or(rank) != rank || !fires(armed, index)) return FaultAction::kNone;
    if (armed.action == FaultAction::kHang && !kPoints[index].hangs_itself) {
      wait(std::nullopt);
      return FaultAction::kNone;
    }
    if (armed.action == FaultAction::kDelay) wait(std::chrono::steady_clock::now() + armed.delay);
    return armed.action;
  }

 private:
  bool fires(const Armed& armed, size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const uint64_t hit = hits_[index]++;
    if (armed.probability.has_value()) {
      return random_unit(index, hit) < *armed.probability;
    }
    return hit >= armed.skip && (!armed.count.has_value() || hit - armed.skip < *armed.count);
  }

  void wait(std::optional<std::chrono::steady_clock::time_point> end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const uint64_t generation = generation_;
    while (generation_ == generation) {
      if (!end.has_value()) {
        changed_.wait(mu_);
      } else if (std::chrono::steady_clock::now() < *end) {
        changed_.wait_until(mu_, *end);
      } else {
        return;
      }
    }
  }

  Mutex mu_;
  CondVar changed_;
  std::array<Armed, kPoints.size()> entries_ ABSL_GUARDED_BY(mu_);
  std::array<uint64_t, kPoints.size()> hits_ ABSL_GUARDED_BY(mu_){};
  std::string specs_ ABSL_GUARDED_BY(mu_);
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;  // grows with clear()
};

// Never destroyed: a thread may hang in it while the process ends.
Table& table() {
  static auto* const instance = new Table;
  return *instance;
}

const FaultInfo& info_of(FaultPoint point) {
  return *std::find_if(
      kPoints.begin(), kPoints.end(), [&](const FaultInfo& info) { return info.point == point; });
}

}  // namespace

FaultAction internal::take_fault(FaultPoint point, int32_t rank) {
  const FaultAction action = table().take(point, rank);
  switch (action) {
    case FaultAction::kThrow:
      throw std::runtime_error(fmt::format("fault point {}", info_of(point).name));
    case FaultAction::kOom:
      throw std::bad_alloc();
    case FaultAction::kKill:
      std::raise(SIGKILL);
      return FaultAction::kNone;
    case FaultAction::kDelay:
      return FaultAction::kNone;
    default:
      return action;
  }
}

absl::Status internal::injected_error(FaultPoint point) {
  return internal_error("fault point {}", info_of(point).name);
}

absl::Status arm_faults(std::string_view specs) {
  if (specs.empty()) return absl::OkStatus();
  for (const std::string_view spec : split(specs)) {
    R1D_ASSIGN_OR_RETURN(const Parsed parsed, parse_spec(spec));
    table().arm(parsed, spec);
  }
  return absl::OkStatus();
}

std::string armed_fault_specs() {
  return table().specs();
}

void clear_faults() {
  table().clear();
}

#endif

}  // namespace r1d::base
