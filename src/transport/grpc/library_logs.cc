// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/library_logs.h"

#include <string>
#include <string_view>

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include "r1d/base/log.h"

namespace r1d::transport {
namespace {

// What a library calls an error is mostly a client's; none of them stops the daemon. The text may
// quote bytes of a client, so it stays out of what is logged by default.
void log_from(
    const char* library, bool is_error, const char* file, int line, std::string_view message) {
  const auto log = base::make_logger(library);
  std::string_view name = file;
  name.remove_prefix(name.rfind('/') + 1);  // npos + 1 is 0
  if (is_error) {
    base::log_event(*log,
                    base::LogLevel::warn,
                    "the library reports an error; log level debug shows its text",
                    {{"file", name}, {"line", line}});
  }
  base::log_event(*log, base::LogLevel::debug, message, {{"file", name}, {"line", line}});
}

void on_grpc_log(gpr_log_func_args* args) {
  const bool is_error = args->severity == GPR_LOG_SEVERITY_ERROR;
  log_from("grpc", is_error, args->file, args->line, args->message);
}

void on_protobuf_log(google::protobuf::LogLevel level,
                     const char* file,
                     int line,
                     const std::string& message) {
  log_from("protobuf", level >= google::protobuf::LOGLEVEL_ERROR, file, line, message);
}

}  // namespace

void route_library_logs() {
  static const bool routed = [] {
    gpr_set_log_function(on_grpc_log);
    google::protobuf::SetLogHandler(on_protobuf_log);
    return true;
  }();
  static_cast<void>(routed);
}

}  // namespace r1d::transport
