// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <string_view>
#include <utility>

#include "r1d/base/file.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"
#include "r1d/base/version.h"
#include "r1d/checkpoint/packed.h"

#include "checkpoint/pack_directory.h"
#include "checkpoint/pack_sections.h"
#include "checkpoint/packed_file.h"
#include "checkpoint/packed_header.h"

namespace r1d::checkpoint {
namespace {

// What r1d reads beside the weights. config.json is last: a directory without it is not finished.
constexpr std::array<std::string_view, 7> kCopied{"tokenizer.json",
                                                  "tokenizer_config.json",
                                                  "chat_template.jinja",
                                                  "generation_config.json",
                                                  "golden.json",
                                                  "golden.safetensors",
                                                  "config.json"};
constexpr int64_t kMostCopiedBytes = 256 << 20;

struct Copy {
  std::string name;
  std::string text;
};

absl::StatusOr<std::vector<Copy>> read_copies(const std::string& dir) {
  std::vector<Copy> copies;
  for (const std::string_view name : kCopied) {
    const std::string path = dir + "/" + std::string(name);
    absl::StatusOr<std::string> text = read_text_file(path, kMostCopiedBytes);
    if (absl::IsNotFound(text.status()) && name != "config.json") continue;
    if (!text.ok()) return with_context(text.status(), path);
    copies.push_back({std::string(name), *std::move(text)});
  }
  return copies;
}

absl::Status check_options(const PackOptions& options) {
  if (options.piece_bytes < kLeastPieceBytes || options.piece_bytes > kMostPieceBytes ||
      !std::has_single_bit(static_cast<uint64_t>(options.piece_bytes))) {
    return invalid_argument("piece_bytes: expected a power of two from {} to {}, found {}",
                            kLeastPieceBytes,
                            kMostPieceBytes,
                            options.piece_bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<RankFile>> lay_out_ranks(const WeightSource& source,
                                                    const PackOptions& options) {
  const auto dtype_of = [&source](const std::string& name) -> absl::StatusOr<DType> {
    R1D_ASSIGN_OR_RETURN(const StoredTensor stored, source.find(name));
    return stored.dtype;
  };
  std::vector<RankFile> ranks;
  for (int32_t rank = 0; rank < std::max(options.world_size, 1); ++rank) {
    R1D_ASSIGN_OR_RETURN(
        const RankShard shard,
        make_rank_shard(source.config(), rank, options.world_size, options.expert_split));
    RankFile& file = ranks.emplace_back();
    R1D_ASSIGN_OR_RETURN(
        file.layout,
        lay_out_packed(source.config(), source.has_mtp(), shard, options.piece_bytes, dtype_of));
    file.checksums.resize(static_cast<size_t>(file.layout.num_pieces));
  }
  return ranks;
}

// Of the weights, whatever was packed when and where.
Digest set_digest(const std::vector<RankFile>& ranks) {
  DigestBuilder digest;
  for (const RankFile& rank : ranks) digest.add(std::as_bytes(std::span(rank.checksums)));
  return digest.finish();
}

class Packer {
 public:
  Packer(const WeightSource& source, std::vector<RankFile>& ranks, const PackOptions& options)
      : source_(source), ranks_(ranks), options_(options) {}

  absl::Status write(PackDirectory& directory, const std::string& description) {
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      const std::string name =
          packed_file_name(static_cast<int32_t>(rank), static_cast<int32_t>(ranks_.size()));
      R1D_ASSIGN_OR_RETURN(ranks_[rank].file, directory.add(name));
      R1D_RETURN_IF_ERROR(ranks_[rank].file->reserve(ranks_[rank].layout.file_bytes));
      R1D_RETURN_IF_ERROR(ranks_[rank].file->resize(ranks_[rank].layout.file_bytes));
    }
    R1D_RETURN_IF_ERROR(write_sections(source_, ranks_, options_));
    return write_headers(description);
  }

 private:
  // Last: before, none of the files is one that opens.
  absl::Status write_headers(const std::string& description) {
    PackedPage page;
    page.world_size = options_.world_size;
    page.expert_split = options_.expert_split;
    page.has_mtp = source_.has_mtp();
    page.piece_bytes = options_.piece_bytes;
    page.model = model_digest(source_.config(), source_.has_mtp());
    page.set = set_digest(ranks_);
    page.source = description;
    for (const RankFile& rank : ranks_) {
      const std::string header = encode_packed_header(page, rank.layout, rank.checksums);
      R1D_RETURN_IF_ERROR(rank.file->write_at(0, std::as_bytes(std::span(header))));
      ++page.rank;
    }
    return absl::OkStatus();
  }

  const WeightSource& source_;
  std::vector<RankFile>& ranks_;
  const PackOptions& options_;
};

std::string describe(const std::string& model_dir) {
  std::error_code error;
  const auto path = std::filesystem::absolute(model_dir, error).lexically_normal();
  return fmt::format("r1d {} from {}",
                     base::version(),
                     printable(error ? model_dir : path.string(), kMostSourceBytes / 2));
}

}  // namespace

absl::StatusOr<Packed> pack_checkpoint(const std::string& model_dir,
                                       const std::string& dir,
                                       const PackOptions& options) {
  R1D_RETURN_IF_ERROR(check_options(options));
  if (is_packed(model_dir)) {
    return failed_precondition("{}: is packed already; pack the checkpoint that it came from",
                               model_dir);
  }
  R1D_ASSIGN_OR_RETURN(const auto source, open_hugging_face(model_dir));
  R1D_ASSIGN_OR_RETURN(const std::vector<Copy> copies, read_copies(model_dir));
  R1D_ASSIGN_OR_RETURN(std::vector<RankFile> ranks, lay_out_ranks(*source, options));
  Packed packed;
  for (const RankFile& rank : ranks) {
    packed.file_bytes.push_back(rank.layout.file_bytes);
    packed.num_sections += std::ssize(rank.layout.sections);
  }
  for (const Copy& copy : copies) packed.copied_bytes += std::ssize(copy.text);
  R1D_ASSIGN_OR_RETURN(const auto directory, PackDirectory::open(dir));
  R1D_RETURN_IF_ERROR(directory->check_space(packed.file_bytes, packed.copied_bytes));
  R1D_RETURN_IF_ERROR(Packer(*source, ranks, options).write(*directory, describe(model_dir)));
  for (const Copy& copy : copies) {
    R1D_RETURN_IF_ERROR(directory->add_text(copy.name, copy.text));
  }
  R1D_RETURN_IF_ERROR(directory->publish());
  return packed;
}

}  // namespace r1d::checkpoint
