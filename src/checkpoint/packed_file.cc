// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/packed_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <memory>

#include "r1d/base/check.h"
#include "r1d/base/fault.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

namespace r1d::checkpoint {

std::string packed_file_name(int32_t rank, int32_t world_size) {
  return fmt::format("rank-{:02}-of-{:02}.r1dpack", rank, world_size);
}

std::optional<int32_t> world_size_of_name(const std::string& name) {
  int32_t rank = 0;
  int32_t world_size = 0;
  constexpr size_t kRankAt = 5;        // behind "rank-"
  constexpr size_t kWorldSizeAt = 11;  // behind "-of-"
  if (name.size() != packed_file_name(0, 0).size()) return std::nullopt;
  std::from_chars(name.data() + kRankAt, name.data() + kRankAt + 2, rank);
  std::from_chars(name.data() + kWorldSizeAt, name.data() + kWorldSizeAt + 2, world_size);
  if (world_size < 1 || name != packed_file_name(rank, world_size)) return std::nullopt;
  return world_size;
}

absl::StatusOr<PackedFile> PackedFile::open(const std::string& path, std::string name) {
  absl::StatusOr<File> opened = File::open(path);
  if (!opened.ok()) return with_context(opened.status(), name);
  PackedFile file(std::move(name), *std::move(opened));
  const absl::Status status = file.read_header();
  if (!status.ok()) return with_context(status, file.name_);
  return file;
}

absl::Status PackedFile::read_header() {
  if (file_.size() < kPackedPageBytes) {
    return data_loss("is {} bytes long, too short for a packed file", file_.size());
  }
  std::array<std::byte, kPackedPageBytes> first;
  R1D_RETURN_IF_ERROR(file_.read_at(0, first));
  R1D_ASSIGN_OR_RETURN(PackedPage page, parse_packed_page(first, file_.size()));
  const auto table_bytes = static_cast<size_t>(page.data_begin - kPackedPageBytes);
  const auto table = std::make_unique_for_overwrite<std::byte[]>(table_bytes);
  R1D_RETURN_IF_ERROR(file_.read_at(kPackedPageBytes, {table.get(), table_bytes}));
  R1D_ASSIGN_OR_RETURN(header_, parse_packed_table(std::move(page), {table.get(), table_bytes}));
  return absl::OkStatus();
}

absl::Status PackedFile::read_raw(int64_t offset, std::span<std::byte> dest) const {
  switch (base::hit_fault(base::FaultPoint::kWeightRead)) {
    case base::FaultAction::kError:
      return data_loss("read at byte {} failed: fault point checkpoint.read", offset);
    case base::FaultAction::kShort:
      return file_.read_at(file_.size() - std::ssize(dest) + 1, dest);
    default:
      return file_.read_at(offset, dest);
  }
}

absl::Status PackedFile::read(size_t index,
                              int64_t begin,
                              std::span<std::byte> dest,
                              bool verify) const {
  const PackedSection& section = header_.sections[index];
  R1D_CHECK(begin >= 0 && begin + std::ssize(dest) <= section.num_bytes());
  const absl::Status status =
      verify ? read_verified(index, begin, dest) : read_raw(section.offset + begin, dest);
  return status.ok() ? status : with_context(status, place_of(index));
}

absl::Status PackedFile::read_verified(size_t index,
                                       int64_t begin,
                                       std::span<std::byte> dest) const {
  const int64_t section_bytes = header_.sections[index].num_bytes();
  const int64_t piece_bytes = header_.page.piece_bytes;
  const int64_t end = begin + std::ssize(dest);
  std::unique_ptr<std::byte[]> whole;  // a piece of which only a part is wanted
  for (int64_t at = begin; at < end;) {
    const int64_t piece = at / piece_bytes;
    const int64_t piece_begin = piece * piece_bytes;
    const int64_t piece_end = std::min(piece_begin + piece_bytes, section_bytes);
    const auto wanted = static_cast<size_t>(std::min(piece_end, end) - at);
    const auto out = dest.subspan(static_cast<size_t>(at - begin), wanted);
    const auto size = static_cast<size_t>(piece_end - piece_begin);
    if (wanted == size) {
      R1D_RETURN_IF_ERROR(read_piece(index, piece, out));
    } else {
      if (!whole) {
        whole = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(piece_bytes));
      }
      R1D_RETURN_IF_ERROR(read_piece(index, piece, {whole.get(), size}));
      std::memcpy(out.data(), whole.get() + (at - piece_begin), wanted);
    }
    at += static_cast<int64_t>(wanted);
  }
  return absl::OkStatus();
}

absl::Status PackedFile::read_piece(size_t index, int64_t piece, std::span<std::byte> dest) const {
  const int64_t offset = header_.sections[index].offset + piece * header_.page.piece_bytes;
  R1D_RETURN_IF_ERROR(read_raw(offset, dest));
  return compare(index, piece, dest);
}

absl::Status PackedFile::check_piece(size_t index,
                                     int64_t piece,
                                     std::span<const std::byte> bytes) const {
  const absl::Status status = compare(index, piece, bytes);
  return status.ok() ? status : with_context(status, place_of(index));
}

absl::Status PackedFile::compare(size_t index,
                                 int64_t piece,
                                 std::span<const std::byte> bytes) const {
  const PackedSection& section = header_.sections[index];
  const int64_t offset = section.offset + piece * header_.page.piece_bytes;
  const uint64_t found = checksum(bytes);
  const uint64_t expected = header_.checksums[static_cast<size_t>(section.first_piece + piece)];
  if (found == expected) return absl::OkStatus();
  return data_loss(
      "bytes {} to {} of the file have the checksum {:016x}, expected {:016x}: altered since they "
      "were packed",
      offset,
      offset + std::ssize(bytes) - 1,
      found,
      expected);
}

std::string PackedFile::place_of(size_t index) const {
  return fmt::format(
      "{}: section {}, tensor {}", name_, index, printable(header_.sections[index].name));
}

}  // namespace r1d::checkpoint
