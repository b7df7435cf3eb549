// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/tokenizer_ids.h"

#include <algorithm>
#include <limits>
#include <string>

#include "r1d/base/file.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/errors.h"
#include "checkpoint/json.h"

namespace r1d::checkpoint {
namespace {

class TokenIdScan final : public JsonGuard {
 public:
  TokenIdScan() : JsonGuard(kTokenizerJson) {}

  [[nodiscard]] int64_t max_id() const { return max_id_; }

 protected:
  bool on_scalar(std::optional<int64_t> integer) override {
    const bool is_vocabulary = in_vocabulary();
    if (!is_vocabulary && !is_added_id()) return true;
    constexpr int64_t kLast = std::numeric_limits<TokenId>::max();
    if (integer && *integer >= 0 && *integer <= kLast) {
      max_id_ = std::max(max_id_, *integer);
      return true;
    }
    return refuse(invalid_argument("{} \"{}\" is not an integer from 0 to {}",
                                   is_vocabulary ? "model.vocab: the id of" : "added_tokens:",
                                   printable(*frames().back().key, 60),
                                   kLast));
  }

 private:
  // {"model": {"vocab": {TOKEN: here
  [[nodiscard]] bool in_vocabulary() const {
    const auto& open = frames();
    return open.size() == 3 && open[2].is_object && is_at(0, "model") && is_at(1, "vocab");
  }
  // {"added_tokens": [{"id": here
  [[nodiscard]] bool is_added_id() const {
    const auto& open = frames();
    return open.size() == 3 && !open[1].is_object && is_at(0, "added_tokens") && is_at(2, "id");
  }
  [[nodiscard]] bool is_at(size_t depth, std::string_view key) const {
    const Frame& frame = frames()[depth];
    return frame.is_object && frame.key != nullptr && *frame.key == key;
  }

  int64_t max_id_ = -1;
};

}  // namespace

absl::StatusOr<TokenId> max_token_id(std::string_view tokenizer_json) {
  TokenIdScan scan;
  R1D_RETURN_IF_ERROR(walk_json(tokenizer_json, scan));
  if (scan.max_id() < 0) {
    return invalid_argument("neither model.vocab nor added_tokens defines a token id");
  }
  return static_cast<TokenId>(scan.max_id());
}

absl::StatusOr<std::optional<TokenId>> last_token_id(const std::string& dir) {
  const std::string path = dir + "/tokenizer.json";
  const absl::StatusOr<std::string> text = read_text_file(path, kTokenizerJson.max_bytes);
  if (absl::IsNotFound(text.status())) return std::optional<TokenId>();
  if (!text.ok()) return with_context(text.status(), path);
  const absl::StatusOr<TokenId> id = max_token_id(*text);
  if (!id.ok()) return with_context(id.status(), path);
  return std::optional<TokenId>(*id);
}

}  // namespace r1d::checkpoint
