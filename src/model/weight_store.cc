// SPDX-License-Identifier: Apache-2.0
#include "model/weight_store.h"

#include <algorithm>
#include <cstring>
#include <deque>
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

// Copies on a rank's device, for those who read its weights.
class DeviceCopy final : public checkpoint::StagedCopy {
 public:
  explicit DeviceCopy(ops::Ops& ops) : ops_(ops) {}

  [[nodiscard]] absl::StatusOr<std::byte*> allocate(size_t bytes) override {
    R1D_ASSIGN_OR_RETURN(memory_, ops_.allocate_staging(bytes, "staging memory of a load"));
    return memory_->data();
  }
  [[nodiscard]] absl::StatusOr<uint64_t> copy(std::byte* device,
                                              std::span<const std::byte> staged) override {
    return ops_.start_upload(device, staged);
  }
  [[nodiscard]] absl::Status wait(uint64_t ticket) override { return ops_.wait_upload(ticket); }

 private:
  ops::Ops& ops_;
  std::unique_ptr<ops::Buffer> memory_;
};

}  // namespace

// Lays all layers out, then fills them: what stands in files as it is through `files`, the rest
// tensor by tensor.
class WeightStore::Loader {
 public:
  Loader(const WeightSource& source,
         ops::Ops& ops,
         const LoadProgress& progress,
         WeightStore& store)
      : source_(source), ops_(ops), progress_(progress), store_(store) {}

  absl::Status load(std::span<Placement> all, checkpoint::WeightLoad& files) {
    for (size_t begin = 0; begin < all.size();) {
      size_t end = begin + 1;
      while (end < all.size() && all[end].spec.layer == all[begin].spec.layer) ++end;
      R1D_RETURN_IF_ERROR(add_layer(all.subspan(begin, end - begin)));
      begin = end;
    }
    DeviceCopy copy(ops_);
    R1D_RETURN_IF_ERROR(files.read(std::move(targets_), &copy, progress_));
    for (const Vector& vector : vectors_) R1D_RETURN_IF_ERROR(widen(vector));
    return absl::OkStatus();
  }

 private:
  // A norm or bias as stored, until it is widened.
  struct Vector {
    DType dtype;
    std::vector<std::byte> stored;
    std::byte* device;
  };

  // Takes one buffer for `layer`.
  absl::Status add_layer(std::span<Placement> layer) {
    const int64_t bytes = lay_out(layer);
    R1D_ASSIGN_OR_RETURN(auto buffer,
                         ops_.allocate(static_cast<size_t>(bytes),
                                       ops::MemoryKind::kWeights,
                                       "weights from " + layer.front().spec.name));
    std::byte* base = buffer->data();
    store_.buffers_.push_back(std::move(buffer));
    for (const Placement& placement : layer) {
      R1D_RETURN_IF_ERROR(placement.spec.rank_1 ? add_vector(placement, base)
                                                : add_matrix(placement, base));
    }
    return absl::OkStatus();
  }

  absl::Status add_matrix(const Placement& placement, std::byte* base) {
    const std::string& name = placement.spec.name;
    const bool on_host = ops_.host_addressable();
    std::byte* data = base + placement.offset;
    const auto size = static_cast<size_t>(placement.stored_bytes());
    R1D_RETURN_IF_ERROR(add(name, placement.slice, placement.dtype, {data, size}, on_host));
    ops::Matrix matrix{.data = data,
                       .dtype = placement.dtype,
                       .rows = placement.slice.rows.size(),
                       .cols = placement.slice.cols.size()};
    if (!placement.scale_slice.empty()) {
      std::byte* scale = base + placement.scale_offset;
      R1D_RETURN_IF_ERROR(add(checkpoint::scale_name(name),
                              placement.scale_slice,
                              DType::kF32,
                              {scale, static_cast<size_t>(placement.scale_bytes())},
                              on_host));
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

  absl::Status add_vector(const Placement& placement, std::byte* base) {
    Vector& vector = vectors_.emplace_back();
    vector.dtype = placement.dtype;
    vector.stored.resize(static_cast<size_t>(placement.stored_bytes()));
    vector.device = base + placement.offset;
    store_.vectors_.emplace(placement.spec.name, reinterpret_cast<const float*>(vector.device));
    return add(placement.spec.name,
               placement.slice,
               placement.dtype,
               vector.stored,
               /*on_host=*/true);
  }

  // What the files hold as it is waits for all to be read; anything else is read now.
  absl::Status add(const std::string& name,
                   const TensorSlice& slice,
                   DType dtype,
                   std::span<std::byte> dest,
                   bool on_host) {
    if (auto place = source_.locate(name, slice)) {
      targets_.push_back({.name = name,
                          .bytes = *std::move(place),
                          .dtype = dtype,
                          .slice = slice,
                          .dest = dest.data(),
                          .staged = !on_host});
      return absl::OkStatus();
    }
    R1D_RETURN_IF_ERROR(on_host ? source_.read(name, slice, dest) : send(name, slice, dtype, dest));
    return progress_(static_cast<int64_t>(dest.size()));
  }

  // Dummy values are made by the device where it can; else through a staging buffer.
  absl::Status send(const std::string& name,
                    const TensorSlice& slice,
                    DType dtype,
                    std::span<std::byte> device) {
    if (const auto seeded = source_.seeded(name)) {
      R1D_ASSIGN_OR_RETURN(const bool filled,
                           ops_.fill(device.data(),
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
    staging_.resize(device.size());
    R1D_RETURN_IF_ERROR(source_.read(name, slice, staging_));
    return ops_.upload(device.data(), staging_);
  }

  absl::Status widen(const Vector& vector) {
    std::vector<float> values(vector.stored.size() /
                              static_cast<size_t>(dtype_bytes(vector.dtype)));
    widen_to_f32(vector.dtype, vector.stored, values);
    return ops_.upload(vector.device, std::as_bytes(std::span(values)));
  }

  const WeightSource& source_;
  ops::Ops& ops_;
  const LoadProgress& progress_;
  WeightStore& store_;
  std::vector<checkpoint::WeightTarget> targets_;
  std::deque<Vector> vectors_;
  std::vector<std::byte> staging_;
};

absl::StatusOr<WeightStore> WeightStore::load(const WeightSource& source,
                                              const RankShard& shard,
                                              ops::Ops& ops,
                                              bool with_mtp,
                                              checkpoint::WeightLoad& files,
                                              const LoadProgress& progress) {
  R1D_ASSIGN_OR_RETURN(std::vector<Placement> all, placements(source, shard, with_mtp));
  WeightStore store;
  R1D_RETURN_IF_ERROR(Loader(source, ops, progress, store).load(all, files));
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
