// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/call_labels.h"

#include <algorithm>
#include <string_view>

namespace r1d::transport {
namespace {

// As Limits::max_label_bytes, which the field request_id is held to.
constexpr size_t kMaxLabelBytes = 128;

// The value of a key that came once; two of them contradict each other.
std::optional<std::string_view> only_value(const grpc::CallbackServerContext& context,
                                           const char* key) {
  const auto [first, last] = context.client_metadata().equal_range(key);
  if (first == last || std::next(first) != last) return std::nullopt;
  return std::string_view(first->second.data(), first->second.size());
}

bool is_label(std::string_view text) {
  return text.size() <= kMaxLabelBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

}  // namespace

CallLabels labels_of(const grpc::CallbackServerContext& context) {
  CallLabels labels;
  if (const auto text = only_value(context, "traceparent")) {
    labels.trace = base::parse_traceparent(*text);
  }
  if (const auto text = only_value(context, "x-request-id"); text && is_label(*text)) {
    labels.request_id = *text;
  }
  return labels;
}

}  // namespace r1d::transport
