// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/tokenizer_json.h"

#include <cstdint>
#include <utility>

#include "r1d/base/json.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/nfc.h"

namespace r1d::tokenizer {
namespace {

constexpr JsonLimits kTokenizerJson{64 << 20, 32, 4096, 8'000'000};
constexpr int64_t kMaxId = (1 << 22) - 1;  // 32 times R1's vocabulary
constexpr size_t kMaxAddedBytes = 256;
constexpr size_t kMaxSplits = 16;

// What ByteLevel splits by when use_regex is on (GPT-2's pattern).
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

const Json& member(const Json& object, const char* name) {
  static const Json null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

std::string text_of(const Json& object, const char* name) {
  const Json& value = member(object, name);
  return value.is_string() ? value.get<std::string>() : std::string();
}

bool is_set(const Json& object, const char* name) {
  const Json& value = member(object, name);
  return value.is_boolean() && value.get<bool>();
}

// Null, or a value that says the same.
bool is_off(const Json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.is_null() || (value.is_number() && value.get<double>() == 0);
}

absl::Status unsupported(const std::string& path, const Json& found, std::string_view supported) {
  return invalid_argument("{}: {} is not supported, {}", path, describe(found), supported);
}

std::optional<TokenId> id_from(const Json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  const auto id = value.get<int64_t>();
  if (id < 0 || id > kMaxId) return std::nullopt;
  return static_cast<TokenId>(id);
}

// One part of the file each; all add to the same spec.
class SpecReader {
 public:
  explicit SpecReader(const Json& root) : root_(root) {}

  absl::StatusOr<TokenizerSpec> read() {
    R1D_RETURN_IF_ERROR(added_tokens());
    R1D_RETURN_IF_ERROR(model(member(root_, "model")));
    R1D_RETURN_IF_ERROR(normalizer(member(root_, "normalizer"), "normalizer"));
    R1D_RETURN_IF_ERROR(pre_tokenizer(member(root_, "pre_tokenizer"), "pre_tokenizer"));
    if (!byte_level_) {
      return invalid_argument(
          "pre_tokenizer: no ByteLevel in it; only byte-level BPE is supported");
    }
    R1D_RETURN_IF_ERROR(decoder(member(root_, "decoder"), "decoder"));
    R1D_RETURN_IF_ERROR(post_processor(member(root_, "post_processor"), "post_processor"));
    return std::move(spec_);
  }

 private:
  absl::Status added_tokens() {
    const Json& list = member(root_, "added_tokens");
    if (list.is_null()) return absl::OkStatus();
    if (!list.is_array())
      return invalid_argument("added_tokens: expected an array, found {}", describe(list));
    for (size_t i = 0; i < list.size(); ++i) {
      R1D_RETURN_IF_ERROR(added_token(list[i], "added_tokens[" + std::to_string(i) + "]"));
    }
    return absl::OkStatus();
  }

  absl::Status added_token(const Json& entry, const std::string& path) {
    if (!entry.is_object())
      return invalid_argument("{}: expected an object, found {}", path, describe(entry));
    const std::optional<TokenId> id = id_from(member(entry, "id"));
    if (!id) {
      return invalid_argument("{}.id: expected an integer from 0 to {}, found {}",
                              path,
                              kMaxId,
                              describe(member(entry, "id")));
    }
    const std::string content = text_of(entry, "content");
    if (content.empty() || content.size() > kMaxAddedBytes) {
      return invalid_argument(
          "{}.content: expected 1 to {} bytes, found {}", path, kMaxAddedBytes, content.size());
    }
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      if (is_set(entry, flag)) return invalid_argument("{}.{}: true is not supported", path, flag);
    }
    spec_.added.push_back({content, *id, is_set(entry, "special")});
    return absl::OkStatus();
  }

  absl::Status model(const Json& model) {
    if (!model.is_object())
      return invalid_argument("model: expected an object, found {}", describe(model));
    const Json& type = member(model, "type");
    if (!type.is_null() && type != "BPE") return unsupported("model.type", type, "only \"BPE\" is");
    for (const char* name :
         {"unk_token", "dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& value = member(model, name);
      if (!is_off(value)) {
        return unsupported(std::string("model.") + name, value, "only null is");
      }
    }
    if (is_set(model, "byte_fallback"))
      return invalid_argument("model.byte_fallback: true is not supported");
    spec_.ignore_merges = is_set(model, "ignore_merges");
    R1D_RETURN_IF_ERROR(vocabulary(member(model, "vocab")));
    return merges(member(model, "merges"));
  }

  absl::Status vocabulary(const Json& vocab) {
    if (!vocab.is_object())
      return invalid_argument("model.vocab: expected an object, found {}", describe(vocab));
    spec_.vocabulary.reserve(vocab.size());
    for (const auto& [written, value] : vocab.items()) {
      const std::optional<TokenId> id = id_from(value);
      if (!id) {
        return invalid_argument(
            "model.vocab: the id of \"{}\": expected an integer from 0 to {}, found {}",
            printable(written, 60),
            kMaxId,
            describe(value));
      }
      // Special tokens may stand in the vocabulary too, written as they are.
      spec_.vocabulary.push_back({bytes_from_alphabet(written).value_or(written), *id});
    }
    return absl::OkStatus();
  }

  absl::Status merges(const Json& list) {
    if (!list.is_array())
      return invalid_argument("model.merges: expected an array, found {}", describe(list));
    spec_.merges.reserve(list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      std::optional<MergeRule> rule = merge(list[i]);
      if (!rule) {
        return invalid_argument(
            "model.merges[{}]: expected \"left right\" or [\"left\", \"right\"] in the byte "
            "alphabet, found {}",
            i,
            describe(list[i]));
      }
      spec_.merges.push_back(*std::move(rule));
    }
    return absl::OkStatus();
  }

  static std::optional<MergeRule> merge(const Json& entry) {
    std::string left, right;
    if (entry.is_string()) {
      const auto& both = entry.get_ref<const std::string&>();
      const size_t space = both.find(' ');
      if (space == std::string::npos) return std::nullopt;
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      left = entry[0].get<std::string>();
      right = entry[1].get<std::string>();
    }
    const auto left_bytes = bytes_from_alphabet(left);
    const auto right_bytes = bytes_from_alphabet(right);
    if (!left_bytes || !right_bytes || left.empty() || right.empty()) return std::nullopt;
    return MergeRule{*left_bytes, *right_bytes};
  }

  absl::Status normalizer(const Json& value, const std::string& path) {
    if (value.is_null()) return absl::OkStatus();
    const std::string type = value.is_object() ? text_of(value, "type") : "";
    if (type == "NFC") {
      spec_.nfc = true;
      return absl::OkStatus();
    }
    if (type == "Sequence")
      return each(member(value, "normalizers"), path + ".normalizers", &SpecReader::normalizer);
    return unsupported(path, member_or(value, "type"), "NFC and Sequence are");
  }

  absl::Status pre_tokenizer(const Json& value, const std::string& path) {
    const std::string type = value.is_object() ? text_of(value, "type") : "";
    if (type == "Sequence")
      return each(
          member(value, "pretokenizers"), path + ".pretokenizers", &SpecReader::pre_tokenizer);
    if (byte_level_) return invalid_argument("{}: nothing may follow ByteLevel", path);
    if (type == "Split") return split(value, path);
    if (type == "ByteLevel") return byte_level(value, path);
    return unsupported(path, member_or(value, "type"), "Split, ByteLevel and Sequence are");
  }

  absl::Status split(const Json& value, const std::string& path) {
    const Json& behavior = member(value, "behavior");
    if (behavior != "Isolated")
      return unsupported(path + ".behavior", behavior, "only \"Isolated\" is");
    if (is_set(value, "invert")) return invalid_argument("{}.invert: true is not supported", path);
    const Json& pattern = member(value, "pattern");
    const std::string regex = pattern.is_object() ? text_of(pattern, "Regex") : "";
    if (regex.empty())
      return unsupported(path + ".pattern", pattern, "only {\"Regex\": \"...\"} is");
    return add_split(regex, path);
  }

  absl::Status byte_level(const Json& value, const std::string& path) {
    if (is_set(value, "add_prefix_space"))
      return invalid_argument("{}.add_prefix_space: true is not supported", path);
    byte_level_ = true;
    const Json& use_regex = member(value, "use_regex");  // true when absent
    if (use_regex.is_boolean() && !use_regex.get<bool>()) return absl::OkStatus();
    return add_split(std::string(kByteLevelPattern), path);
  }

  absl::Status add_split(std::string pattern, const std::string& path) {
    if (spec_.splits.size() == kMaxSplits)
      return invalid_argument("{}: more than {} splits", path, kMaxSplits);
    spec_.splits.push_back(std::move(pattern));
    return absl::OkStatus();
  }

  absl::Status decoder(const Json& value, const std::string& path) {
    const std::string type = value.is_object() ? text_of(value, "type") : "";
    if (type == "ByteLevel") return absl::OkStatus();
    if (type == "Sequence")
      return each(member(value, "decoders"), path + ".decoders", &SpecReader::decoder);
    return unsupported(path, member_or(value, "type"), "ByteLevel is");
  }

  // Only what it puts before a single text counts here.
  absl::Status post_processor(const Json& value, const std::string& path) {
    if (value.is_null()) return absl::OkStatus();
    const std::string type = value.is_object() ? text_of(value, "type") : "";
    if (type == "ByteLevel") return absl::OkStatus();
    if (type == "Sequence")
      return each(member(value, "processors"), path + ".processors", &SpecReader::post_processor);
    if (type == "TemplateProcessing")
      return template_processing(member(value, "single"), path + ".single");
    return unsupported(
        path, member_or(value, "type"), "ByteLevel, TemplateProcessing and Sequence are");
  }

  // [{"SpecialToken": {"id": TEXT}}, {"Sequence": ...}], the first of them optional.
  absl::Status template_processing(const Json& single, const std::string& path) {
    const bool is_list = single.is_array() && !single.empty() && single.size() <= 2;
    if (!is_list || !single.back().is_object() || !single.back().contains("Sequence")) {
      return unsupported(path, single, "a sequence with at most one special token before it is");
    }
    if (single.size() == 1) return absl::OkStatus();
    const Json& special = single[0].is_object() ? member(single[0], "SpecialToken") : single[0];
    const std::string content = special.is_object() ? text_of(special, "id") : "";
    for (const AddedToken& token : spec_.added) {
      if (token.content == content) spec_.prefix_token = token.id;
    }
    if (spec_.prefix_token) return absl::OkStatus();
    return invalid_argument("{}: \"{}\" is no added token", path, printable(content, 60));
  }

  using Reader = absl::Status (SpecReader::*)(const Json&, const std::string&);
  absl::Status each(const Json& list, const std::string& path, Reader reader) {
    if (!list.is_array())
      return invalid_argument("{}: expected an array, found {}", path, describe(list));
    for (size_t i = 0; i < list.size(); ++i) {
      R1D_RETURN_IF_ERROR((this->*reader)(list[i], path + "[" + std::to_string(i) + "]"));
    }
    return absl::OkStatus();
  }

  static const Json& member_or(const Json& value, const char* name) {
    return value.is_object() ? member(value, name) : value;
  }

  const Json& root_;
  TokenizerSpec spec_;
  bool byte_level_ = false;
};

absl::Status check_ids(const TokenizerSpec& spec) {
  std::vector<const std::string*> owner;
  const auto claim = [&](TokenId id, const std::string& content, bool again) -> absl::Status {
    const auto index = static_cast<size_t>(id);
    if (owner.size() <= index) owner.resize(index + 1);
    if (owner[index] != nullptr && !(again && *owner[index] == content)) {
      return invalid_argument("id {} belongs to two tokens, \"{}\" and \"{}\"",
                              id,
                              printable(*owner[index], 60),
                              printable(content, 60));
    }
    owner[index] = &content;
    return absl::OkStatus();
  };
  for (const VocabEntry& entry : spec.vocabulary)
    R1D_RETURN_IF_ERROR(claim(entry.id, entry.bytes, false));
  for (const AddedToken& token : spec.added)
    R1D_RETURN_IF_ERROR(claim(token.id, token.content, true));
  return absl::OkStatus();
}

// One pass finds added tokens in the text as it stands. Hugging Face looks for the `normalized`
// ones in the normalized text, which is the same unless normalizing changes the token's own text.
absl::Status check_normalized(const TokenizerSpec& spec) {
  for (const AddedToken& token : spec.added) {
    if (!spec.nfc || to_nfc(token.content) == token.content) continue;
    return invalid_argument(
        "added_tokens: \"{}\" changes under the NFC normalizer, which is not supported",
        printable(token.content, 60));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> parse_tokenizer_json(std::string_view text) {
  R1D_ASSIGN_OR_RETURN(const Json root, parse_json(text, kTokenizerJson));
  if (!root.is_object()) return invalid_argument("expected an object, found {}", describe(root));
  R1D_ASSIGN_OR_RETURN(TokenizerSpec spec, SpecReader(root).read());
  R1D_RETURN_IF_ERROR(check_ids(spec));
  R1D_RETURN_IF_ERROR(check_normalized(spec));
  return spec;
}

}  // namespace r1d::tokenizer
