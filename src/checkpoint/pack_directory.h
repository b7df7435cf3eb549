// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "checkpoint/new_file.h"

namespace r1d::checkpoint {

// The directory that a packing goes to: nothing in it has its final name before all is there.
// Lifecycle: open, reserve, add files and write them, publish. Without publish() all is removed
// again. Threads: confined to one; the files may be written on several.
class PackDirectory {
 public:
  // Makes `dir`, or takes an empty one, and locks it. What an interrupted run left behind is
  // removed. kFailedPrecondition when it holds anything else or another process packs into it.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<PackDirectory>> open(const std::string& dir);
  ~PackDirectory();
  PackDirectory(const PackDirectory&) = delete;
  PackDirectory& operator=(const PackDirectory&) = delete;

  // kResourceExhausted when the disk has fewer bytes than rank files and copies need.
  [[nodiscard]] absl::Status check_space(std::span<const int64_t> rank_bytes,
                                         int64_t copied_bytes) const;

  // The file that will be `name`. Owned here.
  [[nodiscard]] absl::StatusOr<NewFile*> add(const std::string& name);
  [[nodiscard]] absl::Status add_text(const std::string& name, std::string_view text);

  // Syncs all files, gives them their names in the order in which they were added, and keeps them.
  [[nodiscard]] absl::Status publish();

 private:
  PackDirectory(std::string dir, int descriptor, bool made)
      : dir_(std::move(dir)), descriptor_(descriptor), made_(made) {}

  struct Entry {
    std::string name;
    std::unique_ptr<NewFile> file;
  };
  const std::string dir_;
  const int descriptor_;  // holds the lock
  const bool made_;       // by us
  std::vector<Entry> entries_;
};

}  // namespace r1d::checkpoint
