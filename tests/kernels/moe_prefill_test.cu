// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "kernels/moe_prefill/moe_prefill.h"
#include "tests/kernels/prefill_data.h"

namespace r1d::kernels {
namespace {

using namespace test;

// k different experts a token, as a router chooses them.
std::vector<int32_t> random_experts(int32_t tokens, int32_t k, int32_t num_experts, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> experts;
  for (int32_t t = 0; t < tokens; ++t) {
    std::set<int32_t> chosen;
    while (static_cast<int32_t>(chosen.size()) < k) {
      const auto e = static_cast<int32_t>(random() % num_experts);
      if (chosen.insert(e).second) experts.push_back(e);
    }
  }
  return experts;
}

// Device lists of one problem.
class Lists {
 public:
  Lists(const std::vector<int32_t>& experts,
        int32_t tokens,
        int32_t k,
        int32_t first_expert,
        int32_t num_local)
      : experts_(experts),
        experts_device_(experts),
        first_expert_(first_expert),
        num_local_(num_local),
        row_pair_(experts.size()),
        pair_row_(experts.size()),
        tiles_(moe_max_tiles(tokens, k, num_local) * 4),
        wide_tiles_(moe_max_wide_tiles(tokens, k, num_local) * 4),
        totals_(3),
        progress_(kMoeProgress, 0) {
    R1D_MUST(
        moe_expert_lists(experts_device_.data(), tokens, k, first_expert, num_local, device(), {}));
    row_pair = row_pair_.download();
    pair_row = pair_row_.download();
    tiles = tiles_.download();
    wide_tiles = wide_tiles_.download();
    totals = totals_.download();
  }
  PairLists device() {
    return {row_pair_.data(),
            pair_row_.data(),
            tiles_.data(),
            wide_tiles_.data(),
            totals_.data(),
            progress_.data()};
  }
  void expect_no_progress() const {
    EXPECT_EQ(progress_.download(), std::vector<int32_t>(kMoeProgress));
  }

  // Against a stable sort.
  void check() const {
    std::vector<std::vector<int32_t>> pairs(num_local_);
    for (size_t i = 0; i < experts_.size(); ++i) {
      const int32_t e = experts_[i] - first_expert_;
      if (experts_[i] >= 0 && e >= 0 && e < num_local_) {
        pairs[e].push_back(static_cast<int32_t>(i));
      } else {
        ASSERT_EQ(pair_row[i], -1) << i;
      }
    }
    int32_t row = 0;
    size_t tile = 0;
    for (int32_t e = 0; e < num_local_; ++e) {
      const auto count = static_cast<int32_t>(pairs[e].size());
      for (int32_t begin = 0; begin < count; begin += kMoeTileRows, ++tile) {
        ASSERT_LT(tile * 4, tiles.size());
        ASSERT_EQ(tiles[tile * 4], e) << tile;
        ASSERT_EQ(tiles[tile * 4 + 1], row + begin) << tile;
        ASSERT_EQ(tiles[tile * 4 + 2], std::min(kMoeTileRows, count - begin)) << tile;
      }
      for (const int32_t pair : pairs[e]) {
        ASSERT_EQ(row_pair[row], pair) << row;
        ASSERT_EQ(pair_row[pair], row) << pair;
        ++row;
      }
    }
    ASSERT_EQ(totals[0], static_cast<int32_t>(tile));
    ASSERT_EQ(totals[1], row);
    check_wide(pairs);
    for (size_t i = row; i < row_pair.size(); ++i)
      ASSERT_EQ(row_pair[i], -1) << "wrote beyond the rows";
  }

  // Wide tiles: first those with more than 64 rows, then the others, each by expert.
  void check_wide(const std::vector<std::vector<int32_t>>& pairs) const {
    size_t tile = 0;
    for (const bool full : {true, false}) {
      int32_t row = 0;
      for (int32_t e = 0; e < num_local_; ++e) {
        const auto count = static_cast<int32_t>(pairs[e].size());
        for (int32_t begin = 0; begin < count; begin += kMoeWideRows) {
          const int32_t rows = std::min(kMoeWideRows, count - begin);
          if ((rows > kMoeWideRows / 2) != full) continue;
          ASSERT_LT(tile * 4, wide_tiles.size());
          ASSERT_EQ(wide_tiles[tile * 4], e) << tile;
          ASSERT_EQ(wide_tiles[tile * 4 + 1], row + begin) << tile;
          ASSERT_EQ(wide_tiles[tile * 4 + 2], rows) << tile;
          ++tile;
        }
        row += count;
      }
    }
    ASSERT_EQ(totals[2], static_cast<int32_t>(tile));
  }

