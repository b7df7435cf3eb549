// SPDX-License-Identifier: Apache-2.0
// Any bytes as the header of a packed file, with checksums that fit them, so that the fields are
// reached: refused, or every accepted section lies in the data with its checksums. What was
// accepted is written and accepted again.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "r1d/base/check.h"

#include "checkpoint/packed_header.h"
#include "tests/support/packed.h"

namespace {

using namespace r1d::checkpoint;

constexpr size_t kFileBytesAt = 64;
constexpr auto kFirstPage = static_cast<size_t>(kPackedPageBytes);

void check(const PackedHeader& header) {
  int64_t end = header.page.data_begin;
  int64_t pieces = 0;
  for (const PackedSection& section : header.sections) {
    R1D_CHECK(section.offset >= end && section.end() <= header.page.file_bytes);
    R1D_CHECK(section.offset % kPackedAlignment == 0 && section.num_bytes() > 0);
    R1D_CHECK(section.first_piece == pieces);
    end = section.end();
    pieces += section.num_pieces(header.page.piece_bytes);
  }
  R1D_CHECK(pieces == std::ssize(header.checksums));
}

PackedLayout layout_of(const PackedHeader& header) {
  return {.sections = header.sections,
          .num_pieces = header.page.num_pieces,
          .names_bytes = header.page.names_bytes,
          .data_begin = header.page.data_begin,
          .file_bytes = header.page.file_bytes};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kFirstPage) return 0;
  std::string file(reinterpret_cast<const char*>(data), size);
  r1d::test::renew_checksums(file);
  const auto bytes = std::as_bytes(std::span(std::as_const(file)));
  // The file is as long as its header says: data is not part of the input.
  uint64_t file_bytes = 0;
  std::memcpy(&file_bytes, file.data() + kFileBytesAt, sizeof(file_bytes));
  const auto page =
      parse_packed_page(bytes.first<kPackedPageBytes>(), static_cast<int64_t>(file_bytes));
  if (!page.ok() || static_cast<uint64_t>(page->data_begin) > size) return 0;
  const auto table_bytes = static_cast<size_t>(page->data_begin) - kFirstPage;
  const auto header = parse_packed_table(*page, bytes.subspan(kFirstPage, table_bytes));
  if (!header.ok()) return 0;
  check(*header);
  const std::string again =
      encode_packed_header(header->page, layout_of(*header), header->checksums);
  const auto reread = std::as_bytes(std::span(again));
  const auto page2 = parse_packed_page(reread.first<kPackedPageBytes>(), page->file_bytes);
  R1D_CHECK(page2.ok() && page2->num_sections == page->num_sections);
  R1D_CHECK(parse_packed_table(*page2, reread.subspan(kFirstPage)).ok());
  return 0;
}
