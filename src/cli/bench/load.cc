// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/load.h"

#include <algorithm>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "r1d/base/mutex.h"
#include "r1d/base/status.h"

#include "cli/bench/arrivals.h"
#include "cli/bench/call.h"

namespace r1d::cli::bench {
namespace {

// Whoever is this far behind will not catch up, and every request in flight takes memory.
constexpr size_t kMostInFlight = 65'536;
// A server that is gone refuses thousands a second; this many in a row are enough to know.
constexpr int64_t kMostUnavailable = 1'000;

using Channels = std::vector<std::unique_ptr<v1::InferenceService::Stub>>;

Channels open_channels(const LoadOptions& options) {
  Channels channels;
  for (int32_t i = 0; i < options.num_connections; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // or all would share a connection
    arguments.SetMaxReceiveMessageSize(-1);
    channels.push_back(v1::InferenceService::NewStub(
        grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments)));
  }
  return channels;
}

}  // namespace

class Load::Impl {
 public:
  Impl(const LoadOptions& options, const Workload& workload, std::function<void(double)> progress)
      : options_(options),
        workload_(workload),
        progress_(std::move(progress)),
        channels_(open_channels(options)) {}

  RunLog run() {
    zero_ = std::chrono::steady_clock::now();
    std::thread sender([this] {
      options_.rate ? send_by_rate() : send_first();
      finish_sending();
    });
    read_answers();
    sender.join();
    RunLog log;
    for (const Record& record : records_) log.seconds = std::max(log.seconds, record.end);
    log.records = std::move(records_);
    log.tokens_by_bin = std::move(tokens_by_bin_);
    const base::MutexLock lock(mu_);
    log.ended_early = ended_early_;
    return log;
  }

  void end_early(const std::string& why) {
    const base::MutexLock lock(mu_);
    if (stopping_) return;
    stopping_ = true;
    ended_early_ = why;
    changed_.notify_all();
    for (const auto& [call, owned] : live_) call->cancel();
  }

 private:
  [[nodiscard]] double now() const {
    return seconds_between(zero_, std::chrono::steady_clock::now());
  }

  // Open loop, on the sender's thread.
  void send_by_rate() {
    Arrivals arrivals(*options_.rate, options_.poisson, options_.seed);
    while (true) {
      const double due = arrivals.next();
      if (options_.seconds && due >= *options_.seconds) return;
      if (!wait_until(due) || !send(due)) return;
    }
  }

  // Closed loop: the first of each place; the reader sends the others.
  void send_first() {
    for (int32_t i = 0; i < options_.concurrency; ++i) {
      if (!send(now())) return;
    }
  }

  // False when the run is to stop before.
  bool wait_until(double due) {
    const TimePoint time =
        zero_ + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(due));
    base::MutexLock lock(mu_);
    while (!stopping_ && std::chrono::steady_clock::now() < time) changed_.wait_until(mu_, time);
    return !stopping_;
  }

  // False when nothing more is to be sent.
  bool send(double intended) {
    const std::optional<int64_t> index = take_index();
    if (!index) return false;
    auto call = make_call(workload_.ask(*index), options_.unary);
    call->record.intended = intended;
    Call* const started = call.get();
    bool too_many = false;
    {
      // Held while the call starts: cancel() must find it started or not at all. gRPC runs none of
      // our code in there.
      const base::MutexLock lock(mu_);
      if (stopping_) return false;
      started->start(*channels_[static_cast<size_t>(*index) % channels_.size()],
                     queue_,
                     options_.timeout_seconds,
                     zero_);
      live_.emplace(started, std::move(call));
      too_many = live_.size() > kMostInFlight;
    }
    if (too_many) end_early(fmt::format("more than {} requests were in flight", kMostInFlight));
    return true;
  }

  std::optional<int64_t> take_index() {
    const base::MutexLock lock(mu_);
    if (stopping_ || (options_.num_requests && num_sent_ >= *options_.num_requests))
      return std::nullopt;
    if (options_.seconds && now() >= *options_.seconds && !options_.rate) return std::nullopt;
    return num_sent_++;
  }

  void finish_sending() {
    const base::MutexLock lock(mu_);
    sender_done_ = true;
    if (live_.empty()) queue_.Shutdown();
  }

  // On run()'s thread, until the queue is shut down: nothing is in flight or to be sent.
  void read_answers() {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
      auto* const call = static_cast<Call*>(tag);
      const bool over = call->proceed(ok);
      count_tokens(call->num_new_tokens());
      if (over) retire(*call);
    }
  }

  void count_tokens(int32_t count) {
    if (count == 0) return;
    const auto bin = static_cast<size_t>(now() / RunLog::kBinSeconds);
    if (tokens_by_bin_.size() <= bin) tokens_by_bin_.resize(bin + 1);
    tokens_by_bin_[bin] += count;
  }

  void retire(Call& call) {
    Record record = std::move(call.record);
    {
      const base::MutexLock lock(mu_);
      record.unfinished = stopping_ && record.code == "CANCELLED";
    }
    num_unavailable_ = record.code == "UNAVAILABLE" ? num_unavailable_ + 1 : 0;
    if (num_unavailable_ == kMostUnavailable)
      end_early(fmt::format("{} requests in a row were refused as UNAVAILABLE", kMostUnavailable));
    records_.push_back(std::move(record));
    if (!options_.rate) send(now());
    tell_progress();
    const base::MutexLock lock(mu_);
    live_.erase(&call);
    if (sender_done_ && live_.empty()) queue_.Shutdown();
  }

  void tell_progress() const {
    if (!progress_) return;
    double share = 0;
    if (options_.num_requests)
      share = static_cast<double>(records_.size()) / static_cast<double>(*options_.num_requests);
    if (options_.seconds) share = std::max(share, now() / *options_.seconds);
    progress_(std::min(share, 1.0));
  }

  const LoadOptions& options_;
  const Workload& workload_;
  const std::function<void(double)> progress_;
  const Channels channels_;
  grpc::CompletionQueue queue_;
  TimePoint zero_;

  // Of run()'s thread.
  std::vector<Record> records_;
  std::vector<int64_t> tokens_by_bin_;
  int64_t num_unavailable_ = 0;  // in a row

  base::Mutex mu_;
  base::CondVar changed_;  // for the sender: stopping_
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool sender_done_ ABSL_GUARDED_BY(mu_) = false;
  std::string ended_early_ ABSL_GUARDED_BY(mu_);
  int64_t num_sent_ ABSL_GUARDED_BY(mu_) = 0;
  std::unordered_map<Call*, std::unique_ptr<Call>> live_ ABSL_GUARDED_BY(mu_);
};

Load::Load(const LoadOptions& options,
           const Workload& workload,
           std::function<void(double)> progress)
    : impl_(std::make_unique<Impl>(options, workload, std::move(progress))) {}

Load::~Load() = default;

RunLog Load::run() {
  return impl_->run();
}

void Load::stop() {
  impl_->end_early("interrupted");
}

}  // namespace r1d::cli::bench