  int32_t expert_of_row(int32_t row) const { return experts_[row_pair[row]] - first_expert_; }

  std::vector<int32_t> row_pair;
  std::vector<int32_t> pair_row;
  std::vector<int32_t> tiles;
  std::vector<int32_t> wide_tiles;
  std::vector<int32_t> totals;

 private:
  std::vector<int32_t> experts_;
  DeviceArray<int32_t> experts_device_;
  int32_t first_expert_;
  int32_t num_local_;
  DeviceArray<int32_t> row_pair_;
  DeviceArray<int32_t> pair_row_;
  DeviceArray<int32_t> tiles_;
  DeviceArray<int32_t> wide_tiles_;
  DeviceArray<int32_t> totals_;
  DeviceArray<int32_t> progress_;
};

TEST(MoePrefillTest, ListsAreAStableSortByExpert) {
  R1D_NEEDS_GPU(90);
  Lists(random_experts(70, 4, 16, 1), 70, 4, 8, 8).check();
  Lists(random_experts(1, 8, 256, 2), 1, 8, 0, 256).check();
  Lists(random_experts(8191, 8, 256, 3), 8191, 8, 0, 256).check();
  Lists(random_experts(8192, 8, 256, 4), 8192, 8, 32, 32).check();
  Lists(random_experts(32768, 8, 256, 5), 32768, 8, 0, 256).check();
}

TEST(MoePrefillTest, ListsServeOneExpertForAllAndNoneAtAll) {
  R1D_NEEDS_GPU(90);
  Lists(std::vector<int32_t>(3000, 255), 3000, 1, 0, 256).check();
  Lists(std::vector<int32_t>(3000, 7), 3000, 1, 128, 128).check();
  Lists(std::vector<int32_t>(500, -1), 500, 1, 0, 256).check();
}

struct Shape {
  int32_t tokens;
  int32_t k;
  int32_t num_experts;
  int32_t first_expert;
  int32_t num_local;
  int64_t dim;
  int64_t intermediate;
};

// The whole layer, each step against a reference that starts from the device's result of the step
// before.
void check_layer(const Shape& s, const std::vector<int32_t>& experts) {
  SCOPED_TRACE(testing::Message() << s.tokens << " tokens, " << s.num_local << " of "
                                  << s.num_experts << " experts, D " << s.dim << ", I "
                                  << s.intermediate);
  const int64_t pairs = int64_t{s.tokens} * s.k;
  HostRows x(s.tokens, s.dim, 1);
  HostGateUp gate_up(s.num_local, s.intermediate, s.dim, 2);
  HostMatrix down(s.num_local, s.dim, s.intermediate, 3);
  Lists lists(experts, s.tokens, s.k, s.first_expert, s.num_local);
  const int32_t rows = lists.totals[1];
  std::mt19937_64 random(4);

  OutputRows h(pairs, s.intermediate);
  R1D_MUST(moe_gate_up({gate_up.device(), gate_up.tile_bytes(), gate_up.scale_count()},
                       x.device(),
                       s.tokens,
                       s.k,
                       lists.device(),
                       h.device(),
                       {}));
  h.fetch();
  h.expect_untouched_from(rows);
  for (int i = 0; i < 24 && rows > 0; ++i) {
    const int64_t row = i == 0 ? rows - 1 : random() % rows;
    const int64_t group = random() % (s.intermediate / 128);
    const int64_t token = lists.row_pair[row] / s.k;
    std::array<double, 128> want;
    for (int64_t j = 0; j < 128; ++j) {
      want[j] = gate_up.swiglu(
          lists.expert_of_row(row), group * 128 + j, [&](int64_t k) { return x.at(token, k); });
    }
    h.expect_group(row, group, want);
  }

  const std::vector<float> weights = random_scales(pairs, 5, 0.3F);
  const std::vector<uint16_t> shared = to_bf16(random_floats(s.tokens * s.dim, 6));
  DeviceArray<float> weights_device(weights);
  DeviceArray<uint16_t> shared_device(shared);
  for (const bool with_shared : {false, true}) {
    const int64_t block = with_shared ? 256 : (s.dim + 255) / 256 * 256;
    DeviceArray<uint16_t> scratch(pairs * block);
    DeviceArray<uint16_t> out(s.tokens * s.dim);
    R1D_MUST(moe_down_combine(
        {down.device(), down.tile_bytes(), down.scale_count()},
        h.device(),
        lists.device(),
        weights_device.data(),
        with_shared ? reinterpret_cast<const __nv_bfloat16*>(shared_device.data()) : nullptr,
        s.tokens,
        s.k,
        reinterpret_cast<__nv_bfloat16*>(scratch.data()),
        block,
        reinterpret_cast<__nv_bfloat16*>(out.data()),
        {.dependent = with_shared}));
    const std::vector<uint16_t> got_bits = out.download();
    for (int64_t i = 0; i < s.tokens * s.dim; ++i) {
      ASSERT_TRUE(std::isfinite(bf16_to_f32(got_bits[i])))
          << "token " << i / s.dim << " column " << i % s.dim;
    }
    std::vector<double> got;
    std::vector<double> want;
    for (int i = 0; i < 4000; ++i) {
      const int64_t token = i < 100 ? s.tokens - 1 : random() % s.tokens;
      const int64_t col = random() % s.dim;
      double sum = with_shared ? bf16_to_f32(shared[token * s.dim + col]) : 0;
      for (int64_t pair = token * s.k; pair < (token + 1) * s.k; ++pair) {
        const int64_t row = lists.pair_row[pair];
        if (row < 0) continue;
        double y = 0;
        for (int64_t k = 0; k < s.intermediate; ++k)
          y += h.at(row, k) * down.at(lists.expert_of_row(row), col, k);
        sum += weights[pair] * y;
      }
      got.push_back(bf16_to_f32(got_bits[token * s.dim + col]));
      want.push_back(sum);
    }
    EXPECT_LT(relative_l2(got, want), 4e-3);
  }
}

int32_t multiprocessors() {
  int count = 0;
  R1D_MUST(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// moe_down_slabs gives the bits of moe_down_combine, twice in a row.
void check_slabs(const Shape& s, const std::vector<int32_t>& experts) {
  SCOPED_TRACE(testing::Message() << s.tokens << " tokens, " << s.num_local << " of "
                                  << s.num_experts << " experts, D " << s.dim);
  const int64_t pairs = int64_t{s.tokens} * s.k;
  ASSERT_TRUE(
      moe_down_slabs_serves(s.tokens, s.k, s.num_local, s.dim, s.intermediate, multiprocessors()));
  HostRows h(pairs, s.intermediate, 1);
  HostMatrix down(s.num_local, s.dim, s.intermediate, 3);
  Lists lists(experts, s.tokens, s.k, s.first_expert, s.num_local);
  DeviceArray<float> weights(random_scales(pairs, 5, 0.3F));
  DeviceArray<uint16_t> shared(to_bf16(random_floats(s.tokens * s.dim, 6)));
  DeviceArray<uint16_t> scratch(pairs * std::max<int64_t>(s.dim, 256));
  DeviceArray<uint16_t> out(s.tokens * s.dim);
  const ExpertDown weight{down.device(), down.tile_bytes(), down.scale_count()};
  const auto bf16 = [](DeviceArray<uint16_t>& a) {
    return reinterpret_cast<__nv_bfloat16*>(a.data());
  };
  for (const bool with_shared : {true, false}) {
    const __nv_bfloat16* added = with_shared ? bf16(shared) : nullptr;
    R1D_MUST(moe_down_combine(weight,
                              h.device(),
                              lists.device(),
                              weights.data(),
                              added,
                              s.tokens,
                              s.k,
                              bf16(scratch),
                              (s.dim + 255) / 256 * 256,
                              bf16(out),
                              {}));
    const std::vector<uint16_t> want = out.download();
    for (const bool dependent : {false, true}) {
      out.poison();
      scratch.poison();
      R1D_MUST(moe_down_slabs(weight,
                              h.device(),
                              lists.device(),
                              s.num_local,
                              weights.data(),
                              added,
                              s.tokens,
                              s.k,
                              multiprocessors(),
                              bf16(scratch),
                              bf16(out),
                              {.dependent = dependent}));
      const std::vector<uint16_t> got = out.download();
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(got[i], want[i]) << "token " << i / s.dim << " column " << i % s.dim;
      }
      lists.expect_no_progress();
    }
  }
}

void check_slabs(const Shape& s) {
  check_slabs(s, random_experts(s.tokens, s.k, s.num_experts, 7));
}

void check_layer(const Shape& s) {
  check_layer(s, random_experts(s.tokens, s.k, s.num_experts, 7));
}

TEST(MoePrefillTest, SmallLayerMatchesTheReference) {
  R1D_NEEDS_GPU(90);
  check_layer({70, 4, 16, 8, 8, 256, 128});
  check_layer({1, 2, 4, 0, 4, 384, 256});
  check_layer({300, 2, 5, 1, 3, 192 * 2, 384});
}

TEST(MoePrefillTest, WideTilesMatchTheReference) {
  R1D_NEEDS_GPU(90);
  check_layer({6150, 2, 9, 2, 5, 1152, 256});
  check_layer({6144, 8, 256, 0, 128, 256, 128});
  check_layer({8192, 8, 256, 64, 128, 256, 128});
}

TEST(MoePrefillTest, LayerOfR1MatchesTheReference) {
  R1D_NEEDS_GPU(90);
  check_layer({100, 8, 256, 96, 12, 7168, 256});
  check_layer({2000, 8, 256, 10, 10, 7168, 256});
  check_layer({600, 8, 32, 8, 4, 7168, 2048});
}

TEST(MoePrefillTest, LayerServesOneExpertForAllAndNoneAtAll) {
  R1D_NEEDS_GPU(90);
  for (const int32_t tokens : {500, 6200}) {
    const Shape s{tokens, 1, 8, 0, 4, 512, 128};
    check_layer(s, std::vector<int32_t>(tokens, 3));
    check_layer(s, std::vector<int32_t>(tokens, 6));
  }
}

TEST(MoePrefillTest, SmallSlabsGiveTheBitsOfTheTwoKernels) {
  R1D_NEEDS_GPU(90);
  check_slabs({1, 2, 4, 0, 4, 384, 256});
  check_slabs({333, 6, 20, 4, 11, 512, 256});
}

TEST(MoePrefillTest, SlabsGiveTheBitsOfTheTwoKernels) {
  R1D_NEEDS_GPU(90);
  check_slabs({2000, 8, 64, 10, 40, 7168, 256});
  check_slabs({8192, 8, 256, 0, 256, 1024, 256});
}

TEST(MoePrefillTest, SlabsServeOneExpertForAllAndNoneAtAll) {
  R1D_NEEDS_GPU(90);
  const Shape s{8192, 1, 8, 0, 4, 1024, 256};
  check_slabs(s, std::vector<int32_t>(8192, 3));
  check_slabs(s, std::vector<int32_t>(8192, 6));
}

TEST(MoePrefillTest, RefusesShapesItDoesNotServe) {
  const QuantizedRows x{nullptr, nullptr, 128, 64};
  const PairLists lists;
  EXPECT_EQ(moe_expert_lists(nullptr, 64, 8, 0, 257, lists, {}), cudaErrorInvalidValue);
  EXPECT_EQ(moe_expert_lists(nullptr, 0, 8, 0, 256, lists, {}), cudaSuccess);
  EXPECT_EQ(moe_gate_up({{nullptr, nullptr, nullptr, 64, 128}, 0, 0}, x, 64, 8, lists, x, {}),
            cudaErrorInvalidValue);
  const auto down = [&](int64_t dim, int32_t k, int64_t block) {
    return moe_down_combine({{nullptr, nullptr, dim, 128}, 0, 0},
                            x,
                            lists,
                            nullptr,
                            nullptr,
                            2,
                            k,
                            nullptr,
                            block,
                            nullptr,
                            {});
  };
  EXPECT_EQ(down(96, 8, 256), cudaErrorInvalidValue);
  EXPECT_EQ(down(128, 17, 256), cudaErrorInvalidValue);
  EXPECT_EQ(down(128, 8, 128), cudaErrorInvalidValue);
}

TEST(MoePrefillTest, SlabsServeAChunkOfR1) {
  EXPECT_TRUE(moe_down_slabs_serves(8192, 8, 256, 7168, 256, 132));
  EXPECT_FALSE(moe_down_slabs_serves(8192, 8, 256, 7168, 256, 114));
  EXPECT_FALSE(moe_down_slabs_serves(16384, 8, 256, 7168, 256, 132));
  EXPECT_FALSE(moe_down_slabs_serves(8192, 8, 256, 7168, 512, 132));
  EXPECT_FALSE(moe_down_slabs_serves(8192, 9, 256, 7168, 256, 132));
  EXPECT_FALSE(moe_down_slabs_serves(8192, 8, 256, 7168 + 64, 256, 132));
}

TEST(MoePrefillTest, BlocksOfColumnsCoverAllAndBoundTheScratch) {
  EXPECT_EQ(moe_down_block(65, 8, 7168), 7168);
  EXPECT_EQ(moe_down_block(1, 8, 192), 256);
  for (const int64_t tokens : {1000, 4096, 8192, 32768}) {
    const int64_t block = moe_down_block(tokens, 8, 7168);
    EXPECT_EQ(block % 256, 0);
    EXPECT_LE(tokens * 8 * block * 2, 480 << 20) << block;
  }
}

}  // namespace
}  // namespace r1d::kernels
