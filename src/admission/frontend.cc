// SPDX-License-Identifier: Apache-2.0
#include "r1d/admission/frontend.h"

#include <atomic>
#include <random>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/fault.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/base/random.h"
#include "r1d/base/status.h"

#include "admission/prepare.h"

namespace r1d::admission {
namespace {

// A full queue drains by a request or so a second; a restarted replica takes longer to load.
constexpr auto kRetryWhenFull = std::chrono::seconds(1);
constexpr auto kRetryWhenDraining = std::chrono::seconds(1);
constexpr auto kRetryWhenStalled = std::chrono::seconds(5);
constexpr auto kRetryWhenLoading = std::chrono::seconds(5);

uint64_t seed_from_device() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

}  // namespace

// The loop is called without the lock, so its users are counted and detach() waits for them: after
// it returns nobody holds the pointer.
class Frontend::Impl {
 public:
  explicit Impl(const Clock& clock) : clock_(clock) {}
  ~Impl() { detach(); }

  void attach(const Limits& limits,
              std::shared_ptr<const TextModel> text,
              scheduler::StepLoop& loop) {
    const base::MutexLock lock(mu_);
    R1D_CHECK(loop_ == nullptr);
    limits_ = std::make_shared<const Limits>(limits);
    text_ = std::move(text);
    loop_ = &loop;
    if (state_ == State::kLoading) state_ = State::kServing;
  }

  void set_stalled(bool stalled) {
    const base::MutexLock lock(mu_);
    stalled_ = stalled;
  }

  void begin_drain() {
    const base::MutexLock lock(mu_);
    if (state_ != State::kFailed) state_ = State::kDraining;
  }

  void fail(const absl::Status& why) {
    const base::MutexLock lock(mu_);
    if (state_ == State::kFailed) return;
    state_ = State::kFailed;
    why_ = message_of(why);
  }

  void detach() {
    const base::MutexLock lock(mu_);
    loop_ = nullptr;
    if (state_ == State::kServing) state_ = State::kDraining;
    while (num_users_ > 0) unused_.wait(mu_);
  }

  State state() const {
    const base::MutexLock lock(mu_);
    return current_state();
  }

  std::shared_ptr<const Limits> limits() const {
    const base::MutexLock lock(mu_);
    return limits_;
  }

  std::optional<scheduler::SchedulerStats> load() {
    const LoopUse use(*this);
    if (use.loop() == nullptr) return std::nullopt;
    return use.loop()->stats();
  }

  std::shared_ptr<const TextModel> text() const {
    const base::MutexLock lock(mu_);
    return text_;
  }

