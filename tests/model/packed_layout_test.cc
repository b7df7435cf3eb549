// SPDX-License-Identifier: Apache-2.0
// A layer of a packed file is, byte for byte, what WeightStore has in its buffer for that layer.
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/packed.h"
#include "r1d/checkpoint/weight_load.h"
#include "r1d/ops/cpu_ops.h"

#include "checkpoint/packed_file.h"
#include "model/weight_store.h"
#include "tests/support/packed.h"

namespace r1d::model {
namespace {

using checkpoint::ExpertSplit;
using checkpoint::PackedFile;
using checkpoint::PackedSection;
using checkpoint::SectionKind;

const std::byte* address_of(const WeightStore& store, const PackedSection& section) {
  switch (section.kind) {
    case SectionKind::kMatrix:
      return static_cast<const std::byte*>(store.matrix(section.name).data);
    case SectionKind::kScale: {
      const std::string suffix = checkpoint::scale_name("");
      const std::string weight = section.name.substr(0, section.name.size() - suffix.size());
      return reinterpret_cast<const std::byte*>(store.matrix(weight).scale);
    }
    case SectionKind::kVector:
      return reinterpret_cast<const std::byte*>(store.vector(section.name));
  }
  return nullptr;
}

// Sections of a layer lie as far apart in memory as in the file.
void expect_same_layers(const WeightStore& store, const PackedFile& file) {
  const PackedSection* first = nullptr;  // of its layer
  for (size_t i = 0; i < file.sections().size(); ++i) {
    const PackedSection& section = file.sections()[i];
    // Behind the last layer comes the head, also of no layer: another buffer.
    const bool starts = first == nullptr || section.layer != first->layer;
    if (starts) first = &section;
    EXPECT_EQ(address_of(store, section) - address_of(store, *first),
              section.offset - first->offset)
        << section.name;
    std::vector<std::byte> bytes(static_cast<size_t>(section.num_bytes()));
    ASSERT_TRUE(file.read(i, 0, bytes, /*verify=*/true).ok());
    EXPECT_EQ(std::memcmp(bytes.data(), address_of(store, section), bytes.size()), 0)
        << section.name;
  }
}

class PackedLayersTest : public testing::TestWithParam<ExpertSplit> {};

TEST_P(PackedLayersTest, AreThoseThatWeightStoreHasInMemory) {
  constexpr int32_t kWorld = 2;
  const test::TempDir model;
  const test::TempDir packed;
  test::make_checkpoint(test::packable_config(true), /*with_mtp=*/true, 1).write(model);
  ASSERT_TRUE(checkpoint::pack_checkpoint(
                  model.path(), packed.path(), {.world_size = kWorld, .expert_split = GetParam()})
                  .ok());
  const auto original = checkpoint::open_hugging_face(model.path());
  const auto source = checkpoint::open_packed(packed.path(), {});
  ASSERT_TRUE(source.ok()) << message_of(source.status());
  const auto unverified = checkpoint::open_packed(packed.path(), {.verify_checksums = false});
  ASSERT_TRUE(unverified.ok()) << message_of(unverified.status());
  const checkpoint::ModelConfig& config = (*source)->config();
  for (int32_t rank = 0; rank < kWorld; ++rank) {
    const auto shard = checkpoint::make_rank_shard(config, rank, kWorld, GetParam()).value();
    const auto ops = ops::make_local_cpu_ops({make_dims(config, shard), make_dims(config, shard)},
                                             {.max_tokens = 8});
    const std::string name = checkpoint::packed_file_name(rank, kWorld);
    const auto file = PackedFile::open(packed.path() + "/" + name, name);
    ASSERT_TRUE(file.ok()) << message_of(file.status());
    for (const checkpoint::WeightSource* from :
         {original->get(), source->get(), unverified->get()}) {
      checkpoint::WeightLoad files({}, /*num_ranks=*/1);
      const auto store = WeightStore::load(from->for_rank(rank),
                                           shard,
                                           *ops[0],
                                           /*with_mtp=*/true,
                                           files,
                                           [](int64_t /*bytes*/) { return absl::OkStatus(); });
      ASSERT_TRUE(store.ok()) << message_of(store.status());
      expect_same_layers(*store, *file);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Both,
                         PackedLayersTest,
                         testing::Values(ExpertSplit::kTensor, ExpertSplit::kExpert));

}  // namespace
}  // namespace r1d::model
