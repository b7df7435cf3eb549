// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/shard_layout.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "r1d/base/status.h"

#include "checkpoint/safetensors.h"

namespace r1d::checkpoint {
namespace {

using OrderedJson = nlohmann::ordered_json;

// Every tensor to be written, in load order; a scale follows its weight.
absl::StatusOr<std::vector<PlacedTensor>> list_tensors(const WeightSource& source) {
  std::vector<PlacedTensor> tensors;
  for (const TensorSpec& spec : expected_tensors(source.config(), source.has_mtp())) {
    if (spec.duplicate) continue;
    R1D_ASSIGN_OR_RETURN(const StoredTensor stored, source.find(spec.name));
    tensors.push_back({.name = spec.name, .stored = stored, .rank_1 = spec.rank_1});
    if (stored.dtype != DType::kF8E4M3) continue;
    const std::string scale = scale_name(spec.name);
    R1D_ASSIGN_OR_RETURN(const StoredTensor scales, source.find(scale));
    tensors.push_back({.name = scale, .stored = scales});
  }
  return tensors;
}

// As safetensors' own library writes headers: spaces behind the JSON make the data section start at
// a multiple of 8.
std::string header_json(const ShardLayout& shard) {
  OrderedJson header = {{"__metadata__", {{"format", "pt"}}}};
  for (const PlacedTensor& tensor : shard.tensors) {
    std::vector<int64_t> shape = {tensor.stored.rows};
    if (!tensor.rank_1) shape.push_back(tensor.stored.cols);
    header[tensor.name] = {{"dtype", dtype_name(tensor.stored.dtype)},
                           {"shape", shape},
                           {"data_offsets", {tensor.begin, tensor.begin + tensor.num_bytes()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

void place(ShardLayout& shard) {
  std::stable_sort(
      shard.tensors.begin(), shard.tensors.end(), [](const PlacedTensor& a, const PlacedTensor& b) {
        return dtype_bytes(a.stored.dtype) > dtype_bytes(b.stored.dtype);
      });
  shard.data_bytes = 0;
  for (PlacedTensor& tensor : shard.tensors) {
    tensor.begin = shard.data_bytes;
    shard.data_bytes += tensor.num_bytes();
  }
}

}  // namespace

int64_t ShardLayout::data_begin() const {
  return kSafetensorsLengthBytes + static_cast<int64_t>(header.size());
}

absl::StatusOr<std::vector<ShardLayout>> lay_out_shards(const WeightSource& source,
                                                        int64_t shard_bytes) {
  R1D_ASSIGN_OR_RETURN(std::vector<PlacedTensor> tensors, list_tensors(source));
  std::vector<ShardLayout> shards(1);
  for (PlacedTensor& tensor : tensors) {
    const int64_t bytes = tensor.num_bytes();
    if (!shards.back().tensors.empty() && shards.back().data_bytes + bytes > shard_bytes) {
      shards.emplace_back();
    }
    shards.back().data_bytes += bytes;
    shards.back().tensors.push_back(std::move(tensor));
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    place(shards[i]);
    shards[i].file = fmt::format("model-{:05}-of-{:06}.safetensors", i + 1, shards.size());
    shards[i].header = header_json(shards[i]);
  }
  return shards;
}

std::string index_json(const std::vector<ShardLayout>& shards) {
  int64_t total = 0;
  OrderedJson map = OrderedJson::object();
  for (const ShardLayout& shard : shards) {
    total += shard.data_bytes;
    for (const PlacedTensor& tensor : shard.tensors) map[tensor.name] = shard.file;
  }
  const OrderedJson index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  return index.dump(2) + "\n";
}

}  // namespace r1d::checkpoint
