// SPDX-License-Identifier: Apache-2.0
// Which memory and which cores are near a rank's device, and how a thread is kept there.
#pragma once

#include <cstdint>
#include <optional>
#include <sched.h>
#include <string>
#include <vector>

namespace r1d::engine {

struct NumaNode {
  int32_t id = 0;
  std::vector<int32_t> cpus;
};

// Nodes that have cores; none when the system does not say. `root` is "" in the daemon; tests point
// it at a folder that holds sys/.
[[nodiscard]] std::vector<NumaNode> numa_nodes(const std::string& root);

// The node that a PCI device ("0000:18:00.0") hangs on; nullopt when the system does not say.
[[nodiscard]] std::optional<int32_t> pci_numa_node(const std::string& root,
                                                   const std::string& address);

// "0-3,8,10-11"; what does not parse ends the list.
[[nodiscard]] std::vector<int32_t> parse_cpu_list(const std::string& text);

// Where each rank is to run: on the CPU neighbouring ranks share a node, every node has as many; on
// GPUs (`pci_addresses` of each rank's) at its GPU. nullopt: anywhere, which is what all get on one
// node, when nodes are unknown, and when there are fewer CPU ranks than nodes, as one rank may then
// use the cores of several.
[[nodiscard]] std::vector<std::optional<NumaNode>> place_ranks(
    const std::string& root, int32_t world_size, const std::vector<std::string>& pci_addresses);

// Keeps the calling thread, and threads that it starts from then on, on a node's cores, and has
// them take memory there as long as there is some. False when the system refuses the cores, as for
// a container that may use none of them; memory that it refuses is left to first touch.
bool run_on(const NumaNode& node);

// Puts the calling thread back to where it was, when asked and at the end of the scope.
class KeepThreadPlace {
 public:
  KeepThreadPlace();
  ~KeepThreadPlace() { restore(); }
  KeepThreadPlace(const KeepThreadPlace&) = delete;
  KeepThreadPlace& operator=(const KeepThreadPlace&) = delete;
  void restore() const;

 private:
  cpu_set_t cpus_{};
  bool known_ = false;
};

}  // namespace r1d::engine
