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
constexpr int64_t kMostRows = 1 << 30;
constexpr uint32_t kNoLayer = std::numeric_limits<uint32_t>::max();

uint8_t code_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kBF16:
      return 1;
    case DType::kF8E4M3:
      return 2;
  }
  return 0xFF;
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

void put_section(LittleEndianWriter& out, const PackedSection& section, int64_t name_begin) {
  out.put(static_cast<uint64_t>(section.offset));
  out.put(static_cast<uint64_t>(section.num_bytes()));
  for (const int64_t size : {section.rows,
                             section.cols,
                             section.slice.rows.begin,
                             section.slice.rows.end,
                             section.slice.cols.begin,
                             section.slice.cols.end,
                             section.first_piece}) {
    out.put(static_cast<uint64_t>(size));
  }
  out.put(static_cast<uint32_t>(name_begin));
  out.put(static_cast<uint16_t>(section.name.size()));
  out.put(code_of(section.dtype));
  out.put(static_cast<uint8_t>(section.kind));
  out.put(static_cast<uint32_t>(section.layer));  // -1: kNoLayer
  out.put(uint32_t{0});
}

std::string encode_table(const PackedLayout& layout, std::span<const uint64_t> checksums) {
  R1D_CHECK(std::ssize(checksums) == layout.num_pieces);
  LittleEndianWriter out;
  int64_t name_begin = 0;
  for (const PackedSection& section : layout.sections) {
    put_section(out, section, name_begin);
    name_begin += std::ssize(section.name);
  }
  for (const uint64_t value : checksums) out.put(value);
  for (const PackedSection& section : layout.sections) out.put(section.name);
  R1D_CHECK(std::ssize(out.bytes()) == layout.table_bytes());
  out.pad_to(static_cast<size_t>(layout.data_begin - kPackedPageBytes));
  return out.take();
}

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

// One record after the other, each against the one before it.
class TableReader {
 public:
  TableReader(const PackedPage& page, std::span<const std::byte> bytes)
      : page_(page),
        records_(bytes),
        names_(bytes.subspan(static_cast<size_t>(page.num_sections * kSectionRecordBytes +
                                                 page.num_pieces * int64_t{sizeof(uint64_t)}),
                             static_cast<size_t>(page.names_bytes))),
        data_end_(page.data_begin) {}

  absl::StatusOr<PackedSection> next() {
    PackedSection section;
    section.offset = number();
    const int64_t num_bytes = number();
    section.rows = number();
    section.cols = number();
    section.slice = {.rows = range(), .cols = range()};
    section.first_piece = number();
    R1D_RETURN_IF_ERROR(read_kind(section));
    R1D_RETURN_IF_ERROR(check_slice_of(section));
    if (num_bytes != section.num_bytes()) return bad(section, "its size does not fit its slice");
    R1D_RETURN_IF_ERROR(check_place(section));
    return section;
  }

  // Nothing is left over.
  [[nodiscard]] absl::Status check_end() const {
    if (num_pieces_ != page_.num_pieces || names_.left() != 0) {
      return invalid_argument(
          "header: the sections need {} checksums, there are {}", num_pieces_, page_.num_pieces);
    }
    return absl::OkStatus();
  }

 private:
  int64_t number() {
    const auto value = records_.get<uint64_t>();
    // What is too large becomes what no field may be.
    return value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
               ? -1
               : static_cast<int64_t>(value);
  }
  Range range() {
    const int64_t begin = number();
    return {.begin = begin, .end = number()};
  }

