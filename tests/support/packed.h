// SPDX-License-Identifier: Apache-2.0
// Packed checkpoints for tests: made from small ones, then bent.
#pragma once

#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <string>

#include "r1d/base/check.h"
#include "r1d/checkpoint/packed.h"

#include "checkpoint/packed_header.h"
#include "tests/support/checkpoint_writer.h"

namespace r1d::test {

// small_config() with sizes that eight ranks can share.
inline Json packable_config(bool fp8) {
  Json config = small_config(fp8);
  config["num_attention_heads"] = 8;
  config["num_key_value_heads"] = 8;
  config["n_routed_experts"] = 8;
  return config;
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  R1D_CHECK(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  R1D_CHECK(file.good());
}

// Gives a header that was altered the checksums it needs to be believed: what is left to find is
// found by its fields. `file` holds at least the header.
inline void renew_checksums(std::string& file) {
  using namespace checkpoint;
  constexpr size_t kDataBeginAt = 56;
  const auto bytes = std::as_bytes(std::span(file));
  if (bytes.size() < static_cast<size_t>(kPackedPageBytes)) return;
  uint64_t data_begin = 0;
  std::memcpy(&data_begin, file.data() + kDataBeginAt, sizeof(data_begin));
  if (data_begin > static_cast<uint64_t>(kPackedPageBytes) && data_begin <= file.size()) {
    const uint64_t table =
        checksum(bytes.first(data_begin).subspan(static_cast<size_t>(kPackedPageBytes)));
    std::memcpy(file.data() + kTableChecksumAt, &table, sizeof(table));
  }
  const uint64_t page = checksum(bytes.first(kPageChecksumAt));
  std::memcpy(file.data() + kPageChecksumAt, &page, sizeof(page));
}

}  // namespace r1d::test