  absl::StatusOr<Accepted> submit(const GenerateRequest& request,
                                  std::shared_ptr<scheduler::OutputSink> sink) {
    R1D_RETURN_IF_ERROR(check_serving());
    const RequestId id = next_id_.fetch_add(1, std::memory_order_relaxed);
    const auto current = limits();
    const auto text_model = text();
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kPrepare));
    R1D_ASSIGN_OR_RETURN(PreparedText prepared, prepare_text(request, *current, text_model.get()));
    R1D_ASSIGN_OR_RETURN(scheduler::Request checked,
                         validate(request, *current, base::random_bits(seed_, id), prepared));
    checked.id = id;
    checked.arrival = clock_.now();
    checked.sink = std::move(sink);
    if (checked.deadline.has_value() && *checked.deadline <= checked.arrival) {
      return deadline_exceeded("the deadline had passed when the request arrived");
    }
    checked.trace_id = request.trace_id;
    base::log_event(*log_,
                    base::LogLevel::debug,
                    "request is valid",
                    {{"request", id},
                     {"input_length", checked.prompt.size()},
                     {"n", checked.n},
                     {"max_tokens", checked.sampling.max_tokens},
                     {"priority", checked.priority}},
                    request.trace_id);
    Accepted accepted{.id = id,
                      .num_prompt_tokens = static_cast<int32_t>(checked.prompt.size()),
                      .reader = std::make_unique<OutputReader>(
                          text_model, std::move(prepared.output), checked.n)};
    R1D_RETURN_IF_ERROR(hand_to_loop(std::move(checked)));
    return accepted;
  }

  void finish(RequestId id, int32_t index) {
    const LoopUse use(*this);
    if (use.loop() != nullptr) use.loop()->finish(id, index);
  }

  absl::StatusOr<TextModel::Prompt> tokenize(const GenerateRequest& request, bool plain) const {
    R1D_RETURN_IF_ERROR(check_loaded());
    const auto text_model = text();
    if (text_model == nullptr) return failed_precondition("this model has no tokenizer.json");
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kPrepare));
    if (request.prompt_text) return encode_text(*request.prompt_text, plain, *text_model);
    R1D_ASSIGN_OR_RETURN(PreparedText prepared, prepare_text(request, *limits(), text_model.get()));
    if (!prepared.prompt) return field_error("input", "is missing; give text or chat");
    return *std::move(prepared.prompt);
  }

  absl::StatusOr<std::string> detokenize(const std::vector<TokenId>& ids, bool skip_special) const {
    R1D_RETURN_IF_ERROR(check_loaded());
    const auto text_model = text();
    if (text_model == nullptr) return failed_precondition("this model has no tokenizer.json");
    const auto current = limits();
    if (ids.size() > static_cast<size_t>(current->max_model_len)) {
      return field_error(
          "token_ids",
          fmt::format(
              "has {} entries; at most {} are allowed", ids.size(), current->max_model_len));
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= 0 && ids[i] <= current->last_token_id) continue;
      return field_error(
          fmt::format("token_ids[{}]", i),
          fmt::format("must be a token id in [0, {}], is {}", current->last_token_id, ids[i]));
    }
    return text_model->tokenizer().decode(ids, skip_special);
  }

  void cancel(RequestId id, const absl::Status& why) {
    const LoopUse use(*this);
    if (use.loop() == nullptr) return;
    const auto reason = why.code() == absl::StatusCode::kDeadlineExceeded
                            ? scheduler::FinishReason::kDeadline
                            : scheduler::FinishReason::kCancelled;
    use.loop()->cancel(id, reason, why);
  }

 private:
  // Keeps the loop for the length of a call; null when there is none.
  class LoopUse {
   public:
    explicit LoopUse(Impl& impl) : impl_(impl) {
      const base::MutexLock lock(impl_.mu_);
      loop_ = impl_.loop_;
      ++impl_.num_users_;
    }
    ~LoopUse() {
      const base::MutexLock lock(impl_.mu_);
      if (--impl_.num_users_ == 0) impl_.unused_.notify_all();
    }
    LoopUse(const LoopUse&) = delete;
    LoopUse& operator=(const LoopUse&) = delete;
    [[nodiscard]] scheduler::StepLoop* loop() const { return loop_; }

   private:
    Impl& impl_;
    scheduler::StepLoop* loop_ = nullptr;
  };

  [[nodiscard]] State current_state() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return state_ == State::kServing && stalled_ ? State::kStalled : state_;
  }

  absl::Status check_loaded() const {
    if (limits() != nullptr) return absl::OkStatus();
    return with_retry_after(unavailable("the model is still loading"), kRetryWhenLoading);
  }

  absl::Status check_serving() const {
    const base::MutexLock lock(mu_);
    switch (current_state()) {
      case State::kServing:
        return absl::OkStatus();
      case State::kStalled:
        return with_retry_after(
            unavailable("the engine stands still or recovers; try another server"),
            kRetryWhenStalled);
      case State::kLoading:
        return with_retry_after(unavailable("the model is still loading"), kRetryWhenLoading);
      case State::kDraining:
        return with_retry_after(unavailable("the server is draining and takes no new requests"),
                                kRetryWhenDraining);
      case State::kFailed:
        return unavailable("the engine was lost: {}", why_);
    }
    return internal_error("unknown state");
  }

  absl::Status hand_to_loop(scheduler::Request request) {
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kSubmit));
    const LoopUse use(*this);
    absl::Status status = use.loop() != nullptr
                              ? use.loop()->submit(std::move(request))
                              : unavailable("the server is draining and takes no new requests");
    if (absl::IsResourceExhausted(status)) return with_retry_after(status, kRetryWhenFull);
    if (absl::IsUnavailable(status)) return with_retry_after(status, kRetryWhenDraining);
    return status;
  }

  const Clock& clock_;
  const std::shared_ptr<spdlog::logger> log_ = base::make_logger("admission");
  const uint64_t seed_ = seed_from_device();
  std::atomic<RequestId> next_id_{1};

  mutable base::Mutex mu_;
  base::CondVar unused_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kLoading;
  bool stalled_ ABSL_GUARDED_BY(mu_) = false;
  std::string why_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const Limits> limits_ ABSL_GUARDED_BY(mu_);   // set once, by attach()
  std::shared_ptr<const TextModel> text_ ABSL_GUARDED_BY(mu_);  // set once, by attach()
  scheduler::StepLoop* loop_ ABSL_GUARDED_BY(mu_) = nullptr;
  int32_t num_users_ ABSL_GUARDED_BY(mu_) = 0;
};

Frontend::Frontend(const Clock& clock) : impl_(std::make_unique<Impl>(clock)) {}
Frontend::~Frontend() = default;

void Frontend::attach(const Limits& limits,
                      std::shared_ptr<const TextModel> text,
                      scheduler::StepLoop& loop) {
  impl_->attach(limits, std::move(text), loop);
}
void Frontend::set_stalled(bool stalled) {
  impl_->set_stalled(stalled);
}
void Frontend::begin_drain() {
  impl_->begin_drain();
}
void Frontend::fail(const absl::Status& why) {
  impl_->fail(why);
}
void Frontend::detach() {
  impl_->detach();
}
Frontend::State Frontend::state() const {
  return impl_->state();
}
std::shared_ptr<const Limits> Frontend::limits() const {
  return impl_->limits();
}
std::optional<scheduler::SchedulerStats> Frontend::load() const {
  return impl_->load();
}

std::shared_ptr<const TextModel> Frontend::text() const {
  return impl_->text();
}

absl::StatusOr<Accepted> Frontend::submit(const GenerateRequest& request,
                                          std::shared_ptr<scheduler::OutputSink> sink) {
  return impl_->submit(request, std::move(sink));
}

void Frontend::cancel(RequestId id, const absl::Status& why) {
  impl_->cancel(id, why);
}

void Frontend::finish(RequestId id, int32_t index) {
  impl_->finish(id, index);
}

absl::StatusOr<TextModel::Prompt> Frontend::tokenize(const GenerateRequest& request,
                                                     bool plain) const {
  return impl_->tokenize(request, plain);
}

absl::StatusOr<std::string> Frontend::detokenize(const std::vector<TokenId>& ids,
                                                 bool skip_special) const {
  return impl_->detokenize(ids, skip_special);
}

}  // namespace r1d::admission
