// SPDX-License-Identifier: Apache-2.0
// `r1d chat`: a conversation with a running daemon, or with one run for a model directory.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"
#include "r1d/v1/inference.grpc.pb.h"

#include "cli/commands.h"
#include "cli/local_daemon.h"
#include "cli/terminal.h"

namespace r1d::cli {
namespace {

// The call under way, which Ctrl-C cancels. Thread-safe.
class Interruptible {
 public:
  void set(grpc::ClientContext* call) {
    const base::MutexLock lock(mu_);
    call_ = call;
  }
  void cancel() {
    const base::MutexLock lock(mu_);
    if (call_ != nullptr) call_->TryCancel();
  }

 private:
  base::Mutex mu_;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mu_) = nullptr;
};

std::string summary(const v1::Finish& finish) {
  const v1::Usage& usage = finish.usage();
  const double decode =
      finish.timings().total_seconds() - finish.timings().time_to_first_token_seconds();
  std::string text = fmt::format("[{} tokens", usage.output_tokens());
  if (usage.reasoning_tokens() > 0)
    text += fmt::format(", {} of them thought", usage.reasoning_tokens());
  if (usage.output_tokens() > 1 && decode > 0) {
    text += fmt::format(", {:.1f} tokens/s", (usage.output_tokens() - 1) / decode);
  }
  if (finish.reason() == v1::FINISH_REASON_LENGTH) text += ", cut at the limit";
  return text + "]";
}

class Conversation {
 public:
  Conversation(const ChatOptions& options, const std::string& address)
      : address_(address),
        terminal_([this] { under_way_.cancel(); }),
        stub_(v1::InferenceService::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    if (!options.system.empty()) add("system", options.system);
    if (options.temperature) request_.mutable_sampling()->set_temperature(*options.temperature);
    if (options.max_tokens) request_.mutable_sampling()->set_max_tokens(*options.max_tokens);
    if (options.thinking_budget) request_.set_thinking_budget(*options.thinking_budget);
  }

  absl::Status run() {
    terminal_.remark("Ctrl-C stops an answer, Ctrl-D ends.");
    while (const std::optional<std::string> line = terminal_.read_line("> ")) {
      if (line->empty()) continue;
      if (find_invalid_utf8(*line)) {
        terminal_.remark("[that line is not UTF-8 and was not sent]");
        continue;
      }
      add("user", *line);
      const absl::Status answered = answer();
      if (absl::IsCancelled(answered)) {
        terminal_.write("\n");
        terminal_.remark("[stopped]");
      } else if (!answered.ok()) {
        return answered;
      }
    }
    return absl::OkStatus();
  }

 private:
  void add(const std::string& role, const std::string& content) {
    v1::Message& message = *request_.add_messages();
    message.set_role(role);
    message.set_content(content);
  }

  // What came of an answer stays in the conversation, also when it was stopped.
  absl::Status answer() {
    grpc::ClientContext context;
    under_way_.set(&context);
    const auto stream = stub_->Chat(&context, request_);
    v1::ChatResponse part;
    std::string content;
    while (stream->Read(&part)) {
      if (!part.reasoning().empty()) terminal_.write_thought(part.reasoning());
      if (!part.content().empty()) terminal_.write(part.content());
      content += part.content();
      if (part.has_finish()) terminal_.write("\n");
      if (part.has_finish()) terminal_.remark(summary(part.finish()));
    }
    const grpc::Status status = stream->Finish();
    under_way_.set(nullptr);
    add("assistant", content);
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        fmt::format("{}: {}", address_, status.error_message()));
  }

  const std::string address_;
  Interruptible under_way_;
  Terminal terminal_;  // before gRPC starts threads
  const std::unique_ptr<v1::InferenceService::Stub> stub_;
  v1::ChatRequest request_;
};

}  // namespace

absl::Status chat(const ChatOptions& options) {
  if (options.model.empty()) return Conversation(options, options.address).run();
  R1D_ASSIGN_OR_RETURN(const LocalDaemon daemon, LocalDaemon::start(options.model));
  return Conversation(options, daemon.address()).run();
}

}  // namespace r1d::cli
