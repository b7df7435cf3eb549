// SPDX-License-Identifier: Apache-2.0
#include "engine/numa.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>

namespace r1d::engine {
namespace {

using testing::Test;

// A folder that holds sys/ as a host has it.
class NumaTest : public Test {
 protected:
  NumaTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "r1d-numa-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  ~NumaTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }

  void write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = root_ + "/sys/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text << "\n";
  }
  void write_two_nodes() const {
    write("devices/system/node/online", "0-1");
    write("devices/system/node/node0/cpulist", "0-3,8-11");
    write("devices/system/node/node1/cpulist", "4-7,12-15");
  }
  void write_gpu(const std::string& address, const std::string& node) const {
    write("bus/pci/devices/" + address + "/numa_node", node);
  }

  [[nodiscard]] std::vector<int32_t> nodes_of(int32_t world_size,
                                              const std::vector<std::string>& gpus) const {
    std::vector<int32_t> ids;
    for (const auto& place : place_ranks(root_, world_size, gpus)) {
      ids.push_back(place ? place->id : -1);
    }
    return ids;
  }

  std::string root_;
};

TEST_F(NumaTest, ReadsNodesAndTheirCores) {
  write_two_nodes();
  const auto nodes = numa_nodes(root_);
  ASSERT_EQ(nodes.size(), 2U);
  EXPECT_EQ(nodes[0].cpus, (std::vector<int32_t>{0, 1, 2, 3, 8, 9, 10, 11}));
  EXPECT_EQ(nodes[1].id, 1);
}

TEST_F(NumaTest, ANodeOfMemoryAloneHoldsNoRank) {
  write_two_nodes();
  write("devices/system/node/online", "0-2");
  write("devices/system/node/node2/cpulist", "");
  EXPECT_EQ(numa_nodes(root_).size(), 2U);
}

TEST_F(NumaTest, RanksOfTheCpuAreSpreadOverNodes) {
  write_two_nodes();
  EXPECT_EQ(nodes_of(2, {}), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(nodes_of(8, {}), (std::vector<int32_t>{0, 0, 0, 0, 1, 1, 1, 1}));
}

TEST_F(NumaTest, FewerRanksThanNodesUseThemAll) {
  write_two_nodes();
  EXPECT_EQ(nodes_of(1, {}), (std::vector<int32_t>{-1}));
}

TEST_F(NumaTest, ARankOnAGpuGoesToTheGpusNode) {
  write_two_nodes();
  write_gpu("0000:18:00.0", "1");
  write_gpu("0000:2a:00.0", "0");
  write_gpu("0000:3b:00.0", "-1");
  EXPECT_EQ(nodes_of(4, {"0000:18:00.0", "0000:2a:00.0", "0000:3b:00.0", "0000:ff:00.0"}),
            (std::vector<int32_t>{1, 0, -1, -1}));
  EXPECT_EQ(nodes_of(1, {"0000:18:00.0"}), (std::vector<int32_t>{1}));
}

TEST_F(NumaTest, OneNodeOrNoInformationMeansAnywhere) {
  EXPECT_EQ(nodes_of(2, {}), (std::vector<int32_t>{-1, -1}));
  write("devices/system/node/online", "0");
  write("devices/system/node/node0/cpulist", "0-3");
  write_gpu("0000:18:00.0", "0");
  EXPECT_EQ(nodes_of(2, {}), (std::vector<int32_t>{-1, -1}));
  EXPECT_EQ(nodes_of(1, {"0000:18:00.0"}), (std::vector<int32_t>{-1}));
}

TEST_F(NumaTest, ListsOfCoresEndWhereTheyDoNotParse) {
  EXPECT_EQ(parse_cpu_list("0-2,5,7-8"), (std::vector<int32_t>{0, 1, 2, 5, 7, 8}));
  EXPECT_EQ(parse_cpu_list(""), (std::vector<int32_t>{}));
  EXPECT_EQ(parse_cpu_list("1,x,3"), (std::vector<int32_t>{1}));
  EXPECT_EQ(parse_cpu_list("3-1,-5"), (std::vector<int32_t>{}));
  EXPECT_LE(parse_cpu_list("0-2000000000").size(), size_t{CPU_SETSIZE});
}

TEST_F(NumaTest, AThreadIsKeptOnCoresThatItMayUseAndPutBack) {
  cpu_set_t before;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(before), &before), 0);
  int32_t own = 0;
  while (!CPU_ISSET(static_cast<size_t>(own), &before)) ++own;
  {
    const KeepThreadPlace keep;
    EXPECT_TRUE(run_on({.id = 0, .cpus = {own}}));
    cpu_set_t now;
    ASSERT_EQ(::sched_getaffinity(0, sizeof(now), &now), 0);
    EXPECT_EQ(CPU_COUNT(&now), 1);
    EXPECT_TRUE(CPU_ISSET(static_cast<size_t>(own), &now));
  }
  cpu_set_t after;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST_F(NumaTest, CoresThatTheProcessMayNotUseAreRefused) {
  EXPECT_FALSE(run_on({.id = 0, .cpus = {CPU_SETSIZE - 1}}));
}

}  // namespace
}  // namespace r1d::engine
