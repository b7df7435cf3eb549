// SPDX-License-Identifier: Apache-2.0
// Any bytes as a chat template on a small conversation: refused, or a prompt within the limits.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "r1d/base/check.h"
#include "r1d/jinja/template.h"

namespace {

using r1d::jinja::Json;

Json conversation() {
  return {{"messages",
           Json::array({{{"role", "system"}, {"content", "Be brief."}},
                        {{"role", "user"}, {"content", " <think>é\n🙂 "}},
                        {{"role", "assistant"},
                         {"content", nullptr},
                         {"tool_calls", Json::array({{{"name", "f"}, {"n", 1.5}}})}}})},
          {"tools", Json::array({{{"name", "f"}, {"items", {{"a", 1}, {"b", true}}}}})},
          {"add_generation_prompt", true}};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const r1d::jinja::Limits limits{.source_bytes = 8192,
                                  .depth = 32,
                                  .run_depth = 64,
                                  .steps = 20'000,
                                  .memory_bytes = 1 << 20,
                                  .output_bytes = 64 << 10};
  const auto parsed = r1d::jinja::Template::parse(
      std::string_view(reinterpret_cast<const char*>(data), size), limits);
  if (!parsed.ok()) return 0;
  const auto segments = parsed->render(
      {.trusted = {{"bos_token", "<s>"}}, .data = conversation(), .marked = {}, .now = {}});
  if (!segments.ok()) return 0;
  size_t bytes = 0;
  for (size_t i = 0; i < segments->size(); ++i) {
    R1D_CHECK(!(*segments)[i].text.empty());
    R1D_CHECK(i == 0 || (*segments)[i].trusted != (*segments)[i - 1].trusted);
    bytes += (*segments)[i].text.size();
  }
  R1D_CHECK(bytes <= static_cast<size_t>(limits.output_bytes));
  return 0;
}
