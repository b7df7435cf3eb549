// SPDX-License-Identifier: Apache-2.0
// Weights of a device that the host cannot write, against those that are read in place.
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/model/deepseek_v3.h"
#include "r1d/ops/cpu_ops.h"

#include "tests/support/test_data.h"

namespace r1d::model {
namespace {

// The CPU as a device of its own: weights come by uploads alone, and these are done as late as is
// allowed. It computes nothing.
class StagedOps final : public ops::Ops {
 public:
  explicit StagedOps(const ops::ModelDims& dims) : memory_(ops::make_local_cpu_ops({dims}, {})) {}

  [[nodiscard]] int64_t num_uploads() const { return static_cast<int64_t>(started_); }

  [[nodiscard]] DType activation_dtype() const override { return DType::kF32; }
  [[nodiscard]] bool host_addressable() const override { return false; }
  [[nodiscard]] absl::StatusOr<std::unique_ptr<ops::Buffer>> allocate(
      size_t bytes, ops::MemoryKind kind, const std::string& what) override {
    return memory_.front()->allocate(bytes, kind, what);
  }
  [[nodiscard]] ops::MemoryUse memory_use() const override { return memory_.front()->memory_use(); }
  [[nodiscard]] absl::Status upload(std::byte* device, std::span<const std::byte> host) override {
    return memory_.front()->upload(device, host);
  }
  [[nodiscard]] absl::StatusOr<uint64_t> start_upload(std::byte* device,
                                                      std::span<const std::byte> staged) override {
    waiting_.push_back({device, staged});
    return ++started_;
  }
  [[nodiscard]] absl::Status wait_upload(uint64_t upload) override {
    for (; done_ < upload; ++done_) {
      std::memcpy(
          waiting_.front().device, waiting_.front().staged.data(), waiting_.front().staged.size());
      waiting_.pop_front();
    }
    return absl::OkStatus();
  }
  [[nodiscard]] absl::Status download(std::span<std::byte> host, const std::byte* device) override {
    return memory_.front()->download(host, device);
  }

  [[nodiscard]] absl::Status begin_step(const ops::StepInputs& /*inputs*/) override { return no(); }
  [[nodiscard]] absl::Status embed(const ops::Matrix&, int64_t, ops::Tensor) override {
    return no();
  }
  [[nodiscard]] absl::Status norm(ops::Tensor,
                                  const float*,
                                  ops::Tensor,
                                  ops::NormReader) override {
    return no();
  }
  [[nodiscard]] absl::Status reduce_add_norm(
      ops::Tensor, ops::Tensor, const float*, ops::Tensor, ops::NormReader) override {
    return no();
  }
  [[nodiscard]] absl::Status attention(const ops::AttentionWeights&,
                                       const ops::LatentPages&,
                                       ops::Tensor,
                                       ops::Tensor) override {
    return no();
  }
  [[nodiscard]] absl::Status mlp(const ops::MlpWeights&, ops::Tensor, ops::Tensor) override {
    return no();
  }
  [[nodiscard]] absl::Status moe(const ops::MoeWeights&, ops::Tensor, ops::Tensor) override {
    return no();
  }
  [[nodiscard]] absl::Status logits(const ops::Matrix&, int64_t, ops::Tensor, float*) override {
    return no();
  }
  [[nodiscard]] absl::Status end_step() override { return no(); }
  void abort() override {}
  [[nodiscard]] absl::Status rejoin() override { return no(); }

 private:
  struct Upload {
    std::byte* device;
    std::span<const std::byte> staged;
  };

  static absl::Status no() { return unimplemented("this device only holds weights"); }

