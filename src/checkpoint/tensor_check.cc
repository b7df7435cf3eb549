// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/tensor_check.h"

#include <charconv>
#include <string_view>
#include <utility>
#include <vector>

#include "r1d/base/status.h"

#include "checkpoint/errors.h"

namespace r1d::checkpoint {
namespace {

// "model.layers.61.enorm.weight" -> 61; -1 for a tensor of no layer.
int64_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  name.remove_prefix(kPrefix.size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const bool is_number = error == std::errc() && end != name.data() + name.size() && *end == '.';
  return is_number ? layer : -1;
}

bool holds_mtp(const ModelConfig& config, const ShardSet& set) {
  const int64_t begin = config.num_hidden_layers;
  const int64_t end = begin + config.num_nextn_predict_layers;
  for (const auto& [name, place] : set.tensors) {
    const int64_t layer = layer_of(name);
    if (layer >= begin && layer < end) return true;
  }
  return false;
}

std::vector<int64_t> shape_of(const TensorSpec& spec) {
  if (spec.rank_1) return {spec.rows};
  return {spec.rows, spec.cols};
}

int64_t blocks(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

std::string dtypes_of(const TensorSpec& spec) {
  return fmt::format(
      "{}BF16{}", spec.quantizable ? "F8_E4M3, " : "", spec.may_be_f32 ? " or F32" : "");
}

class TensorChecker {
 public:
  TensorChecker(const ModelConfig& config, const ShardSet& set) : config_(config), set_(set) {
    checked_.has_mtp = holds_mtp(config, set);
    checked_.by_name.reserve(set.tensors.size());
  }

  absl::Status check_all() {
    for (const TensorSpec& spec : expected_tensors(config_, checked_.has_mtp)) {
      R1D_RETURN_IF_ERROR(check(spec));
    }
    R1D_RETURN_IF_ERROR(check_none_is_missing());
    return check_none_is_extra();
  }

  [[nodiscard]] CheckedTensors take() { return std::move(checked_); }

 private:
  absl::Status check(const TensorSpec& spec) {
    const auto found = set_.tensors.find(spec.name);
    if (found == set_.tensors.end()) {
      if (spec.duplicate)
        return absl::OkStatus();  // a copy of the main model's tensor may be left out
      if (num_missing_++ == 0) first_missing_ = spec;
      return absl::OkStatus();
    }
    R1D_RETURN_IF_ERROR(check_shape(found->second, shape_of(spec)));
    R1D_ASSIGN_OR_RETURN(const DType dtype, check_dtype(spec, found->second));
    if (dtype == DType::kF8E4M3) R1D_RETURN_IF_ERROR(check_scale(spec, found->second));
    checked_.by_name.emplace(spec.name,
                             CheckedTensor{{dtype, spec.rows, spec.cols}, found->second});
    return absl::OkStatus();
  }

  absl::Status check_shape(ShardSet::Place place, const std::vector<int64_t>& expected) const {
    const TensorEntry& entry = set_.entry(place);
    if (entry.shape == expected) return absl::OkStatus();
    return invalid_argument("{}: tensor {} has shape {}, expected {}",
                            set_.file_name(place),
                            entry.name,
                            shape_text(entry.shape),
                            shape_text(expected));
  }

  [[nodiscard]] absl::StatusOr<DType> check_dtype(const TensorSpec& spec,
                                                  ShardSet::Place place) const {
    const std::string_view stored = set_.entry(place).dtype;
    const std::optional<DType> dtype = loadable_dtype(stored);
    const bool fits = dtype && (dtype != DType::kF8E4M3 || spec.quantizable) &&
                      (dtype != DType::kF32 || spec.may_be_f32);
    if (fits) return *dtype;
    return invalid_argument("{}: tensor {} has dtype {}, expected {}",
                            set_.file_name(place),
                            spec.name,
                            stored,
                            dtypes_of(spec));
  }

  absl::Status check_scale(const TensorSpec& spec, ShardSet::Place weight) {
    if (!config_.quantization) {
      return invalid_argument(
          "{}: tensor {} is F8_E4M3, but config.json has no quantization_config",
          set_.file_name(weight),
          spec.name);
    }
    const std::string name = scale_name(spec.name);
    const auto found = set_.tensors.find(name);
    if (found == set_.tensors.end()) {
      return invalid_argument("{}: tensor {} is F8_E4M3, but its scale {} is missing",
                              set_.file_name(weight),
                              spec.name,
                              name);
    }
    const int64_t rows = blocks(spec.rows, config_.quantization->block_rows);
    const int64_t cols = blocks(spec.cols, config_.quantization->block_cols);
    R1D_RETURN_IF_ERROR(check_shape(found->second, {rows, cols}));
    const TensorEntry& entry = set_.entry(found->second);
    if (entry.dtype != dtype_name(DType::kF32)) {
      return invalid_argument("{}: tensor {} has dtype {}, expected F32",
                              set_.file_name(found->second),
                              name,
                              entry.dtype);
    }
    checked_.by_name.emplace(name, CheckedTensor{{DType::kF32, rows, cols}, found->second});
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status check_none_is_missing() const {
    if (num_missing_ == 0) return absl::OkStatus();
    return invalid_argument("{}: tensor {} {} is missing{}",
                            set_.listing,
                            first_missing_.name,
                            shape_text(shape_of(first_missing_)),
                            and_more(num_missing_));
  }

  [[nodiscard]] absl::Status check_none_is_extra() const {
    const size_t num_extra = set_.tensors.size() - checked_.by_name.size();
    if (num_extra == 0) return absl::OkStatus();
    const std::pair<const std::string, ShardSet::Place>* first = nullptr;
    for (const auto& tensor : set_.tensors) {
      if (checked_.by_name.contains(tensor.first)) continue;
      if (first == nullptr || tensor.first < first->first) first = &tensor;
    }
    return invalid_argument("{}: tensor {} {}{}",
                            set_.file_name(first->second),
                            printable(first->first),
                            why_extra(first->first),
                            and_more(static_cast<int64_t>(num_extra)));
  }

  [[nodiscard]] std::string why_extra(std::string_view name) const {
    const std::string_view suffix = "_scale_inv";
    if (name.ends_with(suffix)) {
      const std::string weight(name.substr(0, name.size() - suffix.size()));
      const auto found = checked_.by_name.find(weight);
      if (found != checked_.by_name.end()) {
        return fmt::format("is a scale, but {} is {}, not F8_E4M3",
                           weight,
                           dtype_name(found->second.stored.dtype));
      }
    }
    return "is not part of the model that config.json describes";
  }

  static std::string and_more(int64_t count) {
    return count == 1 ? "" : fmt::format(" (and {} more)", count - 1);
  }

  const ModelConfig& config_;
  const ShardSet& set_;
  CheckedTensors checked_;
  TensorSpec first_missing_;
  int64_t num_missing_ = 0;
};

}  // namespace

absl::StatusOr<CheckedTensors> check_tensors(const ModelConfig& config, const ShardSet& set) {
  TensorChecker checker(config, set);
  R1D_RETURN_IF_ERROR(checker.check_all());
  return checker.take();
}

}  // namespace r1d::checkpoint
