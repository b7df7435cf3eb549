// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/safetensors.h"

#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/fault.h"
#include "r1d/base/status.h"

#include "checkpoint/errors.h"
#include "checkpoint/json.h"

namespace r1d::checkpoint {

absl::StatusOr<int64_t> safetensors_header_bytes(
    std::span<const std::byte, kSafetensorsLengthBytes> prefix, int64_t file_bytes) {
  uint64_t length = 0;
  for (size_t i = prefix.size(); i-- > 0;)
    length = length << 8 | std::to_integer<uint64_t>(prefix[i]);
  const int64_t room = file_bytes - kSafetensorsLengthBytes;
  if (length > static_cast<uint64_t>(room)) {
    return invalid_argument(
        "header length {} is more than the {} bytes that follow it", length, room);
  }
  if (length > static_cast<uint64_t>(kSafetensorsHeader.max_bytes)) {
    return invalid_argument(
        "header length {} is more than the format's {}", length, kSafetensorsHeader.max_bytes);
  }
  return static_cast<int64_t>(length);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::open(const std::string& path, std::string name) {
  absl::StatusOr<File> opened = File::open(path);
  if (!opened.ok()) return with_context(opened.status(), name);
  SafetensorsFile file(std::move(name), *std::move(opened));
  const absl::Status status = file.read_header();
  if (!status.ok()) return with_context(status, file.name_);
  return file;
}

absl::Status SafetensorsFile::read_header() {
  std::byte prefix[kSafetensorsLengthBytes];
  if (file_.size() < kSafetensorsLengthBytes) {
    return invalid_argument("is {} bytes long, too short for a safetensors file", file_.size());
  }
  R1D_RETURN_IF_ERROR(file_.read_at(0, prefix));
  R1D_ASSIGN_OR_RETURN(const int64_t header_bytes, safetensors_header_bytes(prefix, file_.size()));
  std::string json(static_cast<size_t>(header_bytes), '\0');
  R1D_RETURN_IF_ERROR(
      file_.read_at(kSafetensorsLengthBytes, std::as_writable_bytes(std::span(json))));
  data_begin_ = kSafetensorsLengthBytes + header_bytes;
  R1D_ASSIGN_OR_RETURN(tensors_, parse_safetensors_header(json, file_.size() - data_begin_));
  return absl::OkStatus();
}

absl::Status SafetensorsFile::read_at(int64_t offset, std::span<std::byte> dest) const {
  R1D_CHECK(offset >= 0);
  switch (base::hit_fault(base::FaultPoint::kWeightRead)) {
    case base::FaultAction::kError:
      return data_loss("read at byte {} failed: fault point checkpoint.read", data_begin_ + offset);
    case base::FaultAction::kShort:
      return file_.read_at(file_.size() - static_cast<int64_t>(dest.size()) + 1, dest);
    default:
      break;
  }
  return file_.read_at(data_begin_ + offset, dest);
}

}  // namespace r1d::checkpoint
