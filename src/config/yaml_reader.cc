// SPDX-License-Identifier: Apache-2.0
#include "config/yaml_reader.h"

#include <exception>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include "config/suggest.h"
#include "config/values.h"

namespace r1d::config {
namespace {

// Follows the parser's events down two levels of mappings. A node that does not belong where it
// stands is a problem and passed over, with all that is below it.
class Collector final : public YAML::EventHandler {
 public:
  Collector(std::string origin, YamlFile& file) : origin_(std::move(origin)), file_(file) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ == 1) return;
    fail(mark, "expected the end of the file, found a second document");
    ends_ = true;
  }
  void OnDocumentEnd() override {}

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t /*anchor*/) override {
    if (passes_over()) return;
    fail(mark, "anchors and aliases are not supported", name_);
    node_ends();
  }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (passes_over()) return;
    judge_anchor(mark, anchor);
    take_null(mark);
    node_ends();
  }
  void OnScalar(const YAML::Mark& mark,
                const std::string& /*tag*/,
                YAML::anchor_t anchor,
                const std::string& value) override {
    if (passes_over()) return;
    judge_anchor(mark, anchor);
    take_scalar(mark, value);
    node_ends();
  }
  void OnSequenceStart(const YAML::Mark& mark,
                       const std::string& /*tag*/,
                       YAML::anchor_t /*anchor*/,
                       YAML::EmitterStyle::value /*style*/) override {
    if (!passes_over()) refuse(mark, "list");
    ++depth_passed_over_;
  }
  void OnSequenceEnd() override { refused_ends(); }
  void OnMapStart(const YAML::Mark& mark,
                  const std::string& /*tag*/,
                  YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    if (!passes_over()) {
      judge_anchor(mark, anchor);
      if (place_ == Place::kRoot) return go_to(Place::kSection);
      if (place_ == Place::kBelow && !section_.empty()) return go_to(Place::kKey);
      refuse(mark, "mapping");
    }
    ++depth_passed_over_;
  }
  void OnMapEnd() override {
    if (depth_passed_over_ > 0) return refused_ends();
    if (ends_) return;
    // A section is over, which was the node below its name, or the document is.
    place_ = place_ == Place::kKey ? Place::kBelow : Place::kRoot;
    node_ends();
  }

 private:
  // Which node comes next: the whole, a section's name, what is below it, a key's name, its value.
  enum class Place : uint8_t { kRoot, kSection, kBelow, kKey, kValue };

  [[nodiscard]] bool passes_over() const { return ends_ || depth_passed_over_ > 0; }
  void go_to(Place place) { place_ = place; }

  // `about`: what will not have the value that was meant.
  void fail(const YAML::Mark& mark, const std::string& what, const std::string& about = "") {
    const int line = mark.line + 1;
    if (file_.problems.size() == kMaxProblems) {
      ends_ = true;
      file_.complete = false;
      file_.problems.push_back(
          {fmt::format(
               "{}:{}: more problems than {}; the rest is not judged", origin_, line, kMaxProblems),
           "",
           line});
      return;
    }
    file_.problems.push_back({fmt::format("{}:{}: {}", origin_, line, what), about, line});
  }

  void judge_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) fail(mark, "anchors and aliases are not supported", name_);
  }

  // Below a name that is unknown nothing more is said.
  void refuse(const YAML::Mark& mark, const char* found) {
    if (is_known()) {
      fail(mark, fmt::format("{}expected a plain value, found a {}", path(), found), about());
    }
  }
  void refused_ends() {
    if (depth_passed_over_ > 0 && --depth_passed_over_ == 0 && !ends_) node_ends();
  }

  // A node in its place, taken or refused, is over.
  void node_ends() {
    switch (place_) {
      case Place::kRoot:
        return;
      case Place::kSection:
        return go_to(Place::kBelow);
      case Place::kBelow:
        section_.clear();
        return go_to(Place::kSection);
      case Place::kKey:
        return go_to(Place::kValue);
      case Place::kValue:
        key_ = nullptr;
        name_.clear();
        return go_to(Place::kKey);
    }
  }

  void take_null(const YAML::Mark& mark) {
    if (place_ == Place::kSection || place_ == Place::kKey) {
      fail(mark, "expected a name, found nothing");
    } else if (place_ == Place::kValue && key_ != nullptr) {
      // The parser places a missing value where the next token stands.
      fail(key_mark_, path() + "expected a value; leave the line out to keep the default", about());
    }  // else an empty document, or a section without keys
  }

  void take_scalar(const YAML::Mark& mark, const std::string& text) {
    switch (place_) {
      case Place::kRoot:
        return fail(mark, "expected sections such as model: or engine:, found " + quote(text));
      case Place::kSection:
        return enter_section(mark, text);
      case Place::kBelow:
        if (section_.empty()) return;
        return fail(
            mark, path() + "expected a section with keys below it, found " + quote(text), about());
      case Place::kKey:
        return enter_key(mark, text);
      case Place::kValue:
        if (key_ != nullptr) file_.entries.push_back({key_, name_, text, mark.line + 1});
    }
  }

  void enter_section(const YAML::Mark& mark, const std::string& name) {
    if (!is_section(name)) return fail_unknown(mark, name);
    section_ = name;
    if (!sections_.insert(name).second) fail(mark, name + ": this section was given before", name);
  }

  void enter_key(const YAML::Mark& mark, const std::string& last_part) {
    name_ = section_ + "." + last_part;
    key_mark_ = mark;
    const Key* key = find_key(name_);
    if (key == nullptr) return fail_unknown(mark, name_);
    const auto [given, first] = key_lines_.try_emplace(name_, mark.line + 1);
    if (!first) {
      return fail(mark, fmt::format("{}: given before, on line {}", name_, given->second), name_);
    }
    key_ = key;
  }

  void fail_unknown(const YAML::Mark& mark, const std::string& name) {
    const UnknownName unknown = unknown_name(name);
    fail(mark, unknown.message, unknown.meant);
  }

  // Nothing is known of what stands below an unknown name.
  [[nodiscard]] bool is_known() const {
    if (place_ == Place::kBelow) return !section_.empty();
    return place_ != Place::kValue || key_ != nullptr;
  }
  [[nodiscard]] const std::string& about() const { return key_ != nullptr ? name_ : section_; }
  // "engine.world_size: ", as far as it is known.
  [[nodiscard]] std::string path() const { return about().empty() ? "" : about() + ": "; }

  const std::string origin_;
  YamlFile& file_;
  int num_documents_ = 0;
  bool ends_ = false;  // the rest is not judged
  size_t depth_passed_over_ = 0;
  Place place_ = Place::kRoot;
  std::string section_;  // which is read; empty: none, or an unknown one
  YAML::Mark key_mark_;
  const Key* key_ = nullptr;  // whose value is read; null: none, or an unknown one
  std::string name_;          // of the key, as written
  std::set<std::string> sections_;
  std::map<std::string, int> key_lines_;
};

// The parser reads a second document only to have it refused.
void parse(const std::string& text, const std::string& origin, YamlFile& file) {
  Collector collector(origin, file);
  std::istringstream in(text);
  try {
    YAML::Parser parser(in);
    for (int i = 0; i < 2 && parser.HandleNextDocument(collector); ++i) {
    }
    return;
  } catch (const YAML::Exception& e) {
    const int line = e.mark.line + 1;
    file.problems.push_back({fmt::format("{}:{}: not YAML: {}", origin, line, e.msg), "", line});
  } catch (const std::exception& e) {
    file.problems.push_back({fmt::format("{}: not YAML: {}", origin, e.what())});
  }
  file.complete = false;
}

}  // namespace

YamlFile read_yaml(const std::string& text, const std::string& origin) {
  YamlFile file;
  if (text.size() <= kMaxYamlBytes) {
    parse(text, origin, file);
    return file;
  }
  file.problems.push_back(
      {fmt::format("{}: expected at most {} bytes, found {}", origin, kMaxYamlBytes, text.size())});
  file.complete = false;
  return file;
}

}  // namespace r1d::config
