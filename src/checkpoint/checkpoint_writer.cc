// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/checkpoint_writer.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "r1d/base/status.h"
#include "r1d/base/thread_pool.h"

#include "checkpoint/errors.h"
#include "checkpoint/little_endian.h"
#include "checkpoint/new_file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard_layout.h"

namespace r1d::checkpoint {
namespace {

namespace fs = std::filesystem;

// Large enough for a disk's full speed, small enough to stay near the caches until it is written.
constexpr int64_t kPieceBytes = 16 << 20;

// Rows of one tensor: what a thread makes and writes at a time.
struct Piece {
  size_t shard = 0;
  const PlacedTensor* tensor = nullptr;
  Range rows;
};

std::vector<Piece> pieces_of(const ShardLayout& shard, size_t index) {
  std::vector<Piece> pieces;
  for (const PlacedTensor& tensor : shard.tensors) {
    const int64_t step = std::max<int64_t>(kPieceBytes / tensor.row_bytes(), 1);
    for (int64_t row = 0; row < tensor.stored.rows; row += step) {
      pieces.push_back({index, &tensor, {row, std::min(row + step, tensor.stored.rows)}});
    }
  }
  return pieces;
}

// The files take turns: the system lets one thread at a time write into a file.
std::vector<Piece> all_pieces(const std::vector<ShardLayout>& shards) {
  std::vector<std::vector<Piece>> by_shard;
  size_t longest = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    by_shard.push_back(pieces_of(shards[i], i));
    longest = std::max(longest, by_shard.back().size());
  }
  std::vector<Piece> pieces;
  for (size_t turn = 0; turn < longest; ++turn) {
    for (const std::vector<Piece>& own : by_shard) {
      if (turn < own.size()) pieces.push_back(own[turn]);
    }
  }
  return pieces;
}

class Writer {
 public:
  Writer(const WeightSource& source, std::string dir, const std::vector<ShardLayout>& shards)
      : source_(source), dir_(std::move(dir)), shards_(shards) {}

  absl::Status write_shards(int32_t num_threads) {
    for (const ShardLayout& shard : shards_) {
      R1D_ASSIGN_OR_RETURN(auto file, NewFile::create(dir_ + "/" + shard.file));
      files_.push_back(std::move(file));
      R1D_RETURN_IF_ERROR(write_header(*files_.back(), shard));
    }
    R1D_RETURN_IF_ERROR(write_pieces(num_threads));
    for (const auto& file : files_) R1D_RETURN_IF_ERROR(file->close());
    return absl::OkStatus();
  }

  absl::Status write_text(const std::string& name, std::string_view text) {
    R1D_ASSIGN_OR_RETURN(auto file, NewFile::create(dir_ + "/" + name));
    files_.push_back(std::move(file));
    R1D_RETURN_IF_ERROR(files_.back()->write_at(0, bytes_of(text)));
    return files_.back()->close();
  }

  void keep() {
    for (const auto& file : files_) file->keep();
  }

 private:
  static absl::Status write_header(const NewFile& file, const ShardLayout& shard) {
    std::string prefix;
    for (int shift = 0; shift < 64; shift += 8) {
      prefix += static_cast<char>(shard.header.size() >> shift);
    }
    return file.write_at(0, bytes_of(prefix + shard.header));
  }

  absl::Status write_pieces(int32_t num_threads) {
    const std::vector<Piece> pieces = all_pieces(shards_);
    std::vector<std::vector<std::byte>> buffers(static_cast<size_t>(num_threads));
    std::atomic<bool> failed = false;
    absl::Status first_error;  // written once: by the thread that set `failed`
    base::ThreadPool pool(num_threads);
    pool.parallel_for(std::ssize(pieces), [&](int64_t task, int32_t thread) {
      if (failed) return;
      const absl::Status status =
          write_piece(pieces[static_cast<size_t>(task)], buffers[static_cast<size_t>(thread)]);
      if (!status.ok() && !failed.exchange(true)) first_error = status;
    });
    return first_error;
  }

  absl::Status write_piece(const Piece& piece, std::vector<std::byte>& buffer) const {
    const PlacedTensor& tensor = *piece.tensor;
    buffer.resize(static_cast<size_t>(piece.rows.size() * tensor.row_bytes()));
    R1D_RETURN_IF_ERROR(source_.read(
        tensor.name, {.rows = piece.rows, .cols = {0, tensor.stored.cols}}, std::span(buffer)));
    const int64_t offset =
        shards_[piece.shard].data_begin() + tensor.begin + piece.rows.begin * tensor.row_bytes();
    return files_[piece.shard]->write_at(offset, buffer);
  }

  const WeightSource& source_;
  const std::string dir_;
  const std::vector<ShardLayout>& shards_;
  std::vector<std::unique_ptr<NewFile>> files_;  // shards first
};

// Makes `dir`, or finds it empty, on a disk with room for `bytes`.
absl::Status prepare_directory(const std::string& dir, int64_t bytes) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) return failed_precondition("{}: cannot be created: {}", dir, error.message());
  const bool empty = fs::is_empty(dir, error);
  if (error) return failed_precondition("{}: cannot be read: {}", dir, error.message());
  if (!empty) return failed_precondition("{}: is not empty", dir);
  const fs::space_info space = fs::space(dir, error);
  if (!error && static_cast<int64_t>(space.available) < bytes) {
    return resource_exhausted("{}: {} bytes are needed, {} are free",
                              dir,
                              grouped(bytes),
                              grouped(static_cast<int64_t>(space.available)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WrittenCheckpoint> write_checkpoint(const WeightSource& source,
                                                   std::string_view config_json,
                                                   const std::string& dir,
                                                   const WriteOptions& options) {
  R1D_ASSIGN_OR_RETURN(const std::vector<ShardLayout> shards,
                       lay_out_shards(source, options.shard_bytes));
  WrittenCheckpoint written{.num_files = static_cast<int32_t>(shards.size())};
  int64_t file_bytes = 0;
  for (const ShardLayout& shard : shards) {
    written.num_tensors += std::ssize(shard.tensors);
    written.num_bytes += shard.data_bytes;
    file_bytes += shard.file_bytes();
  }
  R1D_RETURN_IF_ERROR(prepare_directory(dir, file_bytes));
  Writer writer(source, dir, shards);
  R1D_RETURN_IF_ERROR(writer.write_shards(std::max(options.num_threads, 1)));
  R1D_RETURN_IF_ERROR(writer.write_text("model.safetensors.index.json", index_json(shards)));
  R1D_RETURN_IF_ERROR(writer.write_text("config.json", config_json));
  writer.keep();
  return written;
}

}  // namespace r1d::checkpoint
