// SPDX-License-Identifier: Apache-2.0
#include "config/yaml_reader.h"

#include <exception>
#include <set>
#include <sstream>
#include <utility>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include "r1d/base/status.h"

#include "config/suggest.h"
#include "config/values.h"

namespace r1d::config {
namespace {

// Follows the parser's events down two levels of mappings. The first thing that does not belong
// there is kept as the error; events after it change nothing.
class Collector final : public YAML::EventHandler {
 public:
  explicit Collector(std::string origin) : origin_(std::move(origin)) {}

  [[nodiscard]] absl::StatusOr<std::vector<YamlEntry>> take() {
    if (!error_.ok()) return error_;
    return std::move(entries_);
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ > 1) fail(mark, "expected the end of the file, found a second document");
  }
  void OnDocumentEnd() override {}

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t /*anchor*/) override {
    fail(mark, "anchors and aliases are not supported");
  }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (admits(mark, anchor)) take_null(mark);
  }
  void OnScalar(const YAML::Mark& mark,
                const std::string& /*tag*/,
                YAML::anchor_t anchor,
                const std::string& value) override {
    if (admits(mark, anchor)) take_scalar(mark, value);
  }
  void OnSequenceStart(const YAML::Mark& mark,
                       const std::string& /*tag*/,
                       YAML::anchor_t /*anchor*/,
                       YAML::EmitterStyle::value /*style*/) override {
    fail(mark, path() + "expected a plain value, found a list");
  }
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark& mark,
                  const std::string& /*tag*/,
                  YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    if (!admits(mark, anchor)) return;
    const bool opens_section = depth_ == 1 && !section_.empty();
    if (depth_ != 0 && !opens_section) {
      return fail(mark, path() + "expected a plain value, found a mapping");
    }
    ++depth_;
  }
  void OnMapEnd() override {
    if (!error_.ok()) return;
    if (--depth_ == 1) section_.clear();
  }

 private:
  void fail(const YAML::Mark& mark, const std::string& what) {
    if (error_.ok()) error_ = invalid_argument("{}:{}: {}", origin_, mark.line + 1, what);
  }

  // False once an error is known; an anchor is one.
  bool admits(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) fail(mark, "anchors and aliases are not supported");
    return error_.ok();
  }

  void take_null(const YAML::Mark& mark) {
    if (depth_ == 0) return;  // an empty document
    if (depth_ == 1 && !section_.empty()) {
      section_.clear();  // a section without keys
    } else if (key_ == nullptr) {
      fail(mark, "expected a name, found nothing");
    } else {
      // The parser places a missing value where the next token stands.
      fail(key_mark_, path() + "expected a value; leave the line out to keep the default");
    }
  }

  void take_scalar(const YAML::Mark& mark, const std::string& text) {
    if (depth_ == 0) {
      fail(mark, "expected sections such as model: or engine:, found " + quote(text));
    } else if (depth_ == 1 && section_.empty()) {
      enter_section(mark, text);
    } else if (depth_ == 1) {
      fail(mark, path() + "expected a section with keys below it, found " + quote(text));
    } else if (key_ == nullptr) {
      enter_key(mark, text);
    } else {
      entries_.push_back({std::exchange(key_, nullptr), name_, text, mark.line + 1});
    }
  }

  void enter_section(const YAML::Mark& mark, const std::string& name) {
    if (!is_section(name)) return fail(mark, unknown_name(name));
    if (!sections_.insert(name).second) return fail(mark, name + ": this section was given before");
    section_ = name;
  }

  void enter_key(const YAML::Mark& mark, const std::string& last_part) {
    name_ = section_ + "." + last_part;
    key_ = find_key(name_);
    key_mark_ = mark;
    if (key_ == nullptr) return fail(mark, unknown_name(name_));
    for (const YamlEntry& entry : entries_) {
      if (entry.name != name_) continue;
      return fail(mark, fmt::format("{}: given before, on line {}", name_, entry.line));
    }
  }

  // "engine.world_size: ", as far as it is known.
  [[nodiscard]] std::string path() const {
    if (key_ != nullptr) return name_ + ": ";
    return section_.empty() ? "" : section_ + ": ";
  }

  const std::string origin_;
  int num_documents_ = 0;
  int depth_ = 0;        // 1: inside the document's mapping, 2: inside a section's
  std::string section_;  // whose value is read; empty: a section's name comes next
  YAML::Mark key_mark_;
  const Key* key_ = nullptr;  // whose value is read; null: a key's name comes next
  std::string name_;          // of key_, as written
  std::set<std::string> sections_;
  std::vector<YamlEntry> entries_;  // one a name at most, so as few as the schema has
  absl::Status error_;
};

// The parser reads a second document only to have it refused.
absl::Status parse(const std::string& text, const std::string& origin, Collector& collector) {
  std::istringstream in(text);
  try {
    YAML::Parser parser(in);
    for (int i = 0; i < 2 && parser.HandleNextDocument(collector); ++i) {
    }
  } catch (const YAML::Exception& e) {
    return invalid_argument("{}:{}: not YAML: {}", origin, e.mark.line + 1, e.msg);
  } catch (const std::exception& e) {
    return invalid_argument("{}: not YAML: {}", origin, e.what());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<YamlEntry>> read_yaml(const std::string& text,
                                                 const std::string& origin) {
  if (text.size() > kMaxYamlBytes) {
    return invalid_argument(
        "{}: expected at most {} bytes, found {}", origin, kMaxYamlBytes, text.size());
  }
  Collector collector(origin);
  const absl::Status status = parse(text, origin, collector);
  // What the collector found stands earlier in the text than what stopped the parser.
  absl::StatusOr<std::vector<YamlEntry>> entries = collector.take();
  if (!entries.ok() || status.ok()) return entries;
  return status;
}

}  // namespace r1d::config
