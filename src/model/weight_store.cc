// SPDX-License-Identifier: Apache-2.0
#include "model/weight_store.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

namespace r1d::model {
namespace {

using checkpoint::RankShard;
using checkpoint::StoredTensor;
using checkpoint::TensorSlice;
using checkpoint::TensorSpec;
using checkpoint::WeightSource;

// Where every tensor starts: a cache line on the CPU, a sector pair on a GPU.
constexpr int64_t kAlignment = 128;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// One tensor of this rank: what to read and where its bytes go inside the layer's buffer.
struct Placement {
  TensorSpec spec;
  TensorSlice slice;
  DType dtype = DType::kBF16;
  int64_t offset = 0;
  TensorSlice scale_slice;  // empty unless FP8
  int64_t scale_offset = 0;

  [[nodiscard]] int64_t count() const { return slice.rows.size() * slice.cols.size(); }
  [[nodiscard]] int64_t stored_bytes() const { return count() * dtype_bytes(dtype); }
  [[nodiscard]] int64_t device_bytes() const {
    return spec.rank_1 ? count() * int64_t{sizeof(float)} : stored_bytes();
  }
  [[nodiscard]] int64_t scale_bytes() const {
    return scale_slice.empty()
               ? 0
               : scale_slice.rows.size() * scale_slice.cols.size() * int64_t{sizeof(float)};
  }
};

// FP8 without a quantization_config cannot pass the checkpoint's own check: scales need a block
// size.
absl::StatusOr<Placement> place(const WeightSource& source,
                                const RankShard& shard,
                                const TensorSpec& spec) {
  Placement placement;
  placement.spec = spec;
  placement.slice = checkpoint::slice_of(spec, shard);
  R1D_ASSIGN_OR_RETURN(const StoredTensor stored, source.find(spec.name));
  placement.dtype = stored.dtype;
  if (stored.dtype == DType::kF8E4M3 && !placement.slice.empty()) {
    const auto blocks = source.config().quantization.value_or(checkpoint::QuantizationConfig{});
    placement.scale_slice = checkpoint::scale_slice_of(placement.slice, blocks);
  }
  return placement;
}

// This rank's tensors, those of one layer next to each other.
absl::StatusOr<std::vector<Placement>> placements(const WeightSource& source,
                                                  const RankShard& shard,
                                                  bool with_mtp) {
  std::vector<Placement> all;
  for (const TensorSpec& spec : checkpoint::expected_tensors(source.config(), with_mtp)) {
    if (spec.duplicate) continue;
    R1D_ASSIGN_OR_RETURN(Placement placement, place(source, shard, spec));
    if (!placement.slice.empty()) all.push_back(std::move(placement));
  }
  return all;
}

bool is_kv_a(const Placement& placement) {
  return placement.spec.name.find(".kv_a_proj_with_mqa.") != std::string::npos;
}

// Matrices, then scales, then vectors; kv_a right behind q_a (both read the same rows). Returns the
// bytes of all.
int64_t lay_out(std::span<Placement> layer) {
  const auto kv_a = std::find_if(layer.begin(), layer.end(), is_kv_a);
  const auto q_a = std::find_if(layer.begin(), layer.end(), [](const Placement& placement) {
    return placement.spec.name.find(".q_a_proj.") != std::string::npos;
  });
  if (q_a < kv_a && kv_a != layer.end()) std::rotate(q_a + 1, kv_a, kv_a + 1);
  int64_t bytes = 0;
  const auto put = [&bytes](int64_t& offset, int64_t size) {
    offset = bytes;
    bytes += aligned(size);
  };
  for (Placement& placement : layer) {
    if (!placement.spec.rank_1) put(placement.offset, placement.device_bytes());
  }
  for (Placement& placement : layer) put(placement.scale_offset, placement.scale_bytes());
  for (Placement& placement : layer) {
    if (placement.spec.rank_1) put(placement.offset, placement.device_bytes());
  }
  return bytes;
}

// Where a plan counts a tensor.
int64_t& part_of(RankWeights& weights,
                 const TensorSpec& spec,
                 const checkpoint::ModelConfig& config) {
  const auto is_in = [&spec](const char* block) {
    return spec.name.find(block) != std::string::npos;
  };
  if (spec.layer >= config.num_hidden_layers) return weights.mtp;
  if (spec.split == checkpoint::Split::kVocab) return weights.embeddings;
  if (is_in(".mlp.gate.")) return weights.routers;
  if (spec.rank_1) return weights.norms;
  if (is_in(".self_attn.")) return weights.attention;
  if (spec.expert >= 0) return weights.experts;
  return is_in(".shared_experts.") ? weights.shared_experts : weights.dense;
}

void widen_to_f32(DType dtype, std::span<const std::byte> stored, std::span<float> out) {
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), stored.data(), stored.size());
    return;
  }
  R1D_CHECK(dtype == DType::kBF16);
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, stored.data() + 2 * i, sizeof(bits));
    out[i] = bf16_to_f32(bits);
  }
}

}  // namespace

class WeightStore::Loader {
 public:
  Loader(const WeightSource& source,
         ops::Ops& ops,
         const LoadProgress& progress,
         WeightStore& store)
      : source_(source), ops_(ops), progress_(progress), store_(store) {}

