// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/call.h"

#include <string>
#include <utility>

#include <grpcpp/client_context.h>
#include <grpcpp/support/async_stream.h>
#include <grpcpp/support/async_unary_call.h>

#include "r1d/base/status.h"

namespace r1d::cli::bench {
namespace {

using Stub = v1::InferenceService::Stub;
using grpc::CompletionQueue;

// The stub's calls and answers by the kind of request.
template <typename Request>
struct Api;

template <>
struct Api<v1::GenerateRequest> {
  using Part = v1::GenerateResponse;
  using Whole = v1::GenerateOnceResponse;
  static auto stream(Stub& stub,
                     grpc::ClientContext& context,
                     const v1::GenerateRequest& request,
                     CompletionQueue& queue) {
    return stub.PrepareAsyncGenerate(&context, request, &queue);
  }
  static auto once(Stub& stub,
                   grpc::ClientContext& context,
                   const v1::GenerateRequest& request,
                   CompletionQueue& queue) {
    return stub.AsyncGenerateOnce(&context, request, &queue);
  }
};

template <>
struct Api<v1::ChatRequest> {
  using Part = v1::ChatResponse;
  using Whole = v1::ChatOnceResponse;
  static auto stream(Stub& stub,
                     grpc::ClientContext& context,
                     const v1::ChatRequest& request,
                     CompletionQueue& queue) {
    return stub.PrepareAsyncChat(&context, request, &queue);
  }
  static auto once(Stub& stub,
                   grpc::ClientContext& context,
                   const v1::ChatRequest& request,
                   CompletionQueue& queue) {
    return stub.AsyncChatOnce(&context, request, &queue);
  }
};

// What both kinds share: context, status and the record's ends.
class TimedCall : public Call {
 public:
  void cancel() override { context_.TryCancel(); }

 protected:
  void begin(double timeout_seconds, TimePoint zero) {
    zero_ = zero;
    record.sent = now();
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(
                              std::chrono::duration<double>(timeout_seconds)));
  }
  [[nodiscard]] double now() const {
    return seconds_between(zero_, std::chrono::steady_clock::now());
  }
  void note_usage(const v1::Usage& usage) {
    record.num_input_tokens = usage.prompt_tokens();
    record.num_cached_tokens = usage.cached_tokens();
    record.num_output_tokens = usage.output_tokens();
  }
  void end() {
    record.end = now();
    record.code = absl::StatusCodeToString(static_cast<absl::StatusCode>(status_.error_code()));
  }

  grpc::ClientContext context_;
  grpc::Status status_;

 private:
  TimePoint zero_;
};

template <typename Request>
class StreamedCall final : public TimedCall {
 public:
  explicit StreamedCall(Request request) : request_(std::move(request)) {}

  void start(Stub& stub, CompletionQueue& queue, double timeout, TimePoint zero) override {
    begin(timeout, zero);
    reader_ = Api<Request>::stream(stub, context_, request_, queue);
    reader_->StartCall(this);  // last: its event may come before it returns
  }

  bool proceed(bool ok) override {
    num_new_tokens_ = 0;
    switch (state_) {
      case State::kOpening:
        state_ = State::kReading;
        break;
      case State::kReading:
        if (ok) take_message();
        break;
      case State::kEnding:
        end();
        return true;
    }
    if (ok) {
      reader_->Read(&response_, this);
    } else {
      state_ = State::kEnding;
      reader_->Finish(&status_, this);
    }
    return false;
  }

 private:
  enum class State : uint8_t { kOpening, kReading, kEnding };
  using Response = typename Api<Request>::Part;

  void take_message() {
    const double time = now();
    num_new_tokens_ = response_.token_ids_size();
    for (int32_t i = 0; i < num_new_tokens_; ++i) {
      if (record.last_token) record.gaps.push_back(static_cast<float>(time - *record.last_token));
      if (!record.first_token) record.first_token = time;
      record.last_token = time;
    }
    record.num_output_tokens += num_new_tokens_;
    if (!response_.has_finish()) return;
    note_usage(response_.finish().usage());
    record.queue = response_.finish().timings().queue_seconds();
  }

  const Request request_;
  Response response_;
  std::unique_ptr<grpc::ClientAsyncReader<Response>> reader_;
  State state_ = State::kOpening;
};

template <typename Request>
class OnceCall final : public TimedCall {
 public:
  explicit OnceCall(Request request) : request_(std::move(request)) {}

  void start(Stub& stub, CompletionQueue& queue, double timeout, TimePoint zero) override {
    begin(timeout, zero);
    reader_ = Api<Request>::once(stub, context_, request_, queue);
    reader_->Finish(&response_, &status_, this);
  }

  bool proceed(bool /*ok*/) override {
    end();
    if (!status_.ok()) return true;
    note_usage(response_.usage());
    num_new_tokens_ = record.num_output_tokens;
    if (response_.choices_size() > 0)
      record.queue = response_.choices(0).finish().timings().queue_seconds();
    return true;
  }

 private:
  using Response = typename Api<Request>::Whole;

  const Request request_;
  Response response_;
  std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> reader_;
};

}  // namespace

std::unique_ptr<Call> make_call(Ask ask, bool unary) {
  return std::visit(
      [unary](auto&& request) -> std::unique_ptr<Call> {
        using Request = std::decay_t<decltype(request)>;
        if (unary) return std::make_unique<OnceCall<Request>>(std::move(request));
        return std::make_unique<StreamedCall<Request>>(std::move(request));
      },
      std::move(ask));
}

}  // namespace r1d::cli::bench
