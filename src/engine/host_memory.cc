// SPDX-License-Identifier: Apache-2.0
#include "engine/host_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <unistd.h>

namespace r1d::engine {
namespace {

std::optional<int64_t> mem_available(const std::string& root) {
  std::ifstream file(root + "/proc/meminfo");
  std::string key;
  int64_t kibibytes = 0;
  std::string unit;
  while (file >> key >> kibibytes) {
    if (key == "MemAvailable:") return kibibytes * 1024;
    std::getline(file, unit);
  }
  return std::nullopt;
}

std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;  // "max" (no limit) does not parse
  return std::nullopt;
}

// cgroup v2 as a container sees its own group.
std::optional<int64_t> cgroup_headroom(const std::string& root) {
  const auto limit = read_number(root + "/sys/fs/cgroup/memory.max");
  const auto used = read_number(root + "/sys/fs/cgroup/memory.current");
  if (!limit || !used) return std::nullopt;
  return std::max<int64_t>(*limit - *used, 0);
}

}  // namespace

int64_t spare_host_bytes(const std::string& root) {
  constexpr int64_t kUnknown = int64_t{1} << 30;  // neither file readable: plan with 1 GiB
  const int64_t available = mem_available(root).value_or(kUnknown);
  return std::min(available, cgroup_headroom(root).value_or(available));
}

int64_t resident_bytes(const std::string& root) {
  std::ifstream file(root + "/proc/self/statm");
  int64_t pages = 0;
  int64_t resident_pages = 0;
  if (!(file >> pages >> resident_pages)) return 0;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace r1d::engine
