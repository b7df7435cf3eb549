// SPDX-License-Identifier: Apache-2.0
// The header of a packed file: one page of fixed fields, then the table of sections. Numbers are
// little-endian; docs/packed-format.md has every offset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/shard_plan.h"

#include "checkpoint/packed_checksum.h"
#include "checkpoint/packed_layout.h"

namespace r1d::checkpoint {

inline constexpr int32_t kPackedVersion = 1;
inline constexpr int64_t kLeastPieceBytes = 4 << 10;
inline constexpr int64_t kMostPieceBytes = 1 << 30;
inline constexpr size_t kMostSourceBytes = 1024;

// Where the checksums stand that the header has of itself, for tests that alter it.
inline constexpr size_t kTableChecksumAt = 104;
inline constexpr size_t kPageChecksumAt = kPackedPageBytes - 8;

// The first page.
struct PackedPage {
  int32_t world_size = 1;
  int32_t rank = 0;
  ExpertSplit expert_split = ExpertSplit::kTensor;
  bool has_mtp = false;
  int64_t piece_bytes = 0;
  int64_t num_sections = 0;
  int64_t num_pieces = 0;
  int64_t names_bytes = 0;
  int64_t data_begin = 0;
  int64_t file_bytes = 0;
  Digest model;  // model_digest()
  Digest set;    // of the checksums of all ranks: the files of one packing have the same
  uint64_t table_checksum = 0;
  std::string source;  // who packed it, and from what
};

struct PackedHeader {
  PackedPage page;
  std::vector<PackedSection> sections;
  std::vector<uint64_t> checksums;  // a piece each
};

// Records, checksums and names, padded: the bytes between the first page and the data.
[[nodiscard]] std::string encode_packed_table(const PackedLayout& layout,
                                              std::span<const uint64_t> checksums);

// All bytes before the data. The page's sizes and table checksum are filled in from the rest.
[[nodiscard]] std::string encode_packed_header(PackedPage page,
                                               const PackedLayout& layout,
                                               std::span<const uint64_t> checksums);

// Reads the first page of a file of `file_bytes`. Magic, version, checksum, then every field is
// checked, so that the sizes may be allocated: the header as it is now, or a file that was cut.
[[nodiscard]] absl::StatusOr<PackedPage> parse_packed_page(
    std::span<const std::byte, kPackedPageBytes> bytes, int64_t file_bytes);

// Reads the table, all bytes between the first page and the data. Every accepted section lies in
// the data, behind the one before it, and has the bytes and pieces that its slice needs.
[[nodiscard]] absl::StatusOr<PackedHeader> parse_packed_table(PackedPage page,
                                                              std::span<const std::byte> bytes);

}  // namespace r1d::checkpoint
