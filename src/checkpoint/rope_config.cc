// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/rope_config.h"

#include <string>

#include "r1d/base/status.h"

#include "checkpoint/errors.h"

namespace r1d::checkpoint {
namespace {

using enum Presence;

constexpr double kMinTheta = 1.0001;  // ln(theta) divides
constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e4;
constexpr double kMaxBeta = 1e6;
constexpr double kMaxMscale = 100;

// "type", or "rope_type" in newer files.
std::string rope_type(JsonFields& rope) {
  std::string type;
  std::string newer;
  rope.text("type", type, kOptional);
  rope.text("rope_type", newer, kOptional);
  if (!type.empty() && !newer.empty() && type != newer) {
    rope.fail_expected("rope_type", "the same as type");
  }
  return newer.empty() ? type : newer;
}

std::optional<YarnConfig> read_yarn(JsonFields& rope, const char* name) {
  const std::string type = rope_type(rope);
  if (type == "default") return std::nullopt;
  if (type != "yarn") {
    rope.fail(invalid_argument(
        "{}: type \"{}\" is not supported, only \"yarn\" and \"default\"", name, printable(type)));
    return std::nullopt;
  }
  YarnConfig yarn;
  rope.number("factor", yarn.factor, 1, kMaxFactor, kRequired);
  rope.integer("original_max_position_embeddings",
               yarn.original_max_position_embeddings,
               1,
               1 << 30,
               kRequired);
  rope.number("beta_fast", yarn.beta_fast, 1e-6, kMaxBeta, kOptional);
  rope.number("beta_slow", yarn.beta_slow, 1e-6, kMaxBeta, kOptional);
  rope.number("mscale", yarn.mscale, 0, kMaxMscale, kOptional);
  rope.number("mscale_all_dim", yarn.mscale_all_dim, 0, kMaxMscale, kOptional);
  if (yarn.beta_slow > yarn.beta_fast) {
    rope.fail(invalid_argument(
        "{}.beta_slow: {} is more than beta_fast {}", name, yarn.beta_slow, yarn.beta_fast));
  }
  // Options of the generic YaRN that DeepSeek's variant does not have.
  rope.only("attention_factor", nullptr);
  rope.only("truncate", true);
  rope.only("partial_rotary_factor", 1.0);
  return yarn;
}

bool same(const std::optional<YarnConfig>& a, const std::optional<YarnConfig>& b) {
  if (!a || !b) return a.has_value() == b.has_value();
  return a->factor == b->factor &&
         a->original_max_position_embeddings == b->original_max_position_embeddings &&
         a->beta_fast == b->beta_fast && a->beta_slow == b->beta_slow && a->mscale == b->mscale &&
         a->mscale_all_dim == b->mscale_all_dim;
}

void read_rope_parameters(JsonFields& fields, const Json& object, ModelConfig& config) {
  JsonFields rope(object, "rope_parameters.");
  double theta = config.rope_theta;
  rope.number("rope_theta", theta, kMinTheta, kMaxTheta, kOptional);
  if (fields.find("rope_theta") != nullptr && theta != config.rope_theta) {
    rope.fail_expected("rope_theta", "the same as rope_theta");
  }
  config.rope_theta = theta;
  const std::optional<YarnConfig> yarn = read_yarn(rope, "rope_parameters");
  fields.fail(rope.status());
  if (fields.find("rope_scaling") != nullptr && !same(yarn, config.yarn)) {
    fields.fail(invalid_argument("rope_parameters: expected the same scaling as rope_scaling"));
  }
  config.yarn = yarn;
}

}  // namespace

void read_rope(JsonFields& fields, ModelConfig& config) {
  fields.boolean("rope_interleave", config.rope_interleave, kOptional);
  fields.number("rope_theta", config.rope_theta, kMinTheta, kMaxTheta, kOptional);
  if (const Json* scaling = fields.find_object("rope_scaling")) {
    JsonFields rope(*scaling, "rope_scaling.");
    config.yarn = read_yarn(rope, "rope_scaling");
    fields.fail(rope.status());
  }
  if (const Json* parameters = fields.find_object("rope_parameters")) {
    read_rope_parameters(fields, *parameters, config);
  }
}

}  // namespace r1d::checkpoint
