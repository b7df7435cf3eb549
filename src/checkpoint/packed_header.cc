// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/packed_header.h"

#include <bit>
#include <limits>
#include <string_view>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

#include "checkpoint/errors.h"
#include "checkpoint/little_endian.h"

namespace r1d::checkpoint {
namespace {

constexpr std::string_view kMagic("R1DPACK\0", 8);
constexpr size_t kSourceAt = 128;
constexpr uint32_t kWholeExperts = 1;  // flags
constexpr uint32_t kWithMtp = 2;
constexpr int32_t kMostRanks = 64;
// Far beyond any model, small enough that no product of them overflows.
constexpr int64_t kMostSections = 1 << 24;
constexpr int64_t kMostPieces = int64_t{1} << 32;
constexpr int64_t kMostNamesBytes = int64_t{1} << 32;
constexpr int64_t kMostTableBytes = int64_t{1} << 30;

std::string encode_page(const PackedPage& page) {
  LittleEndianWriter out;
  out.put(kMagic);
  out.put(static_cast<uint32_t>(kPackedVersion));
  out.put((page.expert_split == ExpertSplit::kExpert ? kWholeExperts : 0) |
          (page.has_mtp ? kWithMtp : 0));
  out.put(static_cast<uint32_t>(page.world_size));
  out.put(static_cast<uint32_t>(page.rank));
  for (const int64_t size : {page.piece_bytes,
                             page.num_sections,
                             page.num_pieces,
                             page.names_bytes,
                             page.data_begin,
                             page.file_bytes}) {
    out.put(static_cast<uint64_t>(size));
  }
  for (const Digest& digest : {page.model, page.set}) {
    out.put(digest.low);
    out.put(digest.high);
  }
  R1D_CHECK(out.bytes().size() == kTableChecksumAt);
  out.put(page.table_checksum);
  const std::string_view source = std::string_view(page.source).substr(0, kMostSourceBytes);
  out.put(static_cast<uint16_t>(source.size()));
  out.pad_to(kSourceAt);
  out.put(source);
  out.pad_to(kPageChecksumAt);
  out.put(checksum(bytes_of(out.bytes())));
  return out.take();
}

// A number that must lie in [least, most].
absl::StatusOr<int64_t> ranged(const char* field, uint64_t value, int64_t least, int64_t most) {
  if (value < static_cast<uint64_t>(least) || value > static_cast<uint64_t>(most)) {
    return invalid_argument("header: {}: expected {} to {}, found {}", field, least, most, value);
  }
  return static_cast<int64_t>(value);
}

absl::Status check_identity(std::span<const std::byte, kPackedPageBytes> bytes) {
  LittleEndianReader in(bytes);
  if (in.text(kMagic.size()) != kMagic) {
    return invalid_argument("is no packed file, or one whose packing did not end");
  }
  const auto version = in.get<uint32_t>();
  if (version > static_cast<uint32_t>(kPackedVersion)) {
    return failed_precondition(
        "has format version {}; this r1d reads up to {}: pack the checkpoint again, or serve it "
        "with a newer r1d",
        version,
        kPackedVersion);
  }
  LittleEndianReader end(bytes.subspan(kPageChecksumAt));
  if (checksum(bytes.first(kPageChecksumAt)) != end.get<uint64_t>()) {
    return data_loss("the first page of the header does not have its checksum");
  }
  if (version == 0) return invalid_argument("header: version: expected 1, found 0");
  return absl::OkStatus();
}

absl::Status read_sizes(LittleEndianReader& in, PackedPage& page) {
  R1D_ASSIGN_OR_RETURN(
      page.piece_bytes,
      ranged("piece_bytes", in.get<uint64_t>(), kLeastPieceBytes, kMostPieceBytes));
  if (!std::has_single_bit(static_cast<uint64_t>(page.piece_bytes))) {
    return invalid_argument("header: piece_bytes: expected a power of two, found {}",
                            page.piece_bytes);
  }
  R1D_ASSIGN_OR_RETURN(page.num_sections,
                       ranged("num_sections", in.get<uint64_t>(), 1, kMostSections));
  R1D_ASSIGN_OR_RETURN(page.num_pieces, ranged("num_pieces", in.get<uint64_t>(), 1, kMostPieces));
  R1D_ASSIGN_OR_RETURN(page.names_bytes,
                       ranged("names_bytes", in.get<uint64_t>(), 1, kMostNamesBytes));
  const int64_t table_bytes = page.num_sections * kSectionRecordBytes +
                              page.num_pieces * int64_t{sizeof(uint64_t)} + page.names_bytes;
  R1D_RETURN_IF_ERROR(
      ranged("the table's bytes", static_cast<uint64_t>(table_bytes), 1, kMostTableBytes).status());
  const int64_t data_begin = kPackedPageBytes + round_up(table_bytes, kPackedPageBytes);
  R1D_ASSIGN_OR_RETURN(page.data_begin,
                       ranged("data_begin", in.get<uint64_t>(), data_begin, data_begin));
  R1D_ASSIGN_OR_RETURN(
      page.file_bytes,
      ranged("file_bytes", in.get<uint64_t>(), data_begin, std::numeric_limits<int64_t>::max()));
  return absl::OkStatus();
}

}  // namespace

std::string encode_packed_header(PackedPage page,
                                 const PackedLayout& layout,
                                 std::span<const uint64_t> checksums) {
  const std::string table = encode_packed_table(layout, checksums);
  page.num_sections = std::ssize(layout.sections);
  page.num_pieces = layout.num_pieces;
  page.names_bytes = layout.names_bytes;
  page.data_begin = layout.data_begin;
  page.file_bytes = layout.file_bytes;
  page.table_checksum = checksum(bytes_of(table));
  return encode_page(page) + table;
}

absl::StatusOr<PackedPage> parse_packed_page(std::span<const std::byte, kPackedPageBytes> bytes,
                                             int64_t file_bytes) {
  R1D_RETURN_IF_ERROR(check_identity(bytes));
  LittleEndianReader in(bytes.subspan(kMagic.size() + sizeof(uint32_t)));
  PackedPage page;
  R1D_ASSIGN_OR_RETURN(const int64_t flags,
                       ranged("flags", in.get<uint32_t>(), 0, kWholeExperts | kWithMtp));
  page.expert_split = (flags & kWholeExperts) != 0 ? ExpertSplit::kExpert : ExpertSplit::kTensor;
  page.has_mtp = (flags & kWithMtp) != 0;
  R1D_ASSIGN_OR_RETURN(const int64_t world_size,
                       ranged("world_size", in.get<uint32_t>(), 1, kMostRanks));
  R1D_ASSIGN_OR_RETURN(const int64_t rank, ranged("rank", in.get<uint32_t>(), 0, world_size - 1));
  page.world_size = static_cast<int32_t>(world_size);
  page.rank = static_cast<int32_t>(rank);
  R1D_RETURN_IF_ERROR(read_sizes(in, page));
  for (Digest* digest : {&page.model, &page.set}) {
    digest->low = in.get<uint64_t>();
    digest->high = in.get<uint64_t>();
  }
  page.table_checksum = in.get<uint64_t>();
  R1D_ASSIGN_OR_RETURN(
      const int64_t source_bytes,
      ranged("the source's length", in.get<uint16_t>(), 0, int64_t{kMostSourceBytes}));
  page.source =
      LittleEndianReader(bytes.subspan(kSourceAt)).text(static_cast<size_t>(source_bytes));
  if (file_bytes != page.file_bytes) {
    return data_loss("is {} bytes long, its header says {}: it was {}",
                     grouped(file_bytes),
                     grouped(page.file_bytes),
                     file_bytes < page.file_bytes ? "truncated" : "appended to");
  }
  return page;
}

}  // namespace r1d::checkpoint
