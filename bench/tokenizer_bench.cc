// SPDX-License-Identifier: Apache-2.0
// How fast one thread tokenizes: r1d_tokenizer_bench TOKENIZER TEXT_FILE [SECONDS]
// Encodes the file's lines again and again; prints one line of JSON. bench/tokenizer_speed.py runs
// it beside Hugging Face `tokenizers`.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "r1d/base/status.h"
#include "r1d/tokenizer/tokenizer.h"

namespace {

using Seconds = std::chrono::duration<double>;
using std::chrono::steady_clock;

std::vector<std::string> lines_of(const char* path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: r1d_tokenizer_bench TOKENIZER TEXT_FILE [SECONDS]\n");
    return 2;
  }
  const auto load_begin = steady_clock::now();
  const auto tokenizer = r1d::tokenizer::Tokenizer::load(argv[1]);
  if (!tokenizer.ok()) {
    fmt::print(stderr, "{}\n", r1d::message_of(tokenizer.status()));
    return 1;
  }
  const Seconds load_time = steady_clock::now() - load_begin;
  const std::vector<std::string> lines = lines_of(argv[2]);
  const Seconds wanted(argc > 3 ? std::atof(argv[3]) : 2.0);
  std::vector<r1d::TokenId> ids;
  int64_t num_bytes = 0;
  int64_t num_tokens = 0;
  const auto begin = steady_clock::now();
  Seconds elapsed{};
  do {
    for (const std::string& line : lines) {
      ids.clear();
      const r1d::tokenizer::Segment segment{line};
      if (!(*tokenizer)->encode(std::span(&segment, 1), ids).ok()) return 1;
      num_bytes += static_cast<int64_t>(line.size());
      num_tokens += static_cast<int64_t>(ids.size());
    }
    elapsed = steady_clock::now() - begin;
  } while (elapsed < wanted);
  fmt::print(
      "{{\"load_seconds\": {:.3f}, \"mb_per_second\": {:.2f}, \"tokens_per_second\": {:.0f}}}\n",
      load_time.count(),
      static_cast<double>(num_bytes) / 1e6 / elapsed.count(),
      static_cast<double>(num_tokens) / elapsed.count());
  return 0;
}