  std::vector<std::unique_ptr<ops::Ops>> memory_;
  std::deque<Upload> waiting_;
  uint64_t started_ = 0;
  uint64_t done_ = 0;
};

std::string bytes_of(const ops::Matrix& matrix) {
  const auto size = static_cast<size_t>(matrix.rows * matrix.cols * dtype_bytes(matrix.dtype));
  std::string bytes(reinterpret_cast<const char*>(matrix.data), size);
  if (matrix.scale == nullptr) return bytes;
  const int64_t rows = (matrix.scale_row_offset + matrix.rows + 127) / 128;
  bytes.append(reinterpret_cast<const char*>(matrix.scale),
               static_cast<size_t>(rows * matrix.scale_cols) * sizeof(float));
  return bytes;
}

std::string bytes_of(const ops::MlpWeights& mlp) {
  return mlp.gate.data == nullptr ? "" : bytes_of(mlp.gate) + bytes_of(mlp.up) + bytes_of(mlp.down);
}

// All weights of a rank, one after the other.
std::string bytes_of(const ModelWeights& weights, int64_t hidden_size) {
  const auto norm = [&](const float* values) {
    return std::string(reinterpret_cast<const char*>(values),
                       static_cast<size_t>(hidden_size) * sizeof(float));
  };
  std::string bytes = bytes_of(weights.embedding) + norm(weights.final_norm);
  bytes += bytes_of(weights.head);
  for (const Layer& layer : weights.layers) {
    bytes += norm(layer.input_norm) + norm(layer.post_attention_norm);
    bytes += bytes_of(layer.attention.q_b) + bytes_of(layer.attention.kv_a);
    bytes += bytes_of(layer.attention.kv_b) + bytes_of(layer.attention.o) + bytes_of(layer.mlp);
    if (!layer.is_moe) continue;
    bytes += bytes_of(layer.moe.router) + bytes_of(layer.moe.shared);
    for (const ops::MlpWeights& expert : layer.experts) bytes += bytes_of(expert);
  }
  return bytes;
}

// The weights of every rank, read together as the engine does.
std::vector<std::string> load_on(const checkpoint::WeightSource& source,
                                 int32_t world,
                                 checkpoint::ExpertSplit split,
                                 bool staged) {
  checkpoint::WeightLoad files({.num_threads = 3}, world);
  std::vector<std::string> bytes(static_cast<size_t>(world));
  const auto run_rank = [&](int32_t rank) {
    const auto shard = checkpoint::make_rank_shard(source.config(), rank, world, split).value();
    const ops::ModelDims dims = make_dims(source.config(), shard);
    std::unique_ptr<ops::Ops> own;
    StagedOps* device = nullptr;
    if (staged) {
      auto made = std::make_unique<StagedOps>(dims);
      device = made.get();
      own = std::move(made);
    } else {
      own = std::move(ops::make_local_cpu_ops({dims}, {}).front());
    }
    int64_t arrived = 0;
    const auto model = DeepSeekV3::load(
        source,
        shard,
        *own,
        1,
        false,
        [&](int64_t count) {
          arrived += count;
          return absl::OkStatus();
        },
        &files);
    ASSERT_TRUE(model.ok()) << message_of(model.status());
    EXPECT_EQ(arrived, rank_weight_bytes(source, shard, false).value());
    if (device != nullptr) {
      EXPECT_GT(device->num_uploads(), 0);
    }
    bytes[static_cast<size_t>(rank)] = bytes_of((*model)->weights(), source.config().hidden_size);
  };
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world; ++rank) threads.emplace_back(run_rank, rank);
  for (std::thread& thread : threads) thread.join();
  return bytes;
}

TEST(StagedLoadTest, UploadsGiveTheWeightsThatReadingInPlaceGives) {
  for (const char* golden : {"v3-ragged-fp8", "v3-noqlora-bf16"}) {
    const auto source = checkpoint::open_hugging_face(test::data("golden/") + golden);
    ASSERT_TRUE(source.ok()) << message_of(source.status());
    for (const int32_t world : {1, 2, 4}) {
      for (const auto split :
           {checkpoint::ExpertSplit::kTensor, checkpoint::ExpertSplit::kExpert}) {
        const bool whole_experts = split == checkpoint::ExpertSplit::kExpert;
        if (whole_experts && (*source)->config().n_routed_experts % world != 0) continue;
        EXPECT_TRUE(load_on(**source, world, split, true) == load_on(**source, world, split, false))
            << golden << " on " << world;
      }
    }
  }
}

// In place, against slices that the source reads one by one.
TEST(StagedLoadTest, WeightsAreTheSlicesOfTheSource) {
  const auto source = checkpoint::open_hugging_face(test::data("golden/v3-ragged-fp8"));
  ASSERT_TRUE(source.ok()) << message_of(source.status());
  const auto ranks = load_on(**source, 2, checkpoint::ExpertSplit::kTensor, false);
  for (int32_t rank = 0; rank < 2; ++rank) {
    const auto shard =
        checkpoint::make_rank_shard((*source)->config(), rank, 2, checkpoint::ExpertSplit::kTensor)
            .value();
    for (const auto& spec : checkpoint::expected_tensors((*source)->config(), false)) {
      if (spec.rank_1 || spec.name.find("q_a_proj") != std::string::npos) continue;
      const checkpoint::TensorSlice slice = checkpoint::slice_of(spec, shard);
      const DType dtype = (*source)->find(spec.name)->dtype;
      std::string part(
          static_cast<size_t>(slice.rows.size() * slice.cols.size() * dtype_bytes(dtype)), '\0');
      ASSERT_TRUE((*source)->read(spec.name, slice, std::as_writable_bytes(std::span(part))).ok());
      EXPECT_NE(ranks[static_cast<size_t>(rank)].find(part), std::string::npos) << spec.name;
    }
  }
}

}  // namespace
}  // namespace r1d::model
