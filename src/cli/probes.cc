// SPDX-License-Identifier: Apache-2.0
#include "cli/probes.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "r1d/base/version.h"

namespace r1d::cli {

using transport::HttpReply;

namespace {

HttpReply ok() {
  return {.body = "ok\n"};
}

HttpReply no(const std::string& why) {
  return {.status = 503, .body = why + "\n"};
}

}  // namespace

transport::ManagementRoutes Probes::routes() const {
  transport::ManagementRoutes routes{{"/metrics", [this] { return metrics(); }},
                                     {"/livez", [this] { return liveness(); }},
                                     {"/readyz", [this] { return readiness(); }},
                                     {"/startupz", [this] { return startup(); }},
                                     {"/version", [] { return version(); }},
                                     // The names that other servers' tools ask for.
                                     {"/health", [this] { return readiness(); }},
                                     {"/healthz", [this] { return readiness(); }}};
  for (const std::string name : {"livez", "readyz", "startupz", "healthz"}) {
    for (const auto& [path, handler] : routes) {
      if (path != "/" + name) continue;
      routes.emplace_back(path + "?verbose",
                          [this, name, plain = handler] { return verbose(name, plain()); });
      break;
    }
  }
  return routes;
}

HttpReply Probes::metrics() const {
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = registry_.render()};
}

// Loading never fails liveness: a restart would only begin it again.
HttpReply Probes::liveness() const {
  switch (frontend_.state()) {
    case State::kStalled:
      return no("no step moves");
    case State::kFailed:
      return no("the engine was lost");
    default:
      return ok();
  }
}

HttpReply Probes::readiness() const {
  switch (frontend_.state()) {
    case State::kServing:
      return ok();
    case State::kLoading:
      return no("loading");
    case State::kStalled:
      return no("no step moves");
    case State::kDraining:
      return no("draining");
    case State::kFailed:
      break;
  }
  return no("the engine was lost");
}

HttpReply Probes::startup() const {
  if (frontend_.state() != State::kLoading) return ok();
  return no(fmt::format("loading {:.1f} %", load_fraction_.load() * 100));
}

// As Kubernetes writes it: a line for each check, then the verdict.
HttpReply Probes::verbose(const std::string& probe, const HttpReply& verdict) const {
  const State state = frontend_.state();
  const auto line = [](bool good, const std::string& check, const std::string& text) {
    return fmt::format("[{}]{} {}\n", good ? '+' : '-', check, text);
  };
  const bool loaded = state != State::kLoading;
  const bool moves = state != State::kStalled && state != State::kFailed;
  HttpReply reply;
  reply.status = verdict.status;
  reply.body =
      line(loaded,
           "model",
           loaded ? "ok" : fmt::format("loading {:.1f} %", load_fraction_.load() * 100)) +
      line(moves,
           "engine",
           moves                      ? "ok"
           : state == State::kStalled ? "no step moves"
                                      : "lost") +
      line(state != State::kDraining, "intake", state != State::kDraining ? "ok" : "draining");
  if (const auto load = frontend_.load(); load.has_value()) {
    reply.body += fmt::format("[i]load running {}, waiting {}, KV blocks {} of {}\n",
                              load->num_running,
                              load->num_waiting,
                              load->num_blocks_used,
                              load->num_blocks);
  }
  reply.body += fmt::format("{} check {}\n", probe, verdict.status == 200 ? "passed" : "failed");
  return reply;
}

HttpReply Probes::version() {
  const nlohmann::json body{{"name", "r1d"}, {"version", base::version()}};
  return {.content_type = "application/json", .body = body.dump() + "\n"};
}

}  // namespace r1d::cli
