// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <utility>

#include "r1d/base/status.h"

#include "checkpoint/errors.h"
#include "checkpoint/json.h"
#include "checkpoint/json_fields.h"
#include "checkpoint/safetensors.h"

namespace r1d::checkpoint {
namespace {

constexpr size_t kMaxTensors = 200'000;
constexpr size_t kMaxRank = 8;

struct FormatDtype {
  std::string_view name;
  int64_t bits;
};

// All of the format's dtypes (safetensors 0.6).
constexpr std::array<FormatDtype, 20> kFormatDtypes{{
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
    {"U16", 16}, {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
    {"F32", 32}, {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};

absl::StatusOr<FormatDtype> dtype_of(const Json& entry) {
  const auto value = entry.find("dtype");
  if (value == entry.end() || !value->is_string()) return invalid_argument("has no dtype string");
  const auto& name = value->get_ref<const std::string&>();
  for (const FormatDtype& dtype : kFormatDtypes) {
    if (dtype.name == name) return dtype;
  }
  return invalid_argument("has dtype {}, which the safetensors format does not know",
                          printable(name, 40));
}

absl::StatusOr<std::vector<int64_t>> sizes_of(const Json& entry, const char* key) {
  const auto value = entry.find(key);
  if (value == entry.end() || !value->is_array() || value->size() > kMaxRank) {
    return invalid_argument("has no {} list of at most {} sizes", key, kMaxRank);
  }
  std::vector<int64_t> sizes;
  sizes.reserve(value->size());
  for (const Json& item : *value) {
    const auto size = integer_in(item, 0, std::numeric_limits<int64_t>::max());
    if (!size) {
      return invalid_argument(
          "has {} in its {}, expected integers from 0 to 2^63 - 1", describe(item), key);
    }
    sizes.push_back(*size);
  }
  return sizes;
}

absl::StatusOr<int64_t> data_size(const std::vector<int64_t>& shape, int64_t bits_each) {
  int64_t bits = bits_each;
  bool is_empty = false;
  for (const int64_t size : shape) {
    is_empty = is_empty || size == 0;
    if (__builtin_mul_overflow(bits, std::max<int64_t>(size, 1), &bits)) {
      return invalid_argument("has shape {}, whose size overflows", shape_text(shape));
    }
  }
  if (is_empty) return 0;
  if (bits % 8 != 0) return invalid_argument("has {} bits, not whole bytes", bits);
  return bits / 8;
}

absl::Status fill_entry(const Json& json, int64_t data_bytes, TensorEntry& entry) {
  if (!json.is_object()) return invalid_argument("is {}, expected an object", describe(json));
  R1D_ASSIGN_OR_RETURN(const FormatDtype dtype, dtype_of(json));
  entry.dtype = dtype.name;
  R1D_ASSIGN_OR_RETURN(entry.shape, sizes_of(json, "shape"));
  R1D_ASSIGN_OR_RETURN(const auto offsets, sizes_of(json, "data_offsets"));
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return invalid_argument("has data_offsets {}, expected [begin, end]", shape_text(offsets));
  }
  std::tie(entry.begin, entry.end) = std::pair(offsets[0], offsets[1]);
  R1D_ASSIGN_OR_RETURN(const int64_t expected_bytes, data_size(entry.shape, dtype.bits));
  if (entry.end - entry.begin != expected_bytes) {
    return invalid_argument("has {} bytes of data, {} {} needs {}",
                            entry.end - entry.begin,
                            entry.dtype,
                            shape_text(entry.shape),
                            expected_bytes);
  }
  if (entry.end > data_bytes) {
    return invalid_argument(
        "ends at byte {} of a data section of {}: the file is truncated", entry.end, data_bytes);
  }
  return absl::OkStatus();
}

absl::Status check_metadata(const Json& metadata) {
  if (!metadata.is_object()) return invalid_argument("__metadata__ is not an object");
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) {
      return invalid_argument("__metadata__: {} is not a string", printable(key));
    }
  }
  return absl::OkStatus();
}

// `entries` are sorted by their data.
absl::Status check_cover(const std::vector<TensorEntry>& entries, int64_t data_bytes) {
  int64_t covered = 0;
  const TensorEntry* previous = nullptr;
  for (const TensorEntry& entry : entries) {
    if (entry.begin < covered) {
      return invalid_argument("tensor {} at bytes [{}, {}) overlaps tensor {} at [{}, {})",
                              printable(entry.name),
                              entry.begin,
                              entry.end,
                              printable(previous->name),
                              previous->begin,
                              previous->end);
    }
    if (entry.begin > covered) {
      return invalid_argument("{} bytes of data before tensor {} belong to no tensor",
                              entry.begin - covered,
                              printable(entry.name));
    }
    covered = entry.end;
    previous = &entry;
  }
  if (covered == data_bytes) return absl::OkStatus();
  return invalid_argument("{} bytes of data after the last tensor belong to no tensor",
                          data_bytes - covered);
}

}  // namespace

std::optional<DType> loadable_dtype(std::string_view dtype) {
  for (const DType known : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    if (dtype == dtype_name(known)) return known;
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<TensorEntry>> parse_safetensors_header(std::string_view json,
                                                                  int64_t data_bytes) {
  // The format allows spaces after the JSON, for alignment, and nothing before it.
  if (!json.starts_with('{')) return invalid_argument("header does not start with '{{'");
  absl::StatusOr<Json> header = parse_json(json, kSafetensorsHeader);
  if (!header.ok()) return with_context(header.status(), "header");
  std::vector<TensorEntry> entries;
  entries.reserve(std::min(header->size(), kMaxTensors));
  for (const auto& [name, value] : header->items()) {
    if (name == "__metadata__") {
      R1D_RETURN_IF_ERROR(check_metadata(value));
      continue;
    }
    if (entries.size() == kMaxTensors) {
      return invalid_argument("header has more than {} tensors", kMaxTensors);
    }
    TensorEntry& entry = entries.emplace_back();
    entry.name = name;
    const absl::Status status = fill_entry(value, data_bytes, entry);
    if (!status.ok()) {
      return invalid_argument("tensor {} {}", printable(name), message_of(status));
    }
  }
  // Empty tensors share the offset where the next one begins.
  std::ranges::sort(entries, {}, [](const TensorEntry& e) {
    return std::tuple(e.begin, e.end, std::string_view(e.name));
  });
  R1D_RETURN_IF_ERROR(check_cover(entries, data_bytes));
  return entries;
}

}  // namespace r1d::checkpoint
