// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/read_plan.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "checkpoint/load_chunk.h"

namespace r1d::checkpoint {
namespace {

constexpr int64_t kChunk = 64 << 10;

std::string random_bytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// The rank's part of a tensor of `rows` rows of `stride` bytes: the rank-th of `world` equal cuts.
Strip columns(int64_t begin, int64_t stride, int64_t rows, int32_t rank, int32_t world) {
  Strip strip = make_strip(begin + rank * (stride / world), stride, stride / world, rows);
  strip.rank = rank;
  return strip;
}

Strip whole(int64_t begin, int64_t bytes, int32_t rank) {
  Strip strip = make_strip(begin, bytes, bytes, 1);
  strip.rank = rank;
  return strip;
}

int64_t total_bytes(const ReadPlan& plan) {
  int64_t sum = 0;
  for (const Chunk& chunk : plan.chunks) sum += chunk.bytes();
  return sum;
}

TEST(StripTest, CountsAndGathersTheBytesOfAnyPartOfTheFile) {
  const std::string file = random_bytes(2000, 3);
  for (const Strip& strip : {make_strip(100, 70, 13, 20),
                             make_strip(7, 64, 64, 11),
                             make_strip(500, 9, 1, 30),
                             make_strip(0, 300, 299, 1)}) {
    std::string wanted;
    std::vector<int64_t> places;
    for (int64_t row = 0; row < strip.rows; ++row) {
      for (int64_t i = 0; i < strip.width; ++i)
        places.push_back(strip.begin + row * strip.stride + i);
    }
    for (const int64_t at : places) wanted += file[static_cast<size_t>(at)];
    for (int64_t begin = 0; begin < 1900; begin += 37) {
      for (const int64_t end : {begin + 1, begin + 64, begin + 100}) {
        const auto before = [&](int64_t offset) {
          return std::lower_bound(places.begin(), places.end(), offset) - places.begin();
        };
        ASSERT_EQ(strip.bytes_before(begin), before(begin)) << begin;
        std::string out(200, '\0');
        const int64_t count = gather(strip,
                                     begin,
                                     end,
                                     reinterpret_cast<const std::byte*>(file.data() + begin),
                                     reinterpret_cast<std::byte*>(out.data()));
        ASSERT_EQ(count, before(end) - before(begin));
        EXPECT_EQ(out.substr(0, static_cast<size_t>(count)),
                  wanted.substr(static_cast<size_t>(before(begin)), static_cast<size_t>(count)));
      }
    }
  }
}

TEST(ReadPlanTest, WhatEightRanksTakeColumnsOfIsReadOnce) {
  std::vector<Strip> strips;
  for (int32_t rank = 0; rank < 8; ++rank) strips.push_back(columns(1000, 2048, 300, rank, 8));
  ReadPlan plan;
  add_file(0, strips, kChunk, plan);
  EXPECT_EQ(total_bytes(plan), 300 * 2048);
  for (const Chunk& chunk : plan.chunks) {
    EXPECT_LE(chunk.bytes(), kChunk);
    EXPECT_EQ(chunk.num_strips, 8U);
    EXPECT_EQ(chunk.sole_rank, -1);
  }
}

TEST(ReadPlanTest, ReadsAreLargeInFileOrderAndEndWithBlocks) {
  std::vector<Strip> strips;
  int64_t end = 77;
  for (int32_t i = 0; i < 256; ++i) {  // small neighbours
    strips.push_back(whole(end, 3000 + i, i % 4));
    end = strips.back().end();
  }
  std::shuffle(strips.begin(), strips.end(), std::mt19937(5));
  ReadPlan plan;
  add_file(3, strips, kChunk, plan);
  EXPECT_EQ(total_bytes(plan), end - 77);
  EXPECT_LE(plan.chunks.size(), static_cast<size_t>((end + kChunk) / (kChunk - kReadBlock)));
  int64_t at = 77;
  for (const Chunk& chunk : plan.chunks) {
    EXPECT_EQ(chunk.file, 3);
    EXPECT_EQ(chunk.begin, at);
    at = chunk.end;
    EXPECT_TRUE(chunk.end % kReadBlock == 0 || chunk.end == end);
  }
}

TEST(ReadPlanTest, LeavesOutWhatNobodyWantsUnlessItIsLittle) {
  ReadPlan plan;
  add_file(0, {whole(0, 5000, 0), whole(9000, 5000, 0), whole(1 << 20, 5000, 0)}, kChunk, plan);
  ASSERT_EQ(plan.chunks.size(), 2U);
  EXPECT_EQ(plan.chunks[0].end, 14000);
  EXPECT_EQ(plan.chunks[1].begin, 1 << 20);
  EXPECT_EQ(plan.chunks[1].bytes(), 5000);
}

TEST(ReadPlanTest, WhatOneDeviceTakesWholeIsReadApart) {
  constexpr int64_t kPart = 3 << 20;
  std::vector<Strip> strips{whole(10, 1000, 0),
                            whole(1010, kPart, 0),
                            whole(1010 + kPart, kPart, 1),
                            columns(1010 + 2 * kPart, 2048, 100, 0, 2),
                            columns(1010 + 2 * kPart, 2048, 100, 1, 2)};
  for (Strip& strip : strips) strip.staged = true;
  ReadPlan plan;
  add_file(0, strips, kChunk, plan);
  EXPECT_EQ(total_bytes(plan), 1000 + 2 * kPart + 100 * 2048);
  for (const Chunk& chunk : plan.chunks) {
    const int32_t expected = chunk.begin >= 1010 + 2 * kPart ? -1 : chunk.begin >= 1010 + kPart;
    EXPECT_EQ(chunk.sole_rank, expected) << chunk.begin;
  }
}

TEST(ReadPlanTest, NoReadEndsWithinAPiece) {
  std::vector<Strip> strips;
  for (const int64_t piece : {4096, 12288, 1 << 17}) {
    for (const int64_t bytes : {100, 4096, 70'001, 1 << 20}) {
      const int64_t begin = strips.empty() ? 4096 : strips.back().end() + 28;
      strips.push_back(whole(begin, bytes, 0));
      strips.back().piece_bytes = piece;
    }
  }
  ReadPlan plan;
  add_file(0, strips, kChunk, plan);
  EXPECT_EQ(plan.chunks.front().begin, strips.front().begin);
  EXPECT_EQ(plan.chunks.back().end, strips.back().end());
  for (const Chunk& chunk : plan.chunks) {
    for (const uint32_t id : plan.strips_of(chunk)) {
      const Strip& strip = plan.strips[id];
      EXPECT_LE(chunk.bytes(), std::max(kChunk, strip.piece_bytes));
      if (chunk.begin > strip.begin) {
        EXPECT_EQ((chunk.begin - strip.begin) % strip.piece_bytes, 0) << strip.begin;
      }
      if (chunk.end < strip.end()) {
        EXPECT_EQ((chunk.end - strip.begin) % strip.piece_bytes, 0) << strip.begin;
      }
    }
  }
}

// Reads a file by a plan as the loader does, and holds every strip against the file.
void expect_all_strips_filled(std::vector<Strip> strips, const std::string& file) {
  std::vector<std::string> memory;
  for (const Strip& strip : strips) memory.emplace_back(static_cast<size_t>(strip.bytes()), '?');
  for (size_t i = 0; i < strips.size(); ++i) {
    strips[i].dest = reinterpret_cast<std::byte*>(memory[i].data());
  }
  ReadPlan plan;
  add_file(0, strips, kChunk, plan);
  for (const Chunk& chunk : plan.chunks) {
    std::vector<std::byte> bytes(static_cast<size_t>(chunk.bytes()));
    const Scatter made = scatter(plan, chunk, bytes.data());
    int64_t at = chunk.begin;
    ASSERT_LE(made.pieces.size(), 1024U) << "more than the system takes";
    for (const iovec& piece : made.pieces) {
      std::memcpy(piece.iov_base, file.data() + at, piece.iov_len);
      at += static_cast<int64_t>(piece.iov_len);
    }
    ASSERT_EQ(at, chunk.end);
    for (const uint32_t id : made.rest) {
      const Strip& strip = plan.strips[id];
      gather(strip,
             chunk.begin,
             chunk.end,
             bytes.data(),
             strip.dest + strip.bytes_before(chunk.begin));
    }
  }
  for (size_t i = 0; i < strips.size(); ++i) {
    std::string expected(memory[i].size(), '\0');
    gather(strips[i],
           0,
           static_cast<int64_t>(file.size()),
           reinterpret_cast<const std::byte*>(file.data()),
           reinterpret_cast<std::byte*>(expected.data()));
    EXPECT_EQ(memory[i], expected) << "strip " << i;
  }
}

TEST(ReadPlanTest, EveryStripGetsItsBytesInPlaceOrCopied) {
  const std::string file = random_bytes(1 << 20, 9);
  std::vector<Strip> strips;
  int64_t at = 40;
  for (int32_t rank = 0; rank < 4; ++rank) strips.push_back(columns(at, 400, 500, rank, 4));
  at += 400 * 500;
  for (int32_t rank = 0; rank < 4; ++rank) strips.push_back(whole(at + rank * 30000, 30000, rank));
  at += 4 * 30000;
  for (int32_t rank = 0; rank < 4; ++rank) strips.push_back(whole(at, 7000, rank));  // replicated
  at += 7000;
  strips.push_back(whole(at, 900, 0));  // ranks share a block of scales: these overlap
  strips.push_back(whole(at + 600, 900, 1));
  at += 1600;
  for (int i = 0; i < 3000; ++i) strips.push_back(whole(at + 40 * i, 40, i % 4));
  expect_all_strips_filled(strips, file);
}

}  // namespace
}  // namespace r1d::checkpoint
