// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/errors.h"
#include "checkpoint/slice_read.h"

namespace r1d::checkpoint {
namespace {

// Every value is center + amplitude * u, with u uniform in [-1, 1).
struct DummyTensor {
  StoredTensor stored;
  uint64_t key = 0;  // of (seed, name)
  float center = 0;
  float amplitude = 0;
};

constexpr float kF8Largest = 448;

// FNV-1a: std::hash may differ from one standard library to the next, dummy weights must not.
uint64_t name_hash(std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3ULL;
  return hash;
}

// Bits 0..7 of a hash -> the e4m3 code nearest to a uniform value over the format's range.
using F8Table = std::array<uint8_t, 256>;
F8Table make_f8_table() {
  F8Table table{};
  for (size_t i = 0; i < table.size(); ++i) {
    const float unit = (static_cast<float>(i) - 127.5F) / 127.5F;
    table[i] = f32_to_f8e4m3(unit * kF8Largest);
  }
  return table;
}

constexpr int64_t kHashBytes = 8;

// One hash gives 8 bytes of a row: the N elements of columns [group * N, group * N + N), each
// `element(its bits)`.
template <typename T, typename Element>
void write_group(uint64_t bits, std::byte* out, const Element& element) {
  constexpr int kBits = 8 * sizeof(T);
  for (size_t i = 0; i < kHashBytes / sizeof(T); ++i) {
    const T value = element(bits >> (i * kBits));
    std::memcpy(out + i * sizeof(T), &value, sizeof(T));
  }
}

template <typename T, typename Element>
void fill(const DummyTensor& tensor,
          const TensorSlice& slice,
          std::span<std::byte> dest,
          const Element& element) {
  constexpr int64_t kPerHash = kHashBytes / sizeof(T);
  const uint64_t key = tensor.key;  // a copy: stores to bytes may alias what a reference names
  std::byte* out = dest.data();
  for (int64_t row = slice.rows.begin; row < slice.rows.end; ++row) {
    for (int64_t col = slice.cols.begin; col < slice.cols.end;) {
      const auto group = static_cast<uint64_t>(col) / kPerHash;
      const uint64_t bits = base::random_bits(key, static_cast<uint64_t>(row) << 32 | group);
      const int64_t skip = col % kPerHash;
      const int64_t count = std::min(kPerHash - skip, slice.cols.end - col);
      const int64_t num_bytes = count * static_cast<int64_t>(sizeof(T));
      if (count == kPerHash) {
        write_group<T>(bits, out, element);
      } else {
        std::byte whole[kHashBytes];
        write_group<T>(bits, whole, element);
        std::memcpy(out, whole + skip * sizeof(T), static_cast<size_t>(num_bytes));
      }
      out += num_bytes;
      col += count;
    }
  }
}

class DummySource final : public WeightSource {
 public:
  DummySource(const ModelConfig& config, uint64_t seed)
      : config_(config), seed_(seed), f8_table_(make_f8_table()) {
    for (const TensorSpec& spec : expected_tensors(config_, has_mtp())) add(spec);
  }

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] bool has_mtp() const override { return config_.num_nextn_predict_layers > 0; }

  [[nodiscard]] absl::StatusOr<StoredTensor> find(const std::string& name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return no_tensor(name);
    return found->second.stored;
  }

  [[nodiscard]] absl::Status read(const std::string& name,
                                  const TensorSlice& slice,
                                  std::span<std::byte> dest) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return no_tensor(name);
    const DummyTensor& tensor = found->second;
    check_slice(tensor.stored, slice, dest.size());
    switch (tensor.stored.dtype) {
      case DType::kF32:
        fill_f32(tensor, slice, dest);
        break;
      case DType::kBF16:
        fill_bf16(tensor, slice, dest);
        break;
      case DType::kF8E4M3:
        fill_f8(tensor, slice, dest);
        break;
    }
    return absl::OkStatus();
  }

  [[nodiscard]] std::optional<SeededTensor> seeded(const std::string& name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return std::nullopt;
    const DummyTensor& tensor = found->second;
    return SeededTensor{tensor.key, tensor.center, tensor.amplitude};
  }

 private:
  static absl::Status no_tensor(const std::string& name) {
    return not_found("the dummy model has no tensor {}", printable(name));
  }

  void add(const TensorSpec& spec) {
    // A uniform value in [-a, a) has the standard deviation a / sqrt(3); 1 / sqrt(cols) keeps the
    // variance of what a Linear passes on.
    const float amplitude = std::sqrt(3.0F / static_cast<float>(spec.cols));
    DummyTensor tensor{.stored = {.dtype = DType::kBF16, .rows = spec.rows, .cols = spec.cols},
                       .key = key_of(spec.name),
                       .center = 0,
                       .amplitude = amplitude};
    if (spec.name.ends_with(".e_score_correction_bias")) {
      tensor.stored.dtype = DType::kF32;
      tensor.amplitude =
          0.01F;  // sigmoid scores spread by about 0.2: the choice stays the router's
    } else if (spec.rank_1) {
      tensor.center = 1;
      tensor.amplitude = 0;
    } else if (spec.quantizable && config_.quantization) {
      tensor.stored.dtype = DType::kF8E4M3;
      add_scale(spec, amplitude / kF8Largest);
    }
    tensors_.emplace(spec.name, tensor);
  }

  // Blocks differ by up to a quarter, so that a scale read for the wrong block shows.
  void add_scale(const TensorSpec& spec, float scale) {
    const TensorSlice whole{.rows = {0, spec.rows}, .cols = {0, spec.cols}};
    const TensorSlice blocks = scale_slice_of(whole, *config_.quantization);
    const std::string name = scale_name(spec.name);
    const StoredTensor stored{
        .dtype = DType::kF32, .rows = blocks.rows.size(), .cols = blocks.cols.size()};
    tensors_.emplace(name, DummyTensor{stored, key_of(name), scale, scale / 4});
  }

  [[nodiscard]] uint64_t key_of(std::string_view name) const {
    return base::random_bits(seed_, name_hash(name));
  }

  static void fill_f32(const DummyTensor& tensor,
                       const TensorSlice& slice,
                       std::span<std::byte> dest) {
    const float step = tensor.amplitude * 0x1p-31F;
    fill<float>(tensor, slice, dest, [step, center = tensor.center](uint64_t bits) {
      return center + step * static_cast<float>(static_cast<int32_t>(bits));
    });
  }

  static void fill_bf16(const DummyTensor& tensor,
                        const TensorSlice& slice,
                        std::span<std::byte> dest) {
    const float step = tensor.amplitude * 0x1p-15F;
    fill<uint16_t>(tensor, slice, dest, [step, center = tensor.center](uint64_t bits) {
      return f32_to_bf16(center + step * static_cast<float>(static_cast<int16_t>(bits)));
    });
  }

  void fill_f8(const DummyTensor& tensor,
               const TensorSlice& slice,
               std::span<std::byte> dest) const {
    fill<uint8_t>(tensor, slice, dest, [&](uint64_t bits) { return f8_table_[bits & 0xFFU]; });
  }

  ModelConfig config_;
  uint64_t seed_;
  F8Table f8_table_;
  std::unordered_map<std::string, DummyTensor> tensors_;
};

}  // namespace

std::unique_ptr<WeightSource> make_dummy_source(const ModelConfig& config, uint64_t seed) {
  return std::make_unique<DummySource>(config, seed);
}

}  // namespace r1d::checkpoint
