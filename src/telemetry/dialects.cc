// SPDX-License-Identifier: Apache-2.0
#include "telemetry/dialects.h"

#include <algorithm>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "r1d/base/check.h"

#include "telemetry/buckets.h"

namespace r1d::telemetry {
namespace {

using prometheus::ClientMetric;
using prometheus::Labels;
using prometheus::MetricFamily;
using prometheus::MetricType;

// ---- vLLM: names, labels and buckets of its v1 engine, the deprecated names of the first two
// years included where dashboards still read them.

std::vector<View> vllm_gauges(const Labels& labels) {
  const std::vector<Labels> used{{{"state", "used"}}};
  return {
      {"vllm:num_requests_running",
       "Sequences that take part in steps: r1d_requests_running.",
       "r1d_requests_running",
       labels},
      {"vllm:num_requests_waiting",
       "Sequences that wait: r1d_requests_waiting.",
       "r1d_requests_waiting",
       labels},
      {"vllm:kv_cache_usage_perc",
       "Share of KV cache blocks that sequences hold, 0 to 1: r1d_kv_blocks used over all.",
       "r1d_kv_blocks",
       labels,
       used,
       true},
      {"vllm:gpu_cache_usage_perc",
       "The older name of vllm:kv_cache_usage_perc.",
       "r1d_kv_blocks",
       labels,
       used,
       true},
  };
}

View vllm_finished(Labels labels, const char* reason, std::vector<Labels> of) {
  labels.emplace("finished_reason", reason);
  return {
      "vllm:request_success_total",
      "Finished sequences by reason; abort: cancelled or past their deadline. r1d_finished_total.",
      "r1d_finished_total",
      std::move(labels),
      std::move(of)};
}

std::vector<View> vllm_counters(const Labels& labels) {
  Labels queue_full = labels;
  queue_full.emplace("reason", "max_num_queued_reqs");
  return {
      {"vllm:prompt_tokens_total",
       "Prompt tokens whose prefill is complete: r1d_tokens_total of kind prompt.",
       "r1d_tokens_total",
       labels,
       {{{"kind", "prompt"}}}},
      {"vllm:generation_tokens_total",
       "Output tokens: r1d_tokens_total of kind output.",
       "r1d_tokens_total",
       labels,
       {{{"kind", "output"}}}},
      vllm_finished(labels, "stop", {{{"reason", "stop"}}}),
      vllm_finished(labels, "length", {{{"reason", "length"}}}),
      vllm_finished(labels, "abort", {{{"reason", "cancelled"}}, {{"reason", "deadline"}}}),
      vllm_finished(labels, "error", {{{"reason", "error"}}}),
      {"vllm:num_preemptions_total",
       "Preemptions: r1d_preemptions_total.",
       "r1d_preemptions_total",
       labels},
      {"vllm:prefix_cache_queries_total",
       "Prompt tokens looked up in the prefix cache: r1d_prefix_cache_queries_total.",
       "r1d_prefix_cache_queries_total",
       labels},
      {"vllm:prefix_cache_hits_total",
       "Prompt tokens found in the prefix cache: r1d_prefix_cache_hits_total.",
       "r1d_prefix_cache_hits_total",
       labels},
      {"vllm:admission_rejections_total",
       "Requests refused at a full queue: r1d_requests_refused_total.",
       "r1d_requests_refused_total",
       queue_full},
  };
}

View histogram(
    const char* name, const char* help, const char* source, const Labels& labels, Buckets buckets) {
  return {name, help, source, labels, {}, false, std::move(buckets)};
}

std::vector<View> vllm_latencies(const Labels& labels) {
  const auto view = [&](const char* name, const char* help, const char* source, Buckets buckets) {
    return histogram(name, help, source, labels, std::move(buckets));
  };
  return {
      view("vllm:time_to_first_token_seconds",
           "TTFT: r1d_time_to_first_token_seconds.",
           "r1d_time_to_first_token_seconds",
           vllm_first_token_buckets()),
      view("vllm:inter_token_latency_seconds",
           "ITL: r1d_inter_token_latency_seconds.",
           "r1d_inter_token_latency_seconds",
           vllm_token_gap_buckets()),
      view("vllm:time_per_output_token_seconds",
           "The older name of vllm:inter_token_latency_seconds.",
           "r1d_inter_token_latency_seconds",
           vllm_token_gap_buckets()),
      view("vllm:request_time_per_output_token_seconds",
           "TPOT: r1d_time_per_output_token_seconds.",
           "r1d_time_per_output_token_seconds",
           vllm_token_gap_buckets()),
      view("vllm:e2e_request_latency_seconds",
           "Arrival to end: r1d_request_seconds.",
           "r1d_request_seconds",
           vllm_request_buckets()),
      view("vllm:request_queue_time_seconds",
           "Arrival to first step: r1d_queue_wait_seconds.",
           "r1d_queue_wait_seconds",
           vllm_request_buckets()),
      view("vllm:request_inference_time_seconds",
           "First step to last token: r1d_inference_seconds.",
           "r1d_inference_seconds",
           vllm_request_buckets()),
      view("vllm:request_prefill_time_seconds",
           "First step to first token: r1d_prefill_seconds.",
           "r1d_prefill_seconds",
           vllm_request_buckets()),
      view("vllm:request_decode_time_seconds",
           "First to last token: r1d_decode_seconds.",
           "r1d_decode_seconds",
           vllm_request_buckets()),
  };
}

std::vector<View> vllm_sizes(const Labels& labels) {
  const auto view = [&](const char* name, const char* help, const char* source) {
    return histogram(name, help, source, labels, {});
  };
  return {
      view("vllm:request_prompt_tokens",
           "Prompt tokens of a finished sequence: r1d_prompt_tokens.",
           "r1d_prompt_tokens"),
      view("vllm:request_generation_tokens",
           "Output tokens of a finished sequence: r1d_output_tokens.",
           "r1d_output_tokens"),
      view("vllm:request_max_num_generation_tokens",
           "Output tokens of a request's longest sequence: r1d_longest_output_tokens.",
           "r1d_longest_output_tokens"),
      view("vllm:request_params_max_tokens",
           "The most output tokens that requests ask for: r1d_request_max_tokens.",
           "r1d_request_max_tokens"),
      view("vllm:request_params_n",
           "Sequences that requests ask for: r1d_request_sequences.",
           "r1d_request_sequences"),
      histogram("vllm:iteration_tokens_total",
                "Tokens computed in a step: r1d_step_tokens.",
                "r1d_step_tokens",
                labels,
                vllm_step_token_buckets()),
  };
}

// Endpoint pickers compute the cache's size in tokens from these.
MetricFamily vllm_cache_config(const ModelLabels& model, Labels labels) {
  labels.insert(
      {{"block_size", fmt::to_string(model.block_size)},
       {"num_gpu_blocks", fmt::to_string(model.num_blocks)},
       {"kv_cache_size_tokens", fmt::to_string(int64_t{model.num_blocks} * model.block_size)},
       {"cache_dtype", model.cache_dtype},
       {"enable_prefix_caching", model.prefix_cache ? "True" : "False"}});
  MetricFamily family{"vllm:cache_config_info",
                      "Always 1; the labels describe the KV cache, whatever device holds it.",
                      MetricType::Gauge,
                      {}};
  ClientMetric& sample = family.metric.emplace_back();
  for (const auto& [name, value] : labels) sample.label.push_back({name, value});
  sample.gauge.value = 1;
  return family;
}

// ---- names that operators of DeepSeek deployments use

std::vector<View> deepseek(const ModelLabels& model) {
  std::vector<View> views{
      {"deepseek_inference_latency_seconds",
       "Arrival to the end of a sequence, by the dtype of the weights: r1d_request_seconds.",
       "r1d_request_seconds",
       {{"quantization", model.quantization}}},
      {"queue_wait_time",
       "Arrival to first step, in seconds: r1d_queue_wait_seconds.",
       "r1d_queue_wait_seconds",
       {}}};
  for (const std::string& device : model.devices) {
    views.push_back(
        {"deepseek_gpu_utilization",
         "Share of the last minute in which a step ran on the device, GPU or CPU, 0 to 1: "
         "r1d_engine_busy_ratio. All ranks take part in every step.",
         "r1d_engine_busy_ratio",
         {{"device", device}}});
  }
  return views;
}

// ---- from r1d's families to views of them

bool carries(const ClientMetric& sample, const Labels& labels) {
  return std::all_of(labels.begin(), labels.end(), [&](const auto& wanted) {
    return std::any_of(sample.label.begin(), sample.label.end(), [&](const auto& label) {
      return label.name == wanted.first && label.value == wanted.second;
    });
  });
}

bool counts(const ClientMetric& sample, const View& view) {
  return view.of.empty() || std::any_of(view.of.begin(), view.of.end(), [&](const Labels& labels) {
           return carries(sample, labels);
         });
}

double value_of(const View& view, const MetricFamily& source) {
  double value = 0;
  double all = 0;
  for (const ClientMetric& sample : source.metric) {
    const double here =
        source.type == MetricType::Gauge ? sample.gauge.value : sample.counter.value;
    all += here;
    if (counts(sample, view)) value += here;
  }
  if (!view.share) return value;
  return all > 0 ? value / all : 0;
}

// The bounds that `wanted` names, and +Inf, the last. Exact: counts are cumulative.
ClientMetric::Histogram cut(const ClientMetric::Histogram& histogram,
                            const std::vector<double>& wanted) {
  ClientMetric::Histogram result = histogram;
  result.bucket.clear();
  auto bucket = histogram.bucket.begin();
  for (const double bound : wanted) {
    bucket = std::find_if(bucket, histogram.bucket.end(), [bound](const auto& candidate) {
      return candidate.upper_bound == bound;
    });
    R1D_CHECK(bucket != histogram.bucket.end());
    result.bucket.push_back(*bucket);
  }
  result.bucket.push_back(histogram.bucket.back());
  return result;
}

ClientMetric sample_of(const View& view, const MetricFamily& source) {
  ClientMetric sample;
  for (const auto& [name, value] : view.labels) sample.label.push_back({name, value});
  switch (source.type) {
    case MetricType::Histogram: {
      const ClientMetric::Histogram& histogram = source.metric.front().histogram;
      sample.histogram = view.buckets.empty() ? histogram : cut(histogram, view.buckets);
      break;
    }
    case MetricType::Gauge:
      sample.gauge.value = value_of(view, source);
      break;
    default:
      sample.counter.value = value_of(view, source);
  }
  return sample;
}

void append(std::vector<View> more, std::vector<View>& views) {
  std::move(more.begin(), more.end(), std::back_inserter(views));
}

}  // namespace

Dialects::Dialects(const ModelLabels& model) {
  const Labels vllm{{"model_name", model.name}, {"engine", "0"}};
  append(vllm_gauges(vllm), views_);
  append(vllm_counters(vllm), views_);
  append(vllm_latencies(vllm), views_);
  append(vllm_sizes(vllm), views_);
  append(deepseek(model), views_);
  cache_config_ = vllm_cache_config(model, vllm);
}

std::vector<MetricFamily> Dialects::collect(const std::vector<MetricFamily>& families) const {
  std::vector<MetricFamily> result{cache_config_};
  for (const View& view : views_) {
    const auto source = std::lower_bound(
        families.begin(),
        families.end(),
        view.source,
        [](const MetricFamily& family, const char* name) { return family.name < name; });
    // A stage that is not built has no series: then there is nothing to show.
    if (source == families.end() || source->name != view.source) continue;
    if (result.back().name != view.name) result.push_back({view.name, view.help, source->type, {}});
    result.back().metric.push_back(sample_of(view, *source));
  }
  return result;
}

}  // namespace r1d::telemetry
