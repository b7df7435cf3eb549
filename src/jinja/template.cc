// SPDX-License-Identifier: Apache-2.0
#include "r1d/jinja/template.h"

#include <utility>

#include "r1d/base/status.h"

#include "jinja/evaluator.h"
#include "jinja/json_reader.h"
#include "jinja/parser.h"

namespace r1d::jinja {
namespace {

absl::Status define_all(const Json& variables, JsonReader reader, Evaluator& evaluator) {
  if (!variables.is_object()) return invalid_argument("the variables are no JSON object");
  for (const auto& [name, json] : variables.items()) {
    R1D_ASSIGN_OR_RETURN(Value value, reader.read(name, json));
    evaluator.define(name, std::move(value));
  }
  return absl::OkStatus();
}

}  // namespace

struct Template::Program {
  Limits limits;
  ParsedTemplate parsed;
};

Template::Template(std::unique_ptr<const Program> program) : program_(std::move(program)) {}
Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

absl::StatusOr<Template> Template::parse(std::string_view source, const Limits& limits) {
  R1D_ASSIGN_OR_RETURN(ParsedTemplate parsed, parse_template(source, limits));
  return Template(std::make_unique<const Program>(Program{limits, std::move(parsed)}));
}

absl::StatusOr<std::vector<Segment>> Template::render(const Inputs& inputs) const {
  Meter meter(program_->limits);
  Evaluator evaluator(meter, inputs.now);
  // Trusted variables second: they replace data of the same name.
  R1D_RETURN_IF_ERROR(define_all(inputs.data, JsonReader(meter, false, &inputs.marked), evaluator));
  R1D_RETURN_IF_ERROR(define_all(inputs.trusted, JsonReader(meter, true, nullptr), evaluator));
  R1D_RETURN_IF_ERROR(evaluator.run(program_->parsed.body));
  return std::move(evaluator).take_output().segments();
}

bool Template::reads(std::string_view name) const {
  return program_->parsed.names_read.contains(name);
}

std::string joined(const std::vector<Segment>& segments) {
  std::string text;
  for (const Segment& segment : segments) text += segment.text;
  return text;
}

}  // namespace r1d::jinja
