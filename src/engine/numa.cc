// SPDX-License-Identifier: Apache-2.0
#include "engine/numa.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <string_view>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>
#include <linux/mempolicy.h>

namespace r1d::engine {
namespace {

constexpr int32_t kMaxNodes = 1024;
constexpr size_t kMaskBits = 8 * sizeof(unsigned long);

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

bool read_number(std::string_view text, int32_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0;
}

const NumaNode* find_node(const std::vector<NumaNode>& nodes, std::optional<int32_t> id) {
  if (!id) return nullptr;
  const auto found = std::find_if(
      nodes.begin(), nodes.end(), [&](const NumaNode& node) { return node.id == *id; });
  return found == nodes.end() ? nullptr : &*found;
}

// The kernel's call, as glibc has none. `node` < 0: the system's own way.
void prefer_memory_of(int32_t node) {
  std::array<unsigned long, kMaxNodes / kMaskBits> mask{};
  if (node < 0) {
    static_cast<void>(::syscall(SYS_set_mempolicy, MPOL_DEFAULT, nullptr, 0UL));
    return;
  }
  const auto bit = static_cast<size_t>(node);
  mask[bit / kMaskBits] |= 1UL << bit % kMaskBits;
  static_cast<void>(::syscall(
      SYS_set_mempolicy, MPOL_PREFERRED, mask.data(), static_cast<unsigned long>(kMaxNodes)));
}

}  // namespace

std::vector<int32_t> parse_cpu_list(const std::string& text) {
  constexpr int32_t kMost = CPU_SETSIZE;
  std::vector<int32_t> cpus;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    const size_t dash = part.find('-');
    int32_t first = 0;
    int32_t last = 0;
    if (!read_number(part.substr(0, dash), first)) break;
    last = first;
    if (dash != std::string_view::npos && !read_number(part.substr(dash + 1), last)) break;
    for (int32_t cpu = first; cpu <= last && cpu < kMost; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

std::vector<NumaNode> numa_nodes(const std::string& root) {
  const std::string folder = root + "/sys/devices/system/node/";
  std::vector<NumaNode> nodes;
  for (const int32_t id : parse_cpu_list(first_line(folder + "online"))) {
    if (id >= kMaxNodes) break;
    NumaNode node{id, parse_cpu_list(first_line(fmt::format("{}node{}/cpulist", folder, id)))};
    if (!node.cpus.empty()) nodes.push_back(std::move(node));  // others are memory alone
  }
  return nodes;
}

std::optional<int32_t> pci_numa_node(const std::string& root, const std::string& address) {
  int32_t node = 0;
  const std::string path = fmt::format("{}/sys/bus/pci/devices/{}/numa_node", root, address);
  if (!read_number(first_line(path), node)) return std::nullopt;  // -1: unknown
  return node;
}

std::vector<std::optional<NumaNode>> place_ranks(const std::string& root,
                                                 int32_t world_size,
                                                 const std::vector<std::string>& pci_addresses) {
  std::vector<std::optional<NumaNode>> places(static_cast<size_t>(world_size));
  const std::vector<NumaNode> nodes = numa_nodes(root);
  if (nodes.size() < 2) return places;
  if (pci_addresses.empty() && places.size() < nodes.size()) return places;
  for (size_t rank = 0; rank < places.size(); ++rank) {
    const NumaNode* node = nullptr;
    if (pci_addresses.empty()) {
      node = &nodes[rank * nodes.size() / places.size()];
    } else if (rank < pci_addresses.size()) {
      node = find_node(nodes, pci_numa_node(root, pci_addresses[rank]));
    }
    if (node != nullptr) places[rank] = *node;
  }
  return places;
}

bool run_on(const NumaNode& node) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return false;
  cpu_set_t wanted;
  CPU_ZERO(&wanted);
  for (const int32_t cpu : node.cpus) CPU_SET(static_cast<size_t>(cpu), &wanted);
  CPU_AND(&wanted, &wanted, &allowed);
  if (CPU_COUNT(&wanted) == 0) return false;
  if (::sched_setaffinity(0, sizeof(wanted), &wanted) != 0) return false;
  prefer_memory_of(node.id);
  return true;
}

KeepThreadPlace::KeepThreadPlace() : known_(::sched_getaffinity(0, sizeof(cpus_), &cpus_) == 0) {}

void KeepThreadPlace::restore() const {
  if (!known_) return;
  static_cast<void>(::sched_setaffinity(0, sizeof(cpus_), &cpus_));
  prefer_memory_of(-1);
}

}  // namespace r1d::engine
