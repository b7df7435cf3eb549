// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/token_ids.h"

#include <fmt/format.h>

namespace r1d::checkpoint {

void read_token_ids(JsonFields& fields,
                    const char* name,
                    int64_t last,
                    std::vector<TokenId>& target) {
  constexpr size_t kMaxIds = 64;  // each is compared with every sampled token
  const std::string what =
      fmt::format("a token id from 0 to {} or a list of 1 to {} of them", last, kMaxIds);
  const Json* value = fields.find(name);
  if (value == nullptr) return;
  const Json list = value->is_array() ? *value : Json::array({*value});
  if (list.empty() || list.size() > kMaxIds) return fields.fail_expected(name, what);
  std::vector<TokenId> ids;
  for (const Json& item : list) {
    const std::optional<int64_t> id = integer_in(item, 0, last);
    if (!id) return fields.fail_expected(name, what);
    ids.push_back(static_cast<TokenId>(*id));
  }
  target = std::move(ids);
}

}  // namespace r1d::checkpoint
