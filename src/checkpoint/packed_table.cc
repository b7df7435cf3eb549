// SPDX-License-Identifier: Apache-2.0
// The table of sections: records, checksums of pieces, names.
#include <limits>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

#include "checkpoint/little_endian.h"
#include "checkpoint/packed_header.h"

namespace r1d::checkpoint {
namespace {

constexpr uint32_t kNoLayer = std::numeric_limits<uint32_t>::max();
// Far beyond any model, small enough that a matrix of so many rows and columns has a size.
constexpr int64_t kMostRows = 1 << 30;

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

std::string encode_packed_table(const PackedLayout& layout, std::span<const uint64_t> checksums) {
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