  absl::Status read_kind(PackedSection& section) {
    const auto name_begin = records_.get<uint32_t>();
    const auto name_bytes = records_.get<uint16_t>();
    const auto dtype = records_.get<uint8_t>();
    const auto kind = records_.get<uint8_t>();
    const auto layer = records_.get<uint32_t>();
    const auto unused = records_.get<uint32_t>();
    if (name_begin != static_cast<uint64_t>(page_.names_bytes) - names_.left() || name_bytes == 0 ||
        name_bytes > names_.left()) {
      return bad(section, "its name is not where it should be");
    }
    section.name = names_.text(name_bytes);
    if (dtype > code_of(DType::kF8E4M3) || kind > static_cast<uint8_t>(SectionKind::kVector) ||
        unused != 0 || (layer != kNoLayer && layer > 0xFFFF)) {
      return bad(section, "its dtype, kind or layer is none that there is");
    }
    section.dtype = dtype == 0 ? DType::kF32 : dtype == 1 ? DType::kBF16 : DType::kF8E4M3;
    section.kind = static_cast<SectionKind>(kind);
    section.layer = layer == kNoLayer ? -1 : static_cast<int32_t>(layer);
    return absl::OkStatus();
  }

  static bool lies_in(const Range& range, int64_t size) {
    return 0 <= range.begin && range.begin < range.end && range.end <= size;
  }
  absl::Status check_slice_of(const PackedSection& section) const {
    if (section.rows < 1 || section.rows > kMostRows || section.cols < 1 ||
        section.cols > kMostRows || !lies_in(section.slice.rows, section.rows) ||
        !lies_in(section.slice.cols, section.cols)) {
      return bad(section, "its slice does not lie in its tensor");
    }
    return absl::OkStatus();
  }

  absl::Status check_place(const PackedSection& section) {
    if (section.offset < data_end_ || section.offset % kPackedAlignment != 0 ||
        section.offset > page_.file_bytes ||
        section.num_bytes() > page_.file_bytes - section.offset) {
      return bad(section, "its bytes do not lie in the file behind those of the section before");
    }
    if (section.first_piece != num_pieces_) return bad(section, "its checksums are not its own");
    num_pieces_ += section.num_pieces(page_.piece_bytes);
    if (num_pieces_ > page_.num_pieces) return bad(section, "it has fewer checksums than pieces");
    data_end_ = section.end();
    ++index_;
    return absl::OkStatus();
  }

  [[nodiscard]] absl::Status bad(const PackedSection& section, const char* why) const {
    return invalid_argument(
        "header: section {}, tensor {}: {}", index_, printable(section.name), why);
  }

  const PackedPage& page_;
  LittleEndianReader records_;
  LittleEndianReader names_;
  int64_t index_ = 0;
  int64_t data_end_;
  int64_t num_pieces_ = 0;
};

}  // namespace

std::string encode_packed_header(PackedPage page,
                                 const PackedLayout& layout,
                                 std::span<const uint64_t> checksums) {
  const std::string table = encode_table(layout, checksums);
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

absl::StatusOr<PackedHeader> parse_packed_table(PackedPage page, std::span<const std::byte> bytes) {
  R1D_CHECK(std::ssize(bytes) == page.data_begin - kPackedPageBytes);
  if (checksum(bytes) != page.table_checksum) {
    return data_loss("the header's table of sections does not have its checksum");
  }
  PackedHeader header{.page = std::move(page), .sections = {}, .checksums = {}};
  TableReader table(header.page, bytes);
  header.sections.reserve(static_cast<size_t>(header.page.num_sections));
  for (int64_t i = 0; i < header.page.num_sections; ++i) {
    R1D_ASSIGN_OR_RETURN(PackedSection section, table.next());
    header.sections.push_back(std::move(section));
  }
  R1D_RETURN_IF_ERROR(table.check_end());
  LittleEndianReader checksums(
      bytes.subspan(static_cast<size_t>(header.page.num_sections * kSectionRecordBytes)));
  header.checksums.reserve(static_cast<size_t>(header.page.num_pieces));
  for (int64_t i = 0; i < header.page.num_pieces; ++i) {
    header.checksums.push_back(checksums.get<uint64_t>());
  }
  return header;
}

}  // namespace r1d::checkpoint