  // Takes one buffer for `layer` and fills it.
  absl::Status load_layer(std::span<Placement> layer) {
    const int64_t bytes = lay_out(layer);
    R1D_ASSIGN_OR_RETURN(auto buffer,
                         ops_.allocate(static_cast<size_t>(bytes),
                                       ops::MemoryKind::kWeights,
                                       "weights from " + layer.front().spec.name));
    std::byte* base = buffer->data();
    store_.buffers_.push_back(std::move(buffer));
    for (const Placement& placement : layer) {
      R1D_RETURN_IF_ERROR(fill(placement, base));
      R1D_RETURN_IF_ERROR(progress_(placement.stored_bytes() + placement.scale_bytes()));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status fill(const Placement& placement, std::byte* base) {
    if (placement.spec.rank_1) return fill_vector(placement, base);
    const std::string& name = placement.spec.name;
    std::byte* data = base + placement.offset;
    R1D_RETURN_IF_ERROR(
        read(name, placement.slice, placement.dtype, data, placement.stored_bytes()));
    ops::Matrix matrix{.data = data,
                       .dtype = placement.dtype,
                       .rows = placement.slice.rows.size(),
                       .cols = placement.slice.cols.size()};
    if (!placement.scale_slice.empty()) {
      std::byte* scale = base + placement.scale_offset;
      R1D_RETURN_IF_ERROR(read(checkpoint::scale_name(name),
                               placement.scale_slice,
                               DType::kF32,
                               scale,
                               placement.scale_bytes()));
      matrix.scale = reinterpret_cast<const float*>(scale);
      matrix.scale_cols = placement.scale_slice.cols.size();
      matrix.scale_row_offset =
          static_cast<int32_t>(placement.slice.rows.begin % ops::Matrix::kScaleBlock);
      matrix.scale_col_offset =
          static_cast<int32_t>(placement.slice.cols.begin % ops::Matrix::kScaleBlock);
    }
    store_.matrices_.emplace(name, matrix);
    return absl::OkStatus();
  }

  absl::Status fill_vector(const Placement& placement, std::byte* base) {
    staging_.resize(static_cast<size_t>(placement.stored_bytes()));
    R1D_RETURN_IF_ERROR(source_.read(placement.spec.name, placement.slice, staging_));
    std::vector<float> values(static_cast<size_t>(placement.count()));
    widen_to_f32(placement.dtype, staging_, values);
    std::byte* device = base + placement.offset;
    store_.vectors_.emplace(placement.spec.name, reinterpret_cast<const float*>(device));
    return ops_.upload(device, std::as_bytes(std::span(values)));
  }

  // In place where the host may write the device's memory; dummy values made by the device where it
  // can; else through a staging buffer.
  absl::Status read(const std::string& name,
                    const TensorSlice& slice,
                    DType dtype,
                    std::byte* device,
                    int64_t bytes) {
    const auto size = static_cast<size_t>(bytes);
    if (ops_.host_addressable()) return source_.read(name, slice, std::span(device, size));
    if (const auto seeded = source_.seeded(name)) {
      R1D_ASSIGN_OR_RETURN(const bool filled,
                           ops_.fill(device,
                                     {.key = seeded->key,
                                      .center = seeded->center,
                                      .amplitude = seeded->amplitude,
                                      .dtype = dtype,
                                      .row_begin = slice.rows.begin,
                                      .row_end = slice.rows.end,
                                      .col_begin = slice.cols.begin,
                                      .col_end = slice.cols.end}));
      if (filled) return absl::OkStatus();
    }
    staging_.resize(size);
    R1D_RETURN_IF_ERROR(source_.read(name, slice, staging_));
    return ops_.upload(device, staging_);
  }

  const WeightSource& source_;
  ops::Ops& ops_;
  const LoadProgress& progress_;
  WeightStore& store_;
  std::vector<std::byte> staging_;
};

absl::StatusOr<WeightStore> WeightStore::load(const WeightSource& source,
                                              const RankShard& shard,
                                              ops::Ops& ops,
                                              bool with_mtp,
                                              const LoadProgress& progress) {
  R1D_ASSIGN_OR_RETURN(std::vector<Placement> all, placements(source, shard, with_mtp));
  WeightStore store;
  Loader loader(source, ops, progress, store);
  for (size_t begin = 0; begin < all.size();) {
    size_t end = begin + 1;
    while (end < all.size() && all[end].spec.layer == all[begin].spec.layer) ++end;
    R1D_RETURN_IF_ERROR(loader.load_layer(std::span(all).subspan(begin, end - begin)));
    begin = end;
  }
  return store;
}

const ops::Matrix& WeightStore::matrix(const std::string& name) const {
  const auto found = matrices_.find(name);
  R1D_CHECK(found != matrices_.end());
  return found->second;
}

const float* WeightStore::vector(const std::string& name) const {
  const auto found = vectors_.find(name);
  R1D_CHECK(found != vectors_.end());
  return found->second;
}

absl::StatusOr<int64_t> rank_weight_bytes(const WeightSource& source,
                                          const RankShard& shard,
                                          bool with_mtp) {
  R1D_ASSIGN_OR_RETURN(const std::vector<Placement> all, placements(source, shard, with_mtp));
  int64_t bytes = 0;
  for (const Placement& placement : all)
    bytes += placement.stored_bytes() + placement.scale_bytes();
  return bytes;
}

absl::StatusOr<RankWeights> plan_weights(const WeightSource& source,
                                         const RankShard& shard,
                                         bool with_mtp) {
  R1D_ASSIGN_OR_RETURN(const std::vector<Placement> all, placements(source, shard, with_mtp));
  RankWeights weights;
  for (const Placement& placement : all) {
    part_of(weights, placement.spec, source.config()) +=
        aligned(placement.device_bytes()) + aligned(placement.scale_bytes());
  }
  return weights;
}

}  // namespace r1d::model
