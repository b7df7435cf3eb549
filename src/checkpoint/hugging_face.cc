// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/errors.h"
#include "checkpoint/shard_set.h"
#include "checkpoint/slice_read.h"
#include "checkpoint/tensor_check.h"

namespace r1d::checkpoint {
namespace {

class HuggingFaceSource final : public WeightSource {
 public:
  HuggingFaceSource(ModelConfig config, ShardSet set, CheckedTensors tensors)
      : config_(std::move(config)), set_(std::move(set)), tensors_(std::move(tensors)) {}

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] bool has_mtp() const override { return tensors_.has_mtp; }

  [[nodiscard]] absl::StatusOr<StoredTensor> find(const std::string& name) const override {
    R1D_ASSIGN_OR_RETURN(const CheckedTensor* tensor, checked(name));
    return tensor->stored;
  }

  [[nodiscard]] absl::Status read(const std::string& name,
                                  const TensorSlice& slice,
                                  std::span<std::byte> dest) const override {
    R1D_ASSIGN_OR_RETURN(const CheckedTensor* tensor, checked(name));
    const SafetensorsFile& file = set_.files[static_cast<size_t>(tensor->place.file_idx)];
    const int64_t begin = set_.entry(tensor->place).begin;
    const absl::Status status = read_slice(
        tensor->stored, slice, dest, [&file, begin](int64_t offset, std::span<std::byte> bytes) {
          return file.read_at(begin + offset, bytes);
        });
    if (status.ok()) return status;
    return with_context(status, fmt::format("{}: tensor {}", file.name(), name));
  }

  [[nodiscard]] std::optional<TensorBytes> locate(const std::string& name,
                                                  const TensorSlice& /*slice*/) const override {
    const auto tensor = checked(name);
    if (!tensor.ok()) return std::nullopt;
    const CheckedTensor& found = **tensor;
    const SafetensorsFile& file = set_.files[static_cast<size_t>(found.place.file_idx)];
    return TensorBytes{.file = &file.file(),
                       .file_name = file.name(),
                       .begin = file.data_begin() + set_.entry(found.place).begin,
                       .held = {.rows = {0, found.stored.rows}, .cols = {0, found.stored.cols}},
                       .check = {}};
  }

 private:
  [[nodiscard]] absl::StatusOr<const CheckedTensor*> checked(const std::string& name) const {
    const auto found = tensors_.by_name.find(name);
    if (found == tensors_.by_name.end()) {
      return not_found("the checkpoint has no tensor {}", printable(name));
    }
    return &found->second;
  }

  ModelConfig config_;
  ShardSet set_;
  CheckedTensors tensors_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> open_hugging_face(const std::string& dir) {
  R1D_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::load(dir + "/config.json"));
  R1D_ASSIGN_OR_RETURN(ShardSet set, open_shards(dir));
  R1D_ASSIGN_OR_RETURN(CheckedTensors tensors, check_tensors(config, set));
  return std::make_unique<HuggingFaceSource>(std::move(config), std::move(set), std::move(tensors));
}

}  // namespace r1d::checkpoint
