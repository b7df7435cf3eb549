// SPDX-License-Identifier: Apache-2.0
// The two forms in which `r1d plan` prints.
#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "r1d/base/bytes.h"
#include "r1d/base/two_columns.h"

#include "cli/plan.h"
#include "cli/setup.h"

namespace r1d::cli {
namespace {

using engine::MemoryPart;

const char* split_name(checkpoint::ExpertSplit split) {
  return split == checkpoint::ExpertSplit::kTensor ? "slices of all experts" : "whole experts";
}

std::string spaced(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

void add_subject(const PlanReport& report, TwoColumns& page) {
  const engine::EngineOptions& options = report.options;
  page.line("model",
            "{}: {:.2f} B parameters, {} ({})",
            report.model,
            static_cast<double>(report.parameters) / 1e9,
            report.fp8 ? "FP8" : "bf16 or f32",
            report.source);
  if (report.target.device == engine::Device::kCpu) {
    page.line("device", "cpu: {} to spare", readable_bytes(report.target.memory_bytes));
  } else {
    page.line("device",
              "{}: {} ({:.1f} GiB), sm_{}",
              report.target.name,
              readable_bytes(report.target.memory_bytes),
              static_cast<double>(report.target.memory_bytes) / 0x1p30,
              report.target.gpu.compute_capability);
  }
  page.line("ranks", "{}, {}", options.world_size, split_name(options.expert_split));
  page.line("a step",
            "{} tokens and {} sequences at most",
            readable_count(options.max_num_batched_tokens),
            readable_count(options.max_batch_size));
}

void add_memory(const PlanReport& report, TwoColumns& page) {
  const engine::MemoryPlan& plan = report.plan;
  page.heading("memory of a rank");
  for (size_t i = 0; i < engine::kMemoryParts; ++i) {
    const auto part = static_cast<MemoryPart>(i);
    if (part == MemoryPart::kLatentCache) {
      page.line("  all weights", "{:>10}", readable_bytes(plan.weights()));
    }
    if (plan.parts[i] == 0) continue;
    page.line("  " + spaced(memory_part_name(part)), "{:>10}", readable_bytes(plan.parts[i]));
  }
  page.line(
      "  sum", "{:>10}  of {}", readable_bytes(plan.total()), readable_bytes(plan.memory_bytes));
}

int64_t full_sequences(const PlanReport& report) {
  const int64_t block = report.options.block_size;
  const int64_t blocks = (report.plan.cache.max_model_len + block - 1) / block;
  return report.plan.cache.num_blocks / std::max<int64_t>(blocks, 1);
}

int64_t cache_tokens(const PlanReport& report) {
  return int64_t{report.plan.cache.num_blocks} * report.options.block_size;
}

void add_cache(const PlanReport& report, TwoColumns& page) {
  const engine::CachePlan& cache = report.plan.cache;
  page.heading("KV cache, the same on every rank");
  page.line("  a token",
            "{} bytes in {}",
            readable_count(cache.bytes_per_token),
            cache_dtype_name(report.options.kv_cache_dtype));
  page.line("  holds",
            "{} blocks of {}: {} tokens",
            readable_count(cache.num_blocks),
            report.options.block_size,
            readable_count(cache_tokens(report)));
  page.line("  full sequences",
            "{} of {} tokens",
            readable_count(full_sequences(report)),
            readable_count(cache.max_model_len));
}

void add_splits(const PlanReport& report, TwoColumns& page) {
  if (report.splits.size() < 2) return;
  page.heading("weights of a rank, by how experts are divided");
  for (const SplitFloors& split : report.splits) {
    page.line(fmt::format("  {:<22}", split_name(split.split)),
              "{}",
              split.refused.empty() ? readable_bytes(split.weight_bytes) : split.refused);
  }
}

void add_floors(const PlanReport& report, TwoColumns& page) {
  if (!report.gpu) return;
  const engine::Rates& rates = report.rates;
  page.heading(fmt::format(
      "floors at {:.2f} TB/s, {:.0f} TFLOPS bf16, {:.0f} FP8, all-reduces {:.1f} us + {:.0f} GB/s",
      rates.memory / 1e12,
      rates.bf16 / 1e12,
      rates.fp8 / 1e12,
      rates.all_reduce * 1e6,
      rates.link / 1e9));
  page.line(fmt::format("  {:<22}", "decode, ms"),
            "{:>9}{:>9}{:>9}{:>9}   batch, {} tokens each",
            kPlanBatches[0],
            kPlanBatches[1],
            kPlanBatches[2],
            kPlanBatches[3],
            readable_count(report.context));
  for (const SplitFloors& split : report.splits) {
    if (!split.refused.empty()) continue;
    std::string times;
    std::string shares;
    std::string active;
    for (const engine::StepFloor& floor : split.decode) {
      times += fmt::format("{:>9.2f}", floor.seconds() * 1e3);
      shares += fmt::format("{:>9.2f}", floor.collective_seconds * 1e3);
      active += fmt::format("{:>9.1f}", floor.active_experts);
    }
    page.line(fmt::format("  {:<22}", split_name(split.split)), "{}", times);
    if (report.options.world_size > 1) {
      page.line(fmt::format("    {:<20}", "of it all-reduces"), "{}", shares);
    }
    page.line(fmt::format("    {:<20}", "experts read"), "{}   a layer, fullest rank", active);
  }
  page.line(fmt::format("  {:<22}", "prefill, tokens/s"),
            "steps of {} tokens of one prompt",
            readable_count(report.prefill_tokens));
  for (const SplitFloors& split : report.splits) {
    if (!split.refused.empty()) continue;
    page.line(fmt::format("  {:<22}", split_name(split.split)),
              "{:>9.0f}",
              static_cast<double>(report.prefill_tokens) / split.prefill.seconds());
  }
}

nlohmann::ordered_json json_of(const PlanReport& report, const SplitFloors& split) {
  nlohmann::ordered_json json;
  json["experts"] =
      split.split == checkpoint::ExpertSplit::kTensor ? "tensor_parallel" : "expert_parallel";
  if (!split.refused.empty()) {
    json["refused"] = split.refused;
    return json;
  }
  json["weight_bytes"] = split.weight_bytes;
  if (!report.gpu) return json;
  for (size_t i = 0; i < split.decode.size(); ++i) {
    json["decode"].push_back({{"batch", kPlanBatches[i]},
                              {"context", report.context},
                              {"step_seconds", split.decode[i].seconds()},
                              {"collective_seconds", split.decode[i].collective_seconds},
                              {"active_experts", split.decode[i].active_experts}});
  }
  const double seconds = split.prefill.seconds();
  json["prefill"] = {{"tokens", report.prefill_tokens},
                     {"step_seconds", seconds},
                     {"tokens_per_second", static_cast<double>(report.prefill_tokens) / seconds}};
  return json;
}

}  // namespace

std::string plan_text(const PlanReport& report) {
  TwoColumns page;
  add_subject(report, page);
  add_memory(report, page);
  add_cache(report, page);
  add_splits(report, page);
  add_floors(report, page);
  if (!report.notes.empty()) page.heading("notes");
  for (const std::string& note : report.notes) page.line("", "{}", note);
  return page.take();
}

std::string plan_json(const PlanReport& report) {
  nlohmann::ordered_json json;
  json["fits"] = true;
  json["model"] = report.model;
  json["parameters"] = report.parameters;
  json["device"] = {{"name", report.target.name},
                    {"memory_bytes", report.target.memory_bytes},
                    {"compute_capability", report.target.gpu.compute_capability}};
  if (report.target.device == engine::Device::kCpu) json["device"].erase("compute_capability");
  json["world_size"] = report.options.world_size;
  json["rank_memory_bytes"] = report.plan.memory_bytes;
  for (size_t i = 0; i < engine::kMemoryParts; ++i) {
    json["rank_bytes"][memory_part_name(static_cast<MemoryPart>(i))] = report.plan.parts[i];
  }
  json["rank_bytes"]["sum"] = report.plan.total();
  const engine::CachePlan& cache = report.plan.cache;
  json["kv_cache"] = {{"bytes_per_token", cache.bytes_per_token},
                      {"block_size", report.options.block_size},
                      {"num_blocks", cache.num_blocks},
                      {"tokens", cache_tokens(report)},
                      {"max_model_len", cache.max_model_len},
                      {"full_sequences", full_sequences(report)}};
  for (const SplitFloors& split : report.splits) json["splits"].push_back(json_of(report, split));
  json["notes"] = report.notes;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace r1d::cli
