// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "r1d/base/file.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/errors.h"
#include "checkpoint/json.h"
#include "checkpoint/json_fields.h"
#include "checkpoint/token_ids.h"

namespace r1d::checkpoint {
namespace {

std::optional<double> optional_number(JsonFields& fields,
                                      const char* name,
                                      double min,
                                      double max) {
  if (fields.find(name) == nullptr) return std::nullopt;
  double value = 0;
  fields.number(name, value, min, max, Presence::kRequired);
  return value;
}

absl::StatusOr<GenerationDefaults> parse_defaults(std::string_view text) {
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  R1D_ASSIGN_OR_RETURN(const Json json, parse_json(text, kConfigJson));
  if (!json.is_object()) return invalid_argument("expected an object, found {}", describe(json));
  JsonFields fields(json);
  GenerationDefaults defaults;
  defaults.temperature = optional_number(fields, "temperature", 0, 100);
  bool do_sample = true;
  fields.boolean("do_sample", do_sample, Presence::kOptional);
  if (!do_sample) defaults.temperature = 0;  // greedy, whatever the temperature
  defaults.top_p = optional_number(fields, "top_p", 1e-6, 1);
  if (fields.find("top_k") != nullptr) {
    fields.integer("top_k", defaults.top_k.emplace(0), 0, kMaxInt, Presence::kRequired);
  }
  read_token_ids(fields, "eos_token_id", kMaxInt, defaults.eos_token_ids);
  R1D_RETURN_IF_ERROR(fields.status());
  return defaults;
}

}  // namespace

absl::StatusOr<GenerationDefaults> load_generation_defaults(const std::string& dir) {
  const std::string path = dir + "/generation_config.json";
  const absl::StatusOr<std::string> text = read_text_file(path, kConfigJson.max_bytes);
  if (absl::IsNotFound(text.status())) return GenerationDefaults{};
  if (!text.ok()) return with_context(text.status(), path);
  absl::StatusOr<GenerationDefaults> defaults = parse_defaults(*text);
  if (!defaults.ok()) return with_context(defaults.status(), path);
  return defaults;
}

}  // namespace r1d::checkpoint
